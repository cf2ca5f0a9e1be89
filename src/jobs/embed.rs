//! Fills the embedding table of a recipe with the cells it lacks.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, UInt32Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{SchemaRef, UInt64Type};
use arrow::record_batch::RecordBatch;
use cellql_schemas::cells;
use cellql_schemas::embeddings;
use cellql_schemas::expr::Profiles;
use cellql_schemas::recipe::Recipe;
use cellql_udfs::embed::vector_column;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, TryStreamExt};

use super::cells::{CELLS, Suitable};
use super::{Memory, check_model, recipe_metadata};
use crate::error::{Error, Result};
use crate::model::Sample;
use crate::progress::OnProgress;
use crate::query::StoreEngine;
use crate::store::{Store, embedding_table};

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

/// Embeds every cell that the recipe's table lacks, of data sets with its input. `total` names a column of `cells`. Published
/// whole at the end.
///
/// # Errors
/// An unknown model, a table made with another model of that name, or a store that cannot be written.
pub async fn embed_cells(
    engine: &Arc<StoreEngine>,
    recipe: &Recipe,
    total: Option<&str>,
    memory: Memory,
    on_progress: OnProgress,
) -> Result<(Store, EmbedReport)> {
    let model = engine.entry(Some(&recipe.model))?.clone();
    let dim = model.embedding_dim(recipe.pool);
    let name = recipe.name();
    let table = embedding_table(&name);
    let schema: SchemaRef = Arc::new(embeddings::schema(dim).with_metadata(recipe_metadata(engine, recipe)?));
    let mut transaction = engine.store().begin(&format!("embedding cells with {name}")).await?;
    let store = transaction.store().clone();
    if store.version() != engine.store().version() {
        // The engine places genes as they were when it opened; cells that came since may have others.
        return Err(Error::Conflict { store: store.uri().to_owned(), doing: format!("embedding cells with {name}") });
    }
    let there = match store.tables().any(|t| t == table) {
        true => cells_in(&store, &table, &model.sha256).await?,
        false => HashSet::new(),
    };
    let suitable = Suitable::of(engine, recipe, total).await?;
    let all = store.table(cells::TABLE).await?;
    let counting = || Error::store("counting cells");
    let n_suitable = all.count_rows(Some(suitable.filter.clone())).await.map_err(counting())? as u64;
    let unsuitable = all.count_rows(None).await.map_err(counting())? as u64 - n_suitable;
    let already = there.len() as u64;
    let added = n_suitable.saturating_sub(already);
    engine.take_notices();
    if added > 0 {
        let reading = || Error::store("reading cells");
        let mut scan = all.scan();
        scan.project(&suitable.columns()).map_err(reading())?;
        scan.filter(&suitable.filter).map_err(reading())?;
        scan.batch_size(CELLS);
        let cells = scan.try_into_stream().await.map_err(reading())?;
        let cells = cells.map_err(|e| DataFusionError::External(Box::new(e))).boxed();
        let job = Job {
            engine: Arc::clone(engine),
            recipe: recipe.clone(),
            schema: Arc::clone(&schema),
            dim,
            there,
            suitable,
            token_budget: memory.tokens(engine, recipe)?,
        };
        transaction.append(&table, job.rows(cells, on_progress, added)).await?;
    }
    let without_vector = engine.take_notices().not_embedded;
    let store = match added {
        0 => store,
        _ => transaction.publish().await?,
    };
    Ok((store, EmbedReport { recipe: name, already, added, unsuitable, without_vector }))
}

/// Cells of an embedding table, after checking that the same model made it.
async fn cells_in(store: &Store, table: &str, sha256: &str) -> Result<HashSet<u64>> {
    check_model(store, table, sha256).await?;
    let batches = store.read(table, &[embeddings::CELL_ID], None).await?;
    let ids = batches.iter().flat_map(|b| b.column(0).as_primitive::<UInt64Type>().values().iter().copied());
    Ok(ids.collect())
}

struct Job {
    engine: Arc<StoreEngine>,
    recipe: Recipe,
    schema: SchemaRef,
    dim: usize,
    there: HashSet<u64>,
    suitable: Suitable,
    token_budget: usize,
}

impl Job {
    fn rows(
        self,
        cells: futures::stream::BoxStream<'static, Result<RecordBatch, DataFusionError>>,
        on_progress: OnProgress,
        total: u64,
    ) -> SendableRecordBatchStream {
        let schema = Arc::clone(&self.schema);
        let job = Arc::new(self);
        let mut done = 0;
        let rows = cells
            .map(move |batch| {
                let job = Arc::clone(&job);
                // Off the async threads, so that lance reads and writes while the model runs.
                async move {
                    let embedded = tokio::task::spawn_blocking(move || job.embed(&batch?)).await;
                    embedded.map_err(|e| DataFusionError::External(Box::new(e)))?
                }
            })
            .buffered(1)
            .inspect_ok(move |batch| {
                done += batch.num_rows() as u64;
                on_progress(done, Some(total));
            });
        Box::pin(RecordBatchStreamAdapter::new(schema, rows))
    }

    fn embed(&self, batch: &RecordBatch) -> Result<RecordBatch, DataFusionError> {
        let new: BooleanArray = {
            let ids = batch.column(0).as_primitive::<UInt64Type>();
            ids.values().iter().map(|id| Some(!self.there.contains(id))).collect()
        };
        let batch = filter_record_batch(batch, &new)?;
        let profiles = Profiles::new(batch.column(1)).map_err(|e| DataFusionError::Execution(e.to_string()))?;
        let external = |e: Error| DataFusionError::External(Box::new(e));
        let totals = self.suitable.totals(&batch).map_err(external)?;
        let samples = profiles.iter().zip(totals);
        let samples = samples.map(|(profile, total)| profile.map(|profile| Sample { profile, total }));
        let embedded = self.engine.embed_cells(&self.recipe, samples, self.token_budget).map_err(external)?;
        let seen: ArrayRef = Arc::new(UInt32Array::from(embedded.genes_seen.clone()));
        let vectors: ArrayRef = Arc::new(vector_column(embedded, self.dim)?);
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), vec![Arc::clone(batch.column(0)), vectors, seen])?)
    }
}
