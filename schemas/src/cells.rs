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
/// Share of the counts that are of mitochondrial genes ([`crate::nomenclature::is_mitochondrial`]), 0 to 1; NULL if the
/// file measured none of them or its values are not counts.
pub const MITO_FRACTION: &str = "mito_fraction";
/// The first cell of another data set with equal expression; NULL for a cell that is new.
pub const DUPLICATE_OF: &str = "duplicate_of";

/// Kind of the values of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// Molecule or read counts: whole numbers.
    Counts,
    /// Counts that were recovered from normalised values.
    Recovered,
    /// Logarithms of normalised counts, kept as in the file.
    Normalised,
    /// Normalised counts that are no logarithms (TPM, FPKM, counts per 10,000), kept as in the file.
    Linear,
}

impl ValueKind {
    /// The word in the column `value_kind`.
    pub fn name(self) -> &'static str {
        match self {
            ValueKind::Counts => "counts",
            ValueKind::Recovered => "recovered",
            ValueKind::Normalised => "normalised",
            ValueKind::Linear => "linear",
        }
    }

    /// True for counts, also recovered ones.
    pub fn is_counts(self) -> bool {
        matches!(self, ValueKind::Counts | ValueKind::Recovered)
    }

    /// The kind of a word in the column `value_kind`.
    pub fn named(name: &str) -> Option<Self> {
        [ValueKind::Counts, ValueKind::Recovered, ValueKind::Normalised, ValueKind::Linear]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// Columns that every cell has, in order. Obs columns follow them.
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

/// Schema without obs columns, as in an empty store.
pub fn schema() -> Schema {
    Schema::new(fields())
}

/// Schema with the given obs columns, made nullable, after [`fields`].
pub fn schema_with_obs(obs: &[Field]) -> Schema {
    let mut all: Vec<Arc<Field>> = fields().into_iter().map(Arc::new).collect();
    all.extend(obs.iter().map(|f| Arc::new(f.clone().with_nullable(true))));
    Schema::new(all)
}

/// True for the name of a column in [`fields`], which an obs column of a file must not have.
pub fn is_reserved(name: &str) -> bool {
    fields().iter().any(|f| f.name() == name)
}
