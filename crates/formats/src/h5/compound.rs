//! Dataframes of AnnData before 0.7: one compound dataset. Its categorical columns are codes into
//! `uns/NAME_categories`.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, UInt64Array};
use arrow::datatypes::DataType;
use hdf5_pure::{Datatype, DatatypeByteOrder};

use super::categorical::{categorical, categories};
use super::file::{H5, H5Dataset};
use super::half::Half;
use crate::block::ObsColumn;
use crate::error::Result;

/// Type of a member of the compound dataset.
#[derive(Clone, Copy, PartialEq)]
enum MemberType {
    Text,
    Signed,
    Unsigned,
    /// 64 bits without a sign, of which some are beyond `i64`.
    Large,
    Float,
    Half(Half),
    Bool,
}

/// A member of the compound dataset: one column.
struct Member {
    offset: usize,
    width: usize,
    dtype: MemberType,
    big_endian: bool,
    categories: Option<Arc<StringArray>>,
}

/// A dataframe that is one compound dataset.
pub(crate) struct Compound {
    dataset: H5Dataset,
    row_bytes: usize,
    index: Member,
    described: Vec<ObsColumn>,
    members: Vec<Member>,
    skipped: Vec<String>,
}

impl Compound {
    pub(crate) fn open(h5: &H5, object: &str) -> Result<Self> {
        let dataset = h5.dataset(object)?;
        let Datatype::Compound { size, members } = dataset.datatype()? else {
            return Err(dataset.error("is neither a group nor a compound dataset, so it is not an AnnData dataframe"));
        };
        if dataset.shape().len() != 1 {
            return Err(dataset.error("is a compound dataset of more than one dimension"));
        }
        let row_bytes = size as usize;
        let (mut described, mut kept, mut skipped, mut index) = (Vec::new(), Vec::new(), Vec::new(), None);
        for member in members {
            let Some(mut column) = Member::new(&member.datatype, member.byte_offset, row_bytes) else {
                skipped.push(member.name);
                continue;
            };
            if index.is_none() && matches!(member.name.as_str(), "index" | "_index") {
                index = Some(column);
                continue;
            }
            column.categories = column.find_categories(h5, &member.name)?;
            described.push(column.describe(h5, member.name));
            kept.push(column);
        }
        let index = index.filter(|i| matches!(i.dtype, MemberType::Text));
        let index = index.ok_or_else(|| dataset.error("has no text column 'index', so its rows have no names"))?;
        let mut compound = Self { dataset, row_bytes, index, described, members: kept, skipped };
        compound.find_large()?;
        Ok(compound)
    }

