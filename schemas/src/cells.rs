//! The `cells` table: one row per cell, with its identity, its metadata and its expression.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};

use crate::expr;

/// Name of the table.
pub const TABLE: &str = "cells";

/// Key: unique in the store, never used again.
pub const CELL_ID: &str = "cell_id";
/// Row of `datasets` the cell came with.
pub const DATASET_ID: &str = "dataset_id";
/// The cell's name in its file (the obs index).
pub const BARCODE: &str = "barcode";
/// The expression, see [`crate::expr`].
pub const EXPR: &str = "expr";
/// Sum of the cell's values over every measured feature.
pub const TOTAL_COUNTS: &str = "total_counts";
/// Number of features with a value above zero.
pub const N_GENES: &str = "n_genes";
/// What the values are, see [`ValueKind`].
pub const VALUE_KIND: &str = "value_kind";
/// Hash of the expression alone: equal for equal profiles, whatever the file called them.
pub const CONTENT_HASH: &str = "content_hash";
/// Share of the counts that mitochondrial genes have; NULL where the file measured none, or values are no counts.
pub const MITO_FRACTION: &str = "mito_fraction";
/// The first cell of another data set with equal expression; NULL for a cell that is new.
pub const DUPLICATE_OF: &str = "duplicate_of";

/// What the values of a cell are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// Molecule or read counts: whole numbers.
    Counts,
    /// Counts that were recovered from normalised values.
    Recovered,
    /// Anything else, kept as given.
    Normalised,
}

impl ValueKind {
    /// The word that stands in the table.
    pub fn name(self) -> &'static str {
        match self {
            ValueKind::Counts => "counts",
            ValueKind::Recovered => "recovered",
            ValueKind::Normalised => "normalised",
        }
    }
}

/// Columns every cell has, in order. Obs columns follow them.
pub fn fields() -> Vec<Field> {
    vec![
        Field::new(CELL_ID, DataType::UInt64, false),
        Field::new(DATASET_ID, DataType::UInt32, false),
        Field::new(BARCODE, DataType::Utf8, false),
        Field::new(EXPR, expr::data_type(), false),
        Field::new(TOTAL_COUNTS, DataType::Float64, false),
        Field::new(N_GENES, DataType::UInt32, false),
        Field::new(VALUE_KIND, DataType::Utf8, false),
        Field::new(CONTENT_HASH, DataType::Utf8, false),
        Field::new(MITO_FRACTION, DataType::Float32, true),
        Field::new(DUPLICATE_OF, DataType::UInt64, true),
    ]
}

/// The table without obs columns: how an empty store begins.
pub fn schema() -> Schema {
    Schema::new(fields())
}

/// The table with the given obs columns (all nullable) after its own.
pub fn schema_with_obs(obs: &[Field]) -> Schema {
    let mut all: Vec<Arc<Field>> = fields().into_iter().map(Arc::new).collect();
    all.extend(obs.iter().map(|f| Arc::new(f.clone().with_nullable(true))));
    Schema::new(all)
}

/// True for the columns of [`fields`]: names an obs column of a file must not take.
pub fn is_reserved(name: &str) -> bool {
    fields().iter().any(|f| f.name() == name)
}
