//! The `models` table: which models the store holds and where they come from.

use arrow::datatypes::{DataType, Field, Schema};

/// Name of the table.
pub const TABLE: &str = "models";

/// Key.
pub const NAME: &str = "name";
/// SHA-256 over config, vocabulary and weights: the model's identity in every recipe.
pub const SHA256: &str = "sha256";
/// SHA-256 of the vocabulary alone.
pub const VOCABULARY_SHA256: &str = "vocabulary_sha256";
/// Number of genes in the vocabulary.
pub const N_GENES: &str = "n_genes";
/// Numbers in a cell embedding with pool `all`.
pub const DIM: &str = "dim";
/// Number of weights.
pub const PARAMETERS: &str = "parameters";
/// False for weights that were only drawn at random.
pub const TRAINED: &str = "trained";
/// JSON object: where it comes from.
pub const PROVENANCE: &str = "provenance";
/// When it came into the store, UTC.
pub const CREATED_AT: &str = "created_at";

/// The table.
pub fn schema() -> Schema {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    Schema::new(vec![
        text(NAME),
        text(SHA256),
        text(VOCABULARY_SHA256),
        Field::new(N_GENES, DataType::UInt32, false),
        Field::new(DIM, DataType::UInt32, false),
        Field::new(PARAMETERS, DataType::UInt64, false),
        Field::new(TRAINED, DataType::Boolean, false),
        text(PROVENANCE),
        text(CREATED_AT),
    ])
}
