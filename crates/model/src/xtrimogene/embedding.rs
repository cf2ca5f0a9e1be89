//! Embedding of expression values.

use candle_core::{DType, Result, Tensor};
use candle_nn::{Activation, Embedding, Linear, Module, VarBuilder, embedding, linear};

use super::ops::{LayerOps, softmax};
use crate::Config;

/// Slope of the leaky ReLU below zero.
const NEGATIVE_SLOPE: f64 = 0.1;

/// Embeds a value as a mixture of learned bin vectors; the values that stand for masked positions and for padding
/// have vectors of their own. `AutoDiscretizationEmbedding2` in the authors' code. Computed in f32 in every dtype of
/// the model: the 8 bits of bf16 are too few for values and mixtures.
#[derive(Debug, Clone)]
pub(super) struct AutoDiscretizationEmbedding {
    /// One value to scores of the bins.
    mlp: Linear,
    mlp2: Linear,
    /// Bin vectors, `[bins, dim]`.
    emb: Embedding,
    /// Value and vector, `[1, dim]`, of masked positions and of padding.
    special: [(f64, Embedding); 2],
    /// Weight of the residual around `mlp2`.
    bin_alpha: f64,
    ops: LayerOps,
}

impl AutoDiscretizationEmbedding {
    pub(super) fn load(vb: VarBuilder, config: &Config, ops: &LayerOps) -> Result<Self> {
        let (vb, bins, dim) = (vb.to_dtype(DType::F32), config.bin_num, config.encoder.hidden_dim);
        Ok(Self {
            mlp: linear(1, bins, vb.pp("mlp"))?,
            mlp2: linear(bins, bins, vb.pp("mlp2"))?,
            emb: embedding(bins, dim, vb.pp("emb"))?,
            special: [
                (config.mask_token_id, embedding(1, dim, vb.pp("emb_mask"))?),
                (config.pad_token_id, embedding(1, dim, vb.pp("emb_pad"))?),
            ],
            bin_alpha: config.bin_alpha,
            ops: ops.clone(),
        })
    }

    /// `[values]` to `[values, dim]`, f32.
    pub(super) fn forward(&self, values: &[f32]) -> Result<Tensor> {
        let bins = self.emb.embeddings();
        let xs = Tensor::from_slice(values, (values.len(), 1), bins.device())?;
        let scores = Activation::LeakyRelu(NEGATIVE_SLOPE).forward(&self.ops.linear(&self.mlp, &xs)?)?;
        let mixture = softmax(&(self.ops.linear(&self.mlp2, &scores)? + (scores * self.bin_alpha)?)?)?;
        let mut embedded = mixture.matmul(bins)?;
        for (id, vector) in &self.special {
            let is_special: Vec<u8> = values.iter().map(|value| u8::from(f64::from(*value) == *id)).collect();
            if is_special.contains(&1) {
                let is_special = Tensor::from_vec(is_special, (values.len(), 1), bins.device())?;
                let vector = vector.embeddings().broadcast_as(embedded.shape())?;
                embedded = is_special.broadcast_as(embedded.shape())?.where_cond(&vector, &embedded)?;
            }
        }
        Ok(embedded)
    }
}
