//! A cell to learn from: counts at ascending positions of a vocabulary.
//!
//! Every count of every cell passes here, so this is compiled with full optimisation in development builds too.

use cellql_schemas::expr::Profile;
use cellql_schemas::vocabulary::Placement;

/// A cell as a model reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Address of its row in `cells`.
    pub row: u64,
    /// Its data set.
    pub dataset_id: u32,
    /// Counts at ascending positions of the vocabulary; genes that it lacks are left out.
    pub counts: Vec<(u32, f32)>,
}

/// Brings the genes of a cell into the order of their positions by a radix sort: at some hundred genes a cell in half the
/// time of marking positions and looking for the marks, at thousands in the same.
pub struct ByPosition<'a> {
    placement: &'a Placement,
    /// Position and value of each gene, and room to move them to.
    placed: Vec<(u32, f32)>,
    moved: Vec<(u32, f32)>,
}

impl<'a> ByPosition<'a> {
    /// For a vocabulary.
    pub fn new(placement: &'a Placement) -> Self {
        Self { placement, placed: Vec::new(), moved: Vec::new() }
    }

    /// Counts at ascending positions; genes that the vocabulary lacks are left out.
    pub fn counts(&mut self, profile: &Profile) -> Vec<(u32, f32)> {
        let genes = profile.gene_ids.len();
        if self.placed.len() < genes {
            self.placed.resize(genes, (0, 0.0));
            self.moved.resize(genes, (0, 0.0));
        }
        // Every gene is written, and the next one over it where it has no position: no branch to guess.
        let (mut placed, room) = (0, &mut self.placed[..genes]);
        for (gene, value) in profile.gene_ids.iter().zip(profile.values) {
            let at = self.placement.position(*gene);
            room[placed] = (at.unwrap_or_default(), *value);
            placed += usize::from(at.is_some());
        }
        let bits = usize::BITS - self.placement.len().leading_zeros();
        for shift in (0..bits).step_by(8) {
            sort_by_byte(&self.placed[..placed], &mut self.moved[..placed], shift);
            std::mem::swap(&mut self.placed, &mut self.moved);
        }
        self.placed[..placed].to_vec()
    }
}

/// Moves pairs so that they ascend by eight bits of the first; equal ones keep their order.
fn sort_by_byte(from: &[(u32, f32)], to: &mut [(u32, f32)], shift: u32) {
    let bucket = |position: u32| usize::from((position >> shift) as u8);
    let mut next = [0u32; 256];
    for (position, _) in from {
        next[bucket(*position)] += 1;
    }
    let mut sum = 0;
    for count in &mut next {
        sum += std::mem::replace(count, sum);
    }
    for pair in from {
        let at = &mut next[bucket(pair.0)];
        to[*at as usize] = *pair;
        *at += 1;
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use crate::seeded;

    use super::*;

    #[test]
    fn bytes_one_after_another_sort() {
        let rng = &mut seeded(&[b"sort"]);
        for (genes, positions) in [(0, 1), (1, 1), (300, 256), (500, 257), (3000, 19_264), (700, 1 << 20)] {
            let mut pairs: Vec<(u32, f32)> =
                (0..genes).map(|_| (rng.random_range(0..positions), rng.random())).collect();
            let mut sorted = pairs.clone();
            sorted.sort_by_key(|(position, _)| *position);
            let mut moved = pairs.clone();
            for shift in [0, 8, 16] {
                sort_by_byte(&pairs, &mut moved, shift);
                std::mem::swap(&mut pairs, &mut moved);
            }
            assert_eq!(pairs, sorted, "{genes} of {positions}");
        }
    }
}
