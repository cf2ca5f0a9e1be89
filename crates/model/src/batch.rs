//! Ragged batches: tokens of many cells end to end, so that linear layers are one large matrix product without padding.

use std::ops::Range;

use crate::Tokens;

/// Tokens of a batch at most: memory beside the weights peaks at some 5 × width × this × 4 bytes.
pub const DEFAULT_TOKEN_BUDGET: usize = 8192;

/// Splits cells into batches of at most `budget` tokens (one cell where it alone has more). Cells of similar length go
/// together, so that no thread waits long for another's attention. Every index appears exactly once.
pub(crate) fn plan(cells: &[(usize, Tokens)], budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..cells.len()).collect();
    order.sort_by_key(|&i| cells[i].1.len());
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut held = usize::MAX;
    for i in order {
        let len = cells[i].1.len();
        match batches.last_mut() {
            Some(batch) if held.saturating_add(len) <= budget => {
                batch.push(i);
                held += len;
            }
            _ => {
                batches.push(vec![i]);
                held = len;
            }
        }
    }
    batches
}

/// A batch: positions and values of all tokens, and where each cell starts.
#[derive(Debug)]
pub struct Packed {
    /// Positions of all tokens in the vocabulary.
    pub positions: Vec<u32>,
    /// Values of all tokens.
    pub values: Vec<f32>,
    /// Token offsets, one longer than the cells.
    pub starts: Vec<usize>,
}

impl Packed {
    /// Packs cells end to end.
    pub fn new<'a>(cells: impl Iterator<Item = &'a Tokens>) -> Self {
        let mut packed = Self { positions: Vec::new(), values: Vec::new(), starts: vec![0] };
        for cell in cells {
            packed.positions.extend_from_slice(&cell.positions);
            packed.values.extend_from_slice(&cell.values);
            packed.starts.push(packed.positions.len());
        }
        packed
    }

    /// Tokens of a cell.
    pub fn cell(&self, slot: usize) -> Range<usize> {
        self.starts[slot]..self.starts[slot + 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_cell_is_in_one_batch_and_budgets_hold(
            lengths in prop::collection::vec(1usize..50, 0..60), budget in 1usize..100
        ) {
            let cells: Vec<(usize, Tokens)> = lengths.iter()
                .map(|&n| (0, Tokens { positions: vec![0; n], values: vec![1.0; n] }))
                .collect();
            let batches = plan(&cells, budget);
            let mut seen: Vec<usize> = batches.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..cells.len()).collect::<Vec<_>>());
            for batch in &batches {
                let tokens: usize = batch.iter().map(|&i| lengths[i]).sum();
                prop_assert!(tokens <= budget || batch.len() == 1);
            }
        }
    }
}
