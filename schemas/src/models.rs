//! The `models` table: the models of the store and their provenance.

use arrow::datatypes::{DataType, Field, Schema};

/// Name of the table.
pub const TABLE: &str = "models";

/// Primary key.
pub const NAME: &str = "name";
/// SHA-256 over config, vocabulary and weights: the model's identity in every recipe.
pub const SHA256: &str = "sha256";
/// SHA-256 of the vocabulary alone.
pub const VOCABULARY_SHA256: &str = "vocabulary_sha256";
/// Number of genes in the vocabulary.
pub const N_GENES: &str = "n_genes";
/// `transformer` or `linear`.
pub const KIND: &str = "kind";
/// Dimension of a cell embedding with pool `all`, after the output map if there is one.
pub const DIM: &str = "dim";
/// Dimension of a cell embedding with pool `max`; NULL for linear models, which have no pool.
pub const DIM_MAX: &str = "dim_max";
/// Number of weights.
pub const PARAMETERS: &str = "parameters";
/// False for weights that are only randomly initialised.
pub const TRAINED: &str = "trained";
/// JSON object: provenance.
pub const PROVENANCE: &str = "provenance";
/// When it was added to the store, UTC.
pub const CREATED_AT: &str = "created_at";

/// Schema of the table.
pub fn schema() -> Schema {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    Schema::new(vec![
        text(NAME),
        text(KIND),
        text(SHA256),
        text(VOCABULARY_SHA256),
        Field::new(N_GENES, DataType::UInt32, false),
        Field::new(DIM, DataType::UInt32, false),
        Field::new(DIM_MAX, DataType::UInt32, true),
        Field::new(PARAMETERS, DataType::UInt64, false),
        Field::new(TRAINED, DataType::Boolean, false),
        text(PROVENANCE),
        text(CREATED_AT),
    ])
}
