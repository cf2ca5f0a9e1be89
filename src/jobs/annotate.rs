//! Embeds the cells of a file with a recipe of the store and finds their nearest neighbours in the store.
//!
//! The file is ingested into a temporary store that starts with this store's genes. So formats, gene names and
//! recovered counts are handled as in any ingest, and a gene has the same id in both stores.

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
use crate::ingest::{IngestOptions, InputFile, ingest};
use crate::query::StoreEngine;
use cellql_model::{DEFAULT_TOKEN_BUDGET, Sample};
use cellql_store::progress::{self, OnProgress};
use cellql_store::{Store, embedding_table};

/// Number of cells embedded between two reports of progress.
const STEP_CELLS: usize = 64;

/// Options of [`annotate`].
#[derive(Debug, Clone)]
pub struct AnnotateOptions {
    /// Name of the recipe; `None` if the store has only one.
    pub recipe: Option<String>,
    /// Number of neighbours of each cell.
    pub k: usize,
    /// Distance metric.
    pub metric: Metric,
    /// SQL condition on `cells` that all neighbours satisfy.
    pub condition: Option<String>,
}

/// The nearest neighbours of the cells of a file.
#[derive(Debug)]
pub struct FileNeighbours {
    /// Barcodes of the cells, in the file's order.
    pub barcodes: Vec<String>,
    /// Neighbours of each cell, nearest first; `None` for cells without a vector.
    pub neighbours: Vec<Option<Vec<Neighbour>>>,
    /// How the neighbours were searched.
    pub method: SearchMethod,
}

impl FileNeighbours {
    /// One row per cell of the file: `query_row` from 0, `barcode`.
    ///
    /// # Errors
    /// Only if the columns cannot be assembled, which is a bug.
    pub fn queries(&self) -> Result<RecordBatch> {
        let rows: ArrayRef = Arc::new(UInt64Array::from_iter_values(0..self.barcodes.len() as u64));
        let barcodes: ArrayRef = Arc::new(StringArray::from_iter_values(&self.barcodes));
        RecordBatch::try_from_iter([("query_row", rows), ("barcode", barcodes)])
            .map_err(Error::internal("listing the cells"))
    }

    /// One row per neighbour: `query_row`, `rank` from 1, `cell_id`, `_distance`.
    ///
    /// # Errors
    /// Only if the columns cannot be assembled, which is a bug.
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

/// Embeds the cells of a file with a recipe of the store and finds the nearest neighbours of each.
///
/// # Errors
/// A file that cannot be read, or a recipe whose table was made with another model of that name.
pub async fn annotate(
    engine: &Arc<StoreEngine>,
    input: &InputFile,
    options: &IngestOptions,
    request: &AnnotateOptions,
    on_progress: OnProgress,
) -> Result<FileNeighbours> {
    let searcher = engine.searcher(request.recipe.as_deref()).await?;
    let recipe = recipe_of(engine, searcher.recipe()).await?;
    let (barcodes, batch) = read_as(engine.store(), input, options).await?;
    let mut vectors: Vec<Option<Vec<f32>>> = Vec::with_capacity(barcodes.len());
    for first in (0..batch.num_rows()).step_by(STEP_CELLS) {
        let some = batch.slice(first, STEP_CELLS.min(batch.num_rows() - first));
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
    let filter = match &request.condition {
        Some(condition) => Some(engine.cells_where(condition).await?),
        None => None,
    };
    // A vector without a distance, such as one of zeros for cosine, has no neighbours, like a cell without a vector.
    vectors.iter_mut().for_each(|v| *v = v.take().filter(|v| request.metric.prepare(v).is_some()));
    let has_vector: Vec<bool> = vectors.iter().map(Option::is_some).collect();
    let queries: Vec<QueryVector> =
        vectors.into_iter().flatten().map(|vector| QueryVector { vector, exclude: None }).collect();
    let knn = KnnRequest { queries: &queries, k: request.k, metric: request.metric, filter: filter.as_ref() };
    let result = searcher.search(knn).await?;
    let mut found = result.neighbours.into_iter();
    let neighbours = has_vector.into_iter().map(|has| if has { found.next() } else { None }).collect();
    Ok(FileNeighbours { barcodes, neighbours, method: result.method })
}

/// The recipe of an embedding table. Fails if another model of that name made its vectors.
async fn recipe_of(engine: &StoreEngine, name: &str) -> Result<Recipe> {
    let table = embedding_table(name);
    let metadata = Schema::from(engine.store().table(&table).await?.schema()).metadata;
    let recipe = metadata.get(embeddings::RECIPE_METADATA).and_then(|json| serde_json::from_str::<Recipe>(json).ok());
    let recipe = recipe.ok_or_else(|| {
        let problem = "its metadata hold no recipe that this version of cellql can read; embed again by another recipe";
        Error::damaged(format!("table {table} of {}", engine.store().uri()), problem)
    })?;
    super::check_model(engine.store(), &table, &engine.entry(Some(&recipe.model))?.sha256).await?;
    if recipe.input.needs_total() {
        let input = recipe.input.name();
        return Err(Error::Request(format!(
            "recipe '{name}' has input '{input}', which needs the total count of each cell; \
             ingest the file and search by cell_id"
        )));
    }
    Ok(recipe)
}

/// The barcodes of a file's cells, and rows `barcode, expr` whose gene ids are those of `store`.
async fn read_as(store: &Store, input: &InputFile, options: &IngestOptions) -> Result<(Vec<String>, RecordBatch)> {
    let folder = TempDir::new().map_err(Error::internal("making a folder for the file's cells"))?;
    let temporary = Store::init(&folder.path().join("cells").to_string_lossy()).await?;
    let known = store.read(genes::TABLE, &[], None).await?;
    let schema = Arc::new(Schema::from(store.table(genes::TABLE).await?.schema()));
    let known = concat_batches(&schema, &known).map_err(Error::internal("copying the genes"))?;
    let mut transaction = temporary.begin("copying genes").await?;
    transaction.replace(genes::TABLE, known).await?;
    let temporary = transaction.publish().await?;
    let (temporary, _) = ingest(&temporary, input, options, progress::silent()).await?;
    let rows = temporary.read(cells::TABLE, &[cells::BARCODE, cells::EXPR], None).await?;
    let Some(first) = rows.first() else {
        return Err(Error::Request(format!(
            "{}: the file holds no cell that expresses enough genes; lower --min-genes",
            input.uri
        )));
    };
    let all = concat_batches(&first.schema(), &rows).map_err(Error::internal("reading the file's cells"))?;
    let barcodes = all.column(0).as_string::<i32>().iter().map(|b| b.unwrap_or_default().to_owned()).collect();
    Ok((barcodes, all))
}
