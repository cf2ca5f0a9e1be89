//! Building the graph: vectors are inserted one by one, on all threads.
//!
//! Rows of links are read without locks and written under one of a few thousand locks. A vector's level depends only on
//! the seed and its position. The entry point is the vector of the highest level, chosen before the first insertion, so
//! it never changes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::graph::{HnswConfig, HnswGraph, m0};
use crate::memory::Links;
use crate::quantised::{EncodedQuery, QuantisedVectors};
use crate::search::SearchScratch;

/// Number of locks. A row is locked by the one at its position modulo this.
const LOCKS: usize = 4096;
/// The highest level a vector can have: enough for 4¹⁶ vectors with M = 2.
const MAX_LEVEL: u8 = 31;

impl HnswGraph {
    /// Builds the graph over unit vectors `[n, dim]`. `progress` gets the number of vectors linked so far, every
    /// thousand or so and from any thread.
    ///
    /// # Panics
    /// The length of `vectors` is not a multiple of `dim`, there are 2³² − 1 vectors or more, or `dim` is 0 or above
    /// 65,536.
    pub fn build(vectors: &[f32], dim: usize, config: &HnswConfig, progress: impl Fn(u64) + Sync) -> Self {
        assert!((1..=65_536).contains(&dim) && vectors.len().is_multiple_of(dim), "no vectors of that dimension");
        let n = vectors.len() / dim;
        assert!(n < u32::MAX as usize, "too many vectors");
        let m = config.clamped_m();
        let levels: Vec<u8> = (0..n as u64).map(|i| level(config.seed, i, m)).collect();
        let first_upper: Vec<u32> =
            levels.iter().scan(0, |sum, level| Some(std::mem::replace(sum, *sum + u32::from(*level)))).collect();
        let upper_rows = levels.iter().map(|level| usize::from(*level)).sum();
        let entry_point = (0..n).max_by_key(|i| (levels[*i], std::cmp::Reverse(*i))).unwrap_or(0) as u32;
        let graph = Self {
            quantised: QuantisedVectors::new(vectors, dim),
            levels,
            first_upper,
            base: Links::empty(n, m0(m)),
            upper: Links::empty(upper_rows, m),
            entry_point,
        };
        graph.insert_all(vectors, config, &progress);
        graph
    }

    fn insert_all(&self, vectors: &[f32], config: &HnswConfig, progress: &(impl Fn(u64) + Sync)) {
        const REPORT_EVERY: u64 = 1024;
        let order = shuffled(self.len(), config.seed);
        let locks: Vec<Mutex<()>> = (0..LOCKS).map(|_| Mutex::new(())).collect();
        let done = AtomicU64::new(0);
        order.par_iter().with_max_len(64).filter(|id| **id != self.entry_point).for_each(|id| {
            let vector = &vectors[*id as usize * self.dim()..][..self.dim()];
            SCRATCH.with_borrow_mut(|scratch| self.insert(*id, vector, config.ef_construction, &locks, scratch));
            let linked = done.fetch_add(1, Ordering::Relaxed) + 1;
            if linked.is_multiple_of(REPORT_EVERY) {
                progress(linked);
            }
        });
        progress(self.len() as u64);
    }

    /// INSERT of the paper: links a vector on all its layers. The neighbours are found from the top layer down, and the
    /// links are written from the base layer up, so that no other thread reaches the vector on a layer before it is
    /// linked below.
    fn insert(
        &self,
        id: u32,
        vector: &[f32],
        ef_construction: usize,
        locks: &[Mutex<()>],
        scratch: &mut InsertScratch,
    ) {
        let InsertScratch { search, selection, selected, query } = scratch;
        self.quantised.encode(vector, query);
        let level = usize::from(self.levels[id as usize]);
        selected.resize_with(selected.len().max(level + 1), Vec::new);
        selected.iter_mut().for_each(Vec::clear);
        self.search_upper_layers(query, level, search);
        for layer in (0..=level).rev() {
            self.search_layer(query, layer, ef_construction, search);
            selection.candidates.clear();
            selection.candidates.extend(search.best.iter().map(|best| (query.dot(best.product), best.id)));
            selection.select(&self.quantised, self.upper.width());
            selected[layer].clone_from(&selection.selected);
        }
        for (layer, selected) in selected.iter().enumerate().take(level + 1) {
            let (links, row) = self.layer(layer);
            links.set(row(id), selected.iter().copied());
            for other in selected {
                self.add_reverse_link(layer, *other, id, &locks[*other as usize % LOCKS], selection);
            }
        }
    }

