//! AnnData dataframes, `obs` and `var`: groups with one dataset (or subgroup) per column, or one compound dataset
//! ([`super::compound`]), read by windows of rows.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, StringArray};
use arrow::datatypes::{DataType, Int32Type};
use hdf5_pure::DType;

use super::compound::Compound;
use super::file::{H5, H5Dataset, MOST_NAMES, is_flag, is_integer, is_text};
use crate::block::ObsColumn;
use crate::{FormatError, Result};

/// A dataframe.
pub(crate) enum Frame {
    Group(GroupFrame),
    Compound(Compound),
}

enum Values {
    Text(H5Dataset),
    Integers(H5Dataset),
    Numbers(H5Dataset),
    Flags(H5Dataset),
    /// Codes into categories; a negative code is a missing value.
    Codes(H5Dataset, Arc<StringArray>),
}

struct Column {
    values: Values,
    /// True where the value is missing.
    mask: Option<H5Dataset>,
}

/// A dataframe that is a group.
pub(crate) struct GroupFrame {
    index: H5Dataset,
    described: Vec<ObsColumn>,
    columns: Vec<Column>,
    skipped: Vec<String>,
}

impl Frame {
    pub(crate) fn open(h5: &H5, object: &str) -> Result<Self> {
        if h5.group(object).is_some() {
            return GroupFrame::open(h5, object).map(Frame::Group);
        }
        if h5.has_dataset(object) {
            return Compound::open(h5, object).map(Frame::Compound);
        }
        Err(h5.error(object, "is missing: an .h5ad file names its cells in obs and its genes in var"))
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Frame::Group(frame) => frame.index.rows(),
            Frame::Compound(frame) => frame.len(),
        }
    }

    /// Names of some rows.
    pub(crate) fn index_rows(&self, start: u64, count: u64) -> Result<Vec<String>> {
        match self {
            Frame::Group(frame) => frame.index.texts(start, count),
            Frame::Compound(frame) => frame.index_rows(start, count),
        }
    }

    /// Names of all rows.
    pub(crate) fn index(&self) -> Result<Vec<String>> {
        self.whole()?;
        self.index_rows(0, self.len())
    }

    pub(crate) fn columns(&self) -> &[ObsColumn] {
        match self {
            Frame::Group(frame) => &frame.described,
            Frame::Compound(frame) => frame.columns(),
        }
    }

    /// Columns that are of no kind an obs column can have.
    pub(crate) fn skipped(&self) -> &[String] {
        match self {
            Frame::Group(frame) => &frame.skipped,
            Frame::Compound(frame) => frame.skipped(),
        }
    }

    /// Every column's values of some rows.
    pub(crate) fn rows(&self, start: u64, count: u64) -> Result<Vec<ArrayRef>> {
        match self {
            Frame::Group(frame) => frame.columns.iter().map(|c| c.read(start, count)).collect(),
            Frame::Compound(frame) => frame.rows(start, count),
        }
    }

    /// A whole column as text; missing values become empty. `None` where there is no such column, or it holds no text.
    pub(crate) fn text(&self, name: &str) -> Option<Result<Vec<String>>> {
        use arrow::array::AsArray;
        let place = self
            .columns()
            .iter()
            .position(|c| c.name == name && matches!(c.data_type, DataType::Utf8 | DataType::Dictionary(_, _)))?;
        let read = || {
            self.whole()?;
            let column = match self {
                Frame::Group(frame) => frame.columns[place].read(0, self.len())?,
                Frame::Compound(frame) => frame.rows(0, self.len())?.swap_remove(place),
            };
            let text = arrow::compute::cast(&column, &DataType::Utf8).unwrap_or(column);
            Ok(text.as_string::<i32>().iter().map(|v| v.unwrap_or_default().to_owned()).collect())
        };
        Some(read())
    }

    fn whole(&self) -> Result<()> {
        let index = match self {
            Frame::Group(frame) => &frame.index,
            Frame::Compound(frame) => frame.dataset(),
        };
        match self.len() > MOST_NAMES {
            true => Err(index.error(format!("states {} names, more than any file has genes", self.len()))),
            false => Ok(()),
        }
    }
}

impl GroupFrame {
    fn open(h5: &H5, object: &str) -> Result<Self> {
        let index_name = h5.text_attribute(object, "_index").unwrap_or_else(|| "_index".to_owned());
        let index_object = format!("{object}/{index_name}");
        if !h5.has_dataset(&index_object) {
            return Err(h5.error(object, format!("has no index column '{index_name}', so its rows have no names")));
        }
        let index = h5.dataset(&index_object)?;
        if !is_text(index.kind()) {
            return Err(index.error("holds numbers where names should be"));
        }
        let mut names = match h5.list_attribute(object, "column-order") {
            Some(names) => names,
            None => h5.members(object)?,
        };
        names.retain(|n| *n != index_name && n != "__categories");
        let mut frame = Self { index, described: Vec::new(), columns: Vec::new(), skipped: Vec::new() };
        for name in names {
            match Column::open(h5, object, &name)? {
                Some((described, column)) => {
                    frame.check_rows(h5, object, &name, &column)?;
                    frame.described.push(described);
                    frame.columns.push(column);
                }
                None => frame.skipped.push(name),
            }
        }
        Ok(frame)
    }

