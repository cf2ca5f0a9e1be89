//! The graph and questions to it.

use std::cmp::Ordering;

use rayon::prelude::*;

use crate::codes::Codes;
use crate::dot::prefetch;
use crate::memory::Links;
use crate::walk::{Scratch, Step};

/// How a graph is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Links per vector on upper layers (M); twice as many on the ground layer. 2 to 255.
    pub links: usize,
    /// Candidates looked at when a vector is linked (ef_construction).
    pub breadth: usize,
    /// Chooses layers and order.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { links: 16, breadth: 128, seed: 0 }
    }
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// One minus the dot product: cosine distance, 0 to 2.
    pub distance: f32,
    /// Which vector, from 0.
    pub position: u32,
}

impl Eq for Found {}

impl Ord for Found {
    fn cmp(&self, other: &Self) -> Ordering {
        self.distance.total_cmp(&other.distance).then(self.position.cmp(&other.position))
    }
}

impl PartialOrd for Found {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A graph over vectors, without the vectors.
#[derive(Debug)]
pub struct Graph {
    pub(crate) codes: Codes,
    /// Layers above the ground on which a vector is.
    pub(crate) levels: Vec<u8>,
    /// Row of a vector's first upper layer in `upper`; its further layers follow.
    pub(crate) first: Vec<u32>,
    /// `[n, 2 M]`
    pub(crate) ground: Links,
    /// `[sum of levels, M]`
    pub(crate) upper: Links,
    /// Where walks start: a vector of the highest level.
    pub(crate) entry: u32,
}

/// Which vectors may be answers.
pub type Allowed<'a> = Option<&'a (dyn Fn(u32) -> bool + Sync)>;

impl Graph {
    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.levels.len()
    }

    /// True without vectors.
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// Numbers per vector.
    pub fn dim(&self) -> usize {
        self.codes.dim
    }

    /// Bytes of memory it holds, without the vectors.
    pub fn bytes(&self) -> usize {
        self.codes.rows.get().len() + 4 * (self.ground.all().len() + self.upper.all().len()) + 5 * self.len()
    }

    /// Links of a vector on a layer, 0 being the ground.
    pub(crate) fn layer(&self, layer: usize) -> (&Links, impl Fn(u32) -> usize + '_) {
        let links = if layer == 0 { &self.ground } else { &self.upper };
        (links, move |id: u32| if layer == 0 { id as usize } else { self.first[id as usize] as usize + layer - 1 })
    }

    /// The `k` nearest to a unit vector `[dim]`, nearest first, ties by position. `breadth` candidates are kept on the way
    /// (ef; at least `k`): more find more. With `allowed`, other vectors are walked through but are no answers; there may
    /// be fewer than `k` then.
    ///
    /// # Panics
    /// `vectors` is not what the graph was built from in number, or the query is of another dimension.
    pub fn search(&self, vectors: &[f32], query: &[f32], k: usize, breadth: usize, allowed: Allowed<'_>) -> Vec<Found> {
        assert_eq!(vectors.len(), self.len() * self.dim(), "vectors of another graph");
        assert_eq!(query.len(), self.dim(), "a query of another dimension");
        if self.is_empty() || k == 0 {
            return Vec::new();
        }
        Scratch::with(|scratch| {
            let mut prepared = std::mem::take(&mut scratch.query);
            self.codes.prepare(query, &mut prepared);
            self.approach(&prepared, 0, scratch);
            match allowed {
                None => self.walk(&prepared, 0, breadth.max(k), scratch),
                Some(allowed) => self.walk_among(&prepared, breadth.max(k), allowed, scratch),
            }
            let error = prepared.error;
            scratch.query = prepared;
            self.compare(vectors, query, k, error, &scratch.best)
        })
    }

    /// [`search`](Self::search) for many queries `[queries, dim]`, on all threads.
    ///
    /// # Panics
    /// As [`search`](Self::search).
    pub fn search_many(
        &self,
        vectors: &[f32],
        queries: &[f32],
        k: usize,
        breadth: usize,
        allowed: Allowed<'_>,
    ) -> Vec<Vec<Found>> {
        let queries = queries.par_chunks(self.dim().max(1));
        queries.map(|query| self.search(vectors, query, k, breadth, allowed)).collect()
    }

    /// The best of a walk in f32: all that may be among the `k` nearest, as far as codes can tell.
    fn compare(&self, vectors: &[f32], query: &[f32], k: usize, error: f32, best: &[Step]) -> Vec<Found> {
        const AHEAD: usize = 4;
        // Three standard deviations of the difference of two.
        let margin = (3.0 * std::f32::consts::SQRT_2 * error) as i32;
        let least = best[..best.len().min(k)].last().map_or(i32::MIN, |last| last.product.saturating_sub(margin));
        let best = &best[..best.partition_point(|step| step.product >= least)];
        let row = |step: &Step| &vectors[step.id as usize * self.dim()..][..self.dim()];
        best.iter().take(AHEAD).for_each(|step| prefetch(row(step)));
        let mut found: Vec<Found> = Vec::with_capacity(best.len());
        for (i, step) in best.iter().enumerate() {
            if let Some(later) = best.get(i + AHEAD) {
                prefetch(row(later));
            }
            let distance = (1.0 - cellql_kernels::dot(query, row(step))).max(0.0);
            found.push(Found { distance, position: step.id });
        }
        found.sort_unstable();
        found.truncate(k);
        found
    }
}
