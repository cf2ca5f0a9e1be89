//! Recognises the format of a file or directory by its content, and refuses what cannot be read before it is opened.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::error::{FormatError, Result};
use crate::gzip;
use crate::h5::file::{is_hdf5, signature_place};
use crate::matrix_market;

/// Number of bytes at the beginning of a file that are searched for signatures.
const HEAD: usize = (64 << 10) + 8;

/// Format of a file of cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// HDF5 file; AnnData unless its groups are those of 10x or loom, which [`open()`](crate::open()) finds out.
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
/// The path cannot be read, its content contradicts its extension, or it is of a known format that is not read.
pub fn recognise(path: &Path) -> Result<Option<Format>> {
    if is_directory(path)? {
        return recognise_directory(path);
    }
    let ending = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let ending = ending.strip_suffix(".gz").unwrap_or(&ending);
    refuse_r_object(path, ending, b"")?;
    let head = gzip::head(path, HEAD)?;
    refuse_r_object(path, ending, &head)?;
    if is_hdf5(&head) {
        return Ok(Some(Format::H5ad));
    }
    if head.get(257..262) == Some(b"ustar") {
        let problem = "is a tar archive, which is not read; unpack it with tar -xf and name the folder";
        return Err(FormatError::new(path, "file", problem));
    }
    for (magic, format) in [(b"PAR1".as_slice(), Format::Parquet), (b"PK\x03\x04", Format::Npz)] {
        if head.starts_with(magic) {
            return Ok(Some(format));
        }
    }
    if matrix_market::has_banner(&head) {
        return Ok(Some(Format::MatrixMarket));
    }
    if signature_place(path, &head)?.is_some() {
        return Ok(Some(Format::H5ad));
    }
    check_extension(path, ending, head.is_empty())?;
    Ok(Some(Format::Dense))
}

/// Fails if the extension promises a format whose signature the file does not begin with.
fn check_extension(path: &Path, ending: &str, is_empty: bool) -> Result<()> {
    let expected = [
        (".h5ad", "an HDF5", "the HDF5 signature"),
        (".h5mu", "an HDF5", "the HDF5 signature"),
        (".h5", "an HDF5", "the HDF5 signature"),
        (".loom", "an HDF5", "the HDF5 signature"),
        (".parquet", "a Parquet", "the Parquet signature"),
        (".npz", "a zip", "the zip signature"),
        (".mtx", "a Matrix Market", "'%%MatrixMarket'"),
    ];
    let Some((_, what, signature)) = expected.iter().find(|(name, ..)| ending.ends_with(name)) else {
        return Ok(());
    };
    let problem = match is_empty {
        true => format!("is empty, so it is not {what} file; copy or download it again"),
        false => format!("is not {what} file: it does not begin with {signature}; check that it is complete"),
    };
    Err(FormatError::new(path, "file", problem))
}

/// Refuses the files of R, which only R can read, and says how to write them in another format.
fn refuse_r_object(path: &Path, ending: &str, head: &[u8]) -> Result<()> {
    const LOADERS: [(&str, &str); 5] =
        [(".rds", "readRDS"), (".rdata", "load"), (".rda", "load"), (".qs", "qs::qread"), (".qs2", "qs2::qs_read")];
    // `save` and `saveRDS`, uncompressed or as gzip shows it.
    const SIGNATURES: [(&[u8], &str); 4] =
        [(b"RDX2\n", "load"), (b"RDX3\n", "load"), (b"X\n\0\0\0\x02", "readRDS"), (b"X\n\0\0\0\x03", "readRDS")];
    let by_name = LOADERS.iter().find(|(name, _)| ending.ends_with(name)).map(|(_, loader)| loader);
    let by_content = SIGNATURES.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, loader)| loader);
    let Some(loader) = by_name.or(by_content) else {
        return Ok(());
    };
    let problem = format!(
        "holds objects of R, which are not read; load it in R with {loader}(), then write its object x with \
         zellkonverter::writeH5AD(Seurat::as.SingleCellExperiment(x), \"cells.h5ad\") if x is of Seurat, \
         zellkonverter::writeH5AD(x, \"cells.h5ad\") if it is a SingleCellExperiment, or \
         DropletUtils::write10xCounts(\"cells\", x) if it is a matrix of counts"
    );
    Err(FormatError::new(path, "file", problem))
}

fn recognise_directory(path: &Path) -> Result<Option<Format>> {
    if [".zgroup", ".zattrs", ".zarray", "zarr.json"].iter().any(|name| path.join(name).is_file()) {
        let problem = "is a Zarr store, which is not read; write it as .h5ad with \
                       anndata.read_zarr(\"cells.zarr\").write_h5ad(\"cells.h5ad\") in Python";
        return Err(FormatError::new(path, "directory", problem));
    }
    let lance = path.join("_versions").is_dir()
        && (path.join("data").is_dir() || path.extension().is_some_and(|e| e == "lance"));
    Ok(lance.then_some(Format::Lance))
}

/// True for a directory, false for a regular file, whether named directly or by symbolic links. Nothing is opened.
///
/// # Errors
/// The path does not exist, or it is a pipe, socket or device: opening those can block, and reading them may never end.
pub fn is_directory(path: &Path) -> Result<bool> {
    let metadata = std::fs::metadata(path);
    let kind = metadata.map_err(|e| FormatError::new(path, "file", format!("cannot be read: {e}")))?.file_type();
    if kind.is_dir() || kind.is_file() {
        return Ok(kind.is_dir());
    }
    let what = match () {
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() || kind.is_block_device() => "a device",
        () => "of an unknown kind",
    };
    let problem = format!("is {what} and not a regular file; write its content to a file and name that");
    Err(FormatError::new(path, "file", problem))
}

/// Fails unless the path is a regular file. Nothing is opened.
pub(crate) fn require_file(path: &Path) -> Result<()> {
    match is_directory(path)? {
        false => Ok(()),
        true => Err(FormatError::new(path, "file", "is a directory; name a file in it")),
    }
}
