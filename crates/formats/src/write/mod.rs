//! Writers of files of cells.

pub mod h5ad;
