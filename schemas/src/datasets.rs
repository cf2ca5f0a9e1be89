//! The `datasets` table: one row per ingested file, with what became of its cells and genes.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};

/// Name of the table.
pub const TABLE: &str = "datasets";

/// Key.
pub const DATASET_ID: &str = "dataset_id";
/// File name without its ending, unless the user gave another.
pub const NAME: &str = "name";
/// Where it was read from.
pub const SOURCE_URI: &str = "source_uri";
/// SHA-256 of the file.
pub const FILE_SHA256: &str = "file_sha256";
/// Ids of the genes the file measured, ascending: an absent value means zero only for these.
pub const MEASURED_GENES: &str = "measured_genes";
/// The names the file gave these genes, in the same order.
pub const MEASURED_NAMES: &str = "measured_names";
/// The matrix that was read, as its format names it: `X`, `raw/X`, `layers/counts`.
pub const MATRIX: &str = "matrix";
/// Cells in the file.
pub const CELLS_READ: &str = "cells_read";
/// Cells in `cells`.
pub const CELLS_KEPT: &str = "cells_kept";
/// JSON object: reason → number of cells dropped.
pub const CELLS_DROPPED: &str = "cells_dropped";
/// Cells in `cells` that an earlier data set holds too.
pub const CELLS_DUPLICATE: &str = "cells_duplicate";
/// JSON list: every obs column with its name in the file, in `cells`, and the order of its categories.
pub const OBS_COLUMNS: &str = "obs_columns";
/// JSON list: what was chosen or left out, in sentences.
pub const NOTES: &str = "notes";
/// JSON object: how names became genes.
pub const GENE_REPORT: &str = "gene_report";
/// What the values are, as in `cells`.
pub const VALUE_KIND: &str = "value_kind";
/// How its values become a model's: `counts`, `log`, `log+total`, `bulk`, `bulk-log`.
pub const INPUT: &str = "input";
/// When it was ingested, UTC.
pub const INGESTED_AT: &str = "ingested_at";
/// Version of cellql that did it.
pub const PROGRAM_VERSION: &str = "program_version";

/// The item of the list [`MEASURED_GENES`].
pub fn measured_genes_item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::UInt32, true))
}

/// The item of the list [`MEASURED_NAMES`].
pub fn measured_names_item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Utf8, true))
}

/// The table.
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
