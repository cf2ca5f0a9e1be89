//! What a cellql store is made of: its tables, the nomenclature that gives genes their identity, and the
//! vocabularies of models.
//!
//! Depends on arrow alone. Knows nothing of files, storage engines, models or SQL: every other part of cellql
//! reads names and types from here, and none is read back.

pub mod cells;
pub mod datasets;
pub mod embeddings;
pub mod exported;
pub mod expr;
pub mod feature;
pub mod gene_embeddings;
pub mod genes;
pub mod indexes;
pub mod jobs;
pub mod models;
pub mod nomenclature;
pub mod recipe;
pub mod spreadsheet;
pub mod suggest;
pub mod vocabulary;
