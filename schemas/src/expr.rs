//! `expr`, the expression of one cell: `Struct<gene_id: List<UInt32>, value: List<Float32>>`.
//!
//! Within a cell, `gene_id` is strictly ascending and zeros are absent, so the length of either list is the number of
//! expressed genes. [`Profiles`] reads such a column without copying, [`ProfileBuilder`] writes one.
//!
//! Queries see a third part, [`DATASET_IDS`]: the data sets that the values come from. A gene that is absent from
//! `gene_id` has the value 0 if one of them measured it; otherwise its value is unknown.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, StructArray};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Fields, Float32Type, UInt32Type};

/// List of gene ids inside `expr`.
pub const GENE_ID: &str = "gene_id";
/// List of values inside `expr`, parallel to the gene ids.
pub const VALUE: &str = "value";

/// List of data sets inside `expr` as queries see it; NULL where every absent gene has the value 0.
pub const DATASET_IDS: &str = "dataset_ids";

/// Total that the counts of a cell are scaled to before the logarithm: `target_sum` of scanpy's `normalize_total`.
pub const TARGET_SUM: f64 = 1e4;

/// A count, log-normalised: `ln(1 + value · target_sum / total)`, where `total` is the sum of counts of the cell.
///
/// The product is taken before the quotient. SQL's `log_normalise`, `evaluate` and the training task take them in
/// another order, which can change the last bit of a value, so they do not call this function.
pub fn log_normalise(value: f32, total: f64, target_sum: f64) -> f64 {
    (f64::from(value) * target_sum / total).ln_1p()
}

/// Why a column could not be read as `expr`.
#[derive(Debug, thiserror::Error)]
pub enum ExprError {
    /// The column has another type.
    #[error("expected an expression column ({expected}) but found {found}; pass the column `expr` of `cells`")]
    Type {
        /// The type of `expr`.
        expected: DataType,
        /// The type of the column.
        found: DataType,
    },
    /// The two lists of a cell differ in length.
    #[error("row {row}: {genes} gene ids but {values} values in one expression")]
    Ragged {
        /// Row in the batch.
        row: usize,
        /// Length of its gene list.
        genes: usize,
        /// Length of its value list.
        values: usize,
    },
}

/// The item of either list. Its metadata makes lance split values into byte planes and compress them: ascending gene
/// ids and small counts take less than half of their plain size, and less than in a gzipped `.h5ad`.
fn item(data_type: DataType) -> Arc<Field> {
    let packed = [("compression", "zstd"), ("compression-level", "1"), ("bss", "on")];
    let packed = packed.map(|(key, value)| (format!("lance-encoding:{key}"), value.to_owned()));
    Arc::new(Field::new("item", data_type, false).with_metadata(HashMap::from(packed)))
}

fn struct_fields() -> Fields {
    Fields::from(vec![
        Field::new(GENE_ID, DataType::List(item(DataType::UInt32)), false),
        Field::new(VALUE, DataType::List(item(DataType::Float32)), false),
    ])
}

/// The arrow type of `expr`.
pub fn data_type() -> DataType {
    DataType::Struct(struct_fields())
}

/// The arrow type of `expr` as queries see it: with [`DATASET_IDS`].
pub fn query_type() -> DataType {
    with_dataset_ids_type(&struct_fields())
}

/// The type of an expression with [`DATASET_IDS`] after its other parts.
fn with_dataset_ids_type(fields: &Fields) -> DataType {
    let parts = fields.iter().take(2).cloned().chain([Arc::new(dataset_ids_field())]);
    DataType::Struct(parts.collect())
}

fn dataset_ids_field() -> Field {
    let item = Field::new_list_field(DataType::UInt32, false);
    Field::new(DATASET_IDS, DataType::List(Arc::new(item)), true)
}

/// True for the type of an expression with [`DATASET_IDS`].
pub fn has_dataset_ids(of: &DataType) -> bool {
    matches!(of, DataType::Struct(fields) if is_expr(of) && fields.len() == 3)
}

