//! Gene embedding tables: one per recipe, a vector per gene averaged over a group of cells.

use arrow::datatypes::{DataType, Field, Schema};

use crate::embeddings::vector_type;

/// SQL schema that holds the tables, one per recipe.
pub const SCHEMA: &str = "gene_embeddings";

/// Column of `cells` whose values are the groups; empty if all cells are one group.
pub const GROUP_BY: &str = "group_by";
/// Value of that column.
pub const GROUP: &str = "group";
/// Row of `genes`.
pub const GENE_ID: &str = "gene_id";
/// Mean of the gene's context embeddings.
pub const VECTOR: &str = "vector";
/// Number of cells averaged.
pub const CELLS: &str = "cells";

/// Schema of the table of a recipe whose vectors have `dim` dimensions.
pub fn schema(dim: usize) -> Schema {
    Schema::new(vec![
        Field::new(GROUP_BY, DataType::Utf8, false),
        Field::new(GROUP, DataType::Utf8, false),
        Field::new(GENE_ID, DataType::UInt32, false),
        Field::new(VECTOR, vector_type(dim), false),
        Field::new(CELLS, DataType::UInt64, false),
    ])
}
