//! Training a model from the cells of a store.
//!
//! Some cells are held out ([`mod@split`]). The others are read in random order ([`loader`]), mixed or
//! data set by data set ([`batches`]). A run can be stopped and
//! resumed at any step ([`mod@run`]). Examples, gradients and the optimiser are in `cellql_training`.
//!
//! Depends on `training` and `store`. Knows nothing of SQL or the terminal.

pub mod batches;
mod examples;
pub mod loader;
pub mod measured;
pub mod run;
pub mod split;
mod step_gradients;
pub mod targets;

pub use batches::CellBatches;
pub use loader::{CellReading, Loader};
pub use measured::MeasuredGenes;
pub use run::{Run, RunResult};
pub use split::{Split, SplitCounts, split};
pub use targets::Targets;
