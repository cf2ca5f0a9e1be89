//! The `datasets` table: one row per ingested file, with counts of cells and the report on genes.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};

/// Name of the table.
pub const TABLE: &str = "datasets";

/// Primary key.
pub const DATASET_ID: &str = "dataset_id";
/// File name without its extension, or the name given by the user.
pub const NAME: &str = "name";
/// Path or URI it was read from.
pub const SOURCE_URI: &str = "source_uri";
/// SHA-256 of the file.
pub const FILE_SHA256: &str = "file_sha256";
/// Ids of the genes the file measured, ascending: an absent value means zero only for these.
pub const MEASURED_GENES: &str = "measured_genes";
/// The names the file gave these genes, in the same order.
pub const MEASURED_NAMES: &str = "measured_names";
/// The matrix that was read, by its name in the format: `X`, `raw/X`, `layers/counts`.
pub const MATRIX: &str = "matrix";
/// Number of cells in the file.
pub const CELLS_READ: &str = "cells_read";
/// Number of cells in `cells`.
pub const CELLS_KEPT: &str = "cells_kept";
/// JSON object: reason → number of cells dropped.
pub const CELLS_DROPPED: &str = "cells_dropped";
/// Number of cells in `cells` that an earlier data set also has.
pub const CELLS_DUPLICATE: &str = "cells_duplicate";
/// JSON list: every obs column with its name in the file, in `cells`, and the order of its categories.
pub const OBS_COLUMNS: &str = "obs_columns";
/// JSON list of sentences: what was chosen or left out.
pub const NOTES: &str = "notes";
/// JSON object: how names were resolved to genes.
pub const GENE_REPORT: &str = "gene_report";
/// Kind of the values, as in `cells`.
pub const VALUE_KIND: &str = "value_kind";
/// How values are converted to model input: `counts`, `log`, `log+total`, `linear`, `bulk`,
/// `bulk-log`.
pub const INPUT: &str = "input";
/// When it was ingested, UTC.
pub const INGESTED_AT: &str = "ingested_at";
/// Version of cellql that ingested it.
pub const PROGRAM_VERSION: &str = "program_version";

/// The item of the list [`MEASURED_GENES`].
pub fn measured_genes_item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::UInt32, true))
}

/// The item of the list [`MEASURED_NAMES`].
pub fn measured_names_item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Utf8, true))
}

/// Schema of the table.
pub fn schema() -> Schema {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    Schema::new(vec![
        Field::new(DATASET_ID, DataType::UInt32, false),
        text(NAME),
        text(SOURCE_URI),
        text(FILE_SHA256),
        Field::new(MEASURED_GENES, DataType::List(measured_genes_item()), false),
        Field::new(MEASURED_NAMES, DataType::List(measured_names_item()), false),
        text(MATRIX),
        Field::new(CELLS_READ, DataType::UInt64, false),
        Field::new(CELLS_KEPT, DataType::UInt64, false),
        Field::new(CELLS_DUPLICATE, DataType::UInt64, false),
        text(CELLS_DROPPED),
        text(OBS_COLUMNS),
        text(NOTES),
        text(GENE_REPORT),
        text(VALUE_KIND),
        text(INPUT),
        text(INGESTED_AT),
        text(PROGRAM_VERSION),
    ])
}
