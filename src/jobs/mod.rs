//! Jobs over whole tables: embeddings of cells and of genes, and nearest neighbours of the cells of a file.
//!
//! Depends on `query` for models and on the store; for the cells of a file on `ingest` and `index`. Knows nothing of
//! SQL text or the terminal.

mod annotate;
mod cells;
mod embed;
mod embed_genes;
mod record;
mod resume;
mod shard;

use std::collections::HashMap;

use arrow::datatypes::Schema;
use cellql_schemas::embeddings::{MODEL_METADATA, RECIPE_METADATA};
use cellql_schemas::recipe::Recipe;

pub use annotate::{AnnotateOptions, FileNeighbours, annotate};
pub use embed::{EmbedOptions, EmbedReport, embed_cells};
pub use embed_genes::{GenesReport, Groups, embed_genes};
pub use shard::Shard;

use crate::error::{Error, Result};
use crate::query::StoreEngine;
use cellql_model::DEFAULT_TOKEN_BUDGET;
use cellql_store::Store;

/// Metadata of the table of a recipe: the recipe and the SHA-256 of its model.
fn recipe_metadata(engine: &StoreEngine, recipe: &Recipe) -> Result<HashMap<String, String>> {
    let json = serde_json::to_string(recipe).map_err(Error::internal("recording the recipe"))?;
    let sha256 = engine.entry(Some(&recipe.model))?.sha256.clone();
    Ok(HashMap::from([(RECIPE_METADATA.to_owned(), json), (MODEL_METADATA.to_owned(), sha256)]))
}

/// Fails if the vectors of a table were made with another model of the same name.
async fn check_model(store: &Store, table: &str, sha256: &str) -> Result<()> {
    let made = Schema::from(store.table(table).await?.schema());
    match made.metadata().get(MODEL_METADATA) {
        Some(by) if by != sha256 => Err(Error::Request(format!(
            "table {table} was made with another model of that name; \
                 add this model under another name and embed with it"
        ))),
        _ => Ok(()),
    }
}

/// Memory for the activations of a batch, beside the weights; `None` for a batch of the default size.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemoryBudget {
    /// Bytes.
    pub bytes: Option<u64>,
}

impl MemoryBudget {
    /// Maximum number of tokens of a batch. Each token needs five rows of the model's width in f32: its own, query,
    /// key, value and attention. A longer cell is a batch of its own.
    fn tokens(self, engine: &StoreEngine, recipe: &Recipe) -> Result<usize> {
        let Some(bytes) = self.bytes else { return Ok(DEFAULT_TOKEN_BUDGET) };
        if engine.entry(Some(&recipe.model))?.is_linear() {
            return Ok(DEFAULT_TOKEN_BUDGET);
        }
        let width = engine.with_transformer(&recipe.model, "tokens", |config| config.encoder.hidden_dim)?;
        Ok((bytes as usize / (5 * 4 * width)).max(1))
    }
}
