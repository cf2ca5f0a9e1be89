//! Writers of files of cells.

pub mod h5ad;
mod partial;

pub use partial::PartialFile;