/// The type of an expression with [`DATASET_IDS`], for the type of one without; other types stay.
pub fn as_query_type(stored: &DataType) -> DataType {
    match stored {
        DataType::Struct(fields) if is_expr(stored) => with_dataset_ids_type(fields),
        other => other.clone(),
    }
}

/// Adds [`DATASET_IDS`] to a column of expressions, or replaces it. `dataset_ids` is the list of each row, or `None`.
///
/// # Errors
/// [`ExprError::Type`] for a column that is no expression.
pub fn with_dataset_ids<'a>(
    column: &ArrayRef,
    dataset_ids: impl IntoIterator<Item = Option<&'a [u32]>>,
) -> Result<ArrayRef, ExprError> {
    let wrong = || ExprError::Type { expected: data_type(), found: column.data_type().clone() };
    let (Some(parts), DataType::Struct(fields)) = (column.as_struct_opt(), as_query_type(column.data_type())) else {
        return Err(wrong());
    };
    let (mut offsets, mut ids, mut present) = (vec![0i32], Vec::new(), Vec::with_capacity(parts.len()));
    for list in dataset_ids {
        ids.extend_from_slice(list.unwrap_or_default());
        offsets.push(ids.len() as i32);
        present.push(list.is_some());
    }
    let DataType::List(item) = dataset_ids_field().data_type().clone() else { return Err(wrong()) };
    let ids: ArrayRef = Arc::new(arrow::array::UInt32Array::from(ids));
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    let lists = ListArray::try_new(item, offsets, ids, Some(NullBuffer::from(present))).map_err(|_| wrong())?;
    let columns: Vec<ArrayRef> = parts.columns().iter().take(2).cloned().chain([Arc::new(lists) as _]).collect();
    let all = StructArray::try_new(fields, columns, parts.nulls().cloned()).map_err(|_| wrong())?;
    Ok(Arc::new(all))
}

/// True for a type that [`Profiles::new`] reads. The nullability of its parts does not matter.
pub fn is_expr(data_type: &DataType) -> bool {
    let DataType::Struct(fields) = data_type else {
        return false;
    };
    let part = |name: &str, of: DataType| {
        fields.find(name).is_some_and(|(_, f)| matches!(f.data_type(), DataType::List(i) if *i.data_type() == of))
    };
    let expected = 2 + usize::from(part(DATASET_IDS, DataType::UInt32));
    fields.len() == expected && part(GENE_ID, DataType::UInt32) && part(VALUE, DataType::Float32)
}

/// One cell's expression: parallel slices, gene ids ascending.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile<'a> {
    /// Ids of the genes with a value above zero, ascending.
    pub gene_ids: &'a [u32],
    /// Values of these genes.
    pub values: &'a [f32],
}

impl Profile<'_> {
    /// The value of a gene; 0 if it is not expressed.
    pub fn value_of(&self, gene_id: u32) -> f32 {
        self.get(gene_id).unwrap_or(0.0)
    }

    /// The value of a gene; `None` if it is not expressed.
    pub fn get(&self, gene_id: u32) -> Option<f32> {
        self.gene_ids.binary_search(&gene_id).ok().map(|i| self.values[i])
    }

    /// Sum of all values, in f64.
    pub fn total(&self) -> f64 {
        self.values.iter().map(|&v| f64::from(v)).sum()
    }
}

/// A column of expressions, read without copying.
#[derive(Debug, Clone)]
pub struct Profiles {
    genes: ListArray,
    values: ListArray,
    gene_values: ScalarBuffer<u32>,
    value_values: ScalarBuffer<f32>,
    nulls: Option<NullBuffer>,
    dataset_ids: Option<(ListArray, ScalarBuffer<u32>)>,
}

