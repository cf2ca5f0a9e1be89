//! How layers are computed: by candle-nn's differentiable ops, or by fused ops on the same weights.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::{Activation, Embedding, LayerNorm, Linear, Module, VarBuilder};

use crate::fused::FusedOps;

/// torch's default for layer norms.
const LAYER_NORM_EPS: f64 = 1e-5;

/// Computes layers by fused ops where a device has them, else by candle-nn.
///
/// candle-nn's `LayerNorm::forward`, `ops::layer_norm`, `ops::rms_norm` and `ops::softmax_last_dim` have no backward
/// pass and cut gradients silently; they are never used here.
#[derive(Debug, Clone)]
pub(super) struct LayerOps {
    fused: Option<FusedOps>,
}

/// Loads a layer norm over `dim` values. Its weights are f32 in every dtype of the model.
pub(super) fn layer_norm(dim: usize, vb: VarBuilder) -> Result<LayerNorm> {
    candle_nn::layer_norm(dim, LAYER_NORM_EPS, vb.to_dtype(DType::F32))
}

/// Softmax over the last axis, with gradients.
pub(super) fn softmax(xs: &Tensor) -> Result<Tensor> {
    candle_nn::ops::softmax(xs, D::Minus1)
}

impl LayerOps {
    pub(super) fn new(fused: Option<FusedOps>) -> Self {
        Self { fused }
    }

    /// The fused ops, where there are some.
    pub(super) fn fused(&self) -> Option<&FusedOps> {
        self.fused.as_ref()
    }

    /// `[rows, in]` to `[rows, out]`.
    pub(super) fn linear(&self, layer: &Linear, xs: &Tensor) -> Result<Tensor> {
        match (&self.fused, layer.bias()) {
            (Some(fused), Some(bias)) => fused.linear(xs, layer.weight(), bias),
            _ => layer.forward(xs),
        }
    }

    /// Layer norm over the last axis, computed in f32: `[rows, dim]` to `[rows, dim]` in the dtype of `xs`.
    pub(super) fn layer_norm(&self, norm: &LayerNorm, xs: &Tensor) -> Result<Tensor> {
        let Some(bias) = norm.bias() else { candle_core::bail!("a layer norm without bias") };
        let x = xs.to_dtype(DType::F32)?;
        let normed = match &self.fused {
            Some(fused) => fused.layer_norm(&x, norm.weight(), bias)?,
            None => candle_nn::ops::layer_norm_slow(&x, norm.weight(), bias, norm.eps() as f32)?,
        };
        normed.to_dtype(xs.dtype())
    }

    /// GELU by the error function, in the dtype of `xs`.
    pub(super) fn gelu(&self, xs: &Tensor) -> Result<Tensor> {
        match &self.fused {
            Some(fused) => fused.gelu(&xs.to_dtype(DType::F32)?)?.to_dtype(xs.dtype()),
            None => Activation::Gelu.forward(xs),
        }
    }

    /// Rows of `xs` `[rows, width]` at `index`, as often as named: `[index, width]`.
    pub(super) fn index_select(&self, xs: &Tensor, index: &[u32]) -> Result<Tensor> {
        match self.fused.as_ref().filter(|_| xs.track_op()) {
            Some(fused) => fused.index_select(&xs.to_dtype(DType::F32)?, index)?.to_dtype(xs.dtype()),
            None => xs.index_select(&Tensor::new(index, xs.device())?, 0),
        }
    }

    /// Vectors of an embedding: `[ids, dim]`.
    pub(super) fn embedding(&self, layer: &Embedding, ids: &[u32]) -> Result<Tensor> {
        self.index_select(layer.embeddings(), ids)
    }
}
