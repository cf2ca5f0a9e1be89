//! HDF5 files and datasets through hdf5-pure, with errors that name the file and the object. Long numeric arrays of a
//! common layout are read by [`super::chunks`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hdf5_pure::{AttrValue, DType, File, Group};

use super::chunks::Chunks;
use crate::error::{FormatError, Result};

/// Largest ratio of a dataset to its file that is believed: deflate reaches 1,032.
const MAX_INFLATION: u64 = 1100;

/// Maximum number of names (features, barcodes, categories) that are read at once, so that a damaged length cannot
/// exhaust memory.
pub(crate) const MAX_NAMES: u64 = 20_000_000;

/// True for a file that starts with HDF5's signature.
pub(crate) fn is_hdf5(head: &[u8]) -> bool {
    head.starts_with(b"\x89HDF\r\n\x1a\n")
}

/// An open file.
#[derive(Clone)]
pub(crate) struct H5 {
    path: Arc<PathBuf>,
    file: Arc<File>,
}

/// A dataset of an open file.
pub(crate) struct H5Dataset {
    path: Arc<PathBuf>,
    object: String,
    dataset: hdf5_pure::Dataset,
    dtype: DType,
    shape: Vec<u64>,
    chunks: Option<Chunks>,
}

impl H5 {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open_streaming(path).map_err(|e| {
            FormatError::new(path, "file", format!("is not a readable HDF5 file, perhaps cut short: {e}"))
        })?;
        // Without this check an object behind the cut would be reported as missing.
        let (stated, there) = (file.superblock().eof_address, file.file_size());
        if there < stated {
            let problem = format!("is cut short: it states {stated} bytes and has {there}; copy or download it again");
            return Err(FormatError::new(path, "file", problem));
        }
        Ok(Self { path: Arc::new(path.to_owned()), file: Arc::new(file) })
    }

    pub(crate) fn error(&self, object: &str, problem: impl ToString) -> FormatError {
        FormatError::new(self.path.as_ref(), object, problem)
    }

    /// A group, or `None` if there is none of that name.
    pub(crate) fn group(&self, object: &str) -> Option<Group> {
        if object == "/" {
            return Some(self.file.root());
        }
        self.file.group(object).ok()
    }

    pub(crate) fn has_dataset(&self, object: &str) -> bool {
        self.file.dataset(object).is_ok()
    }

    pub(crate) fn has(&self, object: &str) -> bool {
        self.group(object).is_some() || self.has_dataset(object)
    }

    /// Names of the groups and datasets in a group, sorted; empty if there is no such group.
    pub(crate) fn members(&self, object: &str) -> Result<Vec<String>> {
        let Some(group) = self.group(object) else {
            return Ok(Vec::new());
        };
        let mut names = group.datasets().map_err(|e| self.error(object, e))?;
        names.extend(group.groups().map_err(|e| self.error(object, e))?);
        names.sort();
        Ok(names)
    }

    pub(crate) fn dataset(&self, object: &str) -> Result<H5Dataset> {
        let fail = |e: hdf5_pure::Error| self.error(object, format!("cannot be read: {e}"));
        let dataset = self.file.dataset(object).map_err(fail)?;
        let shape = dataset.shape().map_err(fail)?;
        let dtype = dataset.dtype().map_err(fail)?;
        let width = dataset.element_size().map_err(fail)?;
        let bytes = shape.iter().try_fold(width, |product, n| product.checked_mul(*n));
        if bytes.is_none_or(|b| b > self.file.file_size().saturating_mul(MAX_INFLATION)) {
            let problem = format!("states the shape {shape:?}, more than a file of this size can hold");
            return Err(self.error(object, problem));
        }
        let chunks = Chunks::open(&self.path, &dataset, &dtype, &shape);
        Ok(H5Dataset { path: Arc::clone(&self.path), object: object.to_owned(), dataset, dtype, shape, chunks })
    }

    /// All strings of a one-dimensional dataset.
    pub(crate) fn all_texts(&self, object: &str) -> Result<Vec<String>> {
        let dataset = self.dataset(object)?;
        if !is_text(dataset.dtype()) {
            return Err(dataset.error("holds numbers where names should be"));
        }
        if dataset.rows() > MAX_NAMES {
            return Err(dataset.error(format!(
                "states {} names, more than the maximum of {MAX_NAMES}; the file may be damaged",
                dataset.rows()
            )));
        }
        dataset.read_text(0, dataset.rows())
    }

    /// A string attribute of a group or dataset.
    pub(crate) fn text_attribute(&self, object: &str, name: &str) -> Option<String> {
        self.attribute(object, name)?.as_str().map(str::to_owned)
    }

    /// An attribute of integers.
    pub(crate) fn integer_attribute(&self, object: &str, name: &str) -> Option<Vec<u64>> {
        self.attribute(object, name)?.to_u64s()
    }

    /// An attribute that is a list of strings.
    pub(crate) fn list_attribute(&self, object: &str, name: &str) -> Option<Vec<String>> {
        self.attribute(object, name)?.as_strings().map(<[String]>::to_vec)
    }

    /// A boolean attribute; false if it is absent.
    pub(crate) fn bool_attribute(&self, object: &str, name: &str) -> bool {
        let value = self.attribute(object, name);
        value.is_some_and(|v| match v.as_str() {
            Some(text) => text.eq_ignore_ascii_case("true"),
            None => v.to_u64s().is_some_and(|n| n.first().is_some_and(|n| *n != 0)),
        })
    }

    fn attribute(&self, object: &str, name: &str) -> Option<AttrValue> {
        let attributes = match self.file.group(object) {
            Ok(group) => group.attrs(),
            Err(_) => self.file.dataset(object).ok()?.attrs(),
        };
        attributes.ok()?.get(name).cloned()
    }
}