    /// Finds the integer columns that do not fit `i64`.
    fn find_large(&mut self) -> Result<()> {
        const ROWS: u64 = 1 << 16;
        let may_be_large = |m: &Member| m.dtype == MemberType::Unsigned && m.width == 8 && m.categories.is_none();
        if !self.members.iter().any(may_be_large) {
            return Ok(());
        }
        for start in (0..self.len()).step_by(ROWS as usize) {
            let bytes = self.bytes(start, ROWS.min(self.len() - start))?;
            for (member, described) in self.members.iter_mut().zip(&mut self.described) {
                if may_be_large(member) && member.cells(&bytes, self.row_bytes).any(|c| member.integer(c) < 0) {
                    member.dtype = MemberType::Large;
                    described.data_type = DataType::UInt64;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn dataset(&self) -> &H5Dataset {
        &self.dataset
    }

    pub(crate) fn len(&self) -> u64 {
        self.dataset.rows()
    }

    pub(crate) fn columns(&self) -> &[ObsColumn] {
        &self.described
    }

    pub(crate) fn skipped(&self) -> &[String] {
        &self.skipped
    }

    pub(crate) fn index_rows(&self, start: u64, count: u64) -> Result<Vec<String>> {
        Ok(self.index.cells(&self.bytes(start, count)?, self.row_bytes).map(text).collect())
    }

    pub(crate) fn rows(&self, start: u64, count: u64) -> Result<Vec<ArrayRef>> {
        let bytes = self.bytes(start, count)?;
        let fail = |problem| self.dataset.error(problem);
        self.members.iter().map(|m| m.column(&bytes, self.row_bytes).map_err(fail)).collect()
    }

    fn bytes(&self, start: u64, count: u64) -> Result<Vec<u8>> {
        let bytes = self.dataset.read_bytes(start, count)?;
        match bytes.len() == count as usize * self.row_bytes {
            true => Ok(bytes),
            false => Err(self
                .dataset
                .error(format!("returned {} bytes for {count} rows; the file may be damaged", bytes.len()))),
        }
    }
}

impl Member {
    fn new(datatype: &Datatype, offset: u64, row_bytes: usize) -> Option<Self> {
        let (dtype, width, order) = match datatype {
            Datatype::String { size, .. } => (MemberType::Text, *size, None),
            Datatype::FixedPoint { size, byte_order, layout } => {
                let dtype = if layout.signed { MemberType::Signed } else { MemberType::Unsigned };
                (dtype, *size, Some(byte_order))
            }
            Datatype::FloatingPoint { size: size @ (4 | 8), byte_order, .. } => {
                (MemberType::Float, *size, Some(byte_order))
            }
            Datatype::FloatingPoint { size: 2, .. } => (MemberType::Half(Half::of(datatype)?), 2, None),
            Datatype::Enumeration { size: 1, members, .. } if members.len() == 2 => (MemberType::Bool, 1, None),
            _ => return None,
        };
        let (offset, width) = (usize::try_from(offset).ok()?, width as usize);
        let fits = offset.checked_add(width)? <= row_bytes && (matches!(dtype, MemberType::Text) || width <= 8);
        let big_endian = matches!(order, Some(DatatypeByteOrder::BigEndian));
        fits.then_some(Self { offset, width, dtype, big_endian, categories: None })
    }

    /// The categories in `uns`, if this is a column of codes.
    fn find_categories(&self, h5: &H5, name: &str) -> Result<Option<Arc<StringArray>>> {
        let object = format!("uns/{name}_categories");
        match self.dtype {
            MemberType::Signed | MemberType::Unsigned if h5.has_dataset(&object) => {
                categories(&h5.dataset(&object)?).map(|c| Some(Arc::new(c)))
            }
            _ => Ok(None),
        }
    }

    fn describe(&self, h5: &H5, name: String) -> ObsColumn {
        if let Some(categories) = &self.categories {
            let ordered = h5.bool_attribute(&format!("uns/{name}_categories"), "ordered");
            return ObsColumn::categorical(name, Arc::clone(categories), ordered);
        }
        let of = match self.dtype {
            MemberType::Text => DataType::Utf8,
            MemberType::Signed | MemberType::Unsigned => DataType::Int64,
            MemberType::Large => DataType::UInt64,
            MemberType::Float | MemberType::Half(_) => DataType::Float64,
            MemberType::Bool => DataType::Boolean,
        };
        ObsColumn::plain(name, of)
    }

    fn cells<'a>(&self, bytes: &'a [u8], row_bytes: usize) -> impl Iterator<Item = &'a [u8]> {
        let span = self.offset..self.offset + self.width;
        bytes.chunks_exact(row_bytes.max(1)).map(move |row| &row[span.clone()])
    }

    fn column(&self, bytes: &[u8], row_bytes: usize) -> Result<ArrayRef, String> {
        let cells = self.cells(bytes, row_bytes);
        let integers =
            |cells: &mut dyn Iterator<Item = &[u8]>| -> Vec<i64> { cells.map(|c| self.integer(c)).collect() };
        let mut cells = cells;
        if let Some(categories) = &self.categories {
            return categorical(integers(&mut cells), categories);
        }
        Ok(match self.dtype {
            MemberType::Text => Arc::new(StringArray::from_iter_values(cells.map(text))),
            MemberType::Signed | MemberType::Unsigned => Arc::new(Int64Array::from(integers(&mut cells))),
            MemberType::Large => Arc::new(UInt64Array::from_iter_values(cells.map(|c| self.integer(c) as u64))),
            // pandas writes a missing number as NaN.
            MemberType::Float | MemberType::Half(_) => {
                Arc::new(cells.map(|c| Some(self.float(c)).filter(|v| !v.is_nan())).collect::<Float64Array>())
            }
            MemberType::Bool => Arc::new(cells.map(|c| Some(c[0] != 0)).collect::<BooleanArray>()),
        })
    }

    /// The bytes as a little-endian word of 8, sign-extended where they are signed.
    fn word(&self, cell: &[u8]) -> [u8; 8] {
        let mut word = [0u8; 8];
        for (i, byte) in cell.iter().enumerate() {
            word[if self.big_endian { cell.len() - 1 - i } else { i }] = *byte;
        }
        if matches!(self.dtype, MemberType::Signed) && cell.len() < 8 && word[cell.len() - 1] & 0x80 != 0 {
            word[cell.len()..].fill(0xff);
        }
        word
    }

    fn integer(&self, cell: &[u8]) -> i64 {
        i64::from_le_bytes(self.word(cell))
    }

    fn float(&self, cell: &[u8]) -> f64 {
        if let (MemberType::Half(half), [first, second]) = (self.dtype, cell) {
            return f64::from(half.number([*first, *second]));
        }
        let word = self.word(cell);
        match cell.len() {
            4 => f64::from(f32::from_le_bytes([word[0], word[1], word[2], word[3]])),
            _ => f64::from_le_bytes(word),
        }
    }
}

/// A fixed-length string without its padding.
fn text(cell: &[u8]) -> String {
    let end = cell.iter().position(|b| *b == 0).unwrap_or(cell.len());
    String::from_utf8_lossy(&cell[..end]).into_owned()
}
