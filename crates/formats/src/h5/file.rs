//! HDF5 files and datasets through hdf5-pure, with errors that name the file and the object. Long numeric arrays of a
//! common layout are read by [`super::chunks`].

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hdf5_pure::{AttrValue, DType, File, Group};

use super::chunks::Chunks;
use super::half::Half;
use crate::error::{FormatError, Result};

/// Largest ratio of a dataset to its file that is believed: deflate reaches 1,032.
const MAX_INFLATION: u64 = 1100;

/// Maximum number of names (features, barcodes, categories) that are read at once, so that a damaged length cannot
/// exhaust memory.
pub(crate) const MAX_NAMES: u64 = 20_000_000;

/// What a user can do about an object that is a link.
pub(crate) const LINK_HELP: &str = "links to other files and paths are not followed; write a file that holds its data \
                                    with anndata.read_h5ad(\"linked.h5ad\").write_h5ad(\"whole.h5ad\") in Python";

const SIGNATURE: &[u8] = b"\x89HDF\r\n\x1a\n";

/// True for a file that starts with HDF5's signature.
pub(crate) fn is_hdf5(head: &[u8]) -> bool {
    head.starts_with(SIGNATURE)
}

/// Place of HDF5's signature: 0, or a power of two from 512 if a user block precedes it. `head` is the beginning of the
/// file, decompressed; places after it are read from the file.
pub(crate) fn signature_place(path: &Path, head: &[u8]) -> Result<Option<u64>> {
    let fail = |e: std::io::Error| FormatError::new(path, "file", format!("cannot be read: {e}"));
    let file = std::fs::File::open(path).map_err(fail)?;
    let len = file.metadata().map_err(fail)?.len();
    let mut bytes = [0; SIGNATURE.len()];
    for place in std::iter::once(0).chain((9..63).map(|power| 1u64 << power)) {
        let end = place + SIGNATURE.len() as u64;
        let found = match head.get(place as usize..end as usize) {
            Some(there) => there == SIGNATURE,
            None if end > len => break,
            None => file.read_exact_at(&mut bytes, place).is_ok() && bytes == *SIGNATURE,
        };
        if found {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

/// An open file.
#[derive(Clone)]
pub(crate) struct H5 {
    path: Arc<PathBuf>,
    file: Arc<File>,
    /// The same file, for arrays that are read without hdf5-pure.
    bytes: Arc<std::fs::File>,
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
        // libhdf5 corrects the addresses of a file that was moved behind other bytes; hdf5-pure does not.
        let place = signature_place(path, &[])?.unwrap_or_default();
        if file.superblock().base_address.get() != place {
            let problem = format!(
                "has {place} bytes before its HDF5 content that it does not know of; remove them with \
                 tail -c +{} cells.h5ad > plain.h5ad",
                place + 1
            );
            return Err(FormatError::new(path, "user block", problem));
        }
        let bytes = std::fs::File::open(path);
        let bytes = bytes.map_err(|e| FormatError::new(path, "file", format!("cannot be read: {e}")))?;
        Ok(Self { path: Arc::new(path.to_owned()), file: Arc::new(file), bytes: Arc::new(bytes) })
    }

    pub(crate) fn error(&self, object: &str, problem: impl ToString) -> FormatError {
        // The path of the root group is empty where it is put together from parts.
        let object = if object.is_empty() { "/" } else { object };
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
        let mut names = group.datasets().map_err(|_| self.unlisted(object))?;
        names.extend(group.groups().map_err(|_| self.unlisted(object))?);
        names.sort();
        Ok(names)
    }

    pub(crate) fn dataset(&self, object: &str) -> Result<H5Dataset> {
        let missing = || self.error(object, format!("is not in this file, or is a link: {LINK_HELP}"));
        self.optional_dataset(object)?.ok_or_else(missing)
    }

    /// A dataset, or `None` if the file does not hold one of that name, which may be a link to elsewhere.
    pub(crate) fn optional_dataset(&self, object: &str) -> Result<Option<H5Dataset>> {
        match self.file.dataset(object) {
            Ok(dataset) => self.described(object.to_owned(), dataset).map(Some),
            Err(e) if is_absent(&e) => Ok(None),
            Err(e) => Err(self.error(object, format!("cannot be read: {e}"))),
        }
    }

    /// A dataset with its type and shape, which are checked against the size of the file.
    pub(crate) fn described(&self, object: String, dataset: hdf5_pure::Dataset) -> Result<H5Dataset> {
        let fail = |e: hdf5_pure::Error| self.error(&object, format!("cannot be read: {e}"));
        let shape = dataset.shape().map_err(fail)?;
        let dtype = dataset.dtype().map_err(fail)?;
        let width = dataset.element_size().map_err(fail)?;
        let bytes = shape.iter().try_fold(width, |product, n| product.checked_mul(*n));
        if bytes.is_none_or(|b| b > self.file.file_size().saturating_mul(MAX_INFLATION)) {
            let problem = format!("states the shape {shape:?}, more than a file of this size can hold");
            return Err(self.error(&object, problem));
        }
        let chunks = Chunks::open(&self.bytes, &dataset, &dtype, &shape);
        Ok(H5Dataset { path: Arc::clone(&self.path), object, dataset, dtype, shape, chunks })
    }

    /// The error of a group whose objects cannot be listed.
    pub(crate) fn unlisted(&self, object: &str) -> FormatError {
        let reason = self.group(object).and_then(|group| group.datasets().err());
        let reason = reason.map(|e| e.to_string()).unwrap_or_default();
        self.error(
            object,
            format!("cannot be listed ({reason}): it is damaged, or an object in it is a link: {LINK_HELP}"),
        )
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
        self.attribute(object, name).is_some_and(|value| is_true(&value))
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

    /// A boolean attribute; false if it is absent.
    pub(crate) fn bool_attribute(&self, name: &str) -> bool {
        self.dataset.attrs().is_ok_and(|all| all.get(name).is_some_and(is_true))
    }

    /// `count` rows from `start` as `f64`, all axes flattened.
    pub(crate) fn read_f64(&self, start: u64, count: u64) -> Result<Vec<f64>> {
        if let Some(half) = Half::of_dtype(&self.dtype) {
            return Ok(half.numbers(&self.read_bytes(start, count)?).map(f64::from).collect());
        }
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

/// True for the error of a name that no hard link has. A soft link in a group of the old form (a symbol table) has the
/// undefined address, all bits set.
fn is_absent(error: &hdf5_pure::Error) -> bool {
    use hdf5_pure::FormatError::{OffsetOverflow, PathNotFound};
    matches!(error, hdf5_pure::Error::Format(PathNotFound(_) | OffsetOverflow { offset: u64::MAX, .. }))
}

pub(crate) fn is_text(dtype: &DType) -> bool {
    matches!(dtype, DType::String | DType::VariableLengthString)
}

pub(crate) fn is_float(dtype: &DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64) || Half::of_dtype(dtype).is_some()
}

/// Whether an attribute is a true value.
pub(crate) fn is_true(value: &AttrValue) -> bool {
    match value.as_str() {
        Some(text) => text.eq_ignore_ascii_case("true"),
        None => value.to_u64s().is_some_and(|n| n.first().is_some_and(|n| *n != 0)),
    }
}

pub(crate) fn is_bool(dtype: &DType) -> bool {
    matches!(dtype, DType::Enum(names) if names.len() == 2)
}

pub(crate) fn is_integer(dtype: &DType) -> bool {
    use DType::{I8, I16, I32, I64, U8, U16, U32, U64};
    matches!(dtype, I8 | I16 | I32 | I64 | U8 | U16 | U32 | U64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_root_group() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cells.h5ad");
        let mut file = hdf5_pure::FileBuilder::new();
        file.create_dataset("X").with_f32_data(&[1.0]).with_shape(&[1]);
        file.write(path.to_str().unwrap()).unwrap();
        let h5 = H5::open(&path).unwrap();
        assert_eq!(
            (h5.error("", "is damaged").object.as_str(), h5.error("X", "is damaged").object.as_str()),
            ("/", "X")
        );
    }
}