impl H5Dataset {
    pub(crate) fn object(&self) -> &str {
        &self.object
    }

    /// Length of the first axis.
    pub(crate) fn rows(&self) -> u64 {
        self.shape.first().copied().unwrap_or(1)
    }

    pub(crate) fn shape(&self) -> &[u64] {
        &self.shape
    }

    pub(crate) fn dtype(&self) -> &DType {
        &self.dtype
    }

    pub(crate) fn datatype(&self) -> Result<hdf5_pure::Datatype> {
        self.dataset.datatype().map_err(|e| self.error(e))
    }

    pub(crate) fn error(&self, problem: impl ToString) -> FormatError {
        FormatError::new(self.path.as_ref(), self.object.as_str(), problem)
    }

    /// `count` rows from `start` as `f64`, all axes flattened.
    pub(crate) fn read_f64(&self, start: u64, count: u64) -> Result<Vec<f64>> {
        self.window(start, count, |d| d.read_f64_rows(start, count))
    }

    /// `count` rows from `start` as values of a matrix. Fails if a whole number does not fit `f32`.
    pub(crate) fn read_f32(&self, start: u64, count: u64) -> Result<Vec<f32>> {
        if let Some(chunks) = &self.chunks {
            self.check(start, count)?;
            return chunks.values(start, count).map_err(|e| self.error(e));
        }
        let to_f32 = |v: f64| crate::rows::to_f32(v).map_err(|e| self.error(e));
        self.read_f64(start, count)?.into_iter().map(to_f32).collect()
    }

    /// `count` rows from `start` as indices, each below `bound`.
    pub(crate) fn read_indices(&self, start: u64, count: u64, bound: u64) -> Result<Vec<u32>> {
        let outside = |i: i128| format!("holds the index {i}, which is outside the matrix (below {bound})");
        if let Some(chunks) = &self.chunks {
            self.check(start, count)?;
            let indices = chunks.indices(start, count).map_err(|e| self.error(e))?;
            return match indices.iter().find(|i| u64::from(**i) >= bound) {
                Some(wrong) => Err(self.error(outside(i128::from(*wrong)))),
                None => Ok(indices),
            };
        }
        let raw = self.read_i64(start, count)?;
        match raw.iter().find(|i| **i < 0 || **i as u64 >= bound || **i > i64::from(u32::MAX)) {
            Some(wrong) => Err(self.error(outside(i128::from(*wrong)))),
            None => Ok(raw.into_iter().map(|i| i as u32).collect()),
        }
    }

    /// `count` rows from `start` as integers.
    pub(crate) fn read_i64(&self, start: u64, count: u64) -> Result<Vec<i64>> {
        self.window(start, count, |d| d.read_i64_rows(start, count))
    }

    /// `count` rows from `start` as integers without a sign.
    pub(crate) fn read_u64(&self, start: u64, count: u64) -> Result<Vec<u64>> {
        self.window(start, count, |d| d.read_u64_rows(start, count))
    }

    /// `count` rows from `start` as strings.
    pub(crate) fn read_text(&self, start: u64, count: u64) -> Result<Vec<String>> {
        self.window(start, count, |d| d.read_string_rows(start, count))
    }

    /// `count` rows from `start` as raw bytes: booleans (in h5py an enumeration of one byte) and compound rows.
    pub(crate) fn read_bytes(&self, start: u64, count: u64) -> Result<Vec<u8>> {
        self.window(start, count, |d| d.read_raw_rows(start, count))
    }

    fn check(&self, start: u64, count: u64) -> Result<()> {
        match start.checked_add(count).is_some_and(|end| end <= self.rows()) {
            true => Ok(()),
            false => {
                let needed = start.saturating_add(count);
                Err(self.error(format!("holds {} rows, but {needed} are needed", self.rows())))
            }
        }
    }

    fn window<T>(
        &self,
        start: u64,
        count: u64,
        read: impl FnOnce(&hdf5_pure::Dataset) -> Result<Vec<T>, hdf5_pure::Error>,
    ) -> Result<Vec<T>> {
        self.check(start, count)?;
        if count == 0 {
            return Ok(Vec::new());
        }
        read(&self.dataset).map_err(|e| self.error(format!("cannot be read, perhaps the file is cut short: {e}")))
    }
}

pub(crate) fn is_text(dtype: &DType) -> bool {
    matches!(dtype, DType::String | DType::VariableLengthString)
}

pub(crate) fn is_bool(dtype: &DType) -> bool {
    matches!(dtype, DType::Enum(names) if names.len() == 2)
}

pub(crate) fn is_integer(dtype: &DType) -> bool {
    use DType::{I8, I16, I32, I64, U8, U16, U32, U64};
    matches!(dtype, I8 | I16 | I32 | I64 | U8 | U16 | U32 | U64)
}