impl Profiles {
    /// Reads a column of type [`data_type`].
    ///
    /// # Errors
    /// [`ExprError::Type`] for another type, [`ExprError::Ragged`] for lists of different lengths in a row.
    pub fn new(column: &ArrayRef) -> Result<Self, ExprError> {
        let wrong = || ExprError::Type { expected: data_type(), found: column.data_type().clone() };
        if !is_expr(column.data_type()) {
            return Err(wrong());
        }
        let parts = column.as_struct_opt().ok_or_else(wrong)?;
        let list = |name: &str| parts.column_by_name(name).and_then(|c| c.as_list_opt::<i32>()).cloned();
        let genes = list(GENE_ID).ok_or_else(wrong)?;
        let values = list(VALUE).ok_or_else(wrong)?;
        for row in 0..parts.len() {
            let (g, v) = (genes.value_length(row), values.value_length(row));
            if g != v {
                return Err(ExprError::Ragged { row, genes: g as usize, values: v as usize });
            }
        }
        let gene_values = genes.values().as_primitive_opt::<UInt32Type>().ok_or_else(wrong)?.values().clone();
        let value_values = values.values().as_primitive_opt::<Float32Type>().ok_or_else(wrong)?.values().clone();
        let dataset_ids = list(DATASET_IDS).and_then(|lists| {
            let ids = lists.values().as_primitive_opt::<UInt32Type>()?.values().clone();
            Some((lists, ids))
        });
        Ok(Self { gene_values, value_values, nulls: parts.logical_nulls(), genes, values, dataset_ids })
    }

    /// The data sets that the values of a row come from. `None` if that is not said: then every absent gene has the
    /// value 0.
    pub fn dataset_ids(&self, row: usize) -> Option<&[u32]> {
        let (lists, ids) = self.dataset_ids.as_ref().filter(|(lists, _)| lists.is_valid(row))?;
        let offsets = lists.value_offsets();
        Some(&ids[offsets[row] as usize..offsets[row + 1] as usize])
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.genes.len()
    }

    /// True if there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The cell at a row, or `None` if the expression is NULL.
    pub fn get(&self, row: usize) -> Option<Profile<'_>> {
        if self.nulls.as_ref().is_some_and(|n| n.is_null(row)) {
            return None;
        }
        let span = |list: &ListArray| {
            let offsets = list.value_offsets();
            offsets[row] as usize..offsets[row + 1] as usize
        };
        Some(Profile { gene_ids: &self.gene_values[span(&self.genes)], values: &self.value_values[span(&self.values)] })
    }

    /// All rows in order.
    pub fn iter(&self) -> impl Iterator<Item = Option<Profile<'_>>> {
        (0..self.len()).map(|row| self.get(row))
    }
}

/// Builds a column of expressions cell by cell.
#[derive(Debug)]
pub struct ProfileBuilder {
    offsets: Vec<i32>,
    gene_ids: Vec<u32>,
    values: Vec<f32>,
    present: Vec<bool>,
}

impl Default for ProfileBuilder {
    fn default() -> Self {
        Self { offsets: vec![0], gene_ids: Vec::new(), values: Vec::new(), present: Vec::new() }
    }
}

impl ProfileBuilder {
    /// Appends a cell. Gene ids must be strictly ascending and values not zero.
    pub fn push(&mut self, gene_ids: &[u32], values: &[f32]) {
        debug_assert!(gene_ids.windows(2).all(|w| w[0] < w[1]));
        self.gene_ids.extend_from_slice(gene_ids);
        self.values.extend_from_slice(values);
        self.close(true);
    }

    /// Appends a cell of `count` values that `fill` writes in place: ascending gene ids, and values.
    pub fn push_with(&mut self, count: usize, fill: impl FnOnce(&mut [u32], &mut [f32])) {
        let start = self.values.len();
        self.gene_ids.resize(start + count, 0);
        self.values.resize(start + count, 0.0);
        fill(&mut self.gene_ids[start..], &mut self.values[start..]);
        debug_assert!(self.gene_ids[start..].windows(2).all(|w| w[0] < w[1]));
        self.close(true);
    }

    /// Values of the last cell, to be changed in place.
    pub fn last_values(&mut self) -> &mut [f32] {
        let start = self.offsets.len().checked_sub(2).map_or(0, |i| self.offsets[i] as usize);
        &mut self.values[start..]
    }

