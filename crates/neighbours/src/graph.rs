//! The HNSW graph: the layers each vector is on and its links there.

use crate::memory::Links;
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

/// An HNSW graph over unit vectors. It holds quantised vectors and links, not the f32 vectors.
#[derive(Debug)]
pub struct HnswGraph {
    pub(crate) quantised: QuantisedVectors,
    /// `[n]`: the highest layer each vector is on; 0 is the base layer.
    pub(crate) levels: Vec<u8>,
    /// `[n]`: row of a vector's layer 1 in `upper`. The rows of its higher layers follow.
    pub(crate) first_upper: Vec<u32>,
    /// `[n, 2 M]`: links on the base layer.
    pub(crate) base: Links,
    /// `[sum of levels, M]`: links on the layers above.
    pub(crate) upper: Links,
    /// A vector of the highest level. Every search starts there.
    pub(crate) entry_point: u32,
}

impl HnswGraph {
    /// Number of vectors.
    pub fn len(&self) -> usize {
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

    /// The links of a layer (0 is the base layer), and the row of a vector in them.
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
