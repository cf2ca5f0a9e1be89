//! Cells of a file beside those of a store: embedded as the store's were, and their nearest neighbours found.
//!
//! The file goes through a store of its own, in a folder that is thrown away, which begins with this store's genes: formats,
//! names of genes and recovered counts are treated as in any ingest, and the same gene has the same number in both.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float32Array, StringArray, UInt32Array, UInt64Array};
use arrow::compute::concat_batches;
use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;
use cellql_schemas::expr::Profiles;
use cellql_schemas::recipe::Recipe;
use cellql_schemas::{cells, embeddings, genes};
use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::index::{KnnRequest, Metric, Neighbour, QueryVector, SearchMethod};
use crate::ingest::{IngestOptions, Input, ingest};
use crate::query::StoreEngine;
use cellql_model::{DEFAULT_TOKEN_BUDGET, Sample};
use cellql_store::progress::{self, OnProgress};
use cellql_store::{Store, embedding_table};

/// Cells embedded between two reports of progress.
const STEP: usize = 64;

/// What is asked of the cells of a file.
#[derive(Debug, Clone)]
pub struct Annotation {
    /// Embedding table; `None` where the store has just one.
    pub recipe: Option<String>,
    /// Neighbours of each cell.
    pub k: usize,
    /// What near means.
    pub metric: Metric,
    /// SQL condition on `cells` that neighbours satisfy.
    pub condition: Option<String>,
}

/// Neighbours of the cells of a file.
#[derive(Debug)]
pub struct Annotated {
    /// Barcodes of the cells, in the file's order.
    pub barcodes: Vec<String>,
    /// Nearest first; `None` for cells without a vector.
    pub neighbours: Vec<Option<Vec<Neighbour>>>,
    /// How they were found.
    pub method: SearchMethod,
}

impl Annotated {
    /// `query_row` (of the file's cells, from 0), `barcode`.
    ///
    /// # Errors
    /// None that can be caused.
    pub fn queries(&self) -> Result<RecordBatch> {
        let rows: ArrayRef = Arc::new(UInt64Array::from_iter_values(0..self.barcodes.len() as u64));
        let barcodes: ArrayRef = Arc::new(StringArray::from_iter_values(&self.barcodes));
        RecordBatch::try_from_iter([("query_row", rows), ("barcode", barcodes)])
            .map_err(Error::internal("listing the cells"))
    }

    /// A row per neighbour: `query_row`, `rank` from 1, `cell_id`, `_distance`.
    ///
    /// # Errors
    /// None that can be caused.
    pub fn rows(&self) -> Result<RecordBatch> {
        let found = || {
            self.neighbours.iter().enumerate().flat_map(|(query, found)| {
                found.iter().flatten().enumerate().map(move |(rank, neighbour)| (query, rank, neighbour))
            })
        };
        let columns: [(&str, ArrayRef); 4] = [
            ("query_row", Arc::new(UInt64Array::from_iter_values(found().map(|(query, ..)| query as u64)))),
            ("rank", Arc::new(UInt32Array::from_iter_values(found().map(|(_, rank, _)| rank as u32 + 1)))),
            ("cell_id", Arc::new(UInt64Array::from_iter_values(found().map(|(.., n)| n.cell_id)))),
            ("_distance", Arc::new(Float32Array::from_iter_values(found().map(|(.., n)| n.distance)))),
        ];
        RecordBatch::try_from_iter(columns).map_err(Error::internal("listing the neighbours"))
    }
}