    /// Removes the last cell.
    pub fn pop(&mut self) {
        if self.present.pop().is_some() {
            self.offsets.pop();
            let end = self.offsets.last().map_or(0, |o| *o as usize);
            self.gene_ids.truncate(end);
            self.values.truncate(end);
        }
    }

    /// The last cell; empty if there is none.
    pub fn last(&self) -> Profile<'_> {
        let start = self.offsets.len().checked_sub(2).map_or(0, |i| self.offsets[i] as usize);
        Profile { gene_ids: &self.gene_ids[start..], values: &self.values[start..] }
    }

    /// Appends a NULL row.
    pub fn push_null(&mut self) {
        self.close(false);
    }

    fn close(&mut self, present: bool) {
        self.offsets.push(self.gene_ids.len() as i32);
        self.present.push(present);
    }

    /// Number of rows so far.
    pub fn len(&self) -> usize {
        self.present.len()
    }

    /// True if there are no rows.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty()
    }

    /// Returns the column and empties the builder.
    pub fn finish(&mut self) -> StructArray {
        let done = std::mem::take(self);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(done.offsets));
        let list = |of: DataType, values: ArrayRef| -> ArrayRef {
            Arc::new(ListArray::new(item(of), offsets.clone(), values, None))
        };
        let genes = list(DataType::UInt32, Arc::new(arrow::array::UInt32Array::from(done.gene_ids)));
        let values = list(DataType::Float32, Arc::new(arrow::array::Float32Array::from(done.values)));
        let nulls = done.present.contains(&false).then(|| NullBuffer::from(done.present));
        StructArray::new(struct_fields(), vec![genes, values], nulls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushed_cells_are_read_back_also_from_a_slice() {
        let mut builder = ProfileBuilder::default();
        builder.push(&[1, 5], &[2.0, 3.0]);
        builder.push_null();
        builder.push(&[], &[]);
        builder.push(&[7], &[1.5]);
        let column: ArrayRef = Arc::new(builder.finish());
        let all = Profiles::new(&column).unwrap();
        assert_eq!(all.get(0).unwrap().value_of(5), 3.0);
        assert_eq!(all.get(0).unwrap().value_of(4), 0.0);
        assert!(all.get(1).is_none());
        assert_eq!(all.get(2).unwrap().total(), 0.0);
        let tail = Profiles::new(&column.slice(2, 2)).unwrap();
        assert_eq!(tail.get(1).unwrap(), Profile { gene_ids: &[7], values: &[1.5] });
    }

    #[test]
    fn data_sets_are_added_and_read_back_also_from_a_slice() {
        let mut builder = ProfileBuilder::default();
        builder.push(&[1, 5], &[2.0, 3.0]);
        builder.push_null();
        builder.push(&[7], &[1.5]);
        let stored: ArrayRef = Arc::new(builder.finish());
        let lists = [Some(&[4u32][..]), None, Some(&[4, 9][..])];
        let column = with_dataset_ids(&stored, lists).unwrap();
        assert_eq!(column.data_type(), &query_type());
        let all = Profiles::new(&column.slice(1, 2)).unwrap();
        assert_eq!((all.dataset_ids(0), all.dataset_ids(1)), (None, Some(&[4, 9][..])));
        assert!(all.get(0).is_none() && all.get(1).unwrap().get(7) == Some(1.5));
        // What has them already gets others in their place.
        let again = with_dataset_ids(&column, lists.map(|_| Some(&[2u32][..]))).unwrap();
        assert_eq!(Profiles::new(&again).unwrap().dataset_ids(0), Some(&[2][..]));
        assert_eq!(Profiles::new(&stored).unwrap().dataset_ids(0), None);
    }

    #[test]
    fn another_type_is_refused_by_name() {
        let column: ArrayRef = Arc::new(arrow::array::Float32Array::from(vec![1.0]));
        assert!(Profiles::new(&column).unwrap_err().to_string().contains("Float32"));
    }
}
