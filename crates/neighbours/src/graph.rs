//! The HNSW graph: the layers each vector is on and its links there.

use crate::memory::Links;
use crate::nodes::NodeMembers;
use crate::quantised::QuantisedVectors;

/// How a graph is built, in the words of the HNSW paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HnswConfig {
    /// M: links per vector on each layer above the base layer, 2 to 255. The base layer has `m0` = 2 M.
    pub m: usize,
    /// Number of candidates kept while the neighbours of a new vector are searched. At least `m` is sensible.
    pub ef_construction: usize,
    /// Seed of the vectors' levels and of the order of insertion.
    pub seed: u64,
}

impl HnswConfig {
    /// M as it is used: [`m`](Self::m) brought into its range.
    pub(crate) fn clamped_m(&self) -> usize {
        self.m.clamp(2, 255)
    }
}

impl Default for HnswConfig {
    fn default() -> Self {
        Self { m: 16, ef_construction: 128, seed: 0 }
    }
}

/// Links per vector on the base layer for an M (`m0` of hnswlib and qdrant).
pub(crate) const fn m0(m: usize) -> usize {
    2 * m
}

/// A vector shares a node if its distance from the node's own vector is at most this many times the typical error of
/// codes. Codes do not tell which of nearer vectors is nearest to a query, and links that are selected by codes lead to
/// some of them only. Farther vectors have nodes of their own, and a search keeps more candidates where codes do not
/// decide ([`EncodedQuery::margin`](crate::quantised::EncodedQuery::margin)).
pub(crate) const RADIUS: f32 = 3.0;

/// An HNSW graph over unit vectors. It holds quantised vectors and links, not the f32 vectors. Each node stands for one
/// vector, or for several that are equal or nearly so.
#[derive(Debug)]
pub struct HnswGraph {
    /// `[nodes]`: for each node the codes of one of its vectors.
    pub(crate) quantised: QuantisedVectors,
    /// The vectors of each node; `None` if each node stands for the vector of its own position.
    pub(crate) members: Option<NodeMembers>,
    /// `[nodes]`: the highest layer each node is on; 0 is the base layer.
    pub(crate) levels: Vec<u8>,
    /// `[nodes]`: row of a node's layer 1 in `upper`. The rows of its higher layers follow.
    pub(crate) first_upper: Vec<u32>,
    /// `[nodes, 2 M]`: links on the base layer.
    pub(crate) base: Links,
    /// `[sum of levels, M]`: links on the layers above.
    pub(crate) upper: Links,
    /// A node of the highest level. Every search starts there.
    pub(crate) entry_point: u32,
}

/// `[nodes]`: for nodes of these levels, the row of each one's layer 1 among all rows of the upper layers.
pub(crate) fn first_upper_rows(levels: &[u8]) -> Vec<u32> {
    levels.iter().scan(0, |sum, level| Some(std::mem::replace(sum, *sum + u32::from(*level)))).collect()
}

impl HnswGraph {
    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.members.as_ref().map_or(self.nodes(), |members| members.positions.len())
    }

    /// Number of nodes, at most that of vectors.
    pub(crate) fn nodes(&self) -> usize {
        self.levels.len()
    }

    /// True if the graph has no vectors.
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// Dimension of the vectors.
    pub fn dim(&self) -> usize {
        self.quantised.dim
    }

    /// The links of a layer (0 is the base layer), and the row of a node in them.
    pub(crate) fn layer(&self, layer: usize) -> (&Links, impl Fn(u32) -> usize + '_) {
        let links = if layer == 0 { &self.base } else { &self.upper };
        let row =
            move |id: u32| if layer == 0 { id as usize } else { self.first_upper[id as usize] as usize + layer - 1 };
        (links, row)
    }

    /// The highest layer: that of the entry point. The graph is not empty.
    pub(crate) fn top_layer(&self) -> usize {
        usize::from(self.levels[self.entry_point as usize])
    }
}
