//! Fills the embedding table of a recipe with the cells it lacks.
//!
//! Cells are embedded in steps; what is done is published every so often, together with the job's row, as one version of
//! the store. A run that is cut off loses what came after its last version, and the next one embeds the cells that are not
//! there: each cell gets one row, however often the job is started, killed or divided into shards. Other writers may
//! change the store meanwhile. Where they added or removed cells, genes or models, the run goes on with the newest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, UInt32Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{SchemaRef, UInt64Type};
use arrow::record_batch::RecordBatch;
use cellql_schemas::expr::Profiles;
use cellql_schemas::recipe::Recipe;
use cellql_schemas::{cells, embeddings, genes, jobs, models};
use cellql_udfs::embed::vector_column;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::TryStreamExt;
use roaring::RoaringTreemap;

use super::cells::{CELLS, Suitable};
use super::record::{Added, Record};
use super::{Memory, Shard, check_model, recipe_metadata};
use crate::error::{Error, Result};
use crate::query::{StoreEngine, condition};
use cellql_model::Sample;
use cellql_store::progress::OnProgress;
use cellql_store::{Store, StoreError, embedding_table};

/// Cells embedded between two looks at the clock.
const STEP: usize = 64;
/// Bytes of vectors held at most before they are published.
const HELD: usize = 256 << 20;
/// Attempts to publish where writers on other machines come first.
const ATTEMPTS: usize = 20;

/// What to embed, and how.
#[derive(Debug, Clone)]
pub struct EmbedOptions {
    /// Column of `cells` with each cell's total, for inputs that need one.
    pub total: Option<String>,
    /// SQL condition on `cells`.
    pub condition: Option<String>,
    /// Which part of the cells.
    pub shard: Shard,
    /// Memory of a batch.
    pub memory: Memory,
    /// Seconds of work between two published versions.
    pub publish_every: Duration,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self {
            total: None,
            condition: None,
            shard: Shard::default(),
            memory: Memory::default(),
            publish_every: Duration::from_secs(30),
        }
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbedReport {
    /// Name of the embedding table.
    pub recipe: String,
    /// Cells that were there already.
    pub already: u64,
    /// Cells added.
    pub added: u64,
    /// Cells left out because their values do not suit the recipe's input.
    pub unsuitable: u64,
    /// Reason → cells added without a vector.
    pub without_vector: BTreeMap<String, u64>,
}

/// Embeds every cell that the recipe's table lacks, of data sets with its input.
///
/// # Errors
/// An unknown model, a table made with another model of that name, a condition that does not fit `cells`, or a store that
/// cannot be written.
pub async fn embed_cells(
    engine: &Arc<StoreEngine>,
    recipe: &Recipe,
    options: &EmbedOptions,
    on_progress: OnProgress,
) -> Result<(Store, EmbedReport)> {
    let name = recipe.name();
    let record = Record::begin(&name, options.shard, options.condition.as_deref());
    let report = EmbedReport { recipe: name, already: 0, added: 0, unsuitable: 0, without_vector: BTreeMap::new() };
    let mut run = Run { recipe, options, record, report, table_version: None, on_progress };
    let mut engine = Arc::clone(engine);
    engine.take_notices();
    loop {
        match run.pass(&engine).await? {
            Ended::Done(store) => return Ok((store, run.report)),
            Ended::StoreChanged(store) => engine = Arc::new(engine.reopened(store).await?),
        }
    }
}

/// How a pass over the cells ended.
enum Ended {
    Done(Store),
    /// Cells, genes or models are other ones now.
    StoreChanged(Store),
}

struct Run<'a> {
    recipe: &'a Recipe,
    options: &'a EmbedOptions,
    record: Record,
    report: EmbedReport,
    /// Version of the embedding table whose rows are known to this run.
    table_version: Option<u64>,
    on_progress: OnProgress,
}

