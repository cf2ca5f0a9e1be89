//! AnnData dataframes: `obs` and `var` as groups with one dataset (or subgroup) per column.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field};
use hdf5_pure::DType;

use super::file::{H5, H5Dataset};
use crate::error::{Error, Result};

enum Values {
    Text(H5Dataset),
    Integers(H5Dataset),
    Numbers(H5Dataset),
    Flags(H5Dataset),
    /// Codes into categories; a negative code is a missing value.
    Categories {
        codes: H5Dataset,
        categories: Vec<String>,
    },
}

struct Column {
    name: String,
    values: Values,
    /// True where the value is missing.
    mask: Option<H5Dataset>,
}

/// A dataframe, read by windows of rows.
pub(super) struct Frame {
    index: H5Dataset,
    columns: Vec<Column>,
}

impl Frame {
    pub(super) fn open(h5: &H5, object: &str) -> Result<Self> {
        let Some(group) = h5.group(object) else {
            if h5.has_dataset(object) {
                let problem =
                    "is a compound dataset, AnnData's form before 0.7; open and save the file with a newer anndata";
                return Err(h5.error(object, problem));
            }
            return Err(h5.error(object, "is missing: an .h5ad file names its cells in obs and its genes in var"));
        };
        let index_name = h5.text_attribute(object, "_index").unwrap_or_else(|| "_index".to_owned());
        let index_object = format!("{object}/{index_name}");
        if !h5.has_dataset(&index_object) {
            return Err(h5.error(object, format!("has no index column '{index_name}', so its rows have no names")));
        }
        let index = h5.dataset(&index_object)?;
        if !is_text(&index.kind()?) {
            return Err(h5.error(&index_object, "holds numbers where names should be"));
        }
        let mut names = match h5.list_attribute(object, "column-order") {
            Some(names) => names,
            None => {
                let mut names = group.datasets().map_err(|e| h5.error(object, e))?;
                names.extend(group.groups().map_err(|e| h5.error(object, e))?);
                names.sort();
                names
            }
        };
        names.retain(|n| *n != index_name && n != "__categories");
        let mut columns = Vec::new();
        for name in names {
            columns.extend(Column::open(h5, object, name)?);
        }
        let rows = index.rows();
        if let Some(short) = columns.iter().find(|c| c.rows() != rows) {
            let problem = format!("has {} rows, the index {rows}", short.rows());
            return Err(h5.error(&format!("{object}/{}", short.name), problem));
        }
        Ok(Self { index, columns })
    }

    pub(super) fn len(&self) -> u64 {
        self.index.rows()
    }

    /// Names of some rows.
    pub(super) fn index_rows(&self, start: u64, count: u64) -> Result<Vec<String>> {
        self.index.texts(start, count)
    }

    pub(super) fn fields(&self) -> Vec<Field> {
        self.columns.iter().map(|c| Field::new(&c.name, c.values.data_type(), true)).collect()
    }

    /// Every column's values of some rows.
    pub(super) fn columns(&self, start: u64, count: u64) -> Result<Vec<ArrayRef>> {
        self.columns.iter().map(|c| c.read(start, count)).collect()
    }

    /// A whole text column; missing values become empty. `None` where there is no such column.
    pub(super) fn text(&self, name: &str) -> Option<Result<Vec<String>>> {
        use arrow::array::AsArray;
        let column = self.columns.iter().find(|c| c.name == name && c.values.data_type() == DataType::Utf8)?;
        let text =
            |array: ArrayRef| array.as_string::<i32>().iter().map(|v| v.unwrap_or_default().to_owned()).collect();
        Some(column.read(0, self.len()).map(text))
    }
}

impl Column {
    /// A column, or `None` for kinds of values that are no obs column (nested, complex, …).
    fn open(h5: &H5, frame: &str, name: String) -> Result<Option<Self>> {
        let object = format!("{frame}/{name}");
        if h5.group(&object).is_some() {
            return Self::open_group(h5, &object, name);
        }
        let values = h5.dataset(&object)?;
        let old_categories = format!("{frame}/__categories/{name}");
        if h5.has_dataset(&old_categories) {
            let categories = categories(h5, &old_categories)?;
            return Ok(Some(Self { name, values: Values::Categories { codes: values, categories }, mask: None }));
        }
        Ok(Values::plain(values)?.map(|values| Self { name, values, mask: None }))
    }

    /// Encoding 0.2.0: categoricals and nullable columns are groups.
    fn open_group(h5: &H5, object: &str, name: String) -> Result<Option<Self>> {
        let codes = format!("{object}/codes");
        if h5.has_dataset(&codes) {
            let categories = categories(h5, &format!("{object}/categories"))?;
            let values = Values::Categories { codes: h5.dataset(&codes)?, categories };
            return Ok(Some(Self { name, values, mask: None }));
        }
        let (values, mask) = (format!("{object}/values"), format!("{object}/mask"));
        if h5.has_dataset(&values) && h5.has_dataset(&mask) {
            let mask = Some(h5.dataset(&mask)?);
            return Ok(Values::plain(h5.dataset(&values)?)?.map(|values| Self { name, values, mask }));
        }
        Ok(None)
    }

