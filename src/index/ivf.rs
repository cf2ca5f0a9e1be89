//! Lance's IVF_SQ index over a table's vectors: partitions of similar vectors in 8-bit codes, for more vectors than
//! memory holds.
//!
//! The index is part of its table, so the table's version, and with it the store's, determines it. Lance scans rows
//! that were added after the build and leaves out rows that were deleted. As with the table's own files, there are no
//! checksums of ours: checksumming tens of gigabytes at every open is too slow.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{AsArray, Float32Array};
use arrow::datatypes::{Float32Type, UInt64Type};
use cellql_schemas::embeddings;
use futures::{StreamExt, TryStreamExt, stream};
use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance::index::vector::VectorIndexParams;
use lance_index::vector::ivf::IvfBuildParams;
use lance_index::vector::sq::builder::SQBuildParams;
use lance_linalg::distance::MetricType;

use super::entries::{BuiltIndex, IndexEntry, record};
use super::kind::IndexKind;
use super::neighbour::Neighbour;
use super::request::QueryVector;
use super::vectors;
use crate::error::{Error, Result};
use cellql_store::{Store, embedding_table};

/// Name of the index within its table. A table has one.
const NAME: &str = "nearest";
/// Average number of vectors in a partition. Each partition costs a query one read, and all its vectors are compared.
const PARTITION: usize = 4096;
/// A query searches one in so many partitions.
const PROBED_SHARE: usize = 10;
/// A query searches at least so many partitions.
const MIN_PROBED: usize = 20;
/// This multiple of k is found by codes and compared by f32 vectors (Lance's refine factor).
const REFINE_FACTOR: u32 = 5;
/// With a filter, this multiple of the rows is requested that would hold k passing ones if these were spread evenly.
const FILTER_OVERSAMPLING: usize = 2;
/// Column of distances in Lance's results.
const DISTANCE: &str = "_distance";

/// Number of partitions for a number of vectors.
fn partitions(vectors: usize) -> usize {
    vectors.div_ceil(PARTITION).max(1)
}

/// Builds the index over the vectors of a recipe and replaces an earlier one.
///
/// # Errors
/// The table does not exist or holds no vector, or the index cannot be written.
pub(super) async fn build(store: &Store, name: &str, recipe: &str) -> Result<(Store, BuiltIndex)> {
    let table = embedding_table(recipe);
    let mut transaction = store.begin(&format!("index build {name}")).await?;
    let rows = transaction.store().table(&table).await?;
    let n_vectors = count(&rows).await?;
    if n_vectors == 0 {
        return Err(Error::Request(format!("the embedding table '{recipe}' holds no vector to index")));
    }
    let ivf = IvfBuildParams::new(partitions(n_vectors));
    let params = VectorIndexParams::with_ivf_sq_params(MetricType::Cosine, ivf, SQBuildParams::default());
    let table_version = transaction.index_vectors(&table, embeddings::VECTOR, NAME, &params).await?;
    let row = IndexEntry {
        name: name.to_owned(),
        recipe: recipe.to_owned(),
        table_version,
        kind: IndexKind::Ivf,
        n_vectors: n_vectors as u64,
        path: String::new(),
        checksum: String::new(),
    };
    record(&mut transaction, &row).await?;
    let dim = vectors::dimension(&rows, &table)?;
    Ok((transaction.publish().await?, BuiltIndex { kind: IndexKind::Ivf, n_vectors, dim }))
}

/// Number of rows that have a vector.
///
/// # Errors
/// The table cannot be read.
pub(super) async fn count(table: &Dataset) -> Result<usize> {
    let held = table.count_rows(Some(format!("{} IS NOT NULL", embeddings::VECTOR))).await;
    held.map_err(Error::internal("counting vectors"))
}

/// Whether this version of a table has the index.
///
/// # Errors
/// The table's list of indexes cannot be read.
pub(super) async fn exists(table: &Dataset) -> Result<bool> {
    let found = table.load_indices_by_name(NAME).await.map_err(Error::internal("reading a table's indexes"))?;
    Ok(!found.is_empty())
}

/// The approximate `k` nearest to each query by cosine distance, nearest first, ties by id; fewer if few of the near
/// rows pass the filter. The filter is applied to what Lance finds, because a condition of a hundred thousand ids costs
/// Lance more than the search.
///
/// # Errors
/// The index or the table cannot be read.
pub(super) async fn search(
    table: &Arc<Dataset>,
    queries: &[QueryVector],
    k: usize,
    filter: Option<&HashSet<u64>>,
) -> Result<Vec<Vec<Neighbour>>> {
    let threads = rayon::current_num_threads();
    let rows = table.count_rows(None).await.map_err(Error::internal("counting vectors"))?;
    let probed = (partitions(rows) / PROBED_SHARE).max(MIN_PROBED);
    let wanted = match filter {
        None => k,
        Some(ids) => (k * FILTER_OVERSAMPLING * rows).div_ceil(ids.len().max(1)).min(rows),
    };
    // One more than that, because the excluded row may be among them.
    let searches: Vec<_> = queries.iter().map(|query| search_one(table, &query.vector, wanted + 1, probed)).collect();
    let mut all: Vec<_> = stream::iter(searches).buffered(threads).try_collect().await?;
    for (found, query) in all.iter_mut().zip(queries) {
        let passes = |id: u64| Some(id) != query.exclude && filter.is_none_or(|rows| rows.contains(&id));
        found.retain(|neighbour: &Neighbour| passes(neighbour.cell_id));
        found.truncate(k);
    }
    Ok(all)
}

/// The approximate `k` nearest to a vector; `probed` partitions are searched.
async fn search_one(table: &Arc<Dataset>, query: &[f32], k: usize, probed: usize) -> Result<Vec<Neighbour>> {
    let doing = || Error::internal("searching Lance's index");
    let mut scan = table.scan();
    scan.project(&[embeddings::CELL_ID, DISTANCE]).map_err(doing())?;
    let vector = Float32Array::from(query.to_vec());
    let nearest = scan.nearest(embeddings::VECTOR, &vector, k).map_err(doing())?;
    nearest.minimum_nprobes(probed).refine(REFINE_FACTOR);
    let batches = scan.try_into_stream().await.map_err(doing())?;
    let mut found = Vec::new();
    for batch in batches.try_collect::<Vec<_>>().await.map_err(doing())? {
        let ids = batch.column_by_name(embeddings::CELL_ID).and_then(|c| c.as_primitive_opt::<UInt64Type>());
        let distances = batch.column_by_name(DISTANCE).and_then(|c| c.as_primitive_opt::<Float32Type>());
        let (Some(ids), Some(distances)) = (ids, distances) else { continue };
        let rows = ids.values().iter().zip(distances.values());
        found.extend(rows.map(|(id, distance)| Neighbour { distance: distance.max(0.0), cell_id: *id }));
    }
    found.sort_unstable();
    Ok(found)
}
