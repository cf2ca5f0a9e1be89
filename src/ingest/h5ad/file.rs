//! HDF5 through hdf5-pure, with errors that name the file and the object. Nothing outside this file and its siblings
//! knows which library reads HDF5.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hdf5_pure::{AttrValue, File, Group};

use crate::error::{Error, Result};

/// True for a file that starts with HDF5's signature.
pub(in crate::ingest) fn is_hdf5(head: &[u8]) -> bool {
    head.starts_with(b"\x89HDF\r\n\x1a\n")
}

/// An open file.
#[derive(Clone)]
pub(super) struct H5 {
    path: Arc<PathBuf>,
    file: Arc<File>,
}

/// One dataset of it.
pub(super) struct H5Dataset {
    path: Arc<PathBuf>,
    object: String,
    dataset: hdf5_pure::Dataset,
    rows: u64,
}

impl H5 {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open_streaming(path)
            .map_err(|e| Error::input(path, "file", format!("is not a readable HDF5 file, perhaps cut short: {e}")))?;
        // Else the first object that lies behind the cut would seem to be missing.
        let (stated, there) = (file.superblock().eof_address, file.file_size());
        if there < stated {
            return Err(Error::input(path, "file", format!("is cut short: it states {stated} bytes and has {there}")));
        }
        Ok(Self { path: Arc::new(path.to_owned()), file: Arc::new(file) })
    }

    pub(super) fn error(&self, object: &str, problem: impl ToString) -> Error {
        Error::input(self.path.as_ref(), object, problem)
    }

    /// A group, or `None` where there is none of that name.
    pub(super) fn group(&self, object: &str) -> Option<Group> {
        self.file.group(object).ok()
    }

    pub(super) fn has_dataset(&self, object: &str) -> bool {
        self.file.dataset(object).is_ok()
    }

    pub(super) fn dataset(&self, object: &str) -> Result<H5Dataset> {
        let fail = |e: hdf5_pure::Error| self.error(object, format!("cannot be read: {e}"));
        let dataset = self.file.dataset(object).map_err(fail)?;
        let shape = dataset.shape().map_err(fail)?;
        let rows = shape.first().copied().unwrap_or(1);
        Ok(H5Dataset { path: Arc::clone(&self.path), object: object.to_owned(), dataset, rows })
    }

    /// A text attribute of a group or dataset.
    pub(super) fn text_attribute(&self, object: &str, name: &str) -> Option<String> {
        self.attribute(object, name)?.as_str().map(str::to_owned)
    }

    /// An attribute of whole numbers.
    pub(super) fn number_attribute(&self, object: &str, name: &str) -> Option<Vec<u64>> {
        self.attribute(object, name)?.to_u64s()
    }

    /// An attribute that is a list of texts.
    pub(super) fn list_attribute(&self, object: &str, name: &str) -> Option<Vec<String>> {
        self.attribute(object, name)?.as_strings().map(<[String]>::to_vec)
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
    pub(super) fn object(&self) -> &str {
        &self.object
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    pub(super) fn shape(&self) -> Result<Vec<u64>> {
        self.dataset.shape().map_err(|e| self.error(e))
    }

    pub(super) fn kind(&self) -> Result<hdf5_pure::DType> {
        self.dataset.dtype().map_err(|e| self.error(e))
    }

    pub(super) fn error(&self, problem: impl ToString) -> Error {
        Error::input(self.path.as_ref(), self.object.as_str(), problem)
    }

    /// Rows as numbers.
    pub(super) fn numbers(&self, start: u64, count: u64) -> Result<Vec<f64>> {
        self.window(start, count, |d| d.read_f64_rows(start, count))
    }

    /// Rows as whole numbers.
    pub(super) fn integers(&self, start: u64, count: u64) -> Result<Vec<i64>> {
        self.window(start, count, |d| d.read_i64_rows(start, count))
    }

    /// Rows as text.
    pub(super) fn texts(&self, start: u64, count: u64) -> Result<Vec<String>> {
        self.window(start, count, |d| d.read_string_rows(start, count))
    }

    /// Rows as bytes: booleans, which h5py stores as an enumeration of one byte.
    pub(super) fn bytes(&self, start: u64, count: u64) -> Result<Vec<u8>> {
        self.window(start, count, |d| d.read_raw_rows(start, count))
    }

    fn window<T>(
        &self,
        start: u64,
        count: u64,
        read: impl FnOnce(&hdf5_pure::Dataset) -> Result<Vec<T>, hdf5_pure::Error>,
    ) -> Result<Vec<T>> {
        if start.checked_add(count).is_none_or(|end| end > self.rows) {
            return Err(self.error(format!(
                "holds {} rows where {} are needed",
                self.rows,
                start.saturating_add(count)
            )));
        }
        if count == 0 {
            return Ok(Vec::new());
        }
        read(&self.dataset).map_err(|e| self.error(format!("cannot be read, perhaps the file is cut short: {e}")))
    }
}
