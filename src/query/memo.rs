//! What models already computed in this session, by what it was computed from.
//!
//! However DataFusion shapes a query – a filter and a projection over the same call, a join that repeats a subquery, a
//! call in ORDER BY and in SELECT – each distinct cell goes through the model once. Keyed by recipe and content, so a
//! hit is the same computation, never a similar one.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use cellql_schemas::recipe::Recipe;

use cellql_store::ContentHash;

/// Bytes of vectors kept; the oldest go first.
const CAPACITY: usize = 256 << 20;

/// BLAKE3 over recipe and expression.
pub(super) type Key = [u8; 32];

/// One cell's embedding: vector (`None` where it has none) and vocabulary genes seen.
#[derive(Debug, Clone)]
pub(super) struct Remembered {
    pub(super) vector: Option<Arc<[f32]>>,
    pub(super) genes_seen: u32,
}

/// Bounded memory of embeddings.
#[derive(Debug, Default)]
pub(super) struct Memo {
    known: HashMap<Key, Remembered>,
    order: VecDeque<Key>,
    bytes: usize,
}

/// The key of a cell: `what` is computed of it under a recipe.
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

impl Memo {
    pub(super) fn get(&self, key: &Key) -> Option<Remembered> {
        self.known.get(key).cloned()
    }

    pub(super) fn put(&mut self, key: Key, value: Remembered) {
        let size = value.vector.as_ref().map_or(0, |v| 4 * v.len()) + 64;
        if self.known.insert(key, value).is_none() {
            self.order.push_back(key);
            self.bytes += size;
        }
        while self.bytes > CAPACITY {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(gone) = self.known.remove(&oldest) {
                self.bytes -= gone.vector.map_or(0, |v| 4 * v.len()) + 64;
            }
        }
    }
}
