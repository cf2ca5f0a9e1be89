//! Opens a file with the reader of its format.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use cellql_schemas::feature::Feature;

use crate::block::{Block, CellSource, ObsColumn};
use crate::delimited::Delimited;
use crate::error::{FormatError, Result};
use crate::exported::part_of;
use crate::gzip;
use crate::h5::file::H5;
use crate::h5ad::H5ad;
use crate::loom::Loom;
use crate::matrix_market::MatrixMarket;
use crate::npz::Npz;
use crate::options::OpenOptions;
use crate::parquet_file::Parquet;
use crate::recognise::{Format, recognise};
use crate::table::TableSource;
use crate::tenx::TenX;

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
    let source: Box<dyn CellSource> = match &options.part {
        Some(part) => catch_panic(path, || part_of(path, source, part))?,
        None => source,
    };
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
    refuse_mudata(&h5)?;
    let genomes = || h5.members("/").is_ok_and(|groups| groups.iter().any(|g| TenX::is_genome(&h5, g)));
    if h5.group("matrix/features").is_some() || (!h5.has("obs") && genomes()) {
        return Ok(Box::new(TenX::open(path, options)?));
    }
    Ok(Box::new(H5ad::open(path, options)?))
}

/// Refuses a MuData file, which holds one AnnData per modality in its group `mod`.
fn refuse_mudata(h5: &H5) -> Result<()> {
    let modalities = h5.members("mod")?;
    if h5.has("X") || modalities.is_empty() {
        return Ok(());
    }
    let problem = format!(
        "holds the modalities {} of a MuData file, which is not read; write one as .h5ad with \
         mudata.read_h5mu(\"cells.h5mu\")[\"{}\"].write_h5ad(\"cells.h5ad\") in Python",
        modalities.join(", "),
        modalities.iter().find(|m| *m == "rna").unwrap_or(&modalities[0]),
    );
    Err(h5.error("mod", problem))
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

    fn exported_gene_ids(&self) -> Result<Option<Vec<u32>>> {
        catch_panic(&self.path, || self.source.exported_gene_ids())
    }

    fn next_block(&mut self) -> Result<Option<Block>> {
        catch_panic(&self.path, || self.source.next_block())
    }

    fn rewind(&mut self) -> Result<()> {
        catch_panic(&self.path, || self.source.rewind())
    }
}
