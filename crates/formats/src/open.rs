//! Recognises the format of a file or directory by its content and opens it with the reader of that format.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use cellql_schemas::feature::Feature;

use crate::block::{Block, CellSource, ObsColumn};
use crate::delimited::Delimited;
use crate::error::{FormatError, Result};
use crate::gzip;
use crate::h5::file::{H5, is_hdf5};
use crate::h5ad::H5ad;
use crate::loom::Loom;
use crate::matrix_market::{self, MatrixMarket, Parts};
use crate::npz::Npz;
use crate::options::OpenOptions;
use crate::table::{Parquet, TableSource};
use crate::tenx::TenX;

/// Format of a file of cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// HDF5 file; AnnData unless its groups are those of 10x or loom, which [`open()`] finds out.
    H5ad,
    /// 10x Genomics HDF5.
    TenX,
    /// Loom.
    Loom,
    /// Matrix Market with `features.tsv` and `barcodes.tsv`.
    MatrixMarket,
    /// Dense text: CSV or TSV.
    Dense,
    /// scipy's sparse `.npz`.
    Npz,
    /// Parquet: an export of cellql, or long form.
    Parquet,
    /// A Lance table: a directory, read with the lance library and not by this crate.
    Lance,
}

/// The format of a file, or of a directory that is one data set. `None` for any other directory.
///
/// # Errors
/// The path cannot be read, or its content contradicts its extension.
pub fn recognise(path: &Path) -> Result<Option<Format>> {
    if path.is_dir() {
        let lance = path.join("_versions").is_dir()
            && (path.join("data").is_dir() || path.extension().is_some_and(|e| e == "lance"));
        return Ok(lance.then_some(Format::Lance));
    }
    let head = gzip::head(path, 16)?;
    let ending = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let ending = ending.strip_suffix(".gz").unwrap_or(&ending).to_owned();
    if is_hdf5(&head) {
        return Ok(Some(Format::H5ad));
    }
    for (magic, format) in [
        (b"PAR1".as_slice(), Format::Parquet),
        (b"PK\x03\x04", Format::Npz),
        (matrix_market::BANNER, Format::MatrixMarket),
    ] {
        if head.starts_with(magic) {
            return Ok(Some(format));
        }
    }
    for (name, what) in
        [(".h5ad", "HDF5"), (".h5", "HDF5"), (".loom", "HDF5"), (".parquet", "Parquet"), (".npz", "zip")]
    {
        if ending.ends_with(name) {
            let problem = format!(
                "is not an {what} file: it does not begin with the {what} signature; check that it is complete"
            );
            return Err(FormatError::new(path, "file", problem));
        }
    }
    Ok(Some(Format::Dense))
}

/// Opens a file of any format except [`Format::Lance`].
///
/// # Errors
/// The file is damaged or of no known format, or it needs an option that is missing.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Box<dyn CellSource>> {
    let format = recognise(path)?;
    let source = catch_panic(path, || match format {
        Some(Format::H5ad | Format::TenX | Format::Loom) => open_hdf5(path, options),
        Some(Format::Parquet) => Ok(Box::new(TableSource::open(path, Box::new(Parquet::open(path)?))?)),
        Some(Format::Npz) => Ok(Box::new(Npz::open(path, options)?)),
        Some(Format::MatrixMarket) => Ok(Box::new(MatrixMarket::open(path, options)?)),
        Some(Format::Dense) => Ok(Box::new(Delimited::open(path)?)),
        Some(Format::Lance) | None => Err(FormatError::new(path, "directory", "is not a data set; name a file in it")),
    })?;
    Ok(Box::new(PanicGuard { path: path.to_owned(), source, _decompressed: None }))
}

fn open_hdf5(path: &Path, options: &OpenOptions) -> Result<Box<dyn CellSource>> {
    let Some(plain) = decompressed(path)? else {
        return open_plain_hdf5(path, options);
    };
    let source = open_plain_hdf5(&plain, options).map_err(|e| FormatError { file: path.to_owned(), ..e })?;
    Ok(Box::new(PanicGuard { path: path.to_owned(), source, _decompressed: Some(plain) }))
}

fn open_plain_hdf5(path: &Path, options: &OpenOptions) -> Result<Box<dyn CellSource>> {
    let h5 = H5::open(path)?;
    if h5.has_dataset("matrix") && h5.group("row_attrs").is_some() {
        return Ok(Box::new(Loom::open(path, options)?));
    }
    let genomes = || h5.members("/").is_ok_and(|groups| groups.iter().any(|g| TenX::is_genome(&h5, g)));
    if h5.group("matrix/features").is_some() || (!h5.has("obs") && genomes()) {
        return Ok(Box::new(TenX::open(path, options)?));
    }
    Ok(Box::new(H5ad::open(path, options)?))
}

