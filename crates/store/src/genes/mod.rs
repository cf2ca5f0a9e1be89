//! The genes of a store: the rows of `genes` for the features of a file, and the row that a name in a query means.
//!
//! Depends on `schemas` for the table and the nomenclature. Knows nothing of file formats or models.

mod catalogue;
pub(crate) mod error;
mod register;
mod report;

pub use catalogue::Catalogue;
pub use error::GeneError;
pub use report::{GeneReport, Renamed};
