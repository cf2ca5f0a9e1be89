//! Where a job over cells goes on: the cells of the job that have no row in its table yet.
//!
//! Nothing else is needed to resume a job that was killed, because a row of a cell is published whole or not at all.

use arrow::array::{AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::UInt64Type;
use arrow::record_batch::RecordBatch;
use cellql_schemas::{cells, embeddings};
use cellql_store::Store;
use roaring::RoaringTreemap;

use super::check_model;
use crate::error::{Error, Result};

/// What a job has to do.
pub(super) struct Remaining {
    /// Cells of the job.
    pub(super) cells: u64,
    /// Of these, the cells without a row in the table.
    pub(super) missing: RoaringTreemap,
    /// Version of the table; `None` if there is no table yet.
    pub(super) table_version: Option<u64>,
}

/// The cells of a job, chosen by a condition on `cells`, that have no row in the table.
///
/// # Errors
/// The rows of the table were made with another model of that name, or a table cannot be read.
pub(super) async fn remaining(store: &Store, table: &str, filter: &str, model_sha256: &str) -> Result<Remaining> {
    let mut missing = ids(store, cells::TABLE, Some(filter)).await?;
    let cells = missing.len();
    let table_version = store.version().tables.get(table).copied();
    if table_version.is_some() {
        check_model(store, table, model_sha256).await?;
        missing -= ids(store, table, None).await?;
    }
    Ok(Remaining { cells, missing, table_version })
}

/// Removes rows of cells that have one already, which earlier versions of the program could write. The new version of
/// the store, or `None` if there are no such rows.
///
/// # Errors
/// The table cannot be read or written.
pub(super) async fn without_duplicate_rows(store: &Store, table: &str) -> Result<Option<Store>> {
    if !store.version().tables.contains_key(table) {
        return Ok(None);
    }
    let rows = store.table(table).await?.count_rows(None).await;
    let rows = rows.map_err(Error::internal(format!("counting rows of table {table} of {}", store.uri())))?;
    if ids(store, table, None).await?.len() == rows as u64 {
        return Ok(None);
    }
    let mut transaction = store.begin(&format!("removing duplicate rows of {table}")).await?;
    transaction.remove_duplicate_rows(table, embeddings::CELL_ID).await?;
    Ok(Some(transaction.publish().await?))
}

/// The first column of a batch.
pub(super) fn cell_ids(batch: &RecordBatch) -> &[u64] {
    batch.column(0).as_primitive::<UInt64Type>().values()
}

/// The rows of a batch whose cells, in the first column, are in a set.
pub(super) fn rows_of_cells(batch: &RecordBatch, cells: &RoaringTreemap) -> Result<RecordBatch> {
    let keep: BooleanArray = cell_ids(batch).iter().map(|id| Some(cells.contains(*id))).collect();
    filter_record_batch(batch, &keep).map_err(Error::internal("selecting cells to embed"))
}

/// The `cell_id`s of the rows of a table that satisfy a condition.
pub(super) async fn ids(store: &Store, table: &str, filter: Option<&str>) -> Result<RoaringTreemap> {
    let mut all = RoaringTreemap::new();
    for batch in store.read(table, &[cells::CELL_ID], filter).await? {
        all.extend(cell_ids(&batch).iter().copied());
    }
    Ok(all)
}
