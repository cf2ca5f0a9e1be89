//! The report of an ingest, which is also the row of the data set in `datasets`.

use std::sync::Arc;

use arrow::array::{ArrayRef, ListBuilder, StringArray, StringBuilder, UInt32Array, UInt32Builder, UInt64Array};
use arrow::record_batch::RecordBatch;
use cellql_schemas::datasets;
use cellql_schemas::recipe::Input;
use chrono::Utc;
use serde::Serialize;

use super::{Dropped, ObsReport};
use crate::error::{Error, Result};
use cellql_store::genes::GeneReport;

/// Result of [`crate::ingest::ingest`] for one file.
#[derive(Debug, Clone, Default, Serialize)]
pub struct IngestReport {
    /// Where the file comes from.
    pub source_uri: String,
    /// Name of the data set.
    pub name: String,
    /// Id of the data set; `None` if the store holds the same file already and nothing was done.
    pub dataset_id: Option<u32>,
    /// The matrix of the file that was read, for example `raw/X`.
    pub matrix: String,
    /// Cells in the file.
    pub cells_read: u64,
    /// Cells added to the store.
    pub cells_kept: u64,
    /// Added cells whose content another data set holds too.
    pub cells_duplicate: u64,
    /// Reason → number of cells left out.
    pub cells_dropped: Dropped,
    /// `counts`, `recovered`, `normalised` or `linear`.
    pub value_kind: String,
    /// How a model reads the values.
    pub input: Input,
    /// What the reader chose or left out, in sentences.
    pub notes: Vec<String>,
    /// How features were resolved to genes.
    pub genes: GeneReport,
    /// Obs columns with their names in the file and in the store.
    pub obs_columns: Vec<ObsReport>,
}

impl IngestReport {
    /// The report of a file that the store holds already.
    pub(super) fn already(source_uri: String, name: String) -> Self {
        Self { source_uri, name, ..Self::default() }
    }

    /// The row in `datasets`. `measured` holds id and name in the file of each measured gene.
    pub(super) fn to_row(&self, sha256: &str, measured: Vec<(u32, String)>) -> Result<RecordBatch> {
        let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from_iter_values([value])) };
        let number = |value: u64| -> ArrayRef { Arc::new(UInt64Array::from(vec![value])) };
        let mut genes = ListBuilder::new(UInt32Builder::new()).with_field(datasets::measured_genes_item());
        let mut names = ListBuilder::new(StringBuilder::new()).with_field(datasets::measured_names_item());
        genes.append_value(measured.iter().map(|(gene, _)| Some(*gene)));
        names.append_value(measured.iter().map(|(_, name)| Some(name)));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(vec![self.dataset_id.unwrap_or_default()])),
            text(&self.name),
            text(&self.source_uri),
            text(sha256),
            Arc::new(genes.finish()),
            Arc::new(names.finish()),
            text(&self.matrix),
            number(self.cells_read),
            number(self.cells_kept),
            number(self.cells_duplicate),
            text(&json(&self.cells_dropped)?),
            text(&json(&self.obs_columns)?),
            text(&json(&self.notes)?),
            text(&json(&self.genes)?),
            text(&self.value_kind),
            text(self.input.name()),
            text(&Utc::now().to_rfc3339()),
            text(env!("CARGO_PKG_VERSION")),
        ];
        RecordBatch::try_new(Arc::new(datasets::schema()), columns)
            .map_err(Error::internal("building a row of datasets"))
    }
}

fn json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(Error::internal("writing the ingest report"))
}
