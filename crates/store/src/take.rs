//! Reads rows of a table by their addresses.
//!
//! Each file is opened once, and runs of adjacent rows are read one by one. Reading several runs in one call hits an
//! assertion in lance 14 if lists span several of its chunks (lance-format/lance#8558).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::UInt32Array;
use arrow::compute::{concat_batches, take_record_batch};
use arrow::record_batch::RecordBatch;
use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::fragment::{FragReadConfig, FragmentReader};
use lance::datatypes::Schema;
use tokio::sync::OnceCell;

use crate::error::{Result, StoreError};
use crate::store::Store;

/// Number of runs that are read concurrently.
const RUNS: usize = 8;

/// A reader of rows by address, for some columns of a table.
#[derive(Debug)]
pub struct RowReader {
    table: Arc<Dataset>,
    columns: Schema,
    /// Readers by fragment id, opened at first use.
    files: HashMap<u64, OnceCell<FragmentReader>>,
}

impl Store {
    /// A reader of rows by address, for the named columns of a table.
    ///
    /// # Errors
    /// No such table or column.
    pub async fn row_reader(&self, name: &str, columns: &[&str]) -> Result<RowReader> {
        let table = self.table(name).await?;
        let columns =
            table.schema().project(columns).map_err(StoreError::storage(format!("reading rows of {name}")))?;
        let files = table.fragments().iter().map(|fragment| (fragment.id, OnceCell::new())).collect();
        Ok(RowReader { table, columns, files })
    }

    /// The rows at the addresses `rows` (`_rowid`), in the order of `rows`, with the named columns.
    ///
    /// # Errors
    /// No such table or column, or it cannot be read.
    pub async fn take(&self, name: &str, columns: &[&str], rows: &[u64]) -> Result<RecordBatch> {
        let reader = self.row_reader(name, columns).await?;
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        order.sort_unstable_by_key(|i| rows[*i as usize]);
        let runs = runs(order.iter().map(|i| rows[*i as usize]), 0);
        let read = futures::stream::iter(runs).map(|run| reader.run(run)).buffered(RUNS);
        let batches: Vec<RecordBatch> = read.try_collect().await?;
        let doing = || StoreError::storage(format!("reading rows of {name}"));
        let sorted = concat_batches(&Arc::new((&reader.columns).into()), &batches).map_err(doing())?;
        let mut places = vec![0u32; rows.len()];
        order.iter().enumerate().for_each(|(place, i)| places[*i as usize] = place as u32);
        take_record_batch(&sorted, &UInt32Array::from(places)).map_err(doing())
    }
}

impl RowReader {
    /// The rows of a range of addresses. Deleted rows are included: callers must pass ranges of which they know the
    /// live rows.
    ///
    /// # Errors
    /// [`StoreError::NoRows`] if there are no such rows; otherwise they cannot be read.
    pub async fn run(&self, run: Range<u64>) -> Result<RecordBatch> {
        let doing = format!("reading rows {} to {} by address", run.start, run.end);
        let (fragment, count) = (run.start >> 32, (run.end - run.start) as usize);
        let missing = || StoreError::NoRows { first: run.start, end: run.end };
        let file = self.files.get(&fragment).ok_or_else(missing)?;
        let reader = file.get_or_try_init(|| self.open(fragment)).await?;
        let first = run.start as u32;
        let tasks =
            reader.take_range(first..first + count as u32, u32::MAX).await.map_err(StoreError::storage(&doing))?;
        let batches: Vec<RecordBatch> = tasks.buffered(1).try_collect().await.map_err(StoreError::storage(&doing))?;
        let rows = match batches.as_slice() {
            [one] => one.clone(),
            all => concat_batches(&Arc::new((&self.columns).into()), all).map_err(StoreError::storage(&doing))?,
        };
        if rows.num_rows() == count { Ok(rows) } else { Err(missing()) }
    }

    async fn open(&self, fragment: u64) -> Result<FragmentReader> {
        let doing = || StoreError::storage(format!("opening fragment {fragment} to read rows by address"));
        let gone = || StoreError::NoRows { first: fragment << 32, end: (fragment + 1) << 32 };
        let file = self.table.get_fragment(fragment as usize).ok_or_else(gone)?;
        file.open(&self.columns, FragReadConfig::default().with_ignore_deletions(true)).await.map_err(doing())
    }
}

/// Merges ascending addresses into ranges. Two addresses with at most `gap` rows between them share a range.
pub fn runs(rows: impl Iterator<Item = u64>, gap: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for row in rows {
        match runs.last_mut() {
            Some(run) if row >= run.end && row - run.end <= gap => run.end = row + 1,
            _ => runs.push(row..row + 1),
        }
    }
    runs
}
