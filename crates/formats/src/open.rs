//! Which format a path is of, by its content, and the reader for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use cellql_schemas::feature::Feature;

use crate::block::{Block, CellSource, ObsColumn};
use crate::dense::Dense;
use crate::h5::file::{H5, is_hdf5};
use crate::h5ad::H5ad;
use crate::loom::Loom;
use crate::matrix_market::{self, MatrixMarket, Parts};
use crate::npz::Npz;
use crate::table::{Parquet, TableSource};
use crate::tenx::TenX;
use crate::{FormatError, Result, gzip};

/// What of a file to read, where it offers a choice, and files that belong to it.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Read this layer instead of `X`.
    pub layer: Option<String>,
    /// Read `raw.X`.
    pub raw: bool,
    /// Genome of a 10x file with several.
    pub genome: Option<String>,
    /// Names of the genes, where the format has none or they lie elsewhere.
    pub genes: Option<PathBuf>,
    /// Names of the cells, likewise.
    pub barcodes: Option<PathBuf>,
}

impl OpenOptions {
    /// The matrix that is asked for by name, as `.h5ad` names it.
    pub fn matrix(&self) -> Option<String> {
        match (&self.layer, self.raw) {
            (Some(layer), _) if layer == "X" => Some("X".to_owned()),
            (Some(layer), _) => Some(format!("layers/{layer}")),
            (None, true) => Some("raw/X".to_owned()),
            (None, false) => None,
        }
    }
}

/// Format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// AnnData.
    H5ad,
    /// 10x Genomics, HDF5.
    TenX,
    /// Loom.
    Loom,
    /// Matrix Market with its tables of names.
    MatrixMarket,
    /// Dense text.
    Dense,
    /// scipy sparse.
    Npz,
    /// Parquet.
    Parquet,
    /// A Lance table: a directory, which its own library reads.
    Lance,
}

/// Recognises a file, or a directory that is one data set, by its content. `None` for a directory of other things.
///
/// # Errors
/// The path cannot be read, or holds nothing that is known.
pub fn recognise(path: &Path) -> Result<Option<Kind>> {
    if path.is_dir() {
        let lance = path.join("_versions").is_dir()
            && (path.join("data").is_dir() || path.extension().is_some_and(|e| e == "lance"));
        return Ok(lance.then_some(Kind::Lance));
    }
    let head = gzip::head(path, 16)?;
    let ending = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let ending = ending.strip_suffix(".gz").unwrap_or(&ending).to_owned();
    if is_hdf5(&head) {
        return Ok(Some(Kind::H5ad));
    }
    for (marks, kind) in
        [(b"PAR1".as_slice(), Kind::Parquet), (b"PK\x03\x04", Kind::Npz), (matrix_market::BANNER, Kind::MatrixMarket)]
    {
        if head.starts_with(marks) {
            return Ok(Some(kind));
        }
    }
    for (name, what) in
        [(".h5ad", "HDF5"), (".h5", "HDF5"), (".loom", "HDF5"), (".parquet", "Parquet"), (".npz", "zip")]
    {
        if ending.ends_with(name) {
            let problem = format!("is not an {what} file: its first bytes are not {what}'s signature");
            return Err(FormatError::new(path, "file", problem));
        }
    }
    Ok(Some(Kind::Dense))
}

/// Opens a file of any format but [`Kind::Lance`], which needs its own library.
///
/// # Errors
/// It is damaged, of no known format, or needs options it was not given.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Box<dyn CellSource>> {
    let kind = recognise(path)?;
    let source = unless_it_panics(path, || match kind {
        Some(Kind::H5ad | Kind::TenX | Kind::Loom) => open_hdf5(path, options),
        Some(Kind::Parquet) => Ok(Box::new(TableSource::open(path, Box::new(Parquet::open(path)?))?)),
        Some(Kind::Npz) => Ok(Box::new(Npz::open(path, options)?)),
        Some(Kind::MatrixMarket) => Ok(Box::new(MatrixMarket::open(path, options)?)),
        Some(Kind::Dense) => Ok(Box::new(Dense::open(path)?)),
        Some(Kind::Lance) | None => Err(FormatError::new(path, "directory", "is no data set that files are read from")),
    })?;
    Ok(Box::new(Guarded { path: path.to_owned(), source, _unpacked: None }))
}

