//! Embeddings that the store holds, found by the content of cells.
//!
//! A vector is used only for a cell with the same content hash, from a table that the model with the same SHA-256 made
//! with the same recipe. So every shape of query finds it, and a stale vector is never used.

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float32Type, Schema, UInt32Type, UInt64Type};
use cellql_schemas::recipe::Recipe;
use cellql_schemas::{cells, embeddings};
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::ProjectionRequest;

use super::vector_cache::CachedVector;
use crate::error::{Error, Result};
use cellql_store::{ContentHash, Store, embedding_table};

/// Rows of an embedding table by the content of their cells: 24 bytes of memory a cell.
#[derive(Debug)]
pub(super) struct StoredEmbeddings {
    table: Arc<Dataset>,
    /// Ascending.
    rows: Vec<(ContentHash, u64)>,
}

/// Whether a store has embeddings of a recipe, made by the model of that hash. Cheap: no row is read.
pub(super) async fn is_stored(store: &Store, recipe: &Recipe, sha256: &str) -> Result<bool> {
    Ok(table_of(store, recipe, sha256).await?.is_some())
}

async fn table_of(store: &Store, recipe: &Recipe, sha256: &str) -> Result<Option<Arc<Dataset>>> {
    let name = embedding_table(&recipe.name());
    if !store.tables().any(|t| t == name) {
        return Ok(None);
    }
    let table = store.table(&name).await?;
    let made = Schema::from(table.schema());
    let made_by_it = made.metadata().get(embeddings::MODEL_METADATA).is_some_and(|by| by == sha256);
    Ok(made_by_it.then_some(table))
}

impl StoredEmbeddings {
    /// Opens the table of a recipe; `None` where there is none, or another model made it.
    pub(super) async fn open(store: &Store, recipe: &Recipe, sha256: &str) -> Result<Option<Self>> {
        let Some(table) = table_of(store, recipe, sha256).await? else { return Ok(None) };
        let doing = || Error::internal(format!("reading the rows of embeddings '{}'", recipe.name()));
        let mut scan = table.scan();
        scan.project(&[embeddings::CELL_ID]).map_err(doing())?.with_row_id();
        let mut batches = scan.try_into_stream().await.map_err(doing())?;
        let mut row_of: Vec<(u64, u64)> = Vec::new();
        while let Some(batch) = batches.try_next().await.map_err(doing())? {
            let [ids, rows] = [0, 1].map(|i| batch.column(i).as_primitive::<UInt64Type>().values());
            row_of.extend(ids.iter().copied().zip(rows.iter().copied()));
        }
        row_of.sort_unstable();
        let mut rows = Vec::with_capacity(row_of.len());
        let mut scan = store.table(cells::TABLE).await?.scan();
        scan.project(&[cells::CELL_ID, cells::CONTENT_HASH]).map_err(doing())?;
        let mut batches = scan.try_into_stream().await.map_err(doing())?;
        while let Some(batch) = batches.try_next().await.map_err(doing())? {
            let (ids, hashes) = (batch.column(0).as_primitive::<UInt64Type>(), batch.column(1).as_string::<i32>());
            for (id, hash) in ids.values().iter().zip(hashes) {
                let row = row_of.binary_search_by_key(id, |(cell, _)| *cell).ok().map(|at| row_of[at].1);
                rows.extend(hash.and_then(ContentHash::from_hex).zip(row));
            }
        }
        rows.sort_unstable();
        rows.dedup_by_key(|(hash, _)| *hash);
        Ok(Some(Self { table, rows }))
    }

    /// What the table holds of some cells; `None` for those it lacks.
    pub(super) async fn fetch(&self, wanted: &[ContentHash]) -> Result<Vec<Option<CachedVector>>> {
        let row = |hash: &ContentHash| self.rows.binary_search_by_key(hash, |(h, _)| *h).ok().map(|at| self.rows[at].1);
        let found: Vec<(usize, u64)> =
            wanted.iter().enumerate().filter_map(|(i, hash)| Some((i, row(hash)?))).collect();
        let mut out: Vec<Option<CachedVector>> = vec![None; wanted.len()];
        if found.is_empty() {
            return Ok(out);
        }
        let doing = || Error::internal("reading stored embeddings");
        let columns = [embeddings::VECTOR, embeddings::GENES_SEEN];
        let columns = ProjectionRequest::from_columns(columns, self.table.schema());
        let rows: Vec<u64> = found.iter().map(|(_, row)| *row).collect();
        let batch = self.table.take_rows(&rows, columns).await.map_err(doing())?;
        let (vectors, seen) = (batch.column(0).as_fixed_size_list(), batch.column(1).as_primitive::<UInt32Type>());
        for (at, (i, _)) in found.iter().enumerate() {
            let vector = vectors.is_valid(at).then(|| vectors.value(at));
            let vector = vector.map(|v| Arc::from(v.as_primitive::<Float32Type>().values().as_ref()));
            out[*i] = Some(CachedVector { vector, genes_seen: seen.value(at) });
        }
        Ok(out)
    }
}