impl Run<'_> {
    /// Embeds what the store, as the engine sees it, lacks.
    async fn pass(&mut self, engine: &Arc<StoreEngine>) -> Result<Ended> {
        let chosen = Chosen::of(engine, self.recipe, self.options).await?;
        let todo = self.todo(engine.store(), &chosen).await?;
        let total = self.report.added + todo.len();
        if todo.is_empty() && self.record.is_done(engine.store()).await? {
            return Ok(Ended::Done(engine.store().clone()));
        }
        if todo.is_empty() {
            return self.publish(engine, &[], jobs::DONE).await;
        }
        let model = engine.entry(Some(&self.recipe.model))?;
        let dim = model.embedding_dim(self.recipe.pool);
        let metadata = recipe_metadata(engine, self.recipe)?;
        let step = Arc::new(Step {
            engine: Arc::clone(engine),
            recipe: self.recipe.clone(),
            schema: Arc::new(embeddings::schema(dim).with_metadata(metadata)),
            dim,
            token_budget: self.options.memory.tokens(engine, self.recipe)?,
            suitable: chosen.suitable.clone(),
        });
        let mut cells = chosen.scan(engine.store(), &todo).await?;
        let (mut held, mut since) = (Vec::new(), Instant::now());
        let reading = || Error::internal("reading cells");
        while let Some(batch) = cells.try_next().await.map_err(reading())? {
            let ids = batch.column(0).as_primitive::<UInt64Type>();
            let new: BooleanArray = ids.values().iter().map(|id| Some(todo.contains(*id))).collect();
            let batch = filter_record_batch(&batch, &new).map_err(Error::internal("reading cells"))?;
            for first in (0..batch.num_rows()).step_by(STEP) {
                let some = batch.slice(first, STEP.min(batch.num_rows() - first));
                let step = Arc::clone(&step);
                // Off the async threads, so that lance reads while the model runs.
                let embedded = tokio::task::spawn_blocking(move || step.embed(&some)).await;
                let embedded = embedded.map_err(Error::internal("embedding cells"))??;
                held.push(embedded);
                (self.on_progress)(self.report.added + rows(&held), Some(total));
                let bytes = held.len() * STEP * dim * 4;
                if since.elapsed() >= self.options.publish_every || bytes >= HELD {
                    if let Ended::StoreChanged(store) = self.publish(engine, &held, jobs::RUNNING).await? {
                        return Ok(Ended::StoreChanged(store));
                    }
                    held.clear();
                    since = Instant::now();
                }
            }
        }
        self.publish(engine, &held, jobs::DONE).await
    }

    /// Cells without a row in the table. Also counts, for the report and the job's row.
    async fn todo(&mut self, store: &Store, chosen: &Chosen) -> Result<RoaringTreemap> {
        let mut todo = ids(store, cells::TABLE, Some(&chosen.filter)).await?;
        let all = todo.len();
        let table = embedding_table(&self.report.recipe);
        self.table_version = store.version().tables.get(&table).copied();
        if store.tables().any(|t| t == table) {
            check_model(store, &table, &chosen.model_sha256).await?;
            todo -= ids(store, &table, None).await?;
        }
        (self.record.cells, self.record.done) = (all, all - todo.len());
        self.report.already = self.record.done - self.report.added;
        self.report.unsuitable = chosen.unsuitable;
        Ok(todo)
    }

    /// Makes rows and the job's new state visible as one version.
    async fn publish(&mut self, engine: &StoreEngine, held: &[RecordBatch], state: &str) -> Result<Ended> {
        let without_vector = engine.take_notices().not_embedded;
        for _ in 0..ATTEMPTS {
            match self.attempt(engine, held, state).await {
                Err(Error::Store(StoreError::Conflict { .. })) => {}
                Ok((Ended::Done(store), added)) => {
                    self.table_version = store.version().tables.get(&embedding_table(&self.report.recipe)).copied();
                    self.record.done += added.cells;
                    self.record.without_vector += added.without_vector;
                    self.report.added += added.cells;
                    for (why, cells) in without_vector {
                        *self.report.without_vector.entry(why).or_default() += cells;
                    }
                    return Ok(Ended::Done(store));
                }
                Ok((changed, _)) => return Ok(changed),
                Err(error) => return Err(error),
            }
        }
        Err(Error::Store(StoreError::Conflict { store: engine.store().uri().to_owned(), doing: self.doing() }))
    }

    /// One try to publish. Gives the cells that were added: those that another process added meanwhile are left out.
    async fn attempt(&self, engine: &StoreEngine, held: &[RecordBatch], state: &str) -> Result<(Ended, Added)> {
        let mut transaction = engine.store().begin(&self.doing()).await?;
        let now = transaction.store();
        let is_same = |table: &str| now.version().tables.get(table) == engine.store().version().tables.get(table);
        // Genes are placed, and cells chosen, as they were when the engine opened.
        if ![cells::TABLE, genes::TABLE, models::TABLE].into_iter().all(is_same) {
            return Ok((Ended::StoreChanged(now.clone()), Added::default()));
        }
        let table = embedding_table(&self.report.recipe);
        let new = match now.version().tables.get(&table) == self.table_version.as_ref() {
            true => held.to_vec(),
            false => without_rows_of(now, &table, held).await?,
        };
        let added = Added { cells: rows(&new), without_vector: new.iter().map(without_vector).sum() };
        if let Some(first) = new.first().filter(|_| added.cells > 0) {
            let rows = futures::stream::iter(new.iter().cloned().map(Ok).collect::<Vec<_>>());
            let rows = RecordBatchStreamAdapter::new(first.schema(), rows);
            transaction.append(&table, Box::pin(rows)).await?;
        }
        self.record.write(&mut transaction, added, state).await?;
        Ok((Ended::Done(transaction.publish().await?), added))
    }

    fn doing(&self) -> String {
        format!("embedding cells with {}", self.report.recipe)
    }
}

