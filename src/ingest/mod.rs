//! Files into the store: one data set per file, whole or not at all.
//!
//! A reader on a thread of its own turns the file into blocks of cells (`cellql_formats`); genes are resolved once per
//! file, values and cells checked per block, and the batches flow through a bounded channel into the table. So memory
//! depends on the block, not on the file.
//!
//! Depends on `genes`, `store` and the crate of formats. Knows nothing of models, indexes or SQL.

mod cells;
mod duplicates;
mod input;
mod lance_table;
mod obs;
mod remove;
mod report;
mod values;

pub use input::{Input, inputs};
pub use obs::ObsReport;
pub use remove::{RemoveReport, remove};
pub use report::IngestReport;

pub(crate) use input::file_sha256;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;
use cellql_formats::{CellSource, Format, OpenOptions, TableSource, recognise};
use cellql_schemas::cells::{self as table, ValueKind};
use cellql_schemas::recipe::Input as Values;
use cellql_schemas::{datasets, genes};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Result};
use cellql_store::genes::GeneReport;
use cellql_store::progress::OnProgress;
use cellql_store::sql::quote_literal;
use cellql_store::{Store, Transaction};
use cells::{Cells, FileGenes, Quality, Refusal};
use duplicates::Known;
use lance_table::LanceTable;
use values::Reading;

/// Share of a file's features that must become genes of the nomenclature.
const LEAST_RESOLVED: f64 = 0.5;
/// Cells that are looked at to find out what was done to their counts.
const LOOKED_AT: usize = 200;

/// How to take a file in.
#[derive(Debug, Clone)]
pub struct IngestOptions {
    /// Name of the data set; the file's without its ending where absent.
    pub name: Option<String>,
    /// Cells must express more genes than this.
    pub min_genes: u32,
    /// Take the file even where most names are no human genes.
    pub allow_unresolved: bool,
    /// Leave out cells that another data set of the store holds already.
    pub skip_duplicates: bool,
    /// What the values are, where the user says so.
    pub values: Option<Values>,
    /// What of the file to read.
    pub open: OpenOptions,
}

impl Default for IngestOptions {
    fn default() -> Self {
        Self {
            name: None,
            min_genes: 200,
            allow_unresolved: false,
            skip_duplicates: false,
            values: None,
            open: OpenOptions::default(),
        }
    }
}

/// Takes a file into the store.
///
/// # Errors
/// [`Error::Input`] for anything wrong in the file; the store is then as it was.
pub async fn ingest(
    store: &Store,
    input: &Input,
    options: &IngestOptions,
    on_progress: OnProgress,
) -> Result<(Store, IngestReport)> {
    let (given, open_options) = (input.clone(), options.open.clone());
    let sha256 = guarded(&input.path, move || given.sha256(&open_options)).await?;
    if let Some(name) = already_there(store, &sha256, options).await? {
        return Ok((store.clone(), IngestReport::already(input.uri.clone(), name)));
    }
    // What values are is known for sure only at the end. Most are counts, so that is tried first; what contradicts it
    // starts the file over as what it then seems to be, and in the end as it is given.
    let mut source = open(input, &options.open).await?;
    let as_given = options.values.is_some_and(|values| !values.is_counts());
    let mut reading = if as_given { Reading::AsGiven } else { Reading::Counts };
    loop {
        let job = Job { input, options, sha256: &sha256, reading, on_progress: &on_progress };
        match job.attempt(store, source).await? {
            Attempt::Done(done) => return Ok(*done),
            Attempt::Refused(given_back, by) => {
                (source, reading) = next_reading(input, given_back, reading, by, options.min_genes).await?;
                if let (Reading::AsGiven, Some(values)) = (reading, options.values) {
                    let problem = format!(
                        "values are not counts and no counts can be recovered from them, as --input {} says; name \
                         another --layer or --raw, or say --input log or bulk-log",
                        values.name()
                    );
                    return Err(Error::input(&input.path, "values", problem));
                }
            }
        }
    }
}

enum Attempt {
    Done(Box<(Store, IngestReport)>),
    Refused(Box<dyn CellSource>, By),
}

/// What contradicted a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    OneCell,
    AllCells,
}

/// The source at its beginning, and the reading to try next.
async fn next_reading(
    input: &Input,
    mut source: Box<dyn CellSource>,
    tried: Reading,
    by: By,
    min_genes: u32,
) -> Result<(Box<dyn CellSource>, Reading)> {
    let look = tried == Reading::Counts && by == By::OneCell;
    guarded(&input.path, move || {
        source.rewind()?;
        let mut reading = Reading::AsGiven;
        if look {
            let block = source.next_block()?;
            let values = |i: usize, b: &cellql_formats::Block| -> Vec<f32> {
                b.cell(i).1.iter().copied().filter(|v| *v != 0.0).collect()
            };
            let cells: Vec<Vec<f32>> = block.iter().flat_map(|b| (0..b.len()).map(|i| values(i, b))).collect();
            let kept = cells.iter().filter(|c| c.len() > min_genes as usize).take(LOOKED_AT);
            reading = values::suggest(kept.map(Vec::as_slice));
            source.rewind()?;
        }
        Ok((source, reading))
    })
    .await
}

