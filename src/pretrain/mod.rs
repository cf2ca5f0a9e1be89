//! Training a model from the cells of a store.
//!
//! Some cells are held out ([`mod@split`]). The others are read in random order ([`loader`]). A run can be stopped and
//! resumed at any step ([`mod@run`]). Examples, gradients and the optimiser are in `cellql_training`.
//!
//! Depends on `training` and `store`. Knows nothing of SQL or the terminal.

pub mod loader;
pub mod measured;
pub mod run;
pub mod split;

pub use loader::Loader;
pub use measured::MeasuredGenes;
pub use run::{Run, RunResult};
pub use split::{Split, SplitCounts, split};
