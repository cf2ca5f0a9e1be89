//! The nearest nodes that a search of a layer has found so far.

use std::cmp::Reverse;

use crate::quantised::EncodedQuery;

/// A node that a search has scored. The greater the integer product, the nearer its vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: u32,
    /// Integer product of the node's codes with the encoded query.
    pub(crate) product: i32,
    /// Its links were followed.
    pub(crate) expanded: bool,
}

impl Candidate {
    /// Sorts the nearest first, ties by id.
    fn key(&self) -> (Reverse<i32>, u32) {
        (Reverse(self.product), self.id)
    }
}

/// How many candidates a search keeps: the `ef` nearest, and further ones that may be as near as the `k`-th.
#[derive(Debug)]
pub(crate) struct Kept<'a> {
    ef: usize,
    /// The query, and the number of neighbours that are wanted, at most `ef`. `None`: only the `ef` nearest are kept.
    undecided: Option<(&'a EncodedQuery, usize)>,
    /// Further candidates are kept from this product on.
    least: i32,
}

/// Candidates that are kept at most, where `ef` is not greater. The list is sorted by insertion, so a longer one would
/// take more time than the search.
const MOST: usize = 4096;

impl<'a> Kept<'a> {
    /// Keeps the `ef` nearest, at least one.
    pub(crate) fn nearest(ef: usize) -> Self {
        Self { ef: ef.max(1), undecided: None, least: i32::MAX }
    }

    /// Keeps the `ef` nearest, at least `k`, and all that may be as near as the `k`-th as far as their codes tell. `k`
    /// is at least 1.
    pub(crate) fn of_neighbours(query: &'a EncodedQuery, k: usize, ef: usize) -> Self {
        Self { ef: ef.max(k), undecided: Some((query, k)), least: i32::MAX }
    }

    /// Inserts a candidate, nearest first. Returns its place if it is kept.
    #[inline(always)]
    pub(crate) fn insert(&mut self, best: &mut Vec<Candidate>, candidate: Candidate) -> Option<usize> {
        let beyond = best.get(self.ef - 1).is_some_and(|last| last.key() < candidate.key());
        if beyond && (candidate.product < self.least || best.len() >= self.ef.max(MOST)) {
            return None;
        }
        let place = best.partition_point(|other| other.key() < candidate.key());
        best.insert(place, candidate);
        if best.len() >= self.ef {
            self.cut(best, place);
        }
        Some(place)
    }

    /// Drops the last candidates after an insertion if they are not among those to keep any more.
    #[inline(always)]
    fn cut(&mut self, best: &mut Vec<Candidate>, inserted: usize) {
        if let Some((query, k)) = self.undecided
            && (inserted < k || best.len() == self.ef)
        {
            let product = best[k - 1].product;
            self.least = product.saturating_sub(query.margin(product));
        }
        let most = self.ef.max(MOST);
        while best.len() > most || best.len() > self.ef && best.last().is_some_and(|last| last.product < self.least) {
            best.pop();
        }
    }

    /// True if a candidate of this product would not be kept.
    pub(crate) fn is_beyond(&self, best: &[Candidate], product: i32) -> bool {
        best.get(self.ef - 1).is_some_and(|last| product < last.product.min(self.least))
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::quantised::QuantisedVectors;

    #[test]
    fn candidates_that_codes_do_not_tell_from_the_kth_are_kept() {
        // A hundred random vectors of length one, and a hundred that differ little from the first of them.
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut vectors = crate::tests::clustered(100, 32, 1);
        for _ in 0..100 {
            let near: Vec<f32> = vectors[..32].iter().map(|v| v + rng.random_range(-0.003f32..0.003)).collect();
            let norm = near.iter().map(|v| v * v).sum::<f32>().sqrt();
            vectors.extend(near.iter().map(|v| v / norm));
        }
        let (codes, mut query) = (QuantisedVectors::new(&vectors, 32), EncodedQuery::default());
        codes.encode(&vectors[..32], &mut query);
        let mut products = Vec::new();
        codes.products(&query, &(0..200).collect::<Vec<_>>(), &mut products);
        let (mut best, mut kept) = (Vec::new(), Kept::of_neighbours(&query, 3, 5));
        for (product, id) in products.iter().zip(0..) {
            kept.insert(&mut best, Candidate { id, product: *product, expanded: false });
        }
        products.sort_unstable_by_key(|product| Reverse(*product));
        let least = products[2] - query.margin(products[2]);
        let expected = products.iter().filter(|product| **product >= least).count();
        assert!(best.len() == expected && (6..102).contains(&expected), "{} {expected}", best.len());
    }

    #[test]
    fn the_best_candidates_are_kept_in_order() {
        let (mut best, mut kept) = (Vec::new(), Kept::nearest(4));
        for (id, product) in [(1, 5), (2, 9), (3, 5), (4, 1), (0, 5), (5, 10)] {
            kept.insert(&mut best, Candidate { id, product, expanded: false });
        }
        assert_eq!(best.iter().map(|candidate| candidate.id).collect::<Vec<_>>(), [5, 2, 0, 1]);
    }
}