/// One attempt at a file.
struct Job<'a> {
    input: &'a Input,
    options: &'a IngestOptions,
    sha256: &'a str,
    reading: Reading,
    on_progress: &'a OnProgress,
}

impl Job<'_> {
    async fn attempt(&self, store: &Store, source: Box<dyn CellSource>) -> Result<Attempt> {
        let mut transaction = store.begin(&format!("ingest {}", self.input.uri)).await?;
        // Asked again under the lock: another process may have taken the same file in while this one read it.
        if let Some(name) = already_there(transaction.store(), self.sha256, self.options).await? {
            let report = IngestReport::already(self.input.uri.clone(), name);
            return Ok(Attempt::Done(Box::new((transaction.store().clone(), report))));
        }
        let mut catalogue = transaction.store().genes().await?;
        let (gene_ids, gene_report) = catalogue.register(source.features());
        if !self.options.allow_unresolved {
            refuse_other_species(&self.input.path, &gene_report)?;
        }
        let measured = measured(&gene_ids, source.as_ref());
        let dataset_id = transaction.take_dataset_id();
        let existing = transaction.store().table(table::TABLE).await?;
        let targets = obs::targets(source.obs_columns(), &Schema::from(existing.schema()));
        let quality = Quality {
            min_genes: self.options.min_genes,
            reading: self.reading,
            skip_duplicates: self.options.skip_duplicates,
        };
        let genes = FileGenes::new(&gene_ids, |g| catalogue.is_mitochondrial(g));
        let known = Known::read(transaction.store()).await?;
        let assembly = Cells::new(dataset_id, transaction.next_cell_id(), genes, targets, quality, known);

        let (rows, outcome) = stream(self.input.path.clone(), source, assembly, Arc::clone(self.on_progress));
        let appended = transaction.append(table::TABLE, rows).await;
        // The reader's own account comes first: it knows why the stream broke.
        let (assembly, source) = match outcome.await {
            Ok(Outcome::Done(assembly, source)) => (assembly, source),
            Ok(Outcome::Refused(source, by)) => return Ok(Attempt::Refused(source, by)),
            Ok(Outcome::Failed(error)) => return Err(error),
            Err(_) => {
                appended?;
                return Err(Error::input(&self.input.path, "reader", "ended without a result"));
            }
        };
        appended?;
        transaction.take_cell_ids(assembly.next_cell_id());
        let report = self.report(dataset_id, &assembly, source.as_ref(), gene_report);
        let store = commit(transaction, &report, catalogue.to_batch()?, self.sha256, measured).await?;
        Ok(Attempt::Done(Box::new((store, report))))
    }

    fn report(&self, dataset_id: u32, cells: &Cells, source: &dyn CellSource, genes: GeneReport) -> IngestReport {
        let counts = cells.counts();
        IngestReport {
            source_uri: self.input.uri.clone(),
            name: self.options.name.clone().unwrap_or_else(|| self.input.stem()),
            dataset_id: Some(dataset_id),
            matrix: source.matrix().to_owned(),
            cells_read: counts.read,
            cells_kept: cells.kept(),
            cells_duplicate: counts.duplicates - counts.skipped_duplicates,
            cells_dropped: cells.dropped(),
            value_kind: self.reading.kind().name().to_owned(),
            input: self.options.values.unwrap_or(match self.reading.kind() {
                ValueKind::Normalised => Values::Log,
                ValueKind::Counts | ValueKind::Recovered => Values::Counts,
            }),
            notes: source.notes().iter().cloned().chain(self.reading.note()).collect(),
            genes,
            obs_columns: cells.obs().iter().map(|t| t.report.clone()).collect(),
        }
    }
}

/// The genes a file measures by ascending id, with its names for them.
fn measured(gene_ids: &[u32], source: &dyn CellSource) -> Vec<(u32, String)> {
    let names = source.features().iter().map(|f| f.name.clone());
    let mut measured: Vec<(u32, String)> = gene_ids.iter().copied().zip(names).collect();
    measured.sort_unstable();
    measured
}

async fn commit(
    mut transaction: Transaction,
    report: &IngestReport,
    gene_rows: RecordBatch,
    sha256: &str,
    measured: Vec<(u32, String)>,
) -> Result<Store> {
    transaction.replace(genes::TABLE, gene_rows).await?;
    let row = report.to_row(sha256, measured)?;
    let schema = row.schema();
    let rows = RecordBatchStreamAdapter::new(schema, futures::stream::iter([Ok(row)]));
    transaction.append(datasets::TABLE, Box::pin(rows)).await?;
    Ok(transaction.publish().await?)
}

