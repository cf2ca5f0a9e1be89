//! What an ingest did, for people and for the table `datasets`.

use std::sync::Arc;

use arrow::array::{ArrayRef, ListBuilder, StringArray, UInt32Array, UInt32Builder, UInt64Array};
use arrow::record_batch::RecordBatch;
use cellql_schemas::datasets;
use chrono::Utc;
use serde::Serialize;

use super::Dropped;
use crate::error::{Error, Result};
use crate::genes::GeneReport;

/// What became of a file's cells and genes.
#[derive(Debug, Clone, Serialize)]
pub struct IngestReport {
    /// Where the file comes from.
    pub source_uri: String,
    /// Name of the data set.
    pub name: String,
    /// Its id; `None` where the same file is already in the store and nothing was done.
    pub dataset_id: Option<u32>,
    /// Cells in the file.
    pub cells_read: u64,
    /// Cells in the store.
    pub cells_kept: u64,
    /// Reason → cells dropped.
    pub cells_dropped: Dropped,
    /// `counts` or `normalised`.
    pub value_kind: String,
    /// How names became genes.
    pub genes: GeneReport,
    /// Obs columns under their names in the store.
    pub obs_columns: Vec<String>,
}

impl IngestReport {
    pub(super) fn already(source_uri: String, name: String) -> Self {
        Self {
            source_uri,
            name,
            dataset_id: None,
            cells_read: 0,
            cells_kept: 0,
            cells_dropped: Dropped::new(),
            value_kind: String::new(),
            genes: GeneReport::default(),
            obs_columns: Vec::new(),
        }
    }

    pub(super) fn to_row(&self, sha256: &str, measured: Vec<u32>) -> Result<RecordBatch> {
        let json = |value: serde_json::Result<String>| value.map_err(Error::store("writing the ingest report"));
        let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from_iter_values([value])) };
        let mut genes = ListBuilder::new(UInt32Builder::new()).with_field(datasets::measured_genes_item());
        genes.append_value(measured.into_iter().map(Some));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(vec![self.dataset_id.unwrap_or_default()])),
            text(&self.name),
            text(&self.source_uri),
            text(sha256),
            Arc::new(genes.finish()),
            Arc::new(UInt64Array::from(vec![self.cells_read])),
            Arc::new(UInt64Array::from(vec![self.cells_kept])),
            text(&json(serde_json::to_string(&self.cells_dropped))?),
            text(&json(serde_json::to_string(&self.genes))?),
            text(&self.value_kind),
            text(&Utc::now().to_rfc3339()),
            text(env!("CARGO_PKG_VERSION")),
        ];
        RecordBatch::try_new(Arc::new(datasets::schema()), columns).map_err(Error::store("building a row of datasets"))
    }
}
