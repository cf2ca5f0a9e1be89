//! Searching the graph: greedy descent through the upper layers, best-first search of the base layer, rescoring in f32.

use std::cell::Cell;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use rayon::prelude::*;

use crate::dot::prefetch;
use crate::graph::HnswGraph;
use crate::quantised::EncodedQuery;
use crate::visited_list::VisitedList;

/// A vector that a search found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// Cosine distance, 0 to 2: one minus the dot product of the f32 vectors.
    pub distance: f32,
    /// Position of the vector in the set, from 0.
    pub position: u32,
}

impl Eq for Hit {}

impl Ord for Hit {
    fn cmp(&self, other: &Self) -> Ordering {
        self.distance.total_cmp(&other.distance).then(self.position.cmp(&other.position))
    }
}

impl PartialOrd for Hit {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Which positions may be hits; `None` allows all.
pub type PositionFilter<'a> = Option<&'a (dyn Fn(u32) -> bool + Sync)>;

/// A vector that a search has scored. The greater the integer product, the nearer the vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: u32,
    /// Integer product of the quantised vector with the encoded query.
    pub(crate) product: i32,
    /// Its links were followed.
    expanded: bool,
}

impl Candidate {
    /// Sorts the nearest first, ties by id.
    fn key(&self) -> (Reverse<i32>, u32) {
        (Reverse(self.product), self.id)
    }
}

/// Buffers of a search. A thread keeps them for its next search.
#[derive(Debug, Default)]
pub(crate) struct SearchScratch {
    query: EncodedQuery,
    /// Result of the last search of a layer, nearest first; entry points of the next.
    pub(crate) best: Vec<Candidate>,
    products: Vec<i32>,
    visited: VisitedList,
    unscored: Vec<u32>,
}

impl SearchScratch {
    /// Lends the thread's own buffers. A call within a call gets new ones.
    fn with<T>(search: impl FnOnce(&mut SearchScratch) -> T) -> T {
        thread_local! {
            static KEPT: Cell<Option<Box<SearchScratch>>> = const { Cell::new(None) };
        }
        let mut scratch = KEPT.take().unwrap_or_default();
        let result = search(&mut scratch);
        KEPT.set(Some(scratch));
        result
    }

    /// Clears the visited list and makes the result of the last search the entry points of the next.
    fn start(&mut self, n: usize) {
        self.visited.clear(n);
        self.unscored.clear();
        let (best, visited) = (&mut self.best, &mut self.visited);
        self.unscored.extend(best.drain(..).map(|candidate| candidate.id).filter(|id| visited.insert(*id)));
    }
}

impl HnswGraph {
    /// The `k` nearest to a unit vector `[dim]`, nearest first, ties by position. `vectors` `[n, dim]` are those the
    /// graph was built from. `ef` (`ef_search`) candidates are kept during the search, at least `k`; a greater `ef`
    /// raises recall and time. With a `filter`, vectors that do not pass it are searched through but are not hits;
    /// there may be fewer than `k` hits then.
    ///
    /// # Panics
    /// `vectors` has another number of vectors than the graph, or `query` another dimension.
    pub fn search(&self, vectors: &[f32], query: &[f32], k: usize, ef: usize, filter: PositionFilter<'_>) -> Vec<Hit> {
        assert_eq!(vectors.len(), self.len() * self.dim(), "vectors of another graph");
        assert_eq!(query.len(), self.dim(), "a query of another dimension");
        if self.is_empty() || k == 0 {
            return Vec::new();
        }
        SearchScratch::with(|scratch| {
            let mut encoded = std::mem::take(&mut scratch.query);
            self.quantised.encode(query, &mut encoded);
            self.search_upper_layers(&encoded, 0, scratch);
            match filter {
                None => self.search_layer(&encoded, 0, ef.max(k), scratch),
                Some(filter) => self.search_base_layer_filtered(&encoded, ef.max(k), filter, scratch),
            }
            let error = encoded.error;
            scratch.query = encoded;
            self.rescore(vectors, query, k, error, &scratch.best)
        })
    }

    /// [`search`](Self::search) for many queries `[queries, dim]` on all threads; the hits of each query.
    ///
    /// # Panics
    /// As [`search`](Self::search).
    pub fn search_many(
        &self,
        vectors: &[f32],
        queries: &[f32],
        k: usize,
        ef: usize,
        filter: PositionFilter<'_>,
    ) -> Vec<Vec<Hit>> {
        let queries = queries.par_chunks(self.dim().max(1));
        queries.map(|query| self.search(vectors, query, k, ef, filter)).collect()
    }

    /// Descends from the entry point to the layer above `layer` and leaves the entry points of `layer` in
    /// `scratch.best`.
    ///
    /// The paper keeps one candidate on upper layers (ef = 1), this keeps eight: the nearest vector of an upper layer
    /// may be in another cluster than the nearest of all. With one, eight queries of a thousand ended in a wrong
    /// cluster, with eight none did.
    pub(crate) fn search_upper_layers(&self, query: &EncodedQuery, layer: usize, scratch: &mut SearchScratch) {
        const EF_UPPER: usize = 8;
        scratch.best.clear();
        scratch.best.push(Candidate { id: self.entry_point, product: 0, expanded: false });
        for above in (layer + 1..=self.top_layer()).rev() {
            self.search_layer(query, above, EF_UPPER, scratch);
        }
    }

