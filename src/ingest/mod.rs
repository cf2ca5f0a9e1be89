//! Ingests files: each file becomes one data set of the store, completely or not at all.
//!
//! A reader on its own thread turns the file into blocks of cells (`cellql_formats`). Genes are resolved once per file,
//! values and cells are checked per block, and batches pass through a bounded channel into the table `cells`. Memory
//! depends on the size of a block, not of the file.
//!
//! Depends on the crates of formats and of the store. Knows nothing of models, indexes or SQL.
//!
//! ```
//! use cellql::ingest::{IngestOptions, InputFile, ingest};
//! use cellql::query::Session;
//! use cellql_store::{Store, progress};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let uri = folder.path().join("store").to_string_lossy().into_owned();
//! let store = Store::init(&uri).await?;
//! let input = InputFile::local("demo/baron_pancreas.h5ad");
//! let (store, report) = ingest(&store, &input, &IngestOptions::default(), progress::silent()).await?;
//! assert_eq!((report.cells_read, report.value_kind.as_str()), (320, "counts"));
//!
//! let session = Session::open(store).await?;
//! let query = "SELECT cell_type, avg(expression(expr, 'INS')) FROM cells GROUP BY cell_type";
//! let batches = session.sql(query).await?.collect().await?;
//! assert!(batches.iter().any(|batch| batch.num_rows() > 0));
//! # Ok(())
//! # }
//! ```

mod cells;
mod duplicates;
mod input;
mod lance_table;
mod obs;
mod remove;
mod report;
mod values;

pub use input::{InputFile, inputs};
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
use cells::{BatchError, CellBuilder, CellOptions, FileGenes};
use duplicates::ContentIndex;
use lance_table::LanceTable;
use values::Interpretation;

/// Smallest share of a file's features that must resolve to genes of the nomenclature.
const MIN_RESOLVED: f64 = 0.5;
/// Cells that express no more genes than this are left out of files.
const MIN_GENES: u32 = 200;
/// Number of cells from which the normalisation of a file is detected.
const DETECTION_CELLS: usize = 200;

/// How to ingest a file.
#[derive(Debug, Clone, Default)]
pub struct IngestOptions {
    /// Name of the data set; by default the file's name without its ending.
    pub name: Option<String>,
    /// Cells must express more genes than this; by default 200, and 0 for an export of cellql, whose cells were
    /// chosen before.
    pub min_genes: Option<u32>,
    /// Ingest the file even if most of its features are not human genes.
    pub allow_unresolved: bool,
    /// Leave out cells that another data set of the store holds already.
    pub skip_duplicates: bool,
    /// What the values are, if the user says so.
    pub values: Option<Values>,
    /// Which matrix of the file to read, and lists of names that it lacks.
    pub open: OpenOptions,
}

impl IngestOptions {
    fn min_genes_of(&self, input: &InputFile) -> u32 {
        self.min_genes.unwrap_or(if input.part().is_some() { 0 } else { MIN_GENES })
    }
}

/// Ingests a file as one data set. A file that the store holds already changes nothing.
///
/// Returns the new version of the store and a report.
///
/// # Errors
/// [`Error::Input`] for anything wrong in the file; the store is then unchanged.
pub async fn ingest(
    store: &Store,
    input: &InputFile,
    options: &IngestOptions,
    on_progress: OnProgress,
) -> Result<(Store, IngestReport)> {
    let (given, open_options) = (input.clone(), options.open.clone());
    let sha256 = guarded(&input.path, move || given.sha256(&open_options)).await?;
    if let Some(name) = already_there(store, &sha256, options).await? {
        return Ok((store.clone(), IngestReport::already(input.uri.clone(), name)));
    }
    // Only all cells together prove what the values are. Most files hold counts, so counts are assumed first. If a cell
    // contradicts that, the file is read again with the detected normalisation, and at last as it is.
    let mut source = open(input, &options.open).await?;
    let mut interpretation = first_interpretation(input, options);
    let mut notes = Vec::new();
    loop {
        let (sha256, on_progress) = (&sha256, &on_progress);
        let attempt = Attempt { input, options, sha256, interpretation, notes: &notes, on_progress };
        match attempt.run(store, source).await? {
            AttemptResult::Done(done) => return Ok(*done),
            AttemptResult::Contradicted(given_back, by) => {
                refuse_wrong_input(input, options, interpretation)?;
                let min_genes = options.min_genes_of(input);
                (source, interpretation) =
                    next_interpretation(input, given_back, interpretation, &by, min_genes).await?;
                if let ContradictedBy::AllCells(note) = by {
                    notes.push(note);
                }
                if let (Some(values), Interpretation::Log | Interpretation::Linear) = (options.values, interpretation) {
                    let problem = format!(
                        "values are not counts and no counts can be recovered from them, as --input {} says; name \
                         another --layer or --raw, or say --input log, linear or bulk-log",
                        values.name()
                    );
                    return Err(Error::input(&input.path, "values", problem));
                }
            }
        }
    }
}

