//! The common form of every format: features and obs columns, then blocks of cells.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::datatypes::{DataType, Field};
use cellql_schemas::feature::Feature;

use crate::error::Result;

/// Maximum number of values in a block, unless a single cell has more. It bounds the memory of a reader.
pub(crate) const BLOCK_VALUES: usize = 2 << 20;
/// Maximum number of cells in a block.
pub(crate) const BLOCK_CELLS: usize = 4096;

/// Consecutive cells of a file, `[cells, features]` in CSR form.
#[derive(Debug)]
pub struct Block {
    /// Barcode (name) of each cell, `[cells]`.
    pub barcodes: StringArray,
    /// One array per entry of [`CellSource::obs_columns`], each `[cells]`.
    pub obs: Vec<ArrayRef>,
    /// Offset of each cell's first value in `features` and `values`, `[cells + 1]`.
    pub starts: Vec<usize>,
    /// Feature of each value: an index into [`CellSource::features`].
    pub features: Vec<u32>,
    /// Values as in the file, in its unit; explicit zeros are possible.
    pub values: Vec<f32>,
}

impl Block {
    /// Number of cells.
    pub fn len(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Number of barcodes, equal to [`Block::len`].
    pub fn barcodes_len(&self) -> usize {
        use arrow::array::Array;
        self.barcodes.len()
    }

    /// True if the block has no cells.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Features and values of the cell at index `i`, in parallel and in the file's order.
    pub fn cell(&self, i: usize) -> (&[u32], &[f32]) {
        let span = self.starts[i]..self.starts[i + 1];
        (&self.features[span.clone()], &self.values[span])
    }
}

/// An obs column of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct ObsColumn {
    /// Name of the column in the file.
    pub name: String,
    /// `Utf8`, `Int64`, `UInt64` (only where a value does not fit `Int64`), `Float64`, `Boolean`, or
    /// `Dictionary(Int32, Utf8)` for a categorical.
    pub data_type: DataType,
    /// Categories of a categorical column, in the file's order; `None` for other columns.
    pub categories: Option<Arc<StringArray>>,
    /// True for a categorical column whose categories are ordered.
    pub ordered: bool,
}

impl ObsColumn {
    /// A column that is not categorical.
    pub fn plain(name: impl Into<String>, data_type: DataType) -> Self {
        Self { name: name.into(), data_type, categories: None, ordered: false }
    }

    /// A categorical column.
    pub fn categorical(name: impl Into<String>, categories: Arc<StringArray>, ordered: bool) -> Self {
        Self { name: name.into(), data_type: categorical_type(), categories: Some(categories), ordered }
    }

    /// The column as a nullable arrow field.
    pub fn field(&self) -> Field {
        Field::new(&self.name, self.data_type.clone(), true)
    }
}

/// Arrow type of a categorical column.
pub(crate) fn categorical_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// An open file of cells. It is read front to back, and can be rewound.
pub trait CellSource: Send {
    /// Number of cells in the file; `None` if it is only known at the end.
    fn n_cells(&self) -> Option<u64>;

    /// Features of the matrix, in the order of its columns.
    fn features(&self) -> &[Feature];

    /// Obs columns of the file.
    fn obs_columns(&self) -> &[ObsColumn];

    /// The matrix that is read, by its name in the format: `X`, `raw/X`, `layers/counts`.
    fn matrix(&self) -> &str;

    /// Notes for the user: what was chosen and what was left out.
    fn notes(&self) -> &[String];

    /// Of an export of cellql, the gene id of each feature in the store it was exported from.
    ///
    /// # Errors
    /// The file is damaged or cannot be read.
    fn exported_gene_ids(&self) -> Result<Option<Vec<u32>>> {
        Ok(None)
    }

    /// The next block of cells, or `None` at the end.
    ///
    /// # Errors
    /// The file is damaged or cannot be read.
    fn next_block(&mut self) -> Result<Option<Block>>;

    /// Goes back to the first cell.
    ///
    /// # Errors
    /// The file cannot be opened again.
    fn rewind(&mut self) -> Result<()>;
}
