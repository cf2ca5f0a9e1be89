//! Encoder: torch's `TransformerEncoder` with its defaults (post-norm, ReLU), over the tokens of a ragged batch.
//! Original code: `model/pretrainmodels/transformer.py`.

use candle_core::{DType, Result, Tensor};
use candle_nn::{LayerNorm, Linear, VarBuilder, linear};

use super::ops::{LayerOps, layer_norm, softmax};
use crate::EncoderConfig;
use crate::fused::CellOffsets;

/// Queries that attend at once, so that no `[tokens, tokens]` matrix is held.
const QUERY_BLOCK: usize = 512;

/// Self-attention within each cell.
#[derive(Debug, Clone)]
struct MultiheadAttention {
    in_proj: Linear,
    out_proj: Linear,
    heads: usize,
    ops: LayerOps,
}

impl MultiheadAttention {
    fn load(vb: VarBuilder, config: &EncoderConfig, ops: &LayerOps) -> Result<Self> {
        let dim = config.hidden_dim;
        let (weight, bias) = (vb.get((3 * dim, dim), "in_proj_weight")?, vb.get(3 * dim, "in_proj_bias")?);
        Ok(Self {
            in_proj: Linear::new(weight, Some(bias)),
            out_proj: linear(dim, dim, vb.pp("out_proj"))?,
            heads: config.heads,
            ops: ops.clone(),
        })
    }

    /// `[tokens, dim]` to `[tokens, dim]`.
    fn forward(&self, xs: &Tensor, cells: &CellOffsets) -> Result<Tensor> {
        let qkv = self.ops.linear(&self.in_proj, xs)?;
        let attended = match self.ops.fused() {
            Some(fused) => fused.attention(&qkv.to_dtype(DType::F32)?, cells)?.to_dtype(xs.dtype())?,
            None => {
                let attend = |cell: std::ops::Range<usize>| self.attend(&qkv.narrow(0, cell.start, cell.len())?);
                Tensor::cat(&cells.ranges().map(attend).collect::<Result<Vec<_>>>()?, 0)?
            }
        };
        self.ops.linear(&self.out_proj, &attended)
    }

    /// Attention of one cell: `[tokens, 3·dim]` to `[tokens, dim]`, with the softmax in f32.
    fn attend(&self, qkv: &Tensor) -> Result<Tensor> {
        let (tokens, width) = qkv.dims2()?;
        let (dim, head_dim) = (width / 3, width / 3 / self.heads);
        let qkv = qkv.reshape((tokens, 3, self.heads, head_dim))?;
        let part = |part: usize| qkv.narrow(1, part, 1)?.squeeze(1)?.transpose(0, 1)?.contiguous();
        let q = (part(0)? * (1.0 / (head_dim as f64).sqrt()))?;
        let (k, v) = (part(1)?.t()?.contiguous()?, part(2)?);
        let attend_block = |first: usize| {
            let q = q.narrow(1, first, QUERY_BLOCK.min(tokens - first))?.contiguous()?;
            let weights = softmax(&q.matmul(&k)?.to_dtype(DType::F32)?)?.to_dtype(v.dtype())?;
            weights.matmul(&v)?.transpose(0, 1)?.reshape(((), dim))
        };
        Tensor::cat(&(0..tokens).step_by(QUERY_BLOCK).map(attend_block).collect::<Result<Vec<_>>>()?, 0)
    }
}

/// Attention and feed-forward network, each followed by a residual sum and a layer norm.
#[derive(Debug, Clone)]
struct TransformerEncoderLayer {
    self_attn: MultiheadAttention,
    linear1: Linear,
    linear2: Linear,
    norm1: LayerNorm,
    norm2: LayerNorm,
    ops: LayerOps,
}

impl TransformerEncoderLayer {
    fn load(vb: VarBuilder, config: &EncoderConfig, ops: &LayerOps) -> Result<Self> {
        let dim = config.hidden_dim;
        Ok(Self {
            self_attn: MultiheadAttention::load(vb.pp("self_attn"), config, ops)?,
            linear1: linear(dim, 4 * dim, vb.pp("linear1"))?,
            linear2: linear(4 * dim, dim, vb.pp("linear2"))?,
            norm1: layer_norm(dim, vb.pp("norm1"))?,
            norm2: layer_norm(dim, vb.pp("norm2"))?,
            ops: ops.clone(),
        })
    }

    fn forward(&self, xs: &Tensor, cells: &CellOffsets) -> Result<Tensor> {
        let xs = self.ops.layer_norm(&self.norm1, &(xs + self.self_attn.forward(xs, cells)?)?)?;
        let hidden = self.ops.linear(&self.linear1, &xs)?.relu()?;
        let hidden = self.ops.linear(&self.linear2, &hidden)?;
        self.ops.layer_norm(&self.norm2, &(xs + hidden)?)
    }
}

/// Layers of the encoder and a final layer norm.
#[derive(Debug, Clone)]
pub(super) struct TransformerEncoder {
    layers: Vec<TransformerEncoderLayer>,
    norm: LayerNorm,
    ops: LayerOps,
}

impl TransformerEncoder {
    pub(super) fn load(vb: VarBuilder, config: &EncoderConfig, ops: &LayerOps) -> Result<Self> {
        let layer = |i| TransformerEncoderLayer::load(vb.pp("transformer_encoder").pp(i), config, ops);
        Ok(Self {
            layers: (0..config.depth).map(layer).collect::<Result<_>>()?,
            norm: layer_norm(config.hidden_dim, vb.pp("norm"))?,
            ops: ops.clone(),
        })
    }

    /// `[tokens, dim]` to `[tokens, dim]`.
    pub(super) fn forward(&self, xs: &Tensor, cells: &CellOffsets) -> Result<Tensor> {
        let mut xs = xs.clone();
        for layer in &self.layers {
            xs = layer.forward(&xs, cells)?;
        }
        self.ops.layer_norm(&self.norm, &xs)
    }
}
