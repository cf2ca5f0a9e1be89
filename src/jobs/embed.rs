//! Adds the embeddings that the table of a recipe lacks.
//!
//! Cells are embedded in steps. At intervals the new rows and the job's row are published together as one version of
//! the store. A run that is killed loses the work after its last version; the next run embeds the cells that have no
//! row. So each cell gets one row, even if the job is started again, killed, divided into shards or run twice at once.
//!
//! Other writers may change the store during a run. If they change cells, genes or models, the run continues with the
//! newest version of the store. If they add rows to the same table, the run leaves out those cells.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, UInt32Array};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use cellql_schemas::expr::Profiles;
use cellql_schemas::recipe::Recipe;
use cellql_schemas::{cells, embeddings, genes, jobs, models};
use cellql_udfs::embed::vector_column;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::TryStreamExt;
use rand::Rng;
use roaring::RoaringTreemap;

use super::cells::{BATCH_CELLS, EligibleCells};
use super::record::{FinishedCells, JobRecord};
use super::resume::{cell_ids, ids, remaining, rows_of_cells, without_duplicate_rows};
use super::{MemoryBudget, Shard, recipe_metadata};
use crate::error::{Error, Result};
use crate::query::{StoreEngine, condition};
use cellql_model::Sample;
use cellql_store::progress::OnProgress;
use cellql_store::{Store, StoreError, embedding_table};

/// Cells of one step: they are embedded together, and rows are published only between steps.
const STEP_CELLS: usize = 64;
/// Bytes of vectors that are kept in memory at most before they are published.
const MAX_UNPUBLISHED_BYTES: usize = 256 << 20;
/// Attempts to publish if writers on other machines publish first.
const ATTEMPTS: u32 = 20;
/// Mean delay before the second attempt. It doubles with every further attempt, up to [`MAX_DELAY`].
const FIRST_DELAY: Duration = Duration::from_millis(50);
/// Longest mean delay between two attempts.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// Which cells to embed, and how.
#[derive(Debug, Clone)]
pub struct EmbedOptions {
    /// Column of `cells` with the total count of each cell; only for inputs that need it.
    pub total: Option<String>,
    /// SQL condition on `cells`.
    pub condition: Option<String>,
    /// Which part of the cells; by default all.
    pub shard: Shard,
    /// Memory for the activations of a batch.
    pub memory: MemoryBudget,
    /// Time between two published versions of the store.
    pub publish_every: Duration,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self {
            total: None,
            condition: None,
            shard: Shard::default(),
            memory: MemoryBudget::default(),
            publish_every: Duration::from_secs(30),
        }
    }
}

/// Result of [`embed_cells`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbedReport {
    /// Name of the recipe, which is also that of its table.
    pub recipe: String,
    /// Cells that had a row already, or got it from another process during the run.
    pub already: u64,
    /// Cells whose row this run added.
    pub added: u64,
    /// Cells left out because the recipe's input is not that of their data set.
    pub unsuitable: u64,
    /// Reason → cells added without a vector.
    pub without_vector: BTreeMap<String, u64>,
}

/// Embeds every cell of data sets with the recipe's input that has no row in the recipe's table.
///
/// Returns the new version of the store and a report.
///
/// # Errors
/// An unknown model, a table made with another model of that name, a condition that does not fit `cells`, or a store
/// that cannot be written.
pub async fn embed_cells(
    engine: &Arc<StoreEngine>,
    recipe: &Recipe,
    options: &EmbedOptions,
    on_progress: OnProgress,
) -> Result<(Store, EmbedReport)> {
    let name = recipe.name();
    let record = JobRecord::begin(&name, options.shard, options.condition.as_deref());
    let report = EmbedReport { recipe: name, already: 0, added: 0, unsuitable: 0, without_vector: BTreeMap::new() };
    let missing = RoaringTreemap::new();
    let mut run = EmbedRun { recipe, options, record, report, missing, table_version: None, on_progress };
    let mut engine = Arc::clone(engine);
    engine.take_notices();
    if let Some(store) = without_duplicate_rows(engine.store(), &embedding_table(&run.report.recipe)).await? {
        engine = Arc::new(engine.reopened(store).await?);
    }
    loop {
        match run.pass(&engine).await? {
            PassResult::Done(store) => return Ok((store, run.report)),
            PassResult::StoreChanged(store) => engine = Arc::new(engine.reopened(store).await?),
        }
    }
}