fn open_hdf5(path: &Path, options: &OpenOptions) -> Result<Box<dyn CellSource>> {
    let Some(plain) = unpacked(path)? else {
        return open_plain_hdf5(path, options);
    };
    let source = open_plain_hdf5(&plain, options).map_err(|e| FormatError { file: path.to_owned(), ..e })?;
    Ok(Box::new(Guarded { path: path.to_owned(), source, _unpacked: Some(plain) }))
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

/// A gzipped HDF5 file in a temporary one, since HDF5 is read from any place.
fn unpacked(path: &Path) -> Result<Option<tempfile::TempPath>> {
    let fail = |e: std::io::Error| FormatError::new(path, "file", format!("cannot be unpacked: {e}"));
    let mut head = [0u8; 2];
    let read = std::fs::File::open(path).and_then(|mut f| std::io::Read::read(&mut f, &mut head)).map_err(fail)?;
    if read < 2 || head != gzip::MAGIC {
        return Ok(None);
    }
    let mut file = tempfile::Builder::new().suffix(".h5").tempfile().map_err(fail)?;
    std::io::copy(gzip::open(path)?.as_mut(), &mut file).map_err(fail)?;
    Ok(Some(file.into_temp_path()))
}

/// The files that a data set consists of: what its identity is computed from.
///
/// # Errors
/// One of them is missing.
pub fn parts(path: &Path, options: &OpenOptions) -> Result<Vec<PathBuf>> {
    let named = [options.genes.clone(), options.barcodes.clone()].into_iter().flatten();
    match recognise(path)? {
        Some(Kind::MatrixMarket) => {
            let parts = Parts::of(path, options)?;
            Ok(vec![parts.matrix, parts.features, parts.barcodes])
        }
        Some(Kind::Npz) => Ok(std::iter::once(path.to_owned()).chain(named).collect()),
        Some(Kind::Lance) => {
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

/// What a path stands for: itself where it is one data set, else every data set in the directory, by name; and what else
/// was there.
///
/// # Errors
/// The path cannot be read, or is a directory without a data set.
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
            // Read with the matrix they belong to.
        } else if is_data(&name) && !matches!(recognise(&entry), Ok(None) | Err(_)) {
            found.push(entry);
        } else {
            other.push(entry);
        }
    }
    match found.is_empty() {
        true => Err(FormatError::new(path, "directory", "holds no file of cells that is known")),
        false => Ok((found, other)),
    }
}

fn is_table_of_names(name: &str) -> bool {
    let name = name.strip_suffix(".gz").unwrap_or(name);
    ["features.tsv", "genes.tsv", "barcodes.tsv"].iter().any(|n| name.ends_with(n))
}

/// Endings under which a directory's files are taken; a file named by itself needs none of them.
fn is_data(name: &str) -> bool {
    let name = name.strip_suffix(".gz").unwrap_or(name);
    [".h5ad", ".h5", ".loom", ".mtx", ".csv", ".tsv", ".txt", ".npz", ".parquet"].iter().any(|n| name.ends_with(n))
}

/// Libraries of formats assert what a damaged file need not fulfil; that is the file's error and not our end.
fn unless_it_panics<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(FormatError::new(path, "file", "is damaged in a way its reader does not expect")))
}

/// A source of whatever format, which fails where its library panics and keeps the file it reads.
struct Guarded {
    path: PathBuf,
    source: Box<dyn CellSource>,
    _unpacked: Option<tempfile::TempPath>,
}

impl CellSource for Guarded {
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
        unless_it_panics(&self.path, || self.source.next_block())
    }

    fn rewind(&mut self) -> Result<()> {
        unless_it_panics(&self.path, || self.source.rewind())
    }
}
