//! xTrimoGene / scFoundation, a masked autoencoder over the genes of one cell, in candle tensors on any device and
//! with gradients. Training and GPUs run this form; the kernels of the CPU are tested against it.
//!
//! - Papers: "xTrimoGene: An Efficient and Scalable Representation Learner for Single-Cell RNA-Seq Data", Gong et al.
//!   2023, <https://arxiv.org/abs/2311.15156>; "Large-scale foundation model on single-cell transcriptomics", Hao et
//!   al. 2024, <https://doi.org/10.1038/s41592-024-02305-7>
//! - Original code: <https://github.com/biomap-research/scFoundation>, `model/pretrainmodels/mae_autobin.py`
//!
//! Layers are those of candle-nn, with weights by the authors' names. Attention takes one cell and one block of
//! queries at a time, so that no matrix of positions × positions is held. CUDA devices compute layers by
//! [`FusedOps`].
//!
//! In bf16, matrix products are bf16; value embedding, layer norms, softmax and random features are f32, since the 8
//! bits of bf16 are too few for them.

mod embedding;
mod encoder;
mod ops;
mod performer;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, VarBuilder, linear};

use crate::fused::{CellOffsets, FusedOps};
use crate::{Config, Packed, Tokens};
use embedding::AutoDiscretizationEmbedding;
use encoder::TransformerEncoder;
use ops::{LayerOps, layer_norm};
use performer::Performer;

/// The model. Its weights are trainable where the [`VarBuilder`] gave variables.
#[derive(Debug, Clone)]
pub struct XTrimoGene {
    token_emb: AutoDiscretizationEmbedding,
    /// Gene embeddings, `[positions + 1, dim]`; the last row is for padding.
    pos_emb: Embedding,
    encoder: TransformerEncoder,
    decoder_embed: Linear,
    decoder: Performer,
    norm: LayerNorm,
    to_final: Linear,
    ops: LayerOps,
    seq_len: usize,
    device: Device,
}

/// One cell as the decoder reads it.
#[derive(Debug, Clone)]
pub struct DecoderInput {
    /// Values of all positions, T and S included. Positions of `tokens` ignore theirs.
    pub values: Vec<f32>,
    /// The tokens that the encoder read. Their encoded vectors replace embedded values.
    pub tokens: Tokens,
}

