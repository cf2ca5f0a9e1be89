//! What every format becomes: features once, then blocks of cells.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::datatypes::{DataType, Field};
use cellql_schemas::feature::Feature;

use crate::Result;

/// Values one block holds at most, unless a single cell has more: sets the memory of a reader.
pub(crate) const BLOCK_VALUES: usize = 2 << 20;
/// Cells one block holds at most.
pub(crate) const BLOCK_CELLS: usize = 4096;

/// Some consecutive cells of a file.
#[derive(Debug)]
pub struct Block {
    /// Name of each cell.
    pub barcodes: StringArray,
    /// One array per obs column of the source, a row per cell.
    pub obs: Vec<ArrayRef>,
    /// Where each cell's values start; one longer than the cells.
    pub starts: Vec<usize>,
    /// Feature of each value: its position in [`CellSource::features`].
    pub features: Vec<u32>,
    /// Values as in the file; may hold zeros.
    pub values: Vec<f32>,
}

impl Block {
    /// Number of cells.
    pub fn len(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Number of names, which is that of cells.
    pub fn barcodes_len(&self) -> usize {
        use arrow::array::Array;
        self.barcodes.len()
    }

    /// True without cells.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values of a cell: features and values in parallel, in the file's order.
    pub fn cell(&self, i: usize) -> (&[u32], &[f32]) {
        let span = self.starts[i]..self.starts[i + 1];
        (&self.features[span.clone()], &self.values[span])
    }
}

/// An obs column of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct ObsColumn {
    /// Its name in the file.
    pub name: String,
    /// `Utf8`, `Int64`, `Float64`, `Boolean`, or `Dictionary(Int32, Utf8)` for a categorical.
    pub data_type: DataType,
    /// Categories of a categorical in the file's order.
    pub categories: Option<Arc<StringArray>>,
    /// True for a categorical whose categories have an order.
    pub ordered: bool,
}

impl ObsColumn {
    /// A column that is no categorical.
    pub fn plain(name: impl Into<String>, data_type: DataType) -> Self {
        Self { name: name.into(), data_type, categories: None, ordered: false }
    }

    /// A categorical.
    pub fn categorical(name: impl Into<String>, categories: Arc<StringArray>, ordered: bool) -> Self {
        Self { name: name.into(), data_type: categorical_type(), categories: Some(categories), ordered }
    }

    /// As a nullable arrow field.
    pub fn field(&self) -> Field {
        Field::new(&self.name, self.data_type.clone(), true)
    }
}

/// Arrow type of a categorical column.
pub(crate) fn categorical_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// A file of cells, read front to back, as often as wanted.
pub trait CellSource: Send {
    /// Cells in the file, where that is known before the end.
    fn n_cells(&self) -> Option<u64>;

    /// What the columns of the matrix are.
    fn features(&self) -> &[Feature];

    /// Obs columns.
    fn obs_columns(&self) -> &[ObsColumn];

    /// The matrix that is read, as the format names it: `X`, `raw/X`, `layers/counts`.
    fn matrix(&self) -> &str;

    /// What was chosen or left out, in sentences for the user.
    fn notes(&self) -> &[String];

    /// The next cells, or `None` at the end.
    fn next_block(&mut self) -> Result<Option<Block>>;

    /// Goes back to the first cell.
    fn rewind(&mut self) -> Result<()>;
}
