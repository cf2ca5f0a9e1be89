//! Columns of vectors, read in place: arrays of Float32 or Float64, of fixed size or not. Knows nothing of what is
//! computed with them.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Float32Type, Float64Type};

/// The numbers of all vectors, end to end.
#[derive(Debug, Clone)]
pub(crate) enum Numbers {
    /// Of embeddings.
    F32(ScalarBuffer<f32>),
    /// Of arrays written in a query.
    F64(ScalarBuffer<f64>),
}

#[derive(Debug)]
enum Lengths {
    Fixed(usize),
    Each(OffsetBuffer<i32>),
}

/// A column of vectors.
#[derive(Debug)]
pub(crate) struct Vectors {
    pub(crate) numbers: Numbers,
    lengths: Lengths,
    nulls: Option<NullBuffer>,
    /// Of the numbers.
    missing: Option<NullBuffer>,
}

/// What kind of number the items of a vector type are; `None` for other types.
pub(crate) fn item_type(given: &DataType) -> Option<&DataType> {
    match given {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => Some(item.data_type()),
        _ => None,
    }
}

impl Vectors {
    /// Reads a column; `None` where its type is none of those above.
    pub(crate) fn new(column: &ArrayRef) -> Option<Self> {
        let (lengths, items) = match column.data_type() {
            DataType::FixedSizeList(_, size) => {
                (Lengths::Fixed(*size as usize), column.as_fixed_size_list_opt()?.values())
            }
            DataType::List(_) => {
                let list = column.as_list_opt::<i32>()?;
                (Lengths::Each(list.offsets().clone()), list.values())
            }
            _ => return None,
        };
        let numbers = match items.data_type() {
            DataType::Float32 => Numbers::F32(items.as_primitive_opt::<Float32Type>()?.values().clone()),
            DataType::Float64 => Numbers::F64(items.as_primitive_opt::<Float64Type>()?.values().clone()),
            _ => return None,
        };
        Some(Self { numbers, lengths, nulls: column.logical_nulls(), missing: items.logical_nulls() })
    }

    /// Where the vector of a row lies among the numbers; `None` where it is NULL.
    pub(crate) fn span(&self, row: usize) -> Option<Range<usize>> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return None;
        }
        Some(match &self.lengths {
            Lengths::Fixed(size) => row * size..(row + 1) * size,
            Lengths::Each(offsets) => offsets[row] as usize..offsets[row + 1] as usize,
        })
    }

    /// True where a vector lacks one of its numbers.
    pub(crate) fn lacks_numbers(&self, span: &Range<usize>) -> bool {
        let missing = self.missing.as_ref().filter(|missing| missing.null_count() > 0);
        missing.is_some_and(|missing| span.clone().any(|at| missing.is_null(at)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{FixedSizeListArray, ListArray};

    use super::*;

    #[test]
    fn vectors_are_found_also_in_a_slice() {
        let rows = || [Some(vec![Some(1.0f32), Some(2.0)]), None, Some(vec![Some(5.0), None])];
        let fixed: ArrayRef = Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(rows(), 2));
        let each: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(rows()));
        for column in [fixed, each] {
            let tail = Vectors::new(&column.slice(1, 2)).unwrap();
            let Numbers::F32(numbers) = &tail.numbers else { panic!("f32") };
            assert_eq!(tail.span(0), None);
            let span = tail.span(1).unwrap();
            assert_eq!(numbers[span.clone()][0], 5.0);
            assert!(tail.lacks_numbers(&span));
            let all = Vectors::new(&column).unwrap();
            assert!(!all.lacks_numbers(&all.span(0).unwrap()));
        }
    }
}
