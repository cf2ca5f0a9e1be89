//! Rows of a table by their addresses.
//!
//! Runs of neighbours are read apart: asked for several at once, lance 14 stops at an assertion of its own, in builds that have
//! them, where lists span several of its chunks (lance-format/lance#8558).

use std::ops::Range;

use arrow::array::UInt32Array;
use arrow::compute::{concat_batches, take_record_batch};
use arrow::record_batch::RecordBatch;
use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::ProjectionRequest;

use super::Store;
use crate::error::{Error, Result};

/// Runs that are read at a time.
const RUNS: usize = 8;

impl Store {
    /// The rows at some addresses (`_rowid`) of a table, in their order, with the named columns.
    ///
    /// # Errors
    /// No such table or column, or it cannot be read.
    pub async fn take(&self, name: &str, columns: &[&str], rows: &[u64]) -> Result<RecordBatch> {
        let table = self.table(name).await?;
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        order.sort_unstable_by_key(|i| rows[*i as usize]);
        let mut runs: Vec<Range<u64>> = Vec::new();
        for row in order.iter().map(|i| rows[*i as usize]) {
            match runs.last_mut() {
                Some(run) if run.end == row => run.end += 1,
                _ => runs.push(row..row + 1),
            }
        }
        let sorted = take_runs(&table, columns, runs).await?;
        let mut places = vec![0u32; rows.len()];
        order.iter().enumerate().for_each(|(place, i)| places[*i as usize] = place as u32);
        take_record_batch(&sorted, &UInt32Array::from(places)).map_err(Error::store(format!("reading rows of {name}")))
    }
}

/// The rows of some runs of addresses, ascending.
///
/// # Errors
/// The table cannot be read.
pub async fn take_runs(table: &Dataset, columns: &[&str], runs: Vec<Range<u64>>) -> Result<RecordBatch> {
    let doing = || Error::store("reading rows by address");
    let projection = ProjectionRequest::from_columns(columns, table.schema());
    let read = |run: Range<u64>| {
        let projection = projection.clone();
        async move { table.take_rows(&run.collect::<Vec<u64>>(), projection).await }
    };
    let read = futures::stream::iter(runs).map(read).buffered(RUNS);
    let batches: Vec<RecordBatch> = read.try_collect().await.map_err(doing())?;
    match batches.first() {
        Some(first) => concat_batches(&first.schema(), &batches).map_err(Error::store("reading rows by address")),
        None => table.take_rows(&[], projection).await.map_err(doing()),
    }
}