/// Opens an input off the async threads.
async fn open(input: &Input, options: &OpenOptions) -> Result<Box<dyn CellSource>> {
    let (path, options) = (input.path.clone(), options.clone());
    if recognise(&path)? == Some(Format::Lance) {
        let table = LanceTable::open(&path).await?;
        return guarded(&input.path, move || Ok(Box::new(TableSource::open(&path, Box::new(table))?) as _)).await;
    }
    guarded(&input.path, move || Ok(cellql_formats::open(&path, &options)?)).await
}

enum Outcome {
    Done(Box<Cells>, Box<dyn CellSource>),
    Refused(Box<dyn CellSource>, By),
    Failed(Error),
}

/// Starts the reader; gives its rows, and what became of it.
fn stream(
    file: PathBuf,
    mut source: Box<dyn CellSource>,
    mut assembly: Cells,
    on_progress: OnProgress,
) -> (SendableRecordBatchStream, oneshot::Receiver<Outcome>) {
    let schema = assembly.schema();
    let (rows, mut receive) = mpsc::channel::<Result<RecordBatch, DataFusionError>>(2);
    let (finished, outcome) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let run = AssertUnwindSafe(|| read_all(&file, source.as_mut(), &mut assembly, &rows, &on_progress));
        let done = catch_unwind(run).unwrap_or_else(|_| Err(Refusal::Failed(damaged(&file))));
        let broken = |why: &str| Err(DataFusionError::Execution(why.to_owned()));
        let outcome = match done {
            Ok(()) if assembly.reading_holds() => Outcome::Done(Box::new(assembly), source),
            Ok(()) => {
                let _ = rows.blocking_send(broken("values are something else"));
                Outcome::Refused(source, By::AllCells)
            }
            Err(Refusal::Reading) => {
                let _ = rows.blocking_send(broken("values are something else"));
                Outcome::Refused(source, By::OneCell)
            }
            Err(Refusal::Failed(error)) => {
                let _ = rows.blocking_send(broken("the file could not be read"));
                Outcome::Failed(error)
            }
        };
        let _ = finished.send(outcome);
    });
    let rows = futures::stream::poll_fn(move |context| receive.poll_recv(context));
    (Box::pin(RecordBatchStreamAdapter::new(schema, rows)), outcome)
}

fn read_all(
    file: &Path,
    source: &mut dyn CellSource,
    assembly: &mut Cells,
    rows: &mpsc::Sender<Result<RecordBatch, DataFusionError>>,
    on_progress: &OnProgress,
) -> Result<(), Refusal> {
    let total = source.n_cells();
    std::thread::scope(|threads| {
        // The next block is unpacked while this one is put together.
        let (ahead, blocks) = std::sync::mpsc::sync_channel(1);
        let reader = threads.spawn(move || {
            loop {
                let block = source.next_block();
                let more = matches!(block, Ok(Some(_)));
                if ahead.send(block).is_err() || !more {
                    return;
                }
            }
        });
        for block in &blocks {
            let Some(block) = block.map_err(Error::from)? else {
                return Ok(());
            };
            let batch = assembly.batch(file, &block)?;
            // A closed channel means that the table could not be written; its writer tells why.
            if batch.num_rows() > 0 && rows.blocking_send(Ok(batch)).is_err() {
                return Ok(());
            }
            on_progress(assembly.counts().read, total);
        }
        // Ended without a last word: a panic inside a format's library, which is the file's error.
        let _ = reader.join();
        Err(Refusal::Failed(damaged(file)))
    })
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
    let most = |n: usize| n as f64 > 0.5 * all as f64;
    let why = match &report.foreign_example {
        Some(id) if most(report.foreign_ids) => {
            format!("most are Ensembl ids of another species ({id}); map them to human genes first")
        }
        _ if most(report.title_case) => {
            "most are written as mouse symbols are (Gad1, Sst); map them to human genes first".to_owned()
        }
        _ => "are these gene names?".to_owned(),
    };
    Err(Error::input(
        file,
        "gene names",
        format!(
            "only {known} of {all} resolve to human genes; {why}, or take them as they are with --allow-unresolved"
        ),
    ))
}

/// The data set that holds this file already, unless another matrix of it is asked for now.
async fn already_there(store: &Store, sha256: &str, options: &IngestOptions) -> Result<Option<String>> {
    let filter = match options.open.matrix() {
        Some(matrix) => {
            format!(
                "{} = {} AND {} = {}",
                datasets::FILE_SHA256,
                quote_literal(sha256),
                datasets::MATRIX,
                quote_literal(&matrix)
            )
        }
        None => format!("{} = {}", datasets::FILE_SHA256, quote_literal(sha256)),
    };
    let rows = store.read(datasets::TABLE, &[datasets::NAME], Some(&filter)).await?;
    let name = rows.iter().filter(|b| b.num_rows() > 0).map(|b| b.column(0).as_string::<i32>().value(0).to_owned());
    Ok(name.into_iter().next())
}

/// Counts of dropped cells by reason.
pub type Dropped = BTreeMap<String, u64>;