    fn rows(&self) -> u64 {
        match &self.values {
            Values::Text(d) | Values::Integers(d) | Values::Numbers(d) | Values::Flags(d) => d.rows(),
            Values::Categories { codes, .. } => codes.rows(),
        }
    }

    fn read(&self, start: u64, count: u64) -> Result<ArrayRef> {
        let missing: Vec<bool> = match &self.mask {
            Some(mask) => mask.bytes(start, count)?.into_iter().map(|b| b != 0).collect(),
            None => vec![false; count as usize],
        };
        let keep = |i: usize| !missing.get(i).copied().unwrap_or(false);
        Ok(match &self.values {
            Values::Text(d) => Arc::new(present(d.texts(start, count)?, keep).collect::<StringArray>()),
            Values::Integers(d) => Arc::new(present(d.integers(start, count)?, keep).collect::<Int64Array>()),
            Values::Numbers(d) => {
                let values = d.numbers(start, count)?;
                // pandas writes a missing number as NaN.
                Arc::new(present(values, keep).map(|v| v.filter(|x| !x.is_nan())).collect::<Float64Array>())
            }
            Values::Flags(d) => {
                let bytes = d.bytes(start, count)?;
                Arc::new(present(bytes, keep).map(|v| v.map(|b| b != 0)).collect::<BooleanArray>())
            }
            Values::Categories { codes, categories } => {
                let names = codes.integers(start, count)?.into_iter().map(|code| name_of(codes, categories, code));
                Arc::new(names.collect::<Result<StringArray>>()?)
            }
        })
    }
}

fn present<T>(values: Vec<T>, keep: impl Fn(usize) -> bool) -> impl Iterator<Item = Option<T>> {
    values.into_iter().enumerate().map(move |(i, v)| keep(i).then_some(v))
}

fn name_of<'a>(codes: &H5Dataset, categories: &'a [String], code: i64) -> Result<Option<&'a str>> {
    if code < 0 {
        return Ok(None);
    }
    match categories.get(code as usize) {
        Some(name) => Ok(Some(name)),
        None => Err(codes.error(format!("has code {code} but only {} categories", categories.len()))),
    }
}

/// Categories as text, whatever they are stored as.
fn categories(h5: &H5, object: &str) -> Result<Vec<String>> {
    let dataset = h5.dataset(object)?;
    let rows = dataset.rows();
    Ok(match dataset.kind()? {
        kind if is_text(&kind) => dataset.texts(0, rows)?,
        DType::F32 | DType::F64 => dataset.numbers(0, rows)?.iter().map(ToString::to_string).collect(),
        kind if is_flag(&kind) => dataset.bytes(0, rows)?.iter().map(|b| (*b != 0).to_string()).collect(),
        kind if is_integer(&kind) => dataset.integers(0, rows)?.iter().map(ToString::to_string).collect(),
        kind => return Err(unreadable(&dataset, &kind)),
    })
}

fn unreadable(dataset: &H5Dataset, kind: &DType) -> Error {
    dataset.error(format!("has the type {kind}, which no category can have"))
}

impl Values {
    fn plain(dataset: H5Dataset) -> Result<Option<Self>> {
        if dataset.shape()?.len() != 1 {
            return Ok(None);
        }
        Ok(match dataset.kind()? {
            kind if is_text(&kind) => Some(Values::Text(dataset)),
            DType::F32 | DType::F64 => Some(Values::Numbers(dataset)),
            kind if is_flag(&kind) => Some(Values::Flags(dataset)),
            kind if is_integer(&kind) => Some(Values::Integers(dataset)),
            _ => None,
        })
    }

    fn data_type(&self) -> DataType {
        match self {
            Values::Text(_) | Values::Categories { .. } => DataType::Utf8,
            Values::Integers(_) => DataType::Int64,
            Values::Numbers(_) => DataType::Float64,
            Values::Flags(_) => DataType::Boolean,
        }
    }
}

fn is_text(kind: &DType) -> bool {
    matches!(kind, DType::String | DType::VariableLengthString)
}

fn is_flag(kind: &DType) -> bool {
    matches!(kind, DType::Enum(names) if names.len() == 2)
}

fn is_integer(kind: &DType) -> bool {
    use DType::{I8, I16, I32, I64, U8, U16, U32, U64};
    matches!(kind, I8 | I16 | I32 | I64 | U8 | U16 | U32 | U64)
}
