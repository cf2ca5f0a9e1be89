//! The data sets that the cells of a group come from, with the number of cells of each.

use std::collections::BTreeMap;

use datafusion::common::Result;

use crate::engine::Engine;
use crate::measured::is_measured;

/// Marks an origin of unknown data sets in a list.
const UNKNOWN: u32 = u32::MAX;

/// Cells by the data sets they come from: one of a cell of a store, several of a group's mean, `None` where they are
/// not said and every gene counts as measured.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Origins {
    cells: BTreeMap<Option<Vec<u32>>, u64>,
}

impl Origins {
    pub(crate) fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    pub(crate) fn add(&mut self, dataset_ids: Option<&[u32]>, cells: u64) {
        // Cells of one data set follow each other: most find theirs here without a new list.
        match self.cells.iter_mut().find(|(known, _)| known.as_deref() == dataset_ids) {
            Some((_, count)) => *count += cells,
            None => {
                self.cells.insert(dataset_ids.map(<[u32]>::to_vec), cells);
            }
        }
    }

    /// Cells whose data sets measured a gene that has a value in one of them; 1 at least.
    pub(crate) fn cells_that_measured(&self, engine: &dyn Engine, gene: u32) -> Result<u64> {
        if self.cells.len() == 1 {
            return Ok(self.cells.values().sum());
        }
        let mut total = 0;
        for (dataset_ids, cells) in &self.cells {
            if is_measured(engine, dataset_ids.as_deref(), gene)? {
                total += cells;
            }
        }
        Ok(total.max(1))
    }

    /// All data sets, ascending; `None` if those of some cells are not said.
    pub(crate) fn together(&self) -> Option<Vec<u32>> {
        if self.cells.is_empty() {
            return None;
        }
        let mut all: Vec<u32> = Vec::new();
        for dataset_ids in self.cells.keys() {
            all.extend(dataset_ids.as_ref()?);
        }
        all.sort_unstable();
        all.dedup();
        Some(all)
    }

    /// As two lists: of each origin the number of its data sets and their ids, and the cells of each origin.
    pub(crate) fn to_lists(&self) -> (Vec<u32>, Vec<u64>) {
        let mut origins = Vec::new();
        for dataset_ids in self.cells.keys() {
            match dataset_ids {
                None => origins.push(UNKNOWN),
                Some(ids) => {
                    origins.push(ids.len() as u32);
                    origins.extend(ids);
                }
            }
        }
        (origins, self.cells.values().copied().collect())
    }

    /// Adds what [`Origins::to_lists`] gave.
    pub(crate) fn add_lists(&mut self, mut origins: &[u32], cells: &[u64]) {
        for count in cells {
            let Some((length, rest)) = origins.split_first() else { return };
            if *length == UNKNOWN {
                self.add(None, *count);
                origins = rest;
                continue;
            }
            let Some((ids, rest)) = rest.split_at_checked(*length as usize) else { return };
            self.add(Some(ids), *count);
            origins = rest;
        }
    }

    pub(crate) fn heap_size(&self) -> usize {
        let ids = self.cells.keys().flatten().map(|ids| 4 * ids.capacity()).sum::<usize>();
        ids + self.cells.len() * size_of::<(Option<Vec<u32>>, u64)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_give_back_the_origins() {
        let mut origins = Origins::default();
        for (ids, cells) in [(Some(&[4u32][..]), 2), (None, 1), (Some(&[4, 7][..]), 3), (Some(&[4][..]), 5)] {
            origins.add(ids, cells);
        }
        let (ids, cells) = origins.to_lists();
        let mut again = Origins::default();
        again.add_lists(&ids, &cells);
        assert_eq!(again, origins);
        assert_eq!(again.cells.values().sum::<u64>(), 11);
        assert_eq!(again.together(), None);
    }

    #[test]
    fn together_are_all_data_sets() {
        let mut origins = Origins::default();
        assert_eq!(origins.together(), None);
        origins.add(Some(&[7, 9]), 1);
        origins.add(Some(&[4, 7]), 1);
        assert_eq!(origins.together(), Some(vec![4, 7, 9]));
    }
}
