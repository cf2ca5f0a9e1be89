//! Reads a Lance table that is not a store: one that cellql exported, or one in long form.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use cellql_formats::{Batches, TableReader};
use futures::StreamExt;
use lance::Dataset;
use tokio::runtime::Handle;

use crate::error::{Error, Result};

/// Rows of a batch. The expression of one row has thousands of values.
const BATCH_ROWS: usize = 1024;

/// An open Lance table.
pub(super) struct LanceTable {
    dataset: Arc<Dataset>,
    rows: u64,
    runtime: Handle,
}

impl LanceTable {
    pub(super) async fn open(path: &Path) -> Result<Self> {
        let fail = |e: lance::Error| Error::input(path, "table", format!("cannot be read as a Lance table: {e}"));
        let dataset = Dataset::open(&path.to_string_lossy()).await.map_err(fail)?;
        let rows = dataset.count_rows(None).await.map_err(fail)? as u64;
        Ok(Self { dataset: Arc::new(dataset), rows, runtime: Handle::current() })
    }
}

impl TableReader for LanceTable {
    fn schema(&self) -> SchemaRef {
        Arc::new(Schema::from(self.dataset.schema()))
    }

    fn rows(&self) -> Option<u64> {
        Some(self.rows)
    }

    fn batches(&self, columns: &[&str], _: usize) -> Result<Batches, String> {
        let mut scan = self.dataset.scan();
        let fields = &self.dataset.schema().fields;
        let columns: Vec<&str> =
            fields.iter().map(|field| &*field.name).filter(|name| columns.contains(name)).collect();
        scan.project(&columns).map_err(|e| e.to_string())?;
        scan.batch_size(BATCH_ROWS).scan_in_order(true);
        let runtime = self.runtime.clone();
        // Called on a reader's thread, never on an async one.
        let mut stream = runtime.block_on(scan.try_into_stream()).map_err(|e| e.to_string())?;
        Ok(Box::new(std::iter::from_fn(move || {
            runtime.block_on(stream.next()).map(|batch| batch.map_err(|e| format!("cannot be read: {e}")))
        })))
    }
}