    /// Adds a link from a neighbour back to the inserted vector. If the row is full, its links are selected anew.
    fn add_reverse_link(&self, layer: usize, from: u32, to: u32, lock: &Mutex<()>, selection: &mut Selection) {
        let (links, row) = self.layer(layer);
        let row = row(from);
        let _held = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if links.push(row, to) {
            return;
        }
        let ids: Vec<u32> = links.of(row).chain([to]).collect();
        selection.rank(&self.quantised, from, &ids);
        selection.select(&self.quantised, links.width());
        links.set(row, selection.selected.iter().copied());
    }
}

thread_local! {
    static SCRATCH: std::cell::RefCell<InsertScratch> = std::cell::RefCell::default();
}

/// Buffers of an insertion, kept by each thread.
#[derive(Debug, Default)]
struct InsertScratch {
    search: SearchScratch,
    selection: Selection,
    /// The selected neighbours by layer.
    selected: Vec<Vec<u32>>,
    query: EncodedQuery,
}

/// SELECT-NEIGHBORS-HEURISTIC of the paper: a candidate is selected if it is nearer to the vector than to all
/// candidates selected before it. So links lead in different directions.
#[derive(Debug, Default)]
struct Selection {
    /// Dot product with the vector, and id; nearest first.
    candidates: Vec<(f32, u32)>,
    selected: Vec<u32>,
    /// The selected vectors, encoded.
    encoded: Vec<EncodedQuery>,
    query: EncodedQuery,
    products: Vec<i32>,
}

impl Selection {
    /// Sets the candidates: `ids` in the order of their distance from `from`.
    fn rank(&mut self, quantised: &QuantisedVectors, from: u32, ids: &[u32]) {
        quantised.encode_row(from, &mut self.query);
        quantised.products(&self.query, ids, &mut self.products);
        self.candidates.clear();
        self.candidates.extend(self.products.iter().zip(ids).map(|(product, id)| (self.query.dot(*product), *id)));
        self.candidates.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    }

    /// Selects up to `most` of the candidates.
    fn select(&mut self, quantised: &QuantisedVectors, most: usize) {
        self.selected.clear();
        self.encoded.resize_with(self.encoded.len().max(most), EncodedQuery::default);
        for (product, id) in &self.candidates {
            let mut before = self.encoded[..self.selected.len()].iter();
            if before.any(|selected| quantised.dot(selected, *id, &mut self.products) > *product) {
                continue;
            }
            quantised.encode_row(*id, &mut self.encoded[self.selected.len()]);
            self.selected.push(*id);
            if self.selected.len() == most {
                return;
            }
        }
    }
}

/// SplitMix64: a pseudorandom number from a seed and a counter.
fn random(seed: u64, counter: u64) -> u64 {
    let mut z = seed.wrapping_add(counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Level of a vector: exponentially distributed with the paper's mL = 1 / ln M, so one in M vectors is on each further
/// layer.
fn level(seed: u64, id: u64, m: usize) -> u8 {
    let uniform = ((random(seed, id) >> 11) + 1) as f64 / (1u64 << 53) as f64;
    (-uniform.ln() / (m as f64).ln()).min(f64::from(MAX_LEVEL)) as u8
}

/// Positions 0 to `n` in random order. Sets are often sorted, and a graph built in sorted order would lack long links.
fn shuffled(n: usize, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        order.swap(i, (random(!seed, i as u64) % (i as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_m_is_on_each_further_layer() {
        let levels: Vec<u8> = (0..100_000).map(|i| level(1, i, 10)).collect();
        for (layer, expected) in [(1, 10_000.0f64), (2, 1_000.0), (3, 100.0)] {
            let on = levels.iter().filter(|l| **l >= layer).count() as f64;
            assert!((on - expected).abs() < 5.0 * expected.sqrt(), "{on} on layer {layer}");
        }
    }

    #[test]
    fn the_order_names_every_vector_once() {
        let mut order = shuffled(1000, 3);
        assert_ne!(order[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        order.sort_unstable();
        assert!(order.into_iter().eq(0..1000));
    }
}
