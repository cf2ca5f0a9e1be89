//! Nearest neighbours among the vectors of an embedding table.
//!
//! A graph (`cellql-neighbours`) behind checked files answers most questions; an exact scan answers the rest, and checks the graph.
//! [`uses_graph`] is the one place that decides.
//!
//! Depends on `store`. Knows nothing of models or SQL: an index rests on vectors, wherever they come from.

mod file;
mod graph;
mod search;
mod vectors;

pub use file::{Entry, Manifest, build, list};
pub use graph::{Graph, GraphOptions};
pub use search::{Method, Neighbour, Query, Request, search, uses_graph};
pub use vectors::{Vectors, exact};