/// The interpretation to try first: what the user says, else what an export says, else counts.
fn first_interpretation(input: &InputFile, options: &IngestOptions) -> Interpretation {
    let exported = input.part().and_then(|part| ValueKind::named(&part.value_kind));
    match (options.values, exported) {
        (None, Some(kind)) => Interpretation::Restored(kind),
        (None, None) | (Some(Values::Counts | Values::Bulk), _) => Interpretation::Counts,
        (Some(Values::Linear), _) => Interpretation::Linear,
        (Some(Values::Log | Values::LogTotal | Values::BulkLog), _) => Interpretation::Log,
    }
}

/// Fails if values contradict that they are logarithms, as the user says.
fn refuse_wrong_input(input: &InputFile, options: &IngestOptions, tried: Interpretation) -> Result<()> {
    match (options.values, tried) {
        (Some(values), Interpretation::Log) => {
            let problem = format!(
                "some are above 20, which no logarithm of normalised counts is, as --input {} says; say --input linear",
                values.name()
            );
            Err(Error::input(&input.path, "values", problem))
        }
        _ => Ok(()),
    }
}

/// How an attempt ended.
enum AttemptResult {
    Done(Box<(Store, IngestReport)>),
    /// The values contradict the interpretation. Gives the source back.
    Contradicted(Box<dyn CellSource>, ContradictedBy),
}

/// How the writing of an attempt ended.
enum WriteResult {
    Done(Box<IngestReport>),
    Contradicted(Box<dyn CellSource>, ContradictedBy),
}

/// What contradicted an interpretation.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ContradictedBy {
    OneCell,
    /// All cells together, with a note for the report: the values could be taken for something else.
    AllCells(String),
}

/// The source, rewound, and the interpretation to try next.
async fn next_interpretation(
    input: &InputFile,
    mut source: Box<dyn CellSource>,
    tried: Interpretation,
    by: &ContradictedBy,
    min_genes: u32,
) -> Result<(Box<dyn CellSource>, Interpretation)> {
    if tried == Interpretation::Log {
        return guarded(&input.path, move || Ok((source.rewind().map(|()| source)?, Interpretation::Linear))).await;
    }
    let is_first = matches!(tried, Interpretation::Counts | Interpretation::Restored(_));
    let recover = is_first && *by == ContradictedBy::OneCell;
    guarded(&input.path, move || {
        source.rewind()?;
        let block = source.next_block()?;
        let values = |i: usize, b: &cellql_formats::Block| -> Vec<f32> {
            b.cell(i).1.iter().copied().filter(|v| *v != 0.0).collect()
        };
        let cells: Vec<Vec<f32>> = block.iter().flat_map(|b| (0..b.len()).map(|i| values(i, b))).collect();
        let kept = cells.iter().filter(|c| c.len() > min_genes as usize).take(DETECTION_CELLS).map(Vec::as_slice);
        let next = if recover { Interpretation::detect(kept) } else { Interpretation::as_given(kept) };
        source.rewind()?;
        Ok((source, next))
    })
    .await
}

/// One attempt to ingest a file.
struct Attempt<'a> {
    input: &'a InputFile,
    options: &'a IngestOptions,
    sha256: &'a str,
    interpretation: Interpretation,
    /// Why other interpretations were given up.
    notes: &'a [String],
    on_progress: &'a OnProgress,
}