impl XTrimoGene {
    /// Loads the weights at `vb`, to its device and dtype: f32, or bf16 where the device is fast at it. Compiles
    /// [`FusedOps`] on a CUDA device, which must have a stream of its own ([`Device::new_cuda_with_stream`]).
    ///
    /// # Errors
    /// A weight is missing or has the wrong shape, the device has no memory left, or its compiler fails.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let fused = vb.device().is_cuda().then(|| FusedOps::new(vb.device(), config)).transpose()?;
        Self::load_with(vb, config, fused)
    }

    /// Loads the weights at `vb` as [`XTrimoGene::load`] does, for ops that are compiled already, or for plain tensor
    /// operations.
    ///
    /// # Errors
    /// As [`XTrimoGene::load`].
    pub fn load_with(vb: VarBuilder, config: &Config, fused: Option<FusedOps>) -> Result<Self> {
        let (dim, width) = (config.encoder.hidden_dim, config.decoder.hidden_dim);
        let ops = LayerOps::new(fused);
        Ok(Self {
            token_emb: AutoDiscretizationEmbedding::load(vb.pp("token_emb"), config, &ops)?,
            pos_emb: candle_nn::embedding(config.seq_len + 1, dim, vb.pp("pos_emb"))?,
            encoder: TransformerEncoder::load(vb.pp("encoder"), &config.encoder, &ops)?,
            decoder_embed: linear(dim, width, vb.pp("decoder_embed"))?,
            decoder: Performer::load(vb.pp("decoder"), config, &ops)?,
            norm: layer_norm(width, vb.pp("norm"))?,
            to_final: linear(width, 1, vb.pp("to_final"))?,
            ops,
            seq_len: config.seq_len,
            device: vb.device().clone(),
        })
    }

    /// Positions of a cell in the decoder, T and S included.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Encodes the tokens of a batch of cells: `[tokens, dim]`.
    ///
    /// # Errors
    /// A position is not of the vocabulary, or the device has no memory left.
    pub fn encode(&self, batch: &Packed) -> Result<Tensor> {
        let genes = self.ops.embedding(&self.pos_emb, &batch.positions)?;
        let xs = (self.token_emb.forward(&batch.values)?.to_dtype(genes.dtype())? + genes)?;
        let offsets = batch.starts.iter().map(|start| *start as u32).collect();
        self.encoder.forward(&xs, &CellOffsets::new(offsets, &self.device)?)
    }

    /// Context embeddings of cells, given the encoded tokens of all of them, `[tokens, dim]`: of all positions,
    /// `[cells · positions, width]`, or of the `selected` rows among those, `[selected, width]`. `selected` is
    /// ascending.
    ///
    /// # Errors
    /// Inputs do not fit each other or the model, or the device has no memory left.
    pub fn decode(&self, cells: &[DecoderInput], encoded: &Tensor, selected: Option<&[u32]>) -> Result<Tensor> {
        let n = self.seq_len;
        let genes = self.pos_emb.embeddings().narrow(0, 0, n)?;
        let xs = self.embed_positions(cells, encoded)?.reshape((cells.len(), n, ()))?;
        let xs = xs.to_dtype(genes.dtype())?.broadcast_add(&genes)?.reshape((cells.len() * n, ()))?;
        let offsets = (0..=cells.len()).map(|cell| (cell * n) as u32).collect();
        let xs = self.ops.linear(&self.decoder_embed, &xs)?;
        let xs = self.decoder.forward(&xs, &CellOffsets::new(offsets, &self.device)?, selected)?;
        self.ops.layer_norm(&self.norm, &xs)
    }

    /// Predicted log-normalised expression, `[rows]`, of contexts of [`XTrimoGene::decode`].
    ///
    /// # Errors
    /// The contexts are not `[rows, width]`, or the device has no memory left.
    pub fn predict(&self, contexts: &Tensor) -> Result<Tensor> {
        self.ops.linear(&self.to_final, contexts)?.squeeze(D::Minus1)
    }

    /// Values of all positions as the decoder reads them, `[cells · positions, dim]`, f32: encoded tokens, elsewhere
    /// embedded values. Each distinct value is embedded once.
    fn embed_positions(&self, cells: &[DecoderInput], encoded: &Tensor) -> Result<Tensor> {
        let n = self.seq_len;
        let tokens = encoded.dim(0)? as u32;
        // Rows of a table that holds the encoded tokens first, then the embedded values.
        let mut rows = Vec::with_capacity(cells.len() * n);
        let (mut values, mut row_of_value) = (Vec::new(), HashMap::new());
        let mut next_token = 0u32;
        for cell in cells {
            let mut token_at = vec![None; n];
            for position in &cell.tokens.positions {
                match token_at.get_mut(*position as usize) {
                    Some(token) => *token = Some(next_token),
                    None => candle_core::bail!("a token has position {position}; the model has {n}"),
                }
                next_token += 1;
            }
            rows.extend(token_at.iter().zip(&cell.values).map(|(token, value)| {
                token.unwrap_or_else(|| {
                    *row_of_value.entry(value.to_bits()).or_insert_with(|| {
                        values.push(*value);
                        tokens + values.len() as u32 - 1
                    })
                })
            }));
        }
        let encoded = encoded.to_dtype(DType::F32)?;
        let table = match values.is_empty() {
            true => encoded,
            false => Tensor::cat(&[encoded, self.token_emb.forward(&values)?], 0)?,
        };
        self.ops.index_select(&table, &rows)
    }
}
