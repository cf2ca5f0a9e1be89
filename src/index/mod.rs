//! Nearest neighbours among the vectors of an embedding table.
//!
//! An HNSW graph (`cellql-neighbours`) in checked files answers most requests, Lance's IVF those over more vectors than
//! memory holds, and an exact scan all others. [`Searcher::plan`] chooses between them.
//!
//! Depends on `store`. Knows nothing of models or SQL: it indexes vectors, wherever they come from.

mod build;
mod choice;
mod entries;
mod files;
mod hnsw;
mod ivf;
mod kind;
mod loaded;
mod metric;
mod neighbour;
mod request;
mod search;
mod vectors;

pub use build::build;
pub use entries::{BuiltIndex, IndexEntry, list};
pub use kind::IndexKind;
pub use metric::Metric;
pub use neighbour::Neighbour;
pub use request::{KnnRequest, KnnResult, QueryVector, SearchMethod};
pub use search::Searcher;
pub use vectors::{Vectors, exact};
