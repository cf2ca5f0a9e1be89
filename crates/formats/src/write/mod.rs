//! Writers.

pub mod h5ad;
