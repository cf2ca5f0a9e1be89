//! Vectors of cells, and why some cells have none.

use crate::input::NotEmbeddable;
use crate::output_map::OutputMap;

/// A vector per cell.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Embeddings {
    /// `[cells, dim]`; zeros for cells without an embedding.
    pub vectors: Vec<f32>,
    /// Vocabulary genes expressed in each cell.
    pub genes_seen: Vec<u32>,
    /// Why a cell has no embedding; `None` where it has one.
    pub refused: Vec<Option<NotEmbeddable>>,
    /// Tokens that were encoded.
    pub tokens: u64,
    /// Batches they came in.
    pub batches: u64,
}

impl Embeddings {
    /// The same through an output map; cells without an embedding stay zeros.
    pub(crate) fn mapped(self, map: &OutputMap) -> Self {
        let mut vectors = map.apply(&self.vectors);
        for (vector, refused) in vectors.chunks_exact_mut(map.outputs().max(1)).zip(&self.refused) {
            if refused.is_some() {
                vector.fill(0.0);
            }
        }
        Self { vectors, ..self }
    }
}
