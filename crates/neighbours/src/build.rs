//! Building the graph: vectors are inserted one by one, on all threads.
//!
//! A vector that is nearly equal to that of a node gets no node of its own but shares that one (see [`crate::nodes`]).
//! While the graph is built, a node has the position of its vector as its id; at the end the nodes are numbered anew.
//!
//! Rows of links are read without locks and written under one of a few thousand locks. A vector's level depends only on
//! the seed and its position. The entry point is the vector of the highest level, chosen before the first insertion, so
//! it never changes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::candidates::{Candidate, Kept};
use crate::graph::{HnswConfig, HnswGraph, RADIUS, first_upper_rows, m0};
use crate::memory::Links;
use crate::nodes::SharedNodes;
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
        let upper_rows = levels.iter().map(|level| usize::from(*level)).sum();
        let shared = SharedNodes::of_equal(vectors, dim);
        let firsts = (0..n as u32).filter(|i| shared.is_first(*i));
        let entry_point = firsts.max_by_key(|i| (levels[*i as usize], std::cmp::Reverse(*i))).unwrap_or(0);
        let mut graph = Self {
            quantised: QuantisedVectors::new(vectors, dim),
            members: None,
            first_upper: first_upper_rows(&levels),
            levels,
            base: Links::empty(n, m0(m)),
            upper: Links::empty(upper_rows, m),
            entry_point,
        };
        graph.insert_all(vectors, config, &shared, &progress);
        graph.keep_nodes(shared);
        if !graph.is_empty() {
            graph.connect(config.ef_construction);
        }
        graph
    }

    fn insert_all(&self, vectors: &[f32], config: &HnswConfig, shared: &SharedNodes, progress: &(impl Fn(u64) + Sync)) {
        const REPORT_EVERY: u64 = 1024;
        let insertion = Insertion { vectors, ef_construction: config.ef_construction, radius: self.radius(), shared };
        let order = shuffled(self.len(), config.seed);
        let locks: Vec<Mutex<()>> = (0..LOCKS).map(|_| Mutex::new(())).collect();
        let done = AtomicU64::new(0);
        order.par_iter().with_max_len(64).filter(|id| **id != self.entry_point).for_each(|id| {
            if shared.is_first(*id) {
                SCRATCH.with_borrow_mut(|scratch| self.insert(*id, &insertion, &locks, scratch));
            }
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
    fn insert(&self, id: u32, insertion: &Insertion<'_>, locks: &[Mutex<()>], scratch: &mut InsertScratch) {
        let vector = insertion.vector(id, self.dim());
        let InsertScratch { search, selection, selected, query } = scratch;
        self.quantised.encode(vector, query);
        let level = usize::from(self.levels[id as usize]);
        selected.resize_with(selected.len().max(level + 1), Vec::new);
        selected.iter_mut().for_each(Vec::clear);
        self.search_upper_layers(query, level, search);
        for layer in (0..=level).rev() {
            self.search_layer(query, layer, &mut Kept::nearest(insertion.ef_construction), search);
            selection.candidates.clear();
            selection.candidates.extend(search.best.iter().map(|best| (query.dot(best.product), best.id)));
            selection.select(&self.quantised, self.upper.width());
            selected[layer].clone_from(&selection.selected);
        }
        if let Some(node) = self.node_to_share(vector, query, &search.best, insertion) {
            insertion.shared.join(id, node);
            return;
        }
        for (layer, selected) in selected.iter().enumerate().take(level + 1) {
            let (links, row) = self.layer(layer);
            links.set(row(id), selected.iter().copied());
            for other in selected {
                self.add_reverse_link(layer, *other, id, &locks[*other as usize % LOCKS], selection);
            }
        }
    }

    /// Vectors within this distance of a node's vector share the node: the product with the codes of one does not tell
    /// which of two such vectors is nearer to a third.
    fn radius(&self) -> f32 {
        let error = self.quantised.typical_error();
        if error.is_finite() { RADIUS * error } else { 0.0 }
    }

    /// The node that a vector shares: the nearest of `best`, the result of its search, that is within the radius.
    fn node_to_share(
        &self,
        vector: &[f32],
        query: &EncodedQuery,
        best: &[Candidate],
        insertion: &Insertion<'_>,
    ) -> Option<u32> {
        const TRIED: usize = 8;
        let most = insertion.radius * insertion.radius;
        let square = |node: u32| -> f32 {
            insertion.vector(node, self.dim()).iter().zip(vector).map(|(a, b)| (a - b) * (a - b)).sum()
        };
        // By their codes most are far away. The square of the distance of unit vectors is 2 (1 − product).
        let near = best.iter().take(TRIED).take_while(|best| 2.0 * (1.0 - query.dot(best.product)) <= 4.0 * most);
        let squares = near.map(|best| (square(best.id), best.id)).filter(|(square, _)| *square <= most);
        squares.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map(|(_, node)| node)
    }

    /// Drops the places of vectors that share the node of another, and names the nodes by their order.
    fn keep_nodes(&mut self, shared: SharedNodes) {
        let (nodes, members) = shared.finish();
        if members.is_none() {
            return;
        }
        let mut renamed = vec![u32::MAX; self.levels.len()];
        for (node, old) in nodes.iter().enumerate() {
            renamed[*old as usize] = node as u32;
        }
        self.members = members;
        self.quantised.keep(&nodes);
        let levels: Vec<u8> = nodes.iter().map(|old| self.levels[*old as usize]).collect();
        let first_upper = first_upper_rows(&levels);
        for (node, old) in nodes.iter().enumerate() {
            move_row(&self.base, *old as usize, node, &renamed);
            for above in 0..usize::from(levels[node]) {
                let (from, to) = (self.first_upper[*old as usize] as usize, first_upper[node] as usize);
                move_row(&self.upper, from + above, to + above, &renamed);
            }
        }
        self.base.truncate(nodes.len());
        self.upper.truncate(levels.iter().map(|level| usize::from(*level)).sum());
        (self.levels, self.first_upper) = (levels, first_upper);
        self.entry_point = renamed.get(self.entry_point as usize).copied().unwrap_or_default();
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

/// Moves a row of links and renames the nodes in it.
fn move_row(links: &Links, from: usize, to: usize, renamed: &[u32]) {
    let row: Vec<u32> = links.of(from).map(|old| renamed[old as usize]).collect();
    links.set(to, row.into_iter());
}

/// What all insertions of a build have in common.
struct Insertion<'a> {
    vectors: &'a [f32],
    ef_construction: usize,
    radius: f32,
    shared: &'a SharedNodes,
}

impl Insertion<'_> {
    fn vector(&self, id: u32, dim: usize) -> &[f32] {
        &self.vectors[id as usize * dim..][..dim]
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
