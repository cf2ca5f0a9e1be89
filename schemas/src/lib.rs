//! The tables of a cellql store, the type `expr`, the HGNC nomenclature that gives genes their identity, vocabularies
//! of models, and recipes of embeddings.
//!
//! All other crates read names and types from here. This crate depends on arrow for types and knows nothing of files,
//! storage engines, models or SQL.
//!
//! ```
//! use cellql_schemas::nomenclature::{Evidence, Nomenclature, Resolution};
//!
//! let hgnc = Nomenclature::hgnc();
//! let Resolution::Gene(gene, evidence) = hgnc.resolve("IL8") else { panic!("IL8 is a previous symbol of one gene") };
//! assert_eq!(hgnc.genes()[gene].symbol, "CXCL8");
//! assert_eq!(evidence, Evidence::Previous);
//! ```

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
