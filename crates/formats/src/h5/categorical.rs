//! Categorical columns: codes into a list of categories, as both encodings of AnnData dataframes store them.

use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int32Array, StringArray};
use arrow::datatypes::Int32Type;
use hdf5_pure::DType;

use super::file::{H5Dataset, MAX_NAMES, is_bool, is_float, is_integer, is_text};
use crate::error::{FormatError, Result};

/// A dictionary column from codes; a negative code is a missing value.
pub(crate) fn categorical(codes: Vec<i64>, categories: &Arc<StringArray>) -> Result<ArrayRef, String> {
    use arrow::array::Array;
    if let Some(wrong) = codes.iter().find(|c| **c >= categories.len() as i64) {
        return Err(format!("holds the code {wrong}, but there are only {} categories", categories.len()));
    }
    let keys: Int32Array = codes.into_iter().map(|c| (c >= 0).then_some(c as i32)).collect();
    let column = DictionaryArray::<Int32Type>::try_new(keys, Arc::clone(categories) as ArrayRef);
    column.map(|c| Arc::new(c) as ArrayRef).map_err(|e| e.to_string())
}

/// Categories as strings, whatever their type in the file.
pub(crate) fn categories(dataset: &H5Dataset) -> Result<StringArray> {
    let rows = dataset.rows();
    if rows > MAX_NAMES {
        return Err(dataset.error(format!(
            "states {rows} categories, more than the maximum of {MAX_NAMES}; the file may be damaged"
        )));
    }
    let texts: Vec<String> = match dataset.dtype() {
        dtype if is_text(dtype) => dataset.read_text(0, rows)?,
        dtype if is_float(dtype) => dataset.read_f64(0, rows)?.iter().map(ToString::to_string).collect(),
        dtype if is_bool(dtype) => dataset.read_bytes(0, rows)?.iter().map(|b| bool_text(*b)).collect(),
        dtype if is_integer(dtype) => dataset.read_i64(0, rows)?.iter().map(ToString::to_string).collect(),
        dtype => return Err(unreadable(dataset, dtype)),
    };
    Ok(StringArray::from_iter_values(texts))
}

/// A boolean category as pandas prints it.
fn bool_text(byte: u8) -> String {
    if byte == 0 { "False" } else { "True" }.to_owned()
}

fn unreadable(dataset: &H5Dataset, dtype: &DType) -> FormatError {
    dataset.error(format!("has the type {dtype}; categories must be strings, numbers or booleans"))
}
