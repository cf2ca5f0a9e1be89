//! Training a model from the cells of a store.
//!
//! So far the task alone ([`task`]): what a cell becomes before a model learns from it.
//!
//! Depends on `model` and `store`. Knows nothing of SQL or the terminal.

pub mod task;

pub use task::{Example, Task};
