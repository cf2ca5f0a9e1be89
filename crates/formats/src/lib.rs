//! Files of cells: every common format becomes features and then blocks of cells ([`CellSource`]), in memory that
//! depends on the block and not on the file. Also writes `.h5ad`.
//!
//! Formats are recognised by content ([`open()`]). Sizes a file states are checked against what it holds before anything
//! is allocated by them; every error names the file and the object in it.
//!
//! Depends on `schemas` for what a gene name is (to tell which axis of a table holds genes). Knows nothing of stores,
//! models or SQL, so that readers can be fuzzed without building any of these.

mod block;
pub mod counts;
mod dense;
mod error;
mod features;
mod gene_order;
mod gzip;
mod h5;
mod h5ad;
mod loom;
mod matrix_market;
mod npz;
mod open;
mod rows;
mod spill;
mod table;
mod tenx;
pub mod write;

pub use block::{Block, CellSource, ObsColumn};
pub use error::FormatError;
pub use gene_order::{GeneSorter, ValueError};
pub use open::{Kind, OpenOptions, inputs, open, parts, recognise};
pub use table::{Batches, TableReader, TableSource};

/// Result of everything in this crate.
pub type Result<T, E = FormatError> = std::result::Result<T, E>;
