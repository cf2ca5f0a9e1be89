//! Cache of the vectors that models computed in this session.
//!
//! A query may name a call more than once: in a filter and a projection, in ORDER BY and in SELECT, in a subquery that
//! a join repeats. With the cache each distinct cell goes through the model once. Keys are a hash of the recipe and of
//! the cell's content, so a hit is the same computation.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use cellql_schemas::recipe::Recipe;

use cellql_store::ContentHash;

/// Bytes of vectors kept; the oldest are dropped first.
const CAPACITY: usize = 256 << 20;

/// BLAKE3 over recipe and expression.
pub(super) type Key = [u8; 32];

/// One cell's embedding: vector (`None` where it has none) and vocabulary genes seen.
#[derive(Debug, Clone)]
pub(super) struct CachedVector {
    pub(super) vector: Option<Arc<[f32]>>,
    pub(super) genes_seen: u32,
}

/// Vectors by what they were computed of, up to [`CAPACITY`].
#[derive(Debug, Default)]
pub(super) struct VectorCache {
    vectors: HashMap<Key, CachedVector>,
    order: VecDeque<Key>,
    bytes: usize,
}

/// The key of the vector that `what` computes of a cell with a recipe.
pub(super) fn key(what: &str, recipe: &Recipe, cell: ContentHash, total: Option<f64>) -> Key {
    let mut hash = blake3::Hasher::new();
    for part in [what, &recipe.model, &recipe.name()] {
        hash.update(part.as_bytes());
        hash.update(&[0]);
    }
    hash.update(&total.unwrap_or(f64::NAN).to_le_bytes());
    hash.update(cell.bytes());
    *hash.finalize().as_bytes()
}

impl VectorCache {
    pub(super) fn get(&self, key: &Key) -> Option<CachedVector> {
        self.vectors.get(key).cloned()
    }

    pub(super) fn put(&mut self, key: Key, value: CachedVector) {
        let size = value.vector.as_ref().map_or(0, |v| 4 * v.len()) + 64;
        if self.vectors.insert(key, value).is_none() {
            self.order.push_back(key);
            self.bytes += size;
        }
        while self.bytes > CAPACITY {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(gone) = self.vectors.remove(&oldest) {
                self.bytes -= gone.vector.map_or(0, |v| 4 * v.len()) + 64;
            }
        }
    }
}
