//! Files into the store: one data set per file, whole or not at all.
//!
//! A reader on a thread of its own turns the file into blocks of cells ([`block::Block`]); genes are resolved once
//! per file, values and cells checked per block, and the batches flow through a bounded channel into the table. So
//! memory depends on the block, not on the file.
//!
//! Depends on `genes` and `store`. Knows nothing of models, indexes or SQL.

mod block;
mod cells;
mod csv;
mod h5ad;
mod report;

pub use report::IngestReport;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{Field, Schema};
use arrow::record_batch::RecordBatch;
use cellql_schemas::cells::{self as table, ValueKind};
use cellql_schemas::{datasets, genes};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::error::{Error, Result};
use crate::genes::GeneReport;
use crate::progress::OnProgress;
use crate::store::{Store, Transaction};
use block::CellSource;
use cells::{Cells, Quality};

/// Share of a file's features that must become genes of the nomenclature.
const LEAST_RESOLVED: f64 = 0.5;

/// How to take a file in.
#[derive(Debug, Clone)]
pub struct IngestOptions {
    /// Name of the data set; the file's without its ending where absent.
    pub name: Option<String>,
    /// Where the file comes from; its path where absent.
    pub source_uri: Option<String>,
    /// Cells must express more genes than this.
    pub min_genes: u32,
    /// Take the file even where most names are no human genes.
    pub allow_unresolved: bool,
}

impl Default for IngestOptions {
    fn default() -> Self {
        Self { name: None, source_uri: None, min_genes: 200, allow_unresolved: false }
    }
}

/// Takes a file into the store.
///
/// # Errors
/// [`Error::Input`] for anything wrong in the file; the store is then as it was.
pub async fn ingest(
    store: &Store,
    file: &Path,
    options: &IngestOptions,
    on_progress: OnProgress,
) -> Result<(Store, IngestReport)> {
    let sha256 = file_sha256(file)?;
    if let Some(name) = already_there(store, &sha256).await? {
        return Ok((store.clone(), IngestReport::already(source_uri(file, options), name)));
    }
    // Whether values are counts is known for sure only at the end. Most are, so that is tried first; the first
    // value that is not starts the file over as what it is.
    match attempt(store, file, &sha256, options, ValueKind::Counts, &on_progress).await? {
        Attempt::Done(done) => Ok(*done),
        Attempt::NotCounts => {
            match attempt(store, file, &sha256, options, ValueKind::Normalised, &on_progress).await? {
                Attempt::Done(done) => Ok(*done),
                Attempt::NotCounts => Err(Error::input(file, "matrix", "changed while it was read")),
            }
        }
    }
}

enum Attempt {
    Done(Box<(Store, IngestReport)>),
    NotCounts,
}

async fn attempt(
    store: &Store,
    file: &Path,
    sha256: &str,
    options: &IngestOptions,
    kind: ValueKind,
    on_progress: &OnProgress,
) -> Result<Attempt> {
    let path = file.to_owned();
    let source = guarded(file, move || open(&path)).await?;
    let mut transaction = store.begin(&format!("ingest {}", file.display())).await?;
    // Asked again under the lock: another process may have taken the same file in while this one read it.
    if let Some(name) = already_there(transaction.store(), sha256).await? {
        let report = IngestReport::already(source_uri(file, options), name);
        return Ok(Attempt::Done(Box::new((transaction.store().clone(), report))));
    }
    let mut catalogue = transaction.store().genes().await?;
    let (gene_ids, gene_report) = catalogue.register(source.features());
    if !options.allow_unresolved {
        refuse_other_species(file, &gene_report)?;
    }
    let dataset_id = transaction.take_dataset_id();
    let existing = transaction.store().table(table::TABLE).await?;
    let obs = cells::obs_columns(source.obs_fields(), &Schema::from(existing.schema()));
    let mut measured = gene_ids.clone();
    measured.sort_unstable();
    let quality = Quality { min_genes: options.min_genes, kind };
    let assembly = Cells::new(dataset_id, transaction.next_cell_id(), gene_ids, obs, quality);

    let (rows, outcome) = stream(file.to_owned(), source, assembly, Arc::clone(on_progress));
    let appended = transaction.append(table::TABLE, rows).await;
    // The reader's own account comes first: it knows why the stream broke.
    let assembly = match outcome.await {
        Ok(Outcome::Done(assembly)) => assembly,
        Ok(Outcome::NotCounts) => return Ok(Attempt::NotCounts),
        Ok(Outcome::Failed(error)) => return Err(error),
        Err(_) => {
            appended?;
            return Err(Error::input(file, "reader", "ended without a result"));
        }
    };
    appended?;
    transaction.take_cell_ids(assembly.next_cell_id());
    let report = IngestReport {
        source_uri: source_uri(file, options),
        name: options.name.clone().unwrap_or_else(|| stem(file)),
        dataset_id: Some(dataset_id),
        cells_read: assembly.read(),
        cells_kept: assembly.kept(),
        cells_dropped: assembly.dropped(),
        value_kind: kind.name().to_owned(),
        genes: gene_report,
        obs_columns: assembly.obs_names(),
    };
    let store = commit(transaction, &report, catalogue.to_batch()?, sha256, measured).await?;
    Ok(Attempt::Done(Box::new((store, report))))
}

