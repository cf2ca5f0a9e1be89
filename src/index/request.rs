//! Requests for nearest neighbours and their results.

use std::collections::HashSet;
use std::fmt;

use super::kind::IndexKind;
use super::metric::Metric;
use super::neighbour::Neighbour;

/// A vector whose neighbours are wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryVector {
    /// `[dim]`, of the dimension of the table's vectors.
    pub vector: Vec<f32>,
    /// A row that must not be among the neighbours: the one that the vector comes from.
    pub exclude: Option<u64>,
}

/// A request for the nearest neighbours of one or more query vectors.
#[derive(Debug, Clone, Copy)]
pub struct KnnRequest<'a> {
    /// The query vectors.
    pub queries: &'a [QueryVector],
    /// Number of neighbours of each query vector.
    pub k: usize,
    /// Distance metric.
    pub metric: Metric,
    /// Rows that may be neighbours; `None` allows all.
    pub filter: Option<&'a HashSet<u64>>,
}

/// Answer to a [`KnnRequest`].
#[derive(Debug, Clone, PartialEq)]
pub struct KnnResult {
    /// Neighbours of each query vector, nearest first.
    pub neighbours: Vec<Vec<Neighbour>>,
    /// How they were found.
    pub method: SearchMethod,
}

/// How a request is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SearchMethod {
    /// By an exact scan of all vectors.
    Exact,
    /// By the index of this kind and name.
    Index(IndexKind, String),
    /// By an exact scan because the index cannot be used, for this reason.
    ExactInstead(String),
}

impl fmt::Display for SearchMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SearchMethod::Exact => f.write_str("exact scan"),
            SearchMethod::Index(IndexKind::Hnsw, name) => write!(f, "index '{name}'"),
            SearchMethod::Index(kind, name) => write!(f, "index '{name}' ({})", kind.name()),
            SearchMethod::ExactInstead(why) => write!(f, "exact scan, because {why}"),
        }
    }
}
