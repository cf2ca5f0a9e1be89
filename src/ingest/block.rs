//! What every file format becomes: features once, then blocks of cells.

use arrow::array::ArrayRef;

use super::ObsFields;
use crate::error::Result;
use crate::genes::Feature;

/// Values one block holds at most, unless a single cell has more: sets the memory of an ingest.
pub(super) const BLOCK_VALUES: usize = 2 << 20;
/// Cells one block holds at most.
pub(super) const BLOCK_CELLS: usize = 4096;

/// Some consecutive cells of a file.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// Name of each cell.
    pub(super) barcodes: Vec<String>,
    /// One array per obs field of the source, a row per cell.
    pub(super) obs: Vec<ArrayRef>,
    /// Where each cell's values start; one longer than the cells.
    pub(super) starts: Vec<usize>,
    /// Feature of each value: its position in [`CellSource::features`].
    pub(super) features: Vec<u32>,
    /// Values as in the file; may hold zeros.
    pub(super) values: Vec<f64>,
}

impl Block {
    /// Values of a cell: features and values in parallel, in the file's order.
    pub(super) fn cell(&self, i: usize) -> (&[u32], &[f64]) {
        let span = self.starts[i]..self.starts[i + 1];
        (&self.features[span.clone()], &self.values[span])
    }
}

/// A file of cells, read front to back.
pub(super) trait CellSource: Send {
    /// Cells in the file, where that is known before the end.
    fn n_cells(&self) -> Option<u64>;

    /// What the columns of the matrix are.
    fn features(&self) -> &[Feature];

    /// Obs columns: text, whole numbers, numbers or booleans.
    fn obs_fields(&self) -> ObsFields;

    /// The next cells, or `None` at the end.
    fn next_block(&mut self) -> Result<Option<Block>>;
}
