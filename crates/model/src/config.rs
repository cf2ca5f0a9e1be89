//! Sizes of a model. No other module has a constant for them.

use std::str::FromStr;

use cellql_schemas::recipe::Pool;
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, Result};

/// Configuration, with the names the authors' checkpoints use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Vocabulary genes plus the tokens T and S.
    pub seq_len: usize,
    /// Weight of the residual in the value embedding.
    pub bin_alpha: f64,
    /// Rows of the value embedding.
    pub bin_num: usize,
    /// Value that stands for padding.
    pub pad_token_id: f64,
    /// Value that stands for a masked position.
    pub mask_token_id: f64,
    /// Sizes of the encoder.
    pub encoder: EncoderConfig,
    /// Sizes of the decoder.
    pub decoder: DecoderConfig,
}

/// Sizes of the transformer encoder, which reads expressed genes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EncoderConfig {
    /// Width of a token.
    pub hidden_dim: usize,
    /// Number of layers.
    pub depth: usize,
    /// Attention heads; their number divides the width.
    pub heads: usize,
}

/// Sizes of the Performer decoder, which reads all positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecoderConfig {
    /// Width of a token.
    pub hidden_dim: usize,
    /// Number of layers.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of a head. Heads times this need not be the width of a token.
    pub dim_head: usize,
}

/// The paper's three sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// About 3.6 million weights.
    M3,
    /// About 10 million.
    M10,
    /// About 119 million: scFoundation.
    M100,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "3M" => Ok(Size::M3),
            "10M" => Ok(Size::M10),
            "100M" => Ok(Size::M100),
            _ => Err(format!("unknown size '{text}': it is one of 3M, 10M, 100M")),
        }
    }
}

impl Config {
    /// The configuration of a size for a vocabulary of `n_genes`.
    pub fn of_size(size: Size, n_genes: usize) -> Self {
        let (dim, depth, heads) = match size {
            Size::M3 => (128, 4, 8),
            Size::M10 => (256, 4, 8),
            Size::M100 => (768, 12, 12),
        };
        let decoder = match size {
            Size::M3 => DecoderConfig { hidden_dim: 128, depth: 2, heads: 8, dim_head: 16 },
            Size::M10 => DecoderConfig { hidden_dim: 256, depth: 2, heads: 8, dim_head: 32 },
            Size::M100 => DecoderConfig { hidden_dim: 512, depth: 6, heads: 8, dim_head: 64 },
        };
        Self {
            seq_len: n_genes + 2,
            bin_alpha: 1.0,
            bin_num: 100,
            pad_token_id: 103.0,
            mask_token_id: 102.0,
            encoder: EncoderConfig { hidden_dim: dim, depth, heads },
            decoder,
        }
    }

    /// Genes of the vocabulary this is for.
    pub fn n_genes(&self) -> usize {
        self.seq_len.saturating_sub(2)
    }

    /// Numbers in a cell embedding.
    pub fn embedding_dim(&self, pool: Pool) -> usize {
        match pool {
            Pool::All => 4 * self.encoder.hidden_dim,
            Pool::Max => self.encoder.hidden_dim,
        }
    }

    /// Reads the authors' nested form or the flat one of this type.
    ///
    /// # Errors
    /// [`ModelError::Config`] where a field is missing or no number, or where no model can have these sizes.
    pub fn from_json(mut json: serde_json::Value) -> Result<Self> {
        if let Some(model) = json.get("model").and_then(|m| m.as_str()).map(str::to_owned)
            && let Some(nested) = json.pointer(&format!("/model_config/{model}")).cloned()
        {
            let data = json.pointer("/dataset_config/rnaseq").cloned();
            json = nested;
            if let (Some(target), Some(serde_json::Value::Object(extra))) = (json.as_object_mut(), data) {
                target.extend(extra);
            }
        }
        let config: Config = serde_json::from_value(json)
            .map_err(|e| ModelError::Config(format!("is not one of this architecture: {e}")))?;
        config.check()?;
        Ok(config)
    }

    /// Whether these sizes can be a model.
    pub(crate) fn check(&self) -> Result<()> {
        let (encoder, decoder) = (&self.encoder, &self.decoder);
        let sizes = [self.n_genes(), self.bin_num, encoder.hidden_dim, encoder.depth, encoder.heads];
        let decoder_sizes = [decoder.hidden_dim, decoder.depth, decoder.heads, decoder.dim_head];
        if sizes.iter().chain(&decoder_sizes).any(|&s| s == 0) {
            return Err(ModelError::Config("has a size of zero".into()));
        }
        if encoder.hidden_dim % encoder.heads != 0 {
            return Err(ModelError::Config(format!(
                "has {} heads, which do not divide the width {}",
                encoder.heads, encoder.hidden_dim
            )));
        }
        Ok(())
    }

    /// Random features of the decoder's attention kernel: int(dim_head · ln dim_head).
    pub fn nb_features(&self) -> usize {
        let d = self.decoder.dim_head as f64;
        (d * d.ln()) as usize
    }
}
