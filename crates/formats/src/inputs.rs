//! The data sets in a directory, and the files that a data set consists of.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::error::{FormatError, Result};
use crate::matrix_market::Parts;
use crate::options::OpenOptions;
use crate::recognise::{Format, is_directory, recognise, require_file};

/// The files that a data set consists of. The checksum of a data set covers all of them.
///
/// # Errors
/// One of them is missing or is not a regular file.
pub fn parts(path: &Path, options: &OpenOptions) -> Result<Vec<PathBuf>> {
    let named = [options.genes.clone(), options.barcodes.clone()].into_iter().flatten();
    let files = match recognise(path)? {
        Some(Format::MatrixMarket) => {
            let parts = Parts::of(path, options)?;
            vec![parts.matrix, parts.features, parts.barcodes]
        }
        Some(Format::Npz) => std::iter::once(path.to_owned()).chain(named).collect(),
        Some(Format::Lance) => {
            let mut files = Vec::new();
            files_below(path, &mut HashSet::new(), &mut files)?;
            files.sort();
            files
        }
        Some(_) => vec![path.to_owned()],
        None => return Err(FormatError::new(path, "directory", "is not a data set; name a file in it")),
    };
    files.iter().try_for_each(|file| require_file(file))?;
    Ok(files)
}

/// Adds the files below a folder. A folder that was seen before, behind a symbolic link, is not entered again.
fn files_below(folder: &Path, seen: &mut HashSet<PathBuf>, files: &mut Vec<PathBuf>) -> Result<()> {
    if !seen.insert(canonical(folder)?) {
        return Ok(());
    }
    for entry in list(folder)? {
        if entry.is_dir() { files_below(&entry, seen, files)? } else { files.push(entry) }
    }
    Ok(())
}

fn canonical(folder: &Path) -> Result<PathBuf> {
    folder.canonicalize().map_err(|e| FormatError::new(folder, "directory", format!("cannot be read: {e}")))
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
/// A path that is one data set gives itself. A directory gives every data set in it, recursively, sorted by name. Each
/// directory is visited once, however many symbolic links lead to it.
///
/// # Errors
/// The path cannot be read, or it is a directory without a data set.
pub fn inputs(path: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    if !is_directory(path)? || recognise(path)?.is_some() {
        return Ok((vec![path.to_owned()], Vec::new()));
    }
    let root = canonical(path)?;
    let seen = HashSet::from([root.clone()]);
    let mut scan = Scan { root, seen, found: Vec::new(), other: Vec::new() };
    scan.folder(path)?;
    match scan.found.is_empty() {
        true => Err(FormatError::new(
            path,
            "directory",
            "holds no file of a known format; expected .h5ad, .h5, .loom, .mtx, .csv, .tsv, .txt, .npz or .parquet",
        )),
        false => Ok((scan.found, scan.other)),
    }
}

/// A directory that is searched for data sets.
struct Scan {
    root: PathBuf,
    /// Folders that were visited, without symbolic links in their paths.
    seen: HashSet<PathBuf>,
    found: Vec<PathBuf>,
    other: Vec<PathBuf>,
}

impl Scan {
    fn folder(&mut self, folder: &Path) -> Result<()> {
        for entry in list(folder)? {
            let name = entry.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
            if entry.is_dir() {
                self.subfolder(entry);
            } else if is_table_of_names(&name) || name.starts_with('.') {
                // Read together with the matrix.
            } else if is_data(&name) && matches!(recognise(&entry), Ok(Some(_))) {
                self.found.push(entry);
            } else {
                self.other.push(entry);
            }
        }
        Ok(())
    }

    /// Adds what is in a folder inside the directory. A folder without a data set is listed as a whole among the other
    /// files.
    fn subfolder(&mut self, folder: PathBuf) {
        let Ok(target) = canonical(&folder) else {
            return self.other.push(folder);
        };
        // A link to a folder of this directory leads to what is visited under its own name.
        let inside = folder.is_symlink() && target.starts_with(&self.root);
        if inside || !self.seen.insert(target) {
            return;
        }
        let (found, other) = (self.found.len(), self.other.len());
        match recognise(&folder) {
            Ok(Some(_)) => return self.found.push(folder),
            Ok(None) if self.folder(&folder).is_ok() && self.found.len() > found => return,
            Ok(None) | Err(_) => {}
        }
        self.found.truncate(found);
        self.other.truncate(other);
        self.other.push(folder);
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
