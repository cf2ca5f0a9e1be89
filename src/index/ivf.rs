//! Lance's own index over a table's vectors: partitions of like vectors, in 8-bit codes (IVF_SQ), for more vectors than a
//! graph can hold in memory.
//!
//! It is part of its table: the table's version names it, so a store's version does. Rows that came after it are looked at one
//! by one and rows that are gone are left out, both by Lance. Its files carry no checksums beyond Lance's own, as the
//! table's do not.

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

use super::Kind;
use super::file::{Built, Entry, record};
use super::search::Neighbour;
use crate::error::{Error, Result};
use cellql_store::{Store, embedding_table};

/// Name within the table: a table has one.
const NAME: &str = "nearest";
/// Vectors of a partition, on the average. Many small ones cost a read each, few large ones a look at more vectors.
const PARTITION: usize = 4096;
/// Partitions that a query looks into: this part of them, and no fewer than the second number.
const PROBED: (usize, usize) = (10, 20);
/// How many times k are found by codes and compared by their vectors.
const REFINED: u32 = 5;
/// With a filter, how many times as many are asked for as would hold k of those it keeps, were these spread evenly.
const MORE_FILTERED: usize = 2;
/// Column of distances in Lance's answers.
const DISTANCE: &str = "_distance";

fn partitions(vectors: usize) -> usize {
    vectors.div_ceil(PARTITION).max(1)
}

/// Builds the index over the vectors of a recipe, in the place of any before.
///
/// # Errors
/// The table does not exist or holds no vector, or the index cannot be written.
pub(super) async fn build(store: &Store, name: &str, recipe: &str) -> Result<(Store, Built)> {
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
    let row = Entry {
        name: name.to_owned(),
        recipe: recipe.to_owned(),
        table_version,
        kind: Kind::Ivf,
        n_vectors: n_vectors as u64,
        path: String::new(),
        checksum: String::new(),
    };
    record(&mut transaction, &row).await?;
    let dim = super::vectors::dimension(&rows, &table)?;
    Ok((transaction.publish().await?, Built { kind: Kind::Ivf, n_vectors, dim }))
}

/// Rows with a vector.
///
/// # Errors
/// The table cannot be read.
pub(super) async fn count(table: &Dataset) -> Result<usize> {
    let held = table.count_rows(Some(format!("{} IS NOT NULL", embeddings::VECTOR))).await;
    held.map_err(Error::internal("counting vectors"))
}

/// Whether a version of a table has the index.
///
/// # Errors
/// The table's list of indexes cannot be read.
pub(super) async fn exists(table: &Dataset) -> Result<bool> {
    let found = table.load_indices_by_name(NAME).await.map_err(Error::internal("reading a table's indexes"))?;
    Ok(!found.is_empty())
}

/// The `k` nearest to each query by cosine distance, nearest first, ties by id; fewer where a filter keeps little of what is
/// near. A filter is applied to what is found: a hundred thousand ids as a condition cost Lance more than a search.
///
/// # Errors
/// The index or the table cannot be read.
pub(super) async fn search(
    table: &Arc<Dataset>,
    queries: &[(Vec<f32>, Option<u64>)],
    k: usize,
    among: Option<&HashSet<u64>>,
) -> Result<Vec<Vec<Neighbour>>> {
    let threads = rayon::current_num_threads();
    let rows = table.count_rows(None).await.map_err(Error::internal("counting vectors"))?;
    let probed = (partitions(rows) / PROBED.0).max(PROBED.1);
    let wanted = match among {
        None => k,
        Some(ids) => (k * MORE_FILTERED * rows).div_ceil(ids.len().max(1)).min(rows),
    };
    // One more than that, since the row of the query itself may be among them.
    let asked: Vec<_> = queries.iter().map(|(query, _)| one(table, query, wanted + 1, probed)).collect();
    let mut all: Vec<_> = stream::iter(asked).buffered(threads).try_collect().await?;
    for (found, (_, not)) in all.iter_mut().zip(queries) {
        found.retain(|n: &Neighbour| Some(n.cell_id) != *not && among.is_none_or(|ids| ids.contains(&n.cell_id)));
        found.truncate(k);
    }
    Ok(all)
}

async fn one(table: &Arc<Dataset>, query: &[f32], k: usize, probed: usize) -> Result<Vec<Neighbour>> {
    let doing = || Error::internal("searching Lance's index");
    let mut scan = table.scan();
    scan.project(&[embeddings::CELL_ID, DISTANCE]).map_err(doing())?;
    let vector = Float32Array::from(query.to_vec());
    let nearest = scan.nearest(embeddings::VECTOR, &vector, k).map_err(doing())?;
    nearest.minimum_nprobes(probed).refine(REFINED);
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
