//! The foundation model: scFoundation / xTrimoGene, a masked autoencoder over one cell's genes.
//!
//! Paper: Hao et al., Nature Methods 2024, doi 10.1038/s41592-024-02305-7; authors' code:
//! github.com/biomap-research/scFoundation. This module holds the encoder; cells come in as profiles, are aligned to the
//! vocabulary ([`input`]), packed end to end ([`batch`]), encoded ([`encoder`]) and pooled ([`pool`]).
//!
//! Depends on candle and `schemas`. Knows nothing of SQL: a model is bytes, a cell is two slices. Only [`registry`], which
//! keeps models in a store, knows of tables.

mod batch;
mod checkpoint;
mod config;
mod encoder;
mod file;
mod init;
mod input;
mod kernels;
mod pickle;
mod pool;
pub mod registry;

pub use batch::DEFAULT_TOKEN_BUDGET;
pub use checkpoint::{CheckpointKey, read_checkpoint, read_safetensors};
pub use config::{Config, Decoder, Encoder as EncoderConfig, Size};
pub use file::{Provenance, Weights, decode, encode};
pub use init::initialise;
pub use input::{NotEmbeddable, Tokens};

use candle_core::Device;
use cellql_schemas::expr::Profile;
use cellql_schemas::recipe::{Pool, Recipe};
use cellql_schemas::vocabulary::{Placement, Vocabulary};

use crate::error::{Error, Result};
use batch::{Packed, plan};
use encoder::Encoder;

/// A model, loaded and ready to embed.
#[derive(Debug)]
pub struct Model {
    name: String,
    config: Config,
    vocabulary: Vocabulary,
    encoder: Encoder,
}

/// Embeddings of some cells, in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Embeddings {
    /// `[cells, dim]`; zeros for cells without an embedding.
    pub vectors: Vec<f32>,
    /// Vocabulary genes expressed in each cell.
    pub genes_seen: Vec<u32>,
    /// Why a cell has no embedding; `None` where it has one.
    pub refused: Vec<Option<NotEmbeddable>>,
}

impl Model {
    /// Loads a model from the bytes of its file (see [`encode`]).
    ///
    /// # Errors
    /// [`Error::Request`] where the bytes are no model or weights are missing or misshapen.
    pub fn load(name: &str, bytes: &[u8]) -> Result<Self> {
        let Weights { config, vocabulary, tensors } = decode(name, bytes)?;
        let encoder = Encoder::load(name, &config, &tensors, &Device::Cpu)?;
        Ok(Self { name: name.to_owned(), config, vocabulary, encoder })
    }

    /// Name under which it was loaded.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Genes in order.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Numbers in a cell embedding.
    pub fn dim(&self, pool: Pool) -> usize {
        self.config.embedding_dim(pool)
    }

    /// Embeds cells. The result of a cell is a function of that cell alone; batches hold at most `token_budget` tokens
    /// (or one cell), which bounds memory whatever the number of cells.
    ///
    /// # Errors
    /// [`Error::Request`] where values are no counts but the recipe says so.
    pub fn embed<'a>(
        &self,
        recipe: &Recipe,
        cells: impl Iterator<Item = Option<Profile<'a>>>,
        placement: &Placement,
        token_budget: usize,
    ) -> Result<Embeddings> {
        let dim = self.dim(recipe.pool);
        let mut out = Embeddings::default();
        let mut tokens = Vec::new();
        for (row, cell) in cells.enumerate() {
            let aligned = match cell {
                None => Err(NotEmbeddable::Missing),
                Some(cell) => input::align(cell, placement, recipe, self.vocabulary.len())
                    .map_err(|e| Error::Request(format!("embed with model '{}': {e}", self.name)))?,
            };
            out.genes_seen.push(aligned.as_ref().map_or(0, |t| t.n_genes() as u32));
            match aligned {
                Ok(cell) => {
                    out.refused.push(None);
                    tokens.push((row, cell));
                }
                Err(why) => out.refused.push(Some(why)),
            }
        }
        out.vectors = vec![0.0; out.refused.len() * dim];
        for batch in plan(&tokens, token_budget) {
            let packed = Packed::new(batch.iter().map(|&i| &tokens[i].1));
            let encoded = self.encoder.forward(&packed).map_err(Error::model(&self.name, "encoding cells"))?;
            for (slot, &i) in batch.iter().enumerate() {
                let row = tokens[i].0;
                let target = &mut out.vectors[row * dim..(row + 1) * dim];
                pool::pool(packed.cell(&encoded, slot), self.config.encoder.hidden_dim, recipe.pool, target);
            }
        }
        Ok(out)
    }
}