impl Attempt<'_> {
    async fn run(&self, store: &Store, source: Box<dyn CellSource>) -> Result<AttemptResult> {
        let mut transaction = store.begin(&format!("ingest {}", self.input.uri)).await?;
        // Checked again under the lock: another process may have ingested the same file in the meantime.
        if let Some(name) = already_there(transaction.store(), self.sha256, self.options).await? {
            let report = IngestReport::already(self.input.uri.clone(), name);
            return Ok(AttemptResult::Done(Box::new((transaction.store().clone(), report))));
        }
        match Box::pin(self.write(&mut transaction, source)).await {
            Ok(WriteResult::Done(report)) => {
                let store = transaction.publish().await?;
                Ok(AttemptResult::Done(Box::new((store, *report))))
            }
            Ok(WriteResult::Contradicted(source, by)) => {
                transaction.discard().await?;
                Ok(AttemptResult::Contradicted(source, by))
            }
            Err(error) => {
                // The error that matters is that of the writing, a full disk for example.
                let _ = transaction.discard().await;
                Err(error)
            }
        }
    }

    /// Writes everything of the data set.
    async fn write(&self, transaction: &mut Transaction, source: Box<dyn CellSource>) -> Result<WriteResult> {
        let mut catalogue = transaction.store().genes().await?;
        let (gene_ids, gene_report) = catalogue.register(source.features());
        if !self.options.allow_unresolved {
            refuse_other_species(&self.input.path, &gene_report)?;
        }
        let measured = measured(&gene_ids, source.as_ref());
        let dataset_id = transaction.take_dataset_id();
        let existing = transaction.store().table(table::TABLE).await?;
        let targets = obs::targets(source.obs_columns(), &Schema::from(existing.schema()));
        let cell_options = CellOptions {
            min_genes: self.options.min_genes_of(self.input),
            interpretation: self.interpretation,
            is_certain: self.options.values.is_some(),
            skip_duplicates: self.options.skip_duplicates,
        };
        let genes = FileGenes::new(&gene_ids, catalogue.hasher(), |g| catalogue.is_mitochondrial(g));
        let stored = ContentIndex::read(transaction.store()).await?;
        let builder = CellBuilder::new(dataset_id, transaction.next_cell_id(), genes, targets, cell_options, stored);

        let (rows, outcome) = stream(self.input.path.clone(), source, builder, Arc::clone(self.on_progress));
        let appended = transaction.append(table::TABLE, rows).await;
        // The reader's result comes first: it says why the stream of rows ended.
        let (builder, source) = match outcome.await {
            Ok(Outcome::Done(builder, source)) => (builder, source),
            Ok(Outcome::Contradicted(source, by)) => return Ok(WriteResult::Contradicted(source, by)),
            Ok(Outcome::Failed(error)) => return Err(error),
            Err(_) => {
                appended?;
                return Err(Error::input(&self.input.path, "reader", "ended without a result"));
            }
        };
        appended?;
        transaction.take_cell_ids(builder.next_cell_id());
        let report = self.report(dataset_id, &builder, source.as_ref(), gene_report);
        describe(transaction, &report, catalogue.to_batch()?, self.sha256, measured).await?;
        Ok(WriteResult::Done(Box::new(report)))
    }

    fn report(&self, dataset_id: u32, cells: &CellBuilder, source: &dyn CellSource, genes: GeneReport) -> IngestReport {
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
            value_kind: self.interpretation.kind().name().to_owned(),
            input: self.options.values.unwrap_or_else(|| self.input_of_models()),
            notes: self.notes_with(source),
            genes,
            obs_columns: cells.obs().iter().map(|t| t.report.clone()).collect(),
        }
    }

    /// How models read the values, where the user does not say it.
    fn input_of_models(&self) -> Values {
        let exported = self.input.part().and_then(|part| part.input.parse().ok());
        match (exported, self.interpretation) {
            (Some(input), Interpretation::Restored(_)) => input,
            (_, interpretation) => match interpretation.kind() {
                ValueKind::Normalised => Values::Log,
                ValueKind::Linear => Values::Linear,
                ValueKind::Counts | ValueKind::Recovered => Values::Counts,
            },
        }
    }

    fn notes_with(&self, source: &dyn CellSource) -> Vec<String> {
        let from =
            self.input.part().map(|part| format!("a data set of an export; first read from {}", part.source_uri));
        let of_source = source.notes().iter().cloned();
        from.into_iter().chain(of_source).chain(self.notes.iter().cloned()).chain(self.interpretation.note()).collect()
    }
}

/// The genes a file measures by ascending id, with its names for them.
fn measured(gene_ids: &[u32], source: &dyn CellSource) -> Vec<(u32, String)> {
    let names = source.features().iter().map(|f| f.name.clone());
    let mut measured: Vec<(u32, String)> = gene_ids.iter().copied().zip(names).collect();
    measured.sort_unstable();
    measured
}

/// Writes the rows of genes and of the data set.
async fn describe(
    transaction: &mut Transaction,
    report: &IngestReport,
    gene_rows: RecordBatch,
    sha256: &str,
    measured: Vec<(u32, String)>,
) -> Result<()> {
    transaction.replace(genes::TABLE, gene_rows).await?;
    let row = report.to_row(sha256, measured)?;
    let schema = row.schema();
    let rows = RecordBatchStreamAdapter::new(schema, futures::stream::iter([Ok(row)]));
    transaction.append(datasets::TABLE, Box::pin(rows)).await?;
    Ok(())
}