/// How a pass over the cells, or an attempt to publish, ended.
enum PassResult {
    Done(Store),
    /// Another writer changed cells, genes or models.
    StoreChanged(Store),
}

/// Result of an attempt to publish.
enum Attempt {
    Published {
        store: Store,
        /// Cells that were published.
        added: RoaringTreemap,
        /// Of these, cells without a vector.
        without_vector: u64,
        /// Cells that were missing before, and of which another process has published the rows.
        by_others: RoaringTreemap,
    },
    /// Another writer changed cells, genes or models; nothing was published.
    StoreChanged(Store),
}

/// A run of [`embed_cells`].
struct EmbedRun<'a> {
    recipe: &'a Recipe,
    options: &'a EmbedOptions,
    record: JobRecord,
    report: EmbedReport,
    /// Cells without a row in the embedding table of [`EmbedRun::table_version`].
    missing: RoaringTreemap,
    /// Version of the embedding table; `None` if there is no table yet.
    table_version: Option<u64>,
    on_progress: OnProgress,
}

impl EmbedRun<'_> {
    /// Embeds the missing cells of the store as the engine sees it.
    async fn pass(&mut self, engine: &Arc<StoreEngine>) -> Result<PassResult> {
        let selection = CellSelection::of(engine, self.recipe, self.options).await?;
        self.find_missing(engine.store(), &selection).await?;
        if self.missing.is_empty() && self.record.is_done(engine.store()).await? {
            return Ok(PassResult::Done(engine.store().clone()));
        }
        if self.missing.is_empty() {
            return self.publish(engine, &[], jobs::DONE).await;
        }
        let step = Arc::new(EmbedStep::new(engine, self.recipe, self.options, &selection)?);
        let mut cells = selection.scan(engine.store(), &self.missing).await?;
        let (mut unpublished, mut last_publish) = (Vec::new(), Instant::now());
        let reading = || Error::internal(format!("reading table cells of {}", engine.store().uri()));
        while let Some(batch) = cells.try_next().await.map_err(reading())? {
            let batch = rows_of_cells(&batch, &self.missing)?;
            for first in (0..batch.num_rows()).step_by(STEP_CELLS) {
                // Since the last step, another process may have published some of these cells.
                let some = batch.slice(first, STEP_CELLS.min(batch.num_rows() - first));
                let some = rows_of_cells(&some, &self.missing)?;
                if some.num_rows() == 0 {
                    continue;
                }
                let to_run = Arc::clone(&step);
                // Off the async threads, so that lance reads while the model runs.
                let embedded = tokio::task::spawn_blocking(move || to_run.embed(&some)).await;
                unpublished.push(embedded.map_err(Error::internal(self.doing()))??);
                let total = self.report.added + self.missing.len();
                (self.on_progress)(self.report.added + rows(&unpublished), Some(total));
                let bytes = unpublished.len() * STEP_CELLS * step.dim * 4;
                if last_publish.elapsed() >= self.options.publish_every || bytes >= MAX_UNPUBLISHED_BYTES {
                    if let PassResult::StoreChanged(store) = self.publish(engine, &unpublished, jobs::RUNNING).await? {
                        return Ok(PassResult::StoreChanged(store));
                    }
                    unpublished.clear();
                    last_publish = Instant::now();
                }
            }
        }
        self.publish(engine, &unpublished, jobs::DONE).await
    }

    /// Sets which cells have no row in the table, and the counts of the report and of the job's row.
    async fn find_missing(&mut self, store: &Store, selection: &CellSelection) -> Result<()> {
        let table = embedding_table(&self.report.recipe);
        let remaining = remaining(store, &table, &selection.filter, &selection.model_sha256).await?;
        (self.record.cells, self.record.done) = (remaining.cells, remaining.cells - remaining.missing.len());
        self.report.already = self.record.done - self.report.added;
        self.report.unsuitable = selection.unsuitable;
        (self.missing, self.table_version) = (remaining.missing, remaining.table_version);
        Ok(())
    }

    /// Publishes rows and the job's new state as one version of the store. Tries again after a while if another writer
    /// publishes first.
    async fn publish(&mut self, engine: &StoreEngine, unpublished: &[RecordBatch], state: &str) -> Result<PassResult> {
        let reasons = engine.take_notices().not_embedded;
        for attempt in 0..ATTEMPTS {
            match self.attempt(engine, unpublished, state).await {
                Err(Error::Store(StoreError::Conflict { .. })) => tokio::time::sleep(delay(attempt)).await,
                Err(error) => return Err(error),
                Ok(Attempt::StoreChanged(store)) => return Ok(PassResult::StoreChanged(store)),
                Ok(Attempt::Published { store, added, without_vector, by_others }) => {
                    self.table_version = store.version().tables.get(&embedding_table(&self.report.recipe)).copied();
                    self.record.done += added.len() + by_others.len();
                    self.record.without_vector += without_vector;
                    self.report.added += added.len();
                    self.report.already += by_others.len();
                    self.missing -= added | by_others;
                    self.count_reasons(reasons, without_vector);
                    return Ok(PassResult::Done(store));
                }
            }
        }
        Err(Error::Store(StoreError::Conflict { store: engine.store().uri().to_owned(), doing: self.doing() }))
    }

    /// Adds the reasons for `count` cells without a vector to the report. There are more reasons than that if another
    /// process published some of the cells first.
    fn count_reasons(&mut self, reasons: impl IntoIterator<Item = (String, u64)>, count: u64) {
        let mut rest = count;
        for (reason, cells) in reasons {
            let cells = cells.min(rest);
            if cells > 0 {
                *self.report.without_vector.entry(reason).or_default() += cells;
            }
            rest -= cells;
        }
    }

    /// One attempt to publish. Leaves out cells that another process has published in the meantime.
    async fn attempt(&self, engine: &StoreEngine, unpublished: &[RecordBatch], state: &str) -> Result<Attempt> {
        let mut transaction = engine.store().begin(&self.doing()).await?;
        let newest = transaction.store();
        let is_same = |table: &str| newest.version().tables.get(table) == engine.store().version().tables.get(table);
        // Cells were selected, and genes placed, with these tables as they were when the engine was opened.
        if ![cells::TABLE, genes::TABLE, models::TABLE].into_iter().all(is_same) {
            return Ok(Attempt::StoreChanged(newest.clone()));
        }
        let table = embedding_table(&self.report.recipe);
        let by_others = match newest.version().tables.get(&table) == self.table_version.as_ref() {
            true => RoaringTreemap::new(),
            false => &self.missing & ids(newest, &table, None).await?,
        };
        let to_add = &self.missing - &by_others;
        let new: Vec<RecordBatch> =
            unpublished.iter().map(|batch| rows_of_cells(batch, &to_add)).collect::<Result<_>>()?;
        let added: RoaringTreemap = new.iter().flat_map(|batch| cell_ids(batch).iter().copied()).collect();
        let without_vector = new.iter().map(without_vector).sum();
        if let Some(first) = new.first().filter(|_| !added.is_empty()) {
            let rows = futures::stream::iter(new.iter().cloned().map(Ok).collect::<Vec<_>>());
            let rows = RecordBatchStreamAdapter::new(first.schema(), rows);
            transaction.append(&table, Box::pin(rows)).await?;
        }
        let finished = FinishedCells { cells: added.len() + by_others.len(), without_vector };
        self.record.write(&mut transaction, finished, state).await?;
        let store = transaction.publish().await?;
        Ok(Attempt::Published { store, added, without_vector, by_others })
    }

    fn doing(&self) -> String {
        format!("embedding cells with {}", self.report.recipe)
    }
}

