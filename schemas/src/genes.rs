//! The `genes` table: every gene with an identity, and every feature without one.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};

/// Name of the table.
pub const TABLE: &str = "genes";

/// Primary key. Genes of the nomenclature come first, in its order; features without identity follow.
pub const GENE_ID: &str = "gene_id";
/// Approved symbol, or the name in a file for a feature without identity.
pub const SYMBOL: &str = "symbol";
/// `HGNC:5`; NULL for a feature without identity.
pub const HGNC_ID: &str = "hgnc_id";
/// `ENSG…` without version.
pub const ENSEMBL_ID: &str = "ensembl_id";
/// `protein_coding`, `lncRNA`, …
pub const BIOTYPE: &str = "biotype";
/// Names of the gene in ingested files; empty if no file measured it.
pub const SOURCE_NAMES: &str = "source_names";

/// The item of the list [`SOURCE_NAMES`].
pub fn source_names_item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Utf8, true))
}

/// Schema of the table.
pub fn schema() -> Schema {
    Schema::new(vec![
        Field::new(GENE_ID, DataType::UInt32, false),
        Field::new(SYMBOL, DataType::Utf8, false),
        Field::new(HGNC_ID, DataType::Utf8, true),
        Field::new(ENSEMBL_ID, DataType::Utf8, true),
        Field::new(BIOTYPE, DataType::Utf8, true),
        Field::new(SOURCE_NAMES, DataType::List(source_names_item()), false),
    ])
}