/// Opens an input off the async threads.
async fn open(input: &InputFile, options: &OpenOptions) -> Result<Box<dyn CellSource>> {
    let path = input.path.clone();
    let options = OpenOptions { part: input.part().cloned(), ..options.clone() };
    if recognise(&path)? == Some(Format::Lance) {
        let table = LanceTable::open(&path).await?;
        return guarded(&input.path, move || {
            let whole = Box::new(TableSource::open(&path, Box::new(table))?);
            match &options.part {
                Some(part) => Ok(cellql_formats::part_of(&path, whole, part)?),
                None => Ok(whole as Box<dyn CellSource>),
            }
        })
        .await;
    }
    guarded(&input.path, move || Ok(cellql_formats::open(&path, &options)?)).await
}

/// What the reader's thread returns.
enum Outcome {
    Done(Box<CellBuilder>, Box<dyn CellSource>),
    Contradicted(Box<dyn CellSource>, ContradictedBy),
    Failed(Error),
}

/// Starts the reader's thread. Returns its stream of rows and its result.
fn stream(
    file: PathBuf,
    mut source: Box<dyn CellSource>,
    mut builder: CellBuilder,
    on_progress: OnProgress,
) -> (SendableRecordBatchStream, oneshot::Receiver<Outcome>) {
    let schema = builder.schema();
    let (rows, mut receive) = mpsc::channel::<Result<RecordBatch, DataFusionError>>(2);
    let (finished, outcome) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let run = AssertUnwindSafe(|| read_all(&file, source.as_mut(), &mut builder, &rows, &on_progress));
        let done = catch_unwind(run).unwrap_or_else(|_| Err(BatchError::Failed(damaged(&file))));
        let broken = |why: &str| Err(DataFusionError::Execution(why.to_owned()));
        let outcome = match done {
            Ok(()) => match builder.contradiction() {
                None => Outcome::Done(Box::new(builder), source),
                Some(note) => {
                    let _ = rows.blocking_send(broken("the values contradict the interpretation"));
                    Outcome::Contradicted(source, ContradictedBy::AllCells(note))
                }
            },
            Err(BatchError::Contradicted) => {
                let _ = rows.blocking_send(broken("the values contradict the interpretation"));
                Outcome::Contradicted(source, ContradictedBy::OneCell)
            }
            Err(BatchError::Failed(error)) => {
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
    builder: &mut CellBuilder,
    rows: &mpsc::Sender<Result<RecordBatch, DataFusionError>>,
    on_progress: &OnProgress,
) -> Result<(), BatchError> {
    let total = source.n_cells();
    std::thread::scope(|threads| {
        // The next block is decoded while rows are built from this one.
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
            let batch = builder.batch(file, &block)?;
            // A closed channel means that the table could not be written; its writer tells why.
            if batch.num_rows() > 0 && rows.blocking_send(Ok(batch)).is_err() {
                return Ok(());
            }
            on_progress(builder.counts().read, total);
        }
        // The reader ended without a last message: a format's library panicked, which is reported as an error of the
        // file.
        let _ = reader.join();
        Err(BatchError::Failed(damaged(file)))
    })
}

/// Runs a reader off the async threads. A panic inside a format's library becomes an error of the file.
async fn guarded<T: Send + 'static>(file: &Path, run: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let joined = tokio::task::spawn_blocking(move || catch_unwind(AssertUnwindSafe(run))).await;
    match joined {
        Ok(Ok(result)) => result,
        _ => Err(damaged(file)),
    }
}

fn damaged(file: &Path) -> Error {
    Error::input(
        file,
        "file",
        "it is damaged in a way that its reader does not handle; write the file again, or report this as a bug",
    )
}

/// Fails if few features are human genes: the file is of another species, or its features are not genes.
fn refuse_other_species(file: &Path, report: &GeneReport) -> Result<()> {
    let (known, all) = (report.resolved(), report.features);
    if all > 0 && known as f64 >= MIN_RESOLVED * all as f64 {
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
            "only {known} of {all} resolve to human genes; {why}, or ingest them as they are with --allow-unresolved"
        ),
    ))
}

/// Name of the data set that holds this file already. Another matrix of the same file is another data set.
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

/// Reason → number of cells left out.
pub type Dropped = BTreeMap<String, u64>;
