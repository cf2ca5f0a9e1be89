//! Walks over a layer: from a start towards a vector, keeping the best so far.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::codes::Query;
use crate::dot::prefetch;
use crate::graph::Graph;

/// A vector on the way. The greater the integer product the nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) id: u32,
    pub(crate) product: i32,
    /// Its links were followed.
    done: bool,
}

impl Step {
    /// Nearest first, ties by id.
    fn key(&self) -> (Reverse<i32>, u32) {
        (Reverse(self.product), self.id)
    }
}

/// Vectors that were seen: a bit each, and the words to clear.
#[derive(Debug, Default)]
struct Seen {
    words: Vec<u64>,
    touched: Vec<u32>,
}

impl Seen {
    fn clear(&mut self, n: usize) {
        for word in self.touched.drain(..) {
            self.words[word as usize] = 0;
        }
        self.words.resize(self.words.len().max(n.div_ceil(64)), 0);
    }

    /// True the first time.
    #[inline(always)]
    fn insert(&mut self, id: u32) -> bool {
        let (word, bit) = (&mut self.words[id as usize / 64], 1 << (id % 64));
        if *word == 0 {
            self.touched.push(id / 64);
        }
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
}

/// What a thread needs for walks, kept between them.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) query: Query,
    /// Outcome of a walk: the best, nearest first.
    pub(crate) best: Vec<Step>,
    pub(crate) products: Vec<i32>,
    seen: Seen,
    fresh: Vec<u32>,
}

impl Scratch {
    /// Lends the thread's own; within a loan, another one.
    pub(crate) fn with<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
        thread_local! {
            static KEPT: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
        }
        let mut scratch = KEPT.take().unwrap_or_default();
        let result = work(&mut scratch);
        KEPT.set(Some(scratch));
        result
    }
}

impl Graph {
    /// Walks down from the entry to just above a layer and leaves in `scratch.best` where to start there. More than one
    /// place, for the nearest of an upper layer may stand in another cluster than the nearest of all: with one place, eight
    /// queries of a thousand ended in a wrong cluster, with eight none.
    pub(crate) fn approach(&self, query: &Query, layer: usize, scratch: &mut Scratch) {
        const PLACES: usize = 8;
        scratch.best.clear();
        scratch.best.push(Step { id: self.entry, product: 0, done: false });
        for above in (layer + 1..=usize::from(self.levels[self.entry as usize])).rev() {
            self.walk(query, above, PLACES, scratch);
        }
    }

    /// Walks over a layer from what is in `scratch.best` and leaves the up to `breadth` best there.
    pub(crate) fn walk(&self, query: &Query, layer: usize, breadth: usize, scratch: &mut Scratch) {
        let (links, row) = self.layer(layer);
        let Scratch { best, products, seen, fresh, .. } = scratch;
        begin(best, seen, fresh, self.len());
        // Everything before `next` is done.
        let mut next = 0;
        loop {
            self.codes.products(query, fresh, products);
            for (id, product) in fresh.iter().zip(&*products) {
                next = next.min(keep(best, breadth, Step { id: *id, product: *product, done: false }));
            }
            let Some(found) = best[next..].iter().position(|step| !step.done) else { return };
            next += found;
            best[next].done = true;
            let from = row(best[next].id);
            if let Some(step) = best[next..].iter().find(|step| !step.done) {
                prefetch(links.row(row(step.id)));
            }
            fresh.clear();
            fresh.extend(links.of(from).filter(|id| seen.insert(*id)));
        }
    }

    /// As [`walk`](Self::walk) on the ground, but only vectors that are allowed are kept; it goes on until no nearer one can
    /// be expected.
    pub(crate) fn walk_among(
        &self,
        query: &Query,
        breadth: usize,
        allowed: &(dyn Fn(u32) -> bool + Sync),
        scratch: &mut Scratch,
    ) {
        let Scratch { best, products, seen, fresh, .. } = scratch;
        begin(best, seen, fresh, self.len());
        let mut open: BinaryHeap<(i32, Reverse<u32>)> = BinaryHeap::new();
        loop {
            self.codes.products(query, fresh, products);
            for (id, product) in fresh.iter().zip(&*products) {
                let worst = if best.len() < breadth { None } else { best.last() };
                if worst.is_none_or(|worst| *product > worst.product) {
                    open.push((*product, Reverse(*id)));
                    if allowed(*id) {
                        keep(best, breadth, Step { id: *id, product: *product, done: true });
                    }
                }
            }
            let Some((product, Reverse(id))) = open.pop() else { return };
            if best.len() == breadth && best.last().is_some_and(|worst| product < worst.product) {
                return;
            }
            fresh.clear();
            fresh.extend(self.ground.of(id as usize).filter(|id| seen.insert(*id)));
        }
    }
}

/// Makes the outcome of the last walk the start of the next.
fn begin(best: &mut Vec<Step>, seen: &mut Seen, fresh: &mut Vec<u32>, n: usize) {
    seen.clear(n);
    fresh.clear();
    fresh.extend(best.drain(..).map(|step| step.id).filter(|id| seen.insert(*id)));
}

/// Puts a step in its place among the best; says where, or `breadth` where it is none of them.
#[inline(always)]
fn keep(best: &mut Vec<Step>, breadth: usize, step: Step) -> usize {
    if best.len() >= breadth {
        if best.last().is_none_or(|worst| worst.key() < step.key()) {
            return breadth;
        }
        best.pop();
    }
    let place = best.partition_point(|other| other.key() < step.key());
    best.insert(place, step);
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_are_kept_in_order() {
        let mut best = Vec::new();
        for (id, product) in [(1, 5), (2, 9), (3, 5), (4, 1), (0, 5), (5, 10)] {
            keep(&mut best, 4, Step { id, product, done: false });
        }
        assert_eq!(best.iter().map(|s| s.id).collect::<Vec<_>>(), [5, 2, 0, 1]);
    }

    #[test]
    fn a_vector_is_new_once_per_walk() {
        let mut seen = Seen::default();
        for _ in 0..2 {
            seen.clear(100);
            assert!(seen.insert(7) && seen.insert(8) && seen.insert(99) && !seen.insert(7));
        }
    }
}