    fn check_rows(&self, h5: &H5, object: &str, name: &str, column: &Column) -> Result<()> {
        let (rows, expected) = (column.dataset().rows(), self.index.rows());
        match rows == expected {
            true => Ok(()),
            false => Err(h5.error(&format!("{object}/{name}"), format!("has {rows} rows, the index {expected}"))),
        }
    }
}

impl Column {
    /// A column, or `None` for kinds of values that are no obs column (nested, complex, …).
    fn open(h5: &H5, frame: &str, name: &str) -> Result<Option<(ObsColumn, Self)>> {
        let object = format!("{frame}/{name}");
        if h5.group(&object).is_some() {
            return Self::open_group(h5, &object, name);
        }
        let values = h5.dataset(&object)?;
        let old_categories = format!("{frame}/__categories/{name}");
        if h5.has_dataset(&old_categories) {
            return Self::codes(h5, name, values, &old_categories, &old_categories).map(Some);
        }
        Ok(Self::plain(name, values, None))
    }

    /// Encoding 0.2.0: categoricals and nullable columns are groups.
    fn open_group(h5: &H5, object: &str, name: &str) -> Result<Option<(ObsColumn, Self)>> {
        let codes = format!("{object}/codes");
        if h5.has_dataset(&codes) {
            return Self::codes(h5, name, h5.dataset(&codes)?, &format!("{object}/categories"), object).map(Some);
        }
        let (values, mask) = (format!("{object}/values"), format!("{object}/mask"));
        if h5.has_dataset(&values) && h5.has_dataset(&mask) {
            return Ok(Self::plain(name, h5.dataset(&values)?, Some(h5.dataset(&mask)?)));
        }
        Ok(None)
    }

    fn codes(h5: &H5, name: &str, codes: H5Dataset, of: &str, ordered: &str) -> Result<(ObsColumn, Self)> {
        let categories = Arc::new(categories(&h5.dataset(of)?)?);
        let described = ObsColumn::categorical(name, Arc::clone(&categories), h5.flag_attribute(ordered, "ordered"));
        Ok((described, Self { values: Values::Codes(codes, categories), mask: None }))
    }

    fn plain(name: &str, dataset: H5Dataset, mask: Option<H5Dataset>) -> Option<(ObsColumn, Self)> {
        if dataset.shape().len() != 1 {
            return None;
        }
        let (values, of) = match dataset.kind().clone() {
            kind if is_text(&kind) => (Values::Text(dataset), DataType::Utf8),
            DType::F32 | DType::F64 => (Values::Numbers(dataset), DataType::Float64),
            kind if is_flag(&kind) => (Values::Flags(dataset), DataType::Boolean),
            kind if is_integer(&kind) => (Values::Integers(dataset), DataType::Int64),
            _ => return None,
        };
        Some((ObsColumn::plain(name, of), Self { values, mask }))
    }

    fn dataset(&self) -> &H5Dataset {
        match &self.values {
            Values::Text(d) | Values::Integers(d) | Values::Numbers(d) | Values::Flags(d) | Values::Codes(d, _) => d,
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
            Values::Codes(codes, categories) => {
                let fail = |problem| codes.error(problem);
                categorical(codes.integers(start, count)?, categories).map_err(fail)?
            }
        })
    }
}

fn present<T>(values: Vec<T>, keep: impl Fn(usize) -> bool) -> impl Iterator<Item = Option<T>> {
    values.into_iter().enumerate().map(move |(i, v)| keep(i).then_some(v))
}

/// Codes as a dictionary column; a negative code is a missing value.
pub(crate) fn categorical(codes: Vec<i64>, categories: &Arc<StringArray>) -> Result<ArrayRef, String> {
    use arrow::array::Array;
    if let Some(wrong) = codes.iter().find(|c| **c >= categories.len() as i64) {
        return Err(format!("has code {wrong} but only {} categories", categories.len()));
    }
    let keys: Int32Array = codes.into_iter().map(|c| (c >= 0).then_some(c as i32)).collect();
    let column = DictionaryArray::<Int32Type>::try_new(keys, Arc::clone(categories) as ArrayRef);
    column.map(|c| Arc::new(c) as ArrayRef).map_err(|e| e.to_string())
}

/// Categories as text, whatever they are stored as.
pub(crate) fn categories(dataset: &H5Dataset) -> Result<StringArray> {
    let rows = dataset.rows();
    if rows > MOST_NAMES {
        return Err(dataset.error(format!("states {rows} categories")));
    }
    let texts: Vec<String> = match dataset.kind() {
        kind if is_text(kind) => dataset.texts(0, rows)?,
        DType::F32 | DType::F64 => dataset.numbers(0, rows)?.iter().map(ToString::to_string).collect(),
        kind if is_flag(kind) => dataset.bytes(0, rows)?.iter().map(|b| flag(*b)).collect(),
        kind if is_integer(kind) => dataset.integers(0, rows)?.iter().map(ToString::to_string).collect(),
        kind => return Err(unreadable(dataset, kind)),
    };
    Ok(StringArray::from_iter_values(texts))
}

/// A boolean category as pandas prints it.
fn flag(byte: u8) -> String {
    if byte == 0 { "False" } else { "True" }.to_owned()
}

fn unreadable(dataset: &H5Dataset, kind: &DType) -> FormatError {
    dataset.error(format!("has the type {kind}, which no category can have"))
}