/// A random delay after an attempt (from 0), so that writers that met once do not meet again.
fn delay(attempt: u32) -> Duration {
    let mean = FIRST_DELAY.saturating_mul(1 << attempt.min(16)).min(MAX_DELAY);
    mean.mul_f64(rand::rng().random_range(0.5..1.5))
}

fn rows(batches: &[RecordBatch]) -> u64 {
    batches.iter().map(|b| b.num_rows() as u64).sum()
}

fn without_vector(batch: &RecordBatch) -> u64 {
    batch.column_by_name(embeddings::VECTOR).map_or(0, |vectors| vectors.null_count() as u64)
}

/// The cells of a job: those of the shard and condition whose data set has the recipe's input.
struct CellSelection {
    eligible: EligibleCells,
    /// SQL condition on `cells`.
    filter: String,
    /// Cells of the shard and condition whose data set has another input.
    unsuitable: u64,
    model_sha256: String,
}

impl CellSelection {
    async fn of(engine: &StoreEngine, recipe: &Recipe, options: &EmbedOptions) -> Result<Self> {
        let eligible = EligibleCells::of(engine, recipe, options.total.as_deref()).await?;
        let checked = match &options.condition {
            Some(condition) => Some(condition::on_cells(engine.store(), condition).await?),
            None => None,
        };
        let requested: Vec<String> = options.shard.condition().into_iter().chain(checked).collect();
        let and = |conditions: &[String]| -> Option<String> {
            let each: Vec<String> = conditions.iter().map(|c| format!("({c})")).collect();
            (!each.is_empty()).then(|| each.join(" AND "))
        };
        let filter = and(&[std::slice::from_ref(&eligible.filter), requested.as_slice()].concat()).unwrap_or_default();
        let table = engine.store().table(cells::TABLE).await?;
        let count = async |filter: Option<String>| -> Result<u64> {
            let counted = table.count_rows(filter.clone()).await;
            let wrong = |e: lance::Error| match &options.condition {
                Some(condition) => condition::failed(condition, &e),
                None => Error::internal(format!("counting cells of {}", engine.store().uri()))(e),
            };
            Ok(counted.map_err(wrong)? as u64)
        };
        let unsuitable = count(and(&requested)).await? - count(Some(filter.clone())).await?;
        let model_sha256 = engine.entry(Some(&recipe.model))?.sha256.clone();
        Ok(Self { eligible, filter, unsuitable, model_sha256 })
    }

