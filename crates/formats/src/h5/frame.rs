//! AnnData dataframes (`obs` and `var`), read by windows of rows. A dataframe is a group with one dataset or subgroup
//! per column, or one compound dataset ([`super::compound`]).

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, UInt64Array};
use arrow::datatypes::DataType;
use hdf5_pure::DType;

use super::categorical::{categorical, categories};
use super::compound::Compound;
use super::file::{H5, H5Dataset, MAX_NAMES, is_bool, is_integer, is_text};
use crate::block::ObsColumn;
use crate::error::Result;

/// A dataframe of either encoding.
pub(crate) enum Frame {
    Group(GroupFrame),
    Compound(Compound),
}

enum Values {
    Text(H5Dataset),
    Integers(H5Dataset),
    /// Integers of which some are beyond `i64`.
    LargeIntegers(H5Dataset),
    Floats(H5Dataset),
    Bools(H5Dataset),
    /// Codes into categories; a negative code is a missing value.
    Codes(H5Dataset, Arc<StringArray>),
}

struct Column {
    values: Values,
    /// Mask of missing values (`nullable-*` encodings): true where the value is missing.
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

    /// Index (row names) of `count` rows from `start`.
    pub(crate) fn index_rows(&self, start: u64, count: u64) -> Result<Vec<String>> {
        match self {
            Frame::Group(frame) => frame.index.read_text(start, count),
            Frame::Compound(frame) => frame.index_rows(start, count),
        }
    }

    /// Index (row names) of all rows.
    pub(crate) fn index(&self) -> Result<Vec<String>> {
        self.check_len()?;
        self.index_rows(0, self.len())
    }

    pub(crate) fn columns(&self) -> &[ObsColumn] {
        match self {
            Frame::Group(frame) => &frame.described,
            Frame::Compound(frame) => frame.columns(),
        }
    }

    /// Names of columns whose type cannot be an obs column.
    pub(crate) fn skipped(&self) -> &[String] {
        match self {
            Frame::Group(frame) => &frame.skipped,
            Frame::Compound(frame) => frame.skipped(),
        }
    }

    /// Values of every column, for `count` rows from `start`.
    pub(crate) fn rows(&self, start: u64, count: u64) -> Result<Vec<ArrayRef>> {
        match self {
            Frame::Group(frame) => frame.columns.iter().map(|c| c.read(start, count)).collect(),
            Frame::Compound(frame) => frame.rows(start, count),
        }
    }

    /// A whole column as strings, missing values as empty ones. `None` if there is no such column or it does not hold
    /// strings.
    pub(crate) fn text(&self, name: &str) -> Option<Result<Vec<String>>> {
        use arrow::array::AsArray;
        let place = self
            .columns()
            .iter()
            .position(|c| c.name == name && matches!(c.data_type, DataType::Utf8 | DataType::Dictionary(_, _)))?;
        let read = || {
            self.check_len()?;
            let column = match self {
                Frame::Group(frame) => frame.columns[place].read(0, self.len())?,
                Frame::Compound(frame) => frame.rows(0, self.len())?.swap_remove(place),
            };
            let text = arrow::compute::cast(&column, &DataType::Utf8).unwrap_or(column);
            Ok(text.as_string::<i32>().iter().map(|v| v.unwrap_or_default().to_owned()).collect())
        };
        Some(read())
    }

    /// Fails if there are more rows than names may be read at once.
    fn check_len(&self) -> Result<()> {
        let index = match self {
            Frame::Group(frame) => &frame.index,
            Frame::Compound(frame) => frame.dataset(),
        };
        match self.len() > MAX_NAMES {
            true => Err(index.error(format!(
                "states {} names, more than the maximum of {MAX_NAMES}; the file may be damaged",
                self.len()
            ))),
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
        if !is_text(index.dtype()) {
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
                Some((mut described, mut column)) => {
                    frame.check_rows(h5, object, &name, &column)?;
                    if let Values::Integers(dataset) = &column.values
                        && has_large(dataset)?
                    {
                        column.values = Values::LargeIntegers(h5.dataset(dataset.object())?);
                        described.data_type = DataType::UInt64;
                    }
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
            false => {
                Err(h5.error(&format!("{object}/{name}"), format!("has {rows} rows, but the index has {expected}")))
            }
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
        let described = ObsColumn::categorical(name, Arc::clone(&categories), h5.bool_attribute(ordered, "ordered"));
        Ok((described, Self { values: Values::Codes(codes, categories), mask: None }))
    }

    fn plain(name: &str, dataset: H5Dataset, mask: Option<H5Dataset>) -> Option<(ObsColumn, Self)> {
        if dataset.shape().len() != 1 {
            return None;
        }
        let (values, of) = match dataset.dtype().clone() {
            dtype if is_text(&dtype) => (Values::Text(dataset), DataType::Utf8),
            DType::F32 | DType::F64 => (Values::Floats(dataset), DataType::Float64),
            dtype if is_bool(&dtype) => (Values::Bools(dataset), DataType::Boolean),
            dtype if is_integer(&dtype) => (Values::Integers(dataset), DataType::Int64),
            _ => return None,
        };
        Some((ObsColumn::plain(name, of), Self { values, mask }))
    }

    fn dataset(&self) -> &H5Dataset {
        match &self.values {
            Values::Text(d) | Values::Floats(d) | Values::Bools(d) | Values::Codes(d, _) => d,
            Values::Integers(d) | Values::LargeIntegers(d) => d,
        }
    }

    fn read(&self, start: u64, count: u64) -> Result<ArrayRef> {
        let missing: Vec<bool> = match &self.mask {
            Some(mask) => mask.read_bytes(start, count)?.into_iter().map(|b| b != 0).collect(),
            None => vec![false; count as usize],
        };
        let keep = |i: usize| !missing.get(i).copied().unwrap_or(false);
        Ok(match &self.values {
            Values::Text(d) => Arc::new(present(d.read_text(start, count)?, keep).collect::<StringArray>()),
            Values::Integers(d) => Arc::new(present(d.read_i64(start, count)?, keep).collect::<Int64Array>()),
            Values::LargeIntegers(d) => Arc::new(present(d.read_u64(start, count)?, keep).collect::<UInt64Array>()),
            Values::Floats(d) => {
                let values = d.read_f64(start, count)?;
                // pandas writes a missing number as NaN.
                Arc::new(present(values, keep).map(|v| v.filter(|x| !x.is_nan())).collect::<Float64Array>())
            }
            Values::Bools(d) => {
                let bytes = d.read_bytes(start, count)?;
                Arc::new(present(bytes, keep).map(|v| v.map(|b| b != 0)).collect::<BooleanArray>())
            }
            Values::Codes(codes, categories) => {
                let fail = |problem| codes.error(problem);
                categorical(codes.read_i64(start, count)?, categories).map_err(fail)?
            }
        })
    }
}

/// True if an integer of a column does not fit `i64`.
fn has_large(dataset: &H5Dataset) -> Result<bool> {
    const ROWS: u64 = 1 << 20;
    if *dataset.dtype() != DType::U64 {
        return Ok(false);
    }
    for start in (0..dataset.rows()).step_by(ROWS as usize) {
        let values = dataset.read_u64(start, ROWS.min(dataset.rows() - start))?;
        if values.iter().any(|value| i64::try_from(*value).is_err()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn present<T>(values: Vec<T>, keep: impl Fn(usize) -> bool) -> impl Iterator<Item = Option<T>> {
    values.into_iter().enumerate().map(move |(i, v)| keep(i).then_some(v))
}
