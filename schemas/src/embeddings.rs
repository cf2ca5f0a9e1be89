//! Embedding tables: one per recipe, a fixed-size vector per cell.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};

/// SQL schema that holds the embedding tables, one per recipe.
pub const SCHEMA: &str = "embeddings";

/// Row of `cells`.
pub const CELL_ID: &str = "cell_id";
/// The embedding; NULL where the cell could not be embedded.
pub const VECTOR: &str = "vector";
/// Number of expressed genes of the cell that are in the vocabulary of the model.
pub const GENES_SEEN: &str = "genes_seen";

/// Key of the table's metadata: the recipe as JSON.
pub const RECIPE_METADATA: &str = "cellql.recipe";
/// Key of the table's metadata: SHA-256 of the model that made the vectors.
pub const MODEL_METADATA: &str = "cellql.model_sha256";

/// Type of a vector of `dim` f32.
pub fn vector_type(dim: usize) -> DataType {
    DataType::FixedSizeList(Arc::new(Field::new("item", DataType::Float32, true)), dim as i32)
}

/// Schema of the table of a recipe whose vectors have `dim` dimensions.
pub fn schema(dim: usize) -> Schema {
    Schema::new(vec![
        Field::new(CELL_ID, DataType::UInt64, false),
        Field::new(VECTOR, vector_type(dim), true),
        Field::new(GENES_SEEN, DataType::UInt32, false),
    ])
}