    /// Columns [`EligibleCells::columns`] of the selected cells, from the first missing one on.
    async fn scan(
        &self,
        store: &Store,
        missing: &RoaringTreemap,
    ) -> Result<lance::dataset::scanner::DatasetRecordBatchStream> {
        let reading = || Error::internal(format!("reading table cells of {}", store.uri()));
        let first = missing.min().unwrap_or(0);
        let mut scan = store.table(cells::TABLE).await?.scan();
        scan.project(&self.eligible.columns()).map_err(reading())?;
        scan.filter(&format!("{} >= {first} AND {}", cells::CELL_ID, self.filter)).map_err(reading())?;
        scan.batch_size(BATCH_CELLS);
        scan.try_into_stream().await.map_err(reading())
    }
}

/// Turns cells into rows of the embedding table. One step embeds up to [`STEP_CELLS`] cells.
struct EmbedStep {
    engine: Arc<StoreEngine>,
    recipe: Recipe,
    schema: SchemaRef,
    dim: usize,
    token_budget: usize,
    eligible: EligibleCells,
}

impl EmbedStep {
    fn new(
        engine: &Arc<StoreEngine>,
        recipe: &Recipe,
        options: &EmbedOptions,
        selection: &CellSelection,
    ) -> Result<Self> {
        let dim = engine.entry(Some(&recipe.model))?.embedding_dim(recipe.pool);
        let metadata = recipe_metadata(engine, recipe)?;
        Ok(Self {
            engine: Arc::clone(engine),
            recipe: recipe.clone(),
            schema: Arc::new(embeddings::schema(dim).with_metadata(metadata)),
            dim,
            token_budget: options.memory.tokens(engine, recipe)?,
            eligible: selection.eligible.clone(),
        })
    }

    fn embed(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let profiles = Profiles::new(batch.column(1)).map_err(Error::internal("reading cells"))?;
        let totals = self.eligible.totals(batch)?;
        let samples = profiles.iter().zip(totals);
        let samples = samples.map(|(profile, total)| profile.map(|profile| Sample { profile, total }));
        let embedded = self.engine.embed_cells(&self.recipe, samples, self.token_budget)?;
        let seen: ArrayRef = Arc::new(UInt32Array::from(embedded.genes_seen.clone()));
        let vectors: ArrayRef = Arc::new(vector_column(embedded, self.dim)?);
        let columns = vec![Arc::clone(batch.column(0)), vectors, seen];
        RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(Error::internal("embedding cells"))
    }
}
