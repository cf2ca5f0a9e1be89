//! AnnData dataframes (`obs` and `var`), read by windows of rows. A dataframe is a group with one dataset or subgroup
//! per column, or one compound dataset ([`super::compound`]).

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, UInt64Array};
use arrow::datatypes::DataType;
use hdf5_pure::DType;

use super::categorical::{categorical, categories};
use super::compound::Compound;
use super::file::{H5, H5Dataset, LINK_HELP, MAX_NAMES, is_bool, is_float, is_integer, is_text};
use super::members::{H5Group, Object, Objects};
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
    missing: Vec<String>,
}

/// What a name in a dataframe stands for.
enum Found {
    Column(ObsColumn, Box<Column>),
    /// Values that are no obs column: nested, complex, ….
    OtherType,
    /// No object of the file, or a link, which is not followed.
    Nothing,
}

impl Frame {
    pub(crate) fn open(h5: &H5, object: &str) -> Result<Self> {
        if h5.group(object).is_some() {
            return GroupFrame::open(h5, object).map(Frame::Group);
        }
        if h5.has_dataset(object) {
            return Compound::open(h5, object).map(Frame::Compound);
        }
        let problem = format!(
            "is missing, or is a link: an .h5ad file names its cells in obs and its genes in var, and {LINK_HELP}"
        );
        Err(h5.error(object, problem))
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

    /// Names of columns that the dataframe lists but the file does not hold, because they are links or were removed.
    pub(crate) fn missing(&self) -> &[String] {
        match self {
            Frame::Group(frame) => &frame.missing,
            Frame::Compound(_) => &[],
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
        let no_index = || {
            let problem = format!(
                "has no index column '{index_name}', so its rows have no names, or that is a link: {LINK_HELP}"
            );
            h5.error(object, problem)
        };
        let index = h5.optional_dataset(&index_object)?.ok_or_else(no_index)?;
        if !is_text(index.dtype()) {
            return Err(index.error("holds numbers where names should be"));
        }
        let mut objects = Objects::new(h5);
        let names = match h5.list_attribute(object, "column-order") {
            Some(names) => names,
            None => objects.names(object)?,
        };
        let mut seen = HashSet::from([index_name, "__categories".to_owned()]);
        let names: Vec<String> = names.into_iter().filter(|name| seen.insert(name.clone())).collect();
        let mut frame = Self { index, described: vec![], columns: vec![], skipped: vec![], missing: vec![] };
        for name in names {
            match Column::open(&mut objects, object, &name)? {
                Found::Column(described, column) => frame.add(h5, object, described, *column)?,
                Found::OtherType => frame.skipped.push(name),
                Found::Nothing => frame.missing.push(name),
            }
        }
        Ok(frame)
    }

    fn add(&mut self, h5: &H5, object: &str, mut described: ObsColumn, mut column: Column) -> Result<()> {
        self.check_rows(h5, object, &described.name, &column)?;
        column.values = match column.values {
            Values::Integers(dataset) if has_large(&dataset)? => {
                described.data_type = DataType::UInt64;
                Values::LargeIntegers(dataset)
            }
            values => values,
        };
        self.described.push(described);
        self.columns.push(column);
        Ok(())
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
    fn open(objects: &mut Objects<'_>, frame: &str, name: &str) -> Result<Found> {
        let values = match objects.take(&Objects::path(frame, name))? {
            Some(Object::Group(group)) => return Self::open_group(&group, name),
            Some(Object::Dataset(values)) => *values,
            None => return Ok(Found::Nothing),
        };
        // Encoding 0.1.0.
        let old = objects.take(&Objects::path(&format!("{frame}/__categories"), name))?;
        if let Some(Object::Dataset(of)) = old {
            return Self::codes(name, values, &of, of.bool_attribute("ordered"));
        }
        Ok(Self::plain(name, values, None))
    }

    /// Encoding 0.2.0: categoricals and nullable columns are groups.
    fn open_group(group: &H5Group, name: &str) -> Result<Found> {
        if let Some(codes) = group.dataset("codes")? {
            let Some(of) = group.dataset("categories")? else {
                return Err(codes.error("has no categories beside it"));
            };
            return Self::codes(name, codes, &of, group.bool_attribute("ordered"));
        }
        match (group.dataset("values")?, group.dataset("mask")?) {
            (Some(values), Some(mask)) => Ok(Self::plain(name, values, Some(mask))),
            _ => Ok(Found::OtherType),
        }
    }

    fn codes(name: &str, codes: H5Dataset, of: &H5Dataset, ordered: bool) -> Result<Found> {
        let categories = Arc::new(categories(of)?);
        let described = ObsColumn::categorical(name, Arc::clone(&categories), ordered);
        let values = Values::Codes(codes, categories);
        Ok(Found::Column(described, Box::new(Self { values, mask: None })))
    }

    fn plain(name: &str, dataset: H5Dataset, mask: Option<H5Dataset>) -> Found {
        if dataset.shape().len() != 1 {
            return Found::OtherType;
        }
        let (values, of) = match dataset.dtype().clone() {
            dtype if is_text(&dtype) => (Values::Text(dataset), DataType::Utf8),
            dtype if is_float(&dtype) => (Values::Floats(dataset), DataType::Float64),
            dtype if is_bool(&dtype) => (Values::Bools(dataset), DataType::Boolean),
            dtype if is_integer(&dtype) => (Values::Integers(dataset), DataType::Int64),
            _ => return Found::OtherType,
        };
        Found::Column(ObsColumn::plain(name, of), Box::new(Self { values, mask }))
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