    /// SEARCH-LAYER of the paper: searches a layer from the entry points in `scratch.best` and leaves up to `ef`
    /// nearest there, nearest first.
    pub(crate) fn search_layer(&self, query: &EncodedQuery, layer: usize, ef: usize, scratch: &mut SearchScratch) {
        let (links, row) = self.layer(layer);
        scratch.start(self.len());
        let SearchScratch { best, products, visited, unscored, .. } = scratch;
        // All candidates before `next` are expanded.
        let mut next = 0;
        loop {
            self.quantised.products(query, unscored, products);
            for (id, product) in unscored.iter().zip(&*products) {
                let candidate = Candidate { id: *id, product: *product, expanded: false };
                next = next.min(insert_candidate(best, ef, candidate));
            }
            let Some(found) = best[next..].iter().position(|candidate| !candidate.expanded) else { return };
            next += found;
            best[next].expanded = true;
            let from = row(best[next].id);
            if let Some(candidate) = best[next..].iter().find(|candidate| !candidate.expanded) {
                prefetch(links.row(row(candidate.id)));
            }
            unscored.clear();
            unscored.extend(links.of(from).filter(|id| visited.insert(*id)));
        }
    }

    /// [`search_layer`](Self::search_layer) of the base layer that keeps only vectors which pass the filter. It ends
    /// when no vector nearer than the `ef` kept ones is left to expand.
    fn search_base_layer_filtered(
        &self,
        query: &EncodedQuery,
        ef: usize,
        filter: &(dyn Fn(u32) -> bool + Sync),
        scratch: &mut SearchScratch,
    ) {
        scratch.start(self.len());
        let SearchScratch { best, products, visited, unscored, .. } = scratch;
        let mut to_expand: BinaryHeap<(i32, Reverse<u32>)> = BinaryHeap::new();
        loop {
            self.quantised.products(query, unscored, products);
            for (id, product) in unscored.iter().zip(&*products) {
                let worst = if best.len() < ef { None } else { best.last() };
                if worst.is_none_or(|worst| *product > worst.product) {
                    to_expand.push((*product, Reverse(*id)));
                    if filter(*id) {
                        insert_candidate(best, ef, Candidate { id: *id, product: *product, expanded: true });
                    }
                }
            }
            let Some((product, Reverse(id))) = to_expand.pop() else { return };
            if best.len() == ef && best.last().is_some_and(|worst| product < worst.product) {
                return;
            }
            unscored.clear();
            unscored.extend(self.base.of(id as usize).filter(|id| visited.insert(*id)));
        }
    }

    /// Computes f32 distances of the candidates that may be among the `k` nearest within the error of quantisation, and
    /// returns the `k` nearest. `error` is the standard deviation of an integer product.
    fn rescore(&self, vectors: &[f32], query: &[f32], k: usize, error: f32, best: &[Candidate]) -> Vec<Hit> {
        const AHEAD: usize = 4;
        // Three standard deviations of the difference of two products.
        let margin = (3.0 * std::f32::consts::SQRT_2 * error) as i32;
        let least = best[..best.len().min(k)].last().map_or(i32::MIN, |last| last.product.saturating_sub(margin));
        let best = &best[..best.partition_point(|candidate| candidate.product >= least)];
        let row = |candidate: &Candidate| &vectors[candidate.id as usize * self.dim()..][..self.dim()];
        best.iter().take(AHEAD).for_each(|candidate| prefetch(row(candidate)));
        let mut hits: Vec<Hit> = Vec::with_capacity(best.len());
        for (i, candidate) in best.iter().enumerate() {
            if let Some(later) = best.get(i + AHEAD) {
                prefetch(row(later));
            }
            let distance = (1.0 - cellql_kernels::dot(query, row(candidate))).max(0.0);
            hits.push(Hit { distance, position: candidate.id });
        }
        hits.sort_unstable();
        hits.truncate(k);
        hits
    }
}

/// Inserts a candidate into the `ef` best, nearest first. Returns its place, or `ef` if it is not among them.
#[inline(always)]
fn insert_candidate(best: &mut Vec<Candidate>, ef: usize, candidate: Candidate) -> usize {
    if best.len() >= ef {
        if best.last().is_none_or(|worst| worst.key() < candidate.key()) {
            return ef;
        }
        best.pop();
    }
    let place = best.partition_point(|other| other.key() < candidate.key());
    best.insert(place, candidate);
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_candidates_are_kept_in_order() {
        let mut best = Vec::new();
        for (id, product) in [(1, 5), (2, 9), (3, 5), (4, 1), (0, 5), (5, 10)] {
            insert_candidate(&mut best, 4, Candidate { id, product, expanded: false });
        }
        assert_eq!(best.iter().map(|candidate| candidate.id).collect::<Vec<_>>(), [5, 2, 0, 1]);
    }
}
