//! Training a model from the cells of a store.
//!
//! Some cells are held out ([`split`]), the others come in random order ([`loader`]), and a run of steps over them can
//! be stopped and resumed anywhere ([`mod@run`]). Examples, gradients and the optimiser are those of `cellql_training`.
//!
//! Depends on `training` and `store`. Knows nothing of SQL or the terminal.

pub mod loader;
pub mod measured;
pub mod run;
pub mod split;

pub use loader::Loader;
pub use measured::MeasuredGenes;
pub use run::{Ended, Run};
pub use split::{Split, split};