/// Embeds the cells of a file as the store's were, and finds the neighbours of each.
///
/// # Errors
/// A file that cannot be read, or a recipe whose model is not the store's any more.
pub async fn annotate(
    engine: &Arc<StoreEngine>,
    input: &Input,
    options: &IngestOptions,
    asked: &Annotation,
    on_progress: OnProgress,
) -> Result<Annotated> {
    let searcher = engine.searcher(asked.recipe.as_deref()).await?;
    let recipe = recipe_of(engine, searcher.recipe()).await?;
    let (barcodes, batch) = read_as(engine.store(), input, options).await?;
    let mut vectors: Vec<Option<Vec<f32>>> = Vec::with_capacity(barcodes.len());
    for first in (0..batch.num_rows()).step_by(STEP) {
        let some = batch.slice(first, STEP.min(batch.num_rows() - first));
        let (engine, recipe) = (Arc::clone(engine), recipe.clone());
        let embed = move || {
            let profiles = Profiles::new(some.column(1)).map_err(Error::internal("reading cells"))?;
            let samples = profiles.iter().map(|profile| profile.map(|profile| Sample { profile, total: None }));
            engine.embed_cells(&recipe, samples, DEFAULT_TOKEN_BUDGET)
        };
        let embedded = tokio::task::spawn_blocking(embed).await.map_err(Error::internal("embedding cells"))??;
        let dim = embedded.vectors.len() / embedded.valid.len().max(1);
        let each = embedded.vectors.chunks(dim.max(1)).zip(&embedded.valid);
        vectors.extend(each.map(|(vector, valid)| valid.then(|| vector.to_vec())));
        on_progress(vectors.len() as u64, Some(barcodes.len() as u64));
    }
    let filter = match &asked.condition {
        Some(condition) => Some(engine.cells_where(condition).await?),
        None => None,
    };
    // A vector that the metric says nothing about has no neighbours, as a cell without one.
    vectors.iter_mut().for_each(|v| *v = v.take().filter(|v| asked.metric.prepare(v).is_some()));
    let has_vector: Vec<bool> = vectors.iter().map(Option::is_some).collect();
    let queries: Vec<QueryVector> =
        vectors.into_iter().flatten().map(|vector| QueryVector { vector, exclude: None }).collect();
    let request = KnnRequest { queries: &queries, k: asked.k, metric: asked.metric, filter: filter.as_ref() };
    let result = searcher.search(request).await?;
    let mut found = result.neighbours.into_iter();
    let neighbours = has_vector.into_iter().map(|has| if has { found.next() } else { None }).collect();
    Ok(Annotated { barcodes, neighbours, method: result.method })
}

/// The recipe that a table's vectors were made with, after checking that its model is the store's.
async fn recipe_of(engine: &StoreEngine, name: &str) -> Result<Recipe> {
    let table = embedding_table(name);
    let metadata = Schema::from(engine.store().table(&table).await?.schema()).metadata;
    let recipe = metadata.get(embeddings::RECIPE_METADATA).and_then(|json| serde_json::from_str::<Recipe>(json).ok());
    let recipe =
        recipe.ok_or_else(|| Error::Request(format!("table {table} does not say how its vectors were made")))?;
    super::check_model(engine.store(), &table, &engine.entry(Some(&recipe.model))?.sha256).await?;
    if recipe.input.needs_total() {
        let input = recipe.input.name();
        return Err(Error::Request(format!(
            "'{name}' was made of input '{input}', which needs a total beside each cell; ingest the file and search by cell_id"
        )));
    }
    Ok(recipe)
}

/// Barcodes and rows `barcode, expr` of a file's cells, their genes numbered as in `store`.
async fn read_as(store: &Store, input: &Input, options: &IngestOptions) -> Result<(Vec<String>, RecordBatch)> {
    let folder = TempDir::new().map_err(Error::internal("making a folder for the file's cells"))?;
    let own = Store::init(&folder.path().join("cells").to_string_lossy()).await?;
    let known = store.read(genes::TABLE, &[], None).await?;
    let schema = Arc::new(Schema::from(store.table(genes::TABLE).await?.schema()));
    let known = concat_batches(&schema, &known).map_err(Error::internal("copying the genes"))?;
    let mut transaction = own.begin("genes of another store").await?;
    transaction.replace(genes::TABLE, known).await?;
    let own = transaction.publish().await?;
    let (own, _) = ingest(&own, input, options, progress::silent()).await?;
    let rows = own.read(cells::TABLE, &[cells::BARCODE, cells::EXPR], None).await?;
    let Some(first) = rows.first() else {
        return Err(Error::Request(format!("{}: no cell was kept", input.uri)));
    };
    let all = concat_batches(&first.schema(), &rows).map_err(Error::internal("reading the file's cells"))?;
    let barcodes = all.column(0).as_string::<i32>().iter().map(|b| b.unwrap_or_default().to_owned()).collect();
    Ok((barcodes, all))
}