/// Decompresses a gzipped HDF5 file to a temporary file, because HDF5 needs random access. `None` for a plain file.
fn decompressed(path: &Path) -> Result<Option<tempfile::TempPath>> {
    let fail = |e: std::io::Error| FormatError::new(path, "file", format!("cannot be decompressed: {e}"));
    let mut head = [0u8; 2];
    let read = std::fs::File::open(path).and_then(|mut f| std::io::Read::read(&mut f, &mut head)).map_err(fail)?;
    if read < 2 || head != gzip::MAGIC {
        return Ok(None);
    }
    let mut file = tempfile::Builder::new().suffix(".h5").tempfile().map_err(fail)?;
    std::io::copy(gzip::open(path)?.as_mut(), &mut file).map_err(fail)?;
    Ok(Some(file.into_temp_path()))
}

/// The files that a data set consists of. The checksum of a data set covers all of them.
///
/// # Errors
/// One of them is missing.
pub fn parts(path: &Path, options: &OpenOptions) -> Result<Vec<PathBuf>> {
    let named = [options.genes.clone(), options.barcodes.clone()].into_iter().flatten();
    match recognise(path)? {
        Some(Format::MatrixMarket) => {
            let parts = Parts::of(path, options)?;
            Ok(vec![parts.matrix, parts.features, parts.barcodes])
        }
        Some(Format::Npz) => Ok(std::iter::once(path.to_owned()).chain(named).collect()),
        Some(Format::Lance) => {
            let mut files = files_below(path)?;
            files.sort();
            Ok(files)
        }
        _ => Ok(vec![path.to_owned()]),
    }
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in list(folder)? {
        if entry.is_dir() { files.extend(files_below(&entry)?) } else { files.push(entry) }
    }
    Ok(files)
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let fail = |e: std::io::Error| FormatError::new(folder, "directory", format!("cannot be read: {e}"));
    let entries = std::fs::read_dir(folder).map_err(fail)?;
    let mut paths = entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(fail)?;
    paths.sort();
    Ok(paths)
}

/// The data sets at a path, and the other files there.
///
/// A path that is one data set gives itself. A directory gives every data set in it, recursively, sorted by name.
///
/// # Errors
/// The path cannot be read, or it is a directory without a data set.
pub fn inputs(path: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    if !path.is_dir() || recognise(path)?.is_some() {
        return Ok((vec![path.to_owned()], Vec::new()));
    }
    let (mut found, mut other) = (Vec::new(), Vec::new());
    for entry in list(path)? {
        let name = entry.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
        if entry.is_dir() {
            let (inside, rest) = match inputs(&entry) {
                Ok(inside) => inside,
                Err(_) => (Vec::new(), vec![entry]),
            };
            found.extend(inside);
            other.extend(rest);
        } else if is_table_of_names(&name) || name.starts_with('.') {
            // Read together with the matrix.
        } else if is_data(&name) && !matches!(recognise(&entry), Ok(None) | Err(_)) {
            found.push(entry);
        } else {
            other.push(entry);
        }
    }
    match found.is_empty() {
        true => Err(FormatError::new(
            path,
            "directory",
            "holds no file of a known format; expected .h5ad, .h5, .loom, .mtx, .csv, .tsv, .txt, .npz or .parquet",
        )),
        false => Ok((found, other)),
    }
}

fn is_table_of_names(name: &str) -> bool {
    let name = name.strip_suffix(".gz").unwrap_or(name);
    ["features.tsv", "genes.tsv", "barcodes.tsv"].iter().any(|n| name.ends_with(n))
}

/// True for the extensions that are read from a directory. A file named directly may have any name.
fn is_data(name: &str) -> bool {
    let name = name.strip_suffix(".gz").unwrap_or(name);
    [".h5ad", ".h5", ".loom", ".mtx", ".csv", ".tsv", ".txt", ".npz", ".parquet"].iter().any(|n| name.ends_with(n))
}

/// Turns a panic of a format library into an error: such libraries assert properties that a damaged file may lack.
fn catch_panic<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(FormatError::new(path, "file", "is damaged: its reader stopped at an internal check")))
}

/// A source whose panics become errors. It also keeps the temporary file that the source reads, if there is one.
struct PanicGuard {
    path: PathBuf,
    source: Box<dyn CellSource>,
    _decompressed: Option<tempfile::TempPath>,
}

impl CellSource for PanicGuard {
    fn n_cells(&self) -> Option<u64> {
        self.source.n_cells()
    }

    fn features(&self) -> &[Feature] {
        self.source.features()
    }

    fn obs_columns(&self) -> &[ObsColumn] {
        self.source.obs_columns()
    }

    fn matrix(&self) -> &str {
        self.source.matrix()
    }

    fn notes(&self) -> &[String] {
        self.source.notes()
    }

    fn next_block(&mut self) -> Result<Option<Block>> {
        catch_panic(&self.path, || self.source.next_block())
    }

    fn rewind(&mut self) -> Result<()> {
        catch_panic(&self.path, || self.source.rewind())
    }
}
