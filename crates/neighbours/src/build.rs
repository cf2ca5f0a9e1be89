//! Building: vectors are linked one by one, on all threads.
//!
//! Rows are read without locks and written under one of a few thousand. A vector's level depends on the seed and its
//! position alone; the vector of the highest level is there from the start, so the entry never changes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::codes::{Codes, Query};
use crate::graph::{Graph, Options};
use crate::memory::Links;
use crate::walk::Scratch;

/// Locks of rows; a row has the one of its number modulo this.
const LOCKS: usize = 4096;
/// No vector is on more layers above the ground: enough for 4¹⁶ vectors of two links.
const HIGHEST: u8 = 31;

impl Graph {
    /// Links unit vectors `[n, dim]`. `progress` is told how many are linked, now and then and from any thread.
    ///
    /// # Panics
    /// `vectors` is no whole number of vectors, there are 2³² or more of them, or `dim` is 0 or above 65,536.
    pub fn build(vectors: &[f32], dim: usize, options: &Options, progress: impl Fn(u64) + Sync) -> Self {
        assert!((1..=65_536).contains(&dim) && vectors.len().is_multiple_of(dim), "no vectors of that dimension");
        let n = vectors.len() / dim;
        assert!(n < u32::MAX as usize, "too many vectors");
        let m = options.links.clamp(2, 255);
        let levels: Vec<u8> = (0..n as u64).map(|i| level(options.seed, i, m)).collect();
        let first: Vec<u32> =
            levels.iter().scan(0, |sum, level| Some(std::mem::replace(sum, *sum + u32::from(*level)))).collect();
        let rows = levels.iter().map(|level| usize::from(*level)).sum();
        let entry = (0..n).max_by_key(|i| (levels[*i], std::cmp::Reverse(*i))).unwrap_or(0) as u32;
        let graph = Self {
            codes: Codes::new(vectors, dim),
            levels,
            first,
            ground: Links::empty(n, 2 * m),
            upper: Links::empty(rows, m),
            entry,
        };
        graph.link_all(vectors, options, &progress);
        graph
    }

    fn link_all(&self, vectors: &[f32], options: &Options, progress: &(impl Fn(u64) + Sync)) {
        const SOMETIMES: u64 = 1024;
        let order = shuffled(self.len(), options.seed);
        let locks: Vec<Mutex<()>> = (0..LOCKS).map(|_| Mutex::new(())).collect();
        let done = AtomicU64::new(0);
        order.par_iter().with_max_len(64).filter(|id| **id != self.entry).for_each(|id| {
            let vector = &vectors[*id as usize * self.dim()..][..self.dim()];
            WORK.with_borrow_mut(|work| self.link(*id, vector, options.breadth, &locks, work));
            let linked = done.fetch_add(1, Ordering::Relaxed) + 1;
            if linked.is_multiple_of(SOMETIMES) {
                progress(linked);
            }
        });
        progress(self.len() as u64);
    }

    /// Links a vector on all its layers. What it is to be linked to is found from the top down and written from the bottom
    /// up: so nobody reaches it on a layer before it is linked below.
    fn link(&self, id: u32, vector: &[f32], breadth: usize, locks: &[Mutex<()>], work: &mut Work) {
        let Work { scratch, selection, chosen, query } = work;
        self.codes.prepare(vector, query);
        let top = usize::from(self.levels[id as usize]);
        chosen.resize_with(chosen.len().max(top + 1), Vec::new);
        chosen.iter_mut().for_each(Vec::clear);
        self.approach(query, top, scratch);
        for layer in (0..=top).rev() {
            self.walk(query, layer, breadth, scratch);
            selection.candidates.clear();
            selection.candidates.extend(scratch.best.iter().map(|step| (query.product(step.product), step.id)));
            selection.choose(&self.codes, self.upper.width());
            chosen[layer].clone_from(&selection.chosen);
        }
        for (layer, chosen) in chosen.iter().enumerate().take(top + 1) {
            let (links, row) = self.layer(layer);
            links.set(row(id), chosen.iter().copied());
            for other in chosen {
                self.link_back(layer, *other, id, &locks[*other as usize % LOCKS], selection);
            }
        }
    }

    /// Adds a link to a row; where it is full, the heuristic chooses again.
    fn link_back(&self, layer: usize, from: u32, to: u32, lock: &Mutex<()>, selection: &mut Selection) {
        let (links, row) = self.layer(layer);
        let row = row(from);
        let _held = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if links.push(row, to) {
            return;
        }
        let ids: Vec<u32> = links.of(row).chain([to]).collect();
        selection.rank(&self.codes, from, &ids);
        selection.choose(&self.codes, links.width());
        links.set(row, selection.chosen.iter().copied());
    }
}

thread_local! {
    static WORK: std::cell::RefCell<Work> = std::cell::RefCell::default();
}

/// What a thread needs to link vectors.
#[derive(Debug, Default)]
struct Work {
    scratch: Scratch,
    selection: Selection,
    chosen: Vec<Vec<u32>>,
    query: Query,
}

/// The heuristic: a candidate is chosen if it is nearer to the vector than to everything chosen before it. So links lead in
/// different directions.
#[derive(Debug, Default)]
struct Selection {
    /// Product with the vector, and which; nearest first.
    candidates: Vec<(f32, u32)>,
    chosen: Vec<u32>,
    prepared: Vec<Query>,
    query: Query,
    products: Vec<i32>,
}

impl Selection {
    /// Makes candidates of what a vector could be linked to.
    fn rank(&mut self, codes: &Codes, from: u32, ids: &[u32]) {
        codes.prepare_code(from, &mut self.query);
        codes.products(&self.query, ids, &mut self.products);
        self.candidates.clear();
        self.candidates.extend(self.products.iter().zip(ids).map(|(p, id)| (self.query.product(*p), *id)));
        self.candidates.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    }

    fn choose(&mut self, codes: &Codes, most: usize) {
        self.chosen.clear();
        self.prepared.resize_with(self.prepared.len().max(most), Query::default);
        for (product, id) in &self.candidates {
            let mut before = self.prepared[..self.chosen.len()].iter();
            if before.any(|query| codes.product(query, *id, &mut self.products) > *product) {
                continue;
            }
            codes.prepare_code(*id, &mut self.prepared[self.chosen.len()]);
            self.chosen.push(*id);
            if self.chosen.len() == most {
                return;
            }
        }
    }
}

/// SplitMix64: a number from a seed and a place.
fn random(seed: u64, place: u64) -> u64 {
    let mut z = seed.wrapping_add(place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Layers above the ground: one in M vectors is on each further one.
fn level(seed: u64, id: u64, links: usize) -> u8 {
    let uniform = ((random(seed, id) >> 11) + 1) as f64 / (1u64 << 53) as f64;
    (-uniform.ln() / (links as f64).ln()).min(f64::from(HIGHEST)) as u8
}

/// Vectors in an order of their own: sets come sorted, and a graph built along the sorting would lack long links.
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
