//! Searching the graph: greedy descent through the upper layers, best-first search of the base layer, rescoring in f32.

use std::cell::Cell;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use rayon::prelude::*;

use crate::candidates::{Candidate, Kept};
use crate::dot::prefetch;
use crate::graph::{HnswGraph, RADIUS};
use crate::nodes::Member;
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
    /// graph was built from. `ef` (`ef_search`) candidates are kept during the search, at least `k`, and more where
    /// 8-bit codes do not tell which are nearest; a greater `ef` raises recall and time. With a `filter`, vectors that
    /// do not pass it are searched through but are not hits; there may be fewer than `k` hits then.
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
            let mut kept = Kept::of_neighbours(&encoded, k, ef);
            match filter {
                None => self.search_layer(&encoded, 0, &mut kept, scratch),
                Some(filter) => {
                    let passes = |node| self.any_passes(node, filter);
                    self.search_base_layer_filtered(&encoded, &mut kept, &passes, scratch);
                }
            }
            let to_rescore = self.to_rescore(&scratch.best, k, &encoded, filter);
            scratch.query = encoded;
            self.rescore(vectors, query, k, &to_rescore)
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
            self.search_layer(query, above, &mut Kept::nearest(EF_UPPER), scratch);
        }
    }

    /// SEARCH-LAYER of the paper: searches a layer from the entry points in `scratch.best` and leaves up to `ef`
    /// nearest there, nearest first.
    pub(crate) fn search_layer(
        &self,
        query: &EncodedQuery,
        layer: usize,
        kept: &mut Kept<'_>,
        scratch: &mut SearchScratch,
    ) {
        let (links, row) = self.layer(layer);
        scratch.start(self.nodes());
        let SearchScratch { best, products, visited, unscored, .. } = scratch;
        // All candidates before `next` are expanded.
        let mut next = 0;
        loop {
            self.quantised.products(query, unscored, products);
            for (id, product) in unscored.iter().zip(&*products) {
                let candidate = Candidate { id: *id, product: *product, expanded: false };
                next = kept.insert(best, candidate).map_or(next, |place| next.min(place));
            }
            let Some(found) = best.iter().skip(next).position(|candidate| !candidate.expanded) else { return };
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
        kept: &mut Kept<'_>,
        filter: &(dyn Fn(u32) -> bool + Sync),
        scratch: &mut SearchScratch,
    ) {
        scratch.start(self.nodes());
        let SearchScratch { best, products, visited, unscored, .. } = scratch;
        let mut to_expand: BinaryHeap<(i32, Reverse<u32>)> = BinaryHeap::new();
        loop {
            self.quantised.products(query, unscored, products);
            for (id, product) in unscored.iter().zip(&*products) {
                if !kept.is_beyond(best, *product) {
                    to_expand.push((*product, Reverse(*id)));
                    if filter(*id) {
                        kept.insert(best, Candidate { id: *id, product: *product, expanded: true });
                    }
                }
            }
            let Some((product, Reverse(id))) = to_expand.pop() else { return };
            if kept.is_beyond(best, product) {
                return;
            }
            unscored.clear();
            unscored.extend(self.base.of(id as usize).filter(|id| visited.insert(*id)));
        }
    }

    /// True if any vector of a node passes the filter.
    fn any_passes(&self, node: u32, filter: &(dyn Fn(u32) -> bool + Sync)) -> bool {
        match &self.members {
            None => filter(node),
            Some(members) => members.of(node).any(|member| filter(member.position)),
        }
    }

    /// The vectors that may be among the `k` nearest within the error of quantisation: those of the nearest candidates
    /// that have `k` vectors together, and of all other candidates that may be as near.
    fn to_rescore(
        &self,
        best: &[Candidate],
        k: usize,
        query: &EncodedQuery,
        filter: PositionFilter<'_>,
    ) -> Vec<Member> {
        // Vectors that share a node are up to RADIUS times as far from its codes as a node's own vector.
        const SHARED: i32 = RADIUS as i32;
        let margin = query.margin_of_codes();
        let mut kth = None;
        let mut wanted = Vec::with_capacity(best.len());
        for candidate in best {
            let behind = kth.map_or(0, |kth: i32| kth.saturating_sub(candidate.product));
            match &self.members {
                None if behind > margin => break,
                // A candidate of one vector has passed the filter.
                None => wanted.push(Member { position: candidate.id, repeats: false }),
                Some(members) if members.is_shared(candidate.id) && behind > margin.saturating_mul(SHARED) => break,
                Some(members) if !members.is_shared(candidate.id) && behind > margin => {}
                Some(members) => add_passing(&mut wanted, members.of(candidate.id), k, filter),
            }
            if kth.is_none() && wanted.len() >= k {
                kth = Some(candidate.product);
            }
        }
        wanted
    }

    /// Computes f32 distances of some vectors and returns the `k` nearest.
    fn rescore(&self, vectors: &[f32], query: &[f32], k: usize, members: &[Member]) -> Vec<Hit> {
        const AHEAD: usize = 4;
        let row = |member: &Member| &vectors[member.position as usize * self.dim()..][..self.dim()];
        members.iter().take(AHEAD).for_each(|member| prefetch(row(member)));
        let mut hits: Vec<Hit> = Vec::with_capacity(members.len());
        let mut distance = 0.0;
        for (i, member) in members.iter().enumerate() {
            if let Some(later) = members.get(i + AHEAD).filter(|later| !later.repeats) {
                prefetch(row(later));
            }
            if !member.repeats {
                distance = (1.0 - cellql_kernels::dot(query, row(member))).max(0.0);
            }
            hits.push(Hit { distance, position: member.position });
        }
        if hits.len() > k {
            hits.select_nth_unstable(k);
            hits.truncate(k);
        }
        hits.sort_unstable();
        hits
    }
}

/// Adds the vectors of a node that pass the filter, at most `k` of those that are equal. The first of these that are
/// added does not repeat one that was.
fn add_passing(wanted: &mut Vec<Member>, members: impl Iterator<Item = Member>, k: usize, filter: PositionFilter<'_>) {
    let mut equal = 0;
    for member in members {
        if !member.repeats {
            equal = 0;
        }
        if equal < k && filter.is_none_or(|filter| filter(member.position)) {
            wanted.push(Member { repeats: equal > 0, ..member });
            equal += 1;
        }
    }
}