fn rows(batches: &[RecordBatch]) -> u64 {
    batches.iter().map(|b| b.num_rows() as u64).sum()
}

fn without_vector(batch: &RecordBatch) -> u64 {
    batch.column_by_name(embeddings::VECTOR).map_or(0, |vectors| vectors.null_count() as u64)
}

/// The rows of batches whose cells a table does not hold.
async fn without_rows_of(store: &Store, table: &str, batches: &[RecordBatch]) -> Result<Vec<RecordBatch>> {
    if !store.tables().any(|t| t == table) {
        return Ok(batches.to_vec());
    }
    let there = ids(store, table, None).await?;
    let new = |batch: &RecordBatch| {
        let cells = batch.column(0).as_primitive::<UInt64Type>();
        let is_new: BooleanArray = cells.values().iter().map(|id| Some(!there.contains(*id))).collect();
        filter_record_batch(batch, &is_new).map_err(Error::internal("choosing new embeddings"))
    };
    batches.iter().map(new).collect()
}

/// The `cell_id`s of a table.
async fn ids(store: &Store, table: &str, filter: Option<&str>) -> Result<RoaringTreemap> {
    let mut all = RoaringTreemap::new();
    for batch in store.read(table, &[cells::CELL_ID], filter).await? {
        all.extend(batch.column(0).as_primitive::<UInt64Type>().values().iter().copied());
    }
    Ok(all)
}

/// The cells a job is about.
struct Chosen {
    suitable: Suitable,
    /// Condition on `cells`.
    filter: String,
    /// Cells left out for their data set's input.
    unsuitable: u64,
    model_sha256: String,
}

impl Chosen {
    async fn of(engine: &StoreEngine, recipe: &Recipe, options: &EmbedOptions) -> Result<Self> {
        let suitable = Suitable::of(engine, recipe, options.total.as_deref()).await?;
        let checked = match &options.condition {
            Some(condition) => Some(condition::on_cells(engine.store(), condition).await?),
            None => None,
        };
        let asked: Vec<String> = options.shard.condition().into_iter().chain(checked).collect();
        let and = |conditions: &[String]| -> Option<String> {
            let each: Vec<String> = conditions.iter().map(|c| format!("({c})")).collect();
            (!each.is_empty()).then(|| each.join(" AND "))
        };
        let filter = and(&[std::slice::from_ref(&suitable.filter), asked.as_slice()].concat()).unwrap_or_default();
        let table = engine.store().table(cells::TABLE).await?;
        let count = async |filter: Option<String>| -> Result<u64> {
            let counted = table.count_rows(filter.clone()).await;
            let wrong = |e: lance::Error| match &options.condition {
                Some(condition) => condition::failed(condition, &e),
                None => Error::internal("counting cells")(e),
            };
            Ok(counted.map_err(wrong)? as u64)
        };
        let unsuitable = count(and(&asked)).await? - count(Some(filter.clone())).await?;
        let model_sha256 = engine.entry(Some(&recipe.model))?.sha256.clone();
        Ok(Self { suitable, filter, unsuitable, model_sha256 })
    }

    /// Columns [`Suitable::columns`] of the chosen cells, from the first that is to be done.
    async fn scan(
        &self,
        store: &Store,
        todo: &RoaringTreemap,
    ) -> Result<lance::dataset::scanner::DatasetRecordBatchStream> {
        let reading = || Error::internal("reading cells");
        let first = todo.min().unwrap_or(0);
        let mut scan = store.table(cells::TABLE).await?.scan();
        scan.project(&self.suitable.columns()).map_err(reading())?;
        scan.filter(&format!("{} >= {first} AND {}", cells::CELL_ID, self.filter)).map_err(reading())?;
        scan.batch_size(CELLS);
        scan.try_into_stream().await.map_err(reading())
    }
}

/// What turns some cells into rows of the table.
struct Step {
    engine: Arc<StoreEngine>,
    recipe: Recipe,
    schema: SchemaRef,
    dim: usize,
    token_budget: usize,
    suitable: Suitable,
}

impl Step {
    fn embed(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let profiles = Profiles::new(batch.column(1)).map_err(Error::internal("reading cells"))?;
        let totals = self.suitable.totals(batch)?;
        let samples = profiles.iter().zip(totals);
        let samples = samples.map(|(profile, total)| profile.map(|profile| Sample { profile, total }));
        let embedded = self.engine.embed_cells(&self.recipe, samples, self.token_budget)?;
        let seen: ArrayRef = Arc::new(UInt32Array::from(embedded.genes_seen.clone()));
        let vectors: ArrayRef = Arc::new(vector_column(embedded, self.dim)?);
        let columns = vec![Arc::clone(batch.column(0)), vectors, seen];
        RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(Error::internal("embedding cells"))
    }
}
