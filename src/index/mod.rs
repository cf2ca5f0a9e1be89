//! Nearest neighbours among the vectors of an embedding table.
//!
//! A graph (`cellql-neighbours`) behind our own files answers most questions, Lance's IVF those about more vectors than memory
//! holds; an exact scan answers the rest, and checks both. [`Searcher::plan`] is the one place that decides.
//!
//! Depends on `store`. Knows nothing of models or SQL: an index rests on vectors, wherever they come from.

mod file;
mod graph;
mod ivf;
mod kind;
mod metric;
mod search;
mod vectors;

pub use file::{Built, Entry, list};
pub use kind::{Kind, build};
pub use metric::Metric;
pub use search::{Found, Method, Neighbour, Question, Searcher};
pub use vectors::{Vectors, exact};