async fn commit(
    mut transaction: Transaction,
    report: &IngestReport,
    gene_rows: RecordBatch,
    sha256: &str,
    measured: Vec<u32>,
) -> Result<Store> {
    transaction.replace(genes::TABLE, gene_rows).await?;
    let row = report.to_row(sha256, measured)?;
    let schema = row.schema();
    let rows = RecordBatchStreamAdapter::new(schema, futures::stream::iter([Ok(row)]));
    transaction.append(datasets::TABLE, Box::pin(rows)).await?;
    transaction.publish().await
}

/// Recognises a file by its content.
fn open(file: &Path) -> Result<Box<dyn CellSource>> {
    let mut head = [0u8; 8];
    let mut handle = File::open(file).map_err(|e| Error::input(file, "file", format!("cannot be opened: {e}")))?;
    let read = handle.read(&mut head).map_err(|e| Error::input(file, "file", format!("cannot be read: {e}")))?;
    let ending = file.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
    if h5ad::is_hdf5(&head[..read]) {
        return Ok(Box::new(h5ad::H5ad::open(file)?));
    }
    if ending == "h5ad" || ending == "h5" {
        return Err(Error::input(file, "file", "is not an HDF5 file: its first bytes are not HDF5's signature"));
    }
    Ok(Box::new(csv::Csv::open(file)?))
}

enum Outcome {
    Done(Cells),
    NotCounts,
    Failed(Error),
}

/// Starts the reader; gives its rows, and what became of it.
fn stream(
    file: PathBuf,
    mut source: Box<dyn CellSource>,
    mut assembly: Cells,
    on_progress: OnProgress,
) -> (SendableRecordBatchStream, tokio::sync::oneshot::Receiver<Outcome>) {
    let schema = assembly.schema();
    let (rows, mut receive) = mpsc::channel::<Result<RecordBatch, DataFusionError>>(2);
    let (finished, outcome) = tokio::sync::oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let total = source.n_cells();
        let run = AssertUnwindSafe(|| -> Result<bool> {
            while let Some(block) = source.next_block()? {
                let Some(batch) = assembly.batch(&file, &block)? else {
                    return Ok(false);
                };
                // A closed channel means that the table could not be written; its writer tells why.
                if batch.num_rows() > 0 && rows.blocking_send(Ok(batch)).is_err() {
                    return Ok(true);
                }
                on_progress(assembly.read(), total);
            }
            Ok(true)
        });
        let done = catch_unwind(run).unwrap_or_else(|_| Err(damaged(&file)));
        let broken = |why: &str| Err(DataFusionError::Execution(why.to_owned()));
        let outcome = match done {
            Ok(true) => Outcome::Done(assembly),
            Ok(false) => {
                let _ = rows.blocking_send(broken("values are not counts"));
                Outcome::NotCounts
            }
            Err(error) => {
                let _ = rows.blocking_send(broken("the file could not be read"));
                Outcome::Failed(error)
            }
        };
        let _ = finished.send(outcome);
    });
    let rows = futures::stream::poll_fn(move |context| receive.poll_recv(context));
    (Box::pin(RecordBatchStreamAdapter::new(schema, rows)), outcome)
}

/// Runs a reader off the async threads; a panic inside a format's library is that file's error, not our end.
async fn guarded<T: Send + 'static>(file: &Path, run: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let joined = tokio::task::spawn_blocking(move || catch_unwind(AssertUnwindSafe(run))).await;
    match joined {
        Ok(Ok(result)) => result,
        _ => Err(damaged(file)),
    }
}

fn damaged(file: &Path) -> Error {
    Error::input(file, "file", "is damaged in a way its reader does not expect")
}

/// Few resolved names mean another species or no gene names at all.
fn refuse_other_species(file: &Path, report: &GeneReport) -> Result<()> {
    let (known, all) = (report.resolved(), report.features);
    if all > 0 && known as f64 >= LEAST_RESOLVED * all as f64 {
        return Ok(());
    }
    let mouse = report.title_case as f64 > 0.5 * all as f64;
    let why = if mouse {
        "most are written as mouse symbols are (Gad1, Sst); map them to human genes first"
    } else {
        "are these gene names?"
    };
    Err(Error::input(
        file,
        "gene names",
        format!(
            "only {known} of {all} resolve to human genes; {why}, or take them as they are with --allow-unresolved"
        ),
    ))
}

async fn already_there(store: &Store, sha256: &str) -> Result<Option<String>> {
    use arrow::array::AsArray;
    let filter = format!("{} = '{sha256}'", datasets::FILE_SHA256);
    let rows = store.read(datasets::TABLE, &[datasets::NAME], Some(&filter)).await?;
    let name = rows.iter().filter(|b| b.num_rows() > 0).map(|b| b.column(0).as_string::<i32>().value(0).to_owned());
    Ok(name.into_iter().next())
}

/// SHA-256 of a file as lower-case hex, read front to back.
pub(crate) fn file_sha256(file: &Path) -> Result<String> {
    let fail = |e: std::io::Error| Error::input(file, "file", format!("cannot be read: {e}"));
    let mut handle = File::open(file).map_err(fail)?;
    let mut hash = Sha256::new();
    std::io::copy(&mut handle, &mut hash).map_err(fail)?;
    Ok(format!("{:x}", hash.finalize()))
}

fn source_uri(file: &Path, options: &IngestOptions) -> String {
    options.source_uri.clone().unwrap_or_else(|| file.display().to_string())
}

fn stem(file: &Path) -> String {
    file.file_stem().map_or_else(|| "unnamed".to_owned(), |s| s.to_string_lossy().into_owned())
}

/// Counts of dropped cells by reason.
pub type Dropped = BTreeMap<String, u64>;

/// Obs columns as a source offers them.
pub(crate) type ObsFields = Vec<Field>;
