//! The `indexes` table: nearest-neighbour indexes and the embedding tables they were built from.

use arrow::datatypes::{DataType, Field, Schema};

/// Name of the table.
pub const TABLE: &str = "indexes";

/// Primary key.
pub const NAME: &str = "name";
/// Embedding table it was built from.
pub const RECIPE: &str = "recipe";
/// Lance version of that table.
pub const TABLE_VERSION: &str = "table_version";
/// `hnsw`, a graph in files of its own, or `ivf`, a part of the table.
pub const KIND: &str = "kind";
/// `cosine`.
pub const METRIC: &str = "metric";
/// Number of vectors in the index.
pub const N_VECTORS: &str = "n_vectors";
/// Folder of its files, relative to the store; empty for `ivf`.
pub const PATH: &str = "path";
/// BLAKE3 of its manifest file; empty for `ivf`.
pub const SHA256: &str = "sha256";
/// When it was built, UTC.
pub const CREATED_AT: &str = "created_at";

/// Schema of the table.
pub fn schema() -> Schema {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    Schema::new(vec![
        text(NAME),
        text(RECIPE),
        Field::new(TABLE_VERSION, DataType::UInt64, false),
        text(KIND),
        text(METRIC),
        Field::new(N_VECTORS, DataType::UInt64, false),
        text(PATH),
        text(SHA256),
        text(CREATED_AT),
    ])
}
