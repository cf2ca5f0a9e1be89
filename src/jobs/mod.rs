//! Work over whole tables: embeddings of cells and of genes, and the neighbours of a file's cells.
//!
//! Depends on `query` for models and on `store`; for a file's cells on `ingest` and `index`. Knows nothing of SQL text or the terminal.

mod annotate;
mod cells;
mod embed;
mod embed_genes;
mod record;
mod shard;

use std::collections::HashMap;

use arrow::datatypes::Schema;
use cellql_schemas::embeddings::{MODEL_METADATA, RECIPE_METADATA};
use cellql_schemas::recipe::Recipe;

pub use annotate::{Annotated, Annotation, annotate};
pub use embed::{EmbedOptions, EmbedReport, embed_cells};
pub use embed_genes::{GenesReport, Groups, embed_genes};
pub use shard::Shard;

use crate::error::{Error, Result};
use crate::query::StoreEngine;
use cellql_model::DEFAULT_TOKEN_BUDGET;
use cellql_store::Store;

/// What the table of a recipe records: the recipe, and the model's hash.
fn recipe_metadata(engine: &StoreEngine, recipe: &Recipe) -> Result<HashMap<String, String>> {
    let json = serde_json::to_string(recipe).map_err(Error::internal("recording the recipe"))?;
    let sha256 = engine.entry(Some(&recipe.model))?.sha256.clone();
    Ok(HashMap::from([(RECIPE_METADATA.to_owned(), json), (MODEL_METADATA.to_owned(), sha256)]))
}

/// Refuses a table of vectors that another model of the same name made.
async fn check_model(store: &Store, table: &str, sha256: &str) -> Result<()> {
    let made = Schema::from(store.table(table).await?.schema());
    match made.metadata().get(MODEL_METADATA) {
        Some(by) if by != sha256 => {
            Err(Error::Request(format!("table {table} was made with another model of that name")))
        }
        _ => Ok(()),
    }
}

/// Memory that a batch may take beside the weights; `None` for a batch of the usual size.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Bytes.
    pub bytes: Option<u64>,
}

impl Memory {
    /// Tokens of a batch: each has a row, three of queries, keys and values, and one of attention, in f32. A cell that alone
    /// is longer is a batch of its own.
    fn tokens(self, engine: &StoreEngine, recipe: &Recipe) -> Result<usize> {
        let Some(bytes) = self.bytes else { return Ok(DEFAULT_TOKEN_BUDGET) };
        let width = engine.with_model(&recipe.model, |m| m.config().encoder.hidden_dim)?;
        Ok((bytes as usize / (5 * 4 * width)).max(1))
    }
}
