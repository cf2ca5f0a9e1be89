//! The encoder: value embedding plus gene embedding, then post-norm transformer layers over each cell's own tokens.
//!
//! Mirrors torch's `TransformerEncoderLayer` defaults (post-norm, ReLU, eps 1e-5) and one more norm at the end, as
//! the authors' code composes them.

use std::collections::HashMap;

use candle_core::{D, Device, Tensor};

use super::Config;
use super::batch::Packed;
use super::kernels::{LayerNorm, RaggedAttention, SoftmaxRows};
use crate::error::{Error, Result};

/// torch's default for layer norms.
const EPS: f32 = 1e-5;
/// Slope below zero in the value embedding.
const LEAK: f64 = 0.1;

/// Named tensors of known shapes.
pub(super) struct Tensors<'a> {
    model: &'a str,
    tensors: &'a HashMap<String, Tensor>,
    device: &'a Device,
}

impl Tensors<'_> {
    fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let wrong = |what: String| Error::Request(format!("model '{}': weight '{name}' {what}", self.model));
        let tensor = self.tensors.get(name).ok_or_else(|| wrong("is missing".into()))?;
        if tensor.dims() != shape {
            return Err(wrong(format!("has the shape {:?}, its configuration asks for {shape:?}", tensor.dims())));
        }
        tensor.to_device(self.device).map_err(Error::model(self.model, "loading weights"))
    }

    fn linear(&self, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        self.linear_named(&format!("{name}.weight"), &format!("{name}.bias"), inputs, outputs)
    }

    fn linear_named(&self, weight: &str, bias: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        Ok(Linear { weight: self.get(weight, &[outputs, inputs])?, bias: self.get(bias, &[outputs])? })
    }

    fn norm(&self, name: &str, dim: usize) -> Result<Norm> {
        let part = |part: &str| self.get(&format!("{name}.{part}"), &[dim]);
        Ok(Norm { weight: part("weight")?, bias: part("bias")? })
    }
}

#[derive(Debug)]
struct Linear {
    /// `[outputs, inputs]`
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// `[rows, inputs]` to `[rows, outputs]`
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)
    }
}

#[derive(Debug)]
struct Norm {
    weight: Tensor,
    bias: Tensor,
}

impl Norm {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.apply_op3_no_bwd(&self.weight, &self.bias, &LayerNorm { eps: EPS })
    }
}

/// Continuous values to vectors: a soft mixture of `bins` learned vectors.
#[derive(Debug)]
struct ValueEmbedding {
    mlp: Linear,
    mlp2: Linear,
    /// `[bins, dim]`
    bins: Tensor,
    alpha: f64,
}

impl ValueEmbedding {
    /// `[tokens, 1]` to `[tokens, dim]`
    fn forward(&self, values: &Tensor) -> candle_core::Result<Tensor> {
        let h = self.mlp.forward(values)?;
        let h = h.maximum(&(&h * LEAK)?)?;
        let weights = (self.mlp2.forward(&h)? + (h * self.alpha)?)?.apply_op1_no_bwd(&SoftmaxRows)?;
        weights.matmul(&self.bins)
    }
}

#[derive(Debug)]
struct Layer {
    in_proj: Linear,
    out_proj: Linear,
    linear1: Linear,
    linear2: Linear,
    norm1: Norm,
    norm2: Norm,
    heads: usize,
}

impl Layer {
    fn load(tensors: &Tensors, at: &str, dim: usize, heads: usize) -> Result<Self> {
        let attention = format!("{at}.self_attn");
        let weight = format!("{attention}.in_proj_weight");
        let bias = format!("{attention}.in_proj_bias");
        Ok(Self {
            in_proj: tensors.linear_named(&weight, &bias, dim, 3 * dim)?,
            out_proj: tensors.linear(&format!("{attention}.out_proj"), dim, dim)?,
            linear1: tensors.linear(&format!("{at}.linear1"), dim, 4 * dim)?,
            linear2: tensors.linear(&format!("{at}.linear2"), 4 * dim, dim)?,
            norm1: tensors.norm(&format!("{at}.norm1"), dim)?,
            norm2: tensors.norm(&format!("{at}.norm2"), dim)?,
            heads,
        })
    }

    fn forward(&self, x: &Tensor, starts: &[usize]) -> candle_core::Result<Tensor> {
        let qkv = self.in_proj.forward(x)?;
        let mixed = qkv.apply_op1_no_bwd(&RaggedAttention { starts, heads: self.heads })?;
        let x = self.norm1.forward(&(x + self.out_proj.forward(&mixed)?)?)?;
        let fed = self.linear2.forward(&self.linear1.forward(&x)?.relu()?)?;
        self.norm2.forward(&(&x + fed)?)
    }
}

/// The encoder of a model.
#[derive(Debug)]
pub(super) struct Encoder {
    values: ValueEmbedding,
    /// `[seq_len + 1, dim]`: the gene embedding.
    positions: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
    device: Device,
}

impl Encoder {
    pub(super) fn load(
        model: &str,
        config: &Config,
        tensors: &HashMap<String, Tensor>,
        device: &Device,
    ) -> Result<Self> {
        let tensors = Tensors { model, tensors, device };
        let (dim, bins) = (config.encoder.hidden_dim, config.bin_num);
        let layer =
            |l: usize| Layer::load(&tensors, &format!("encoder.transformer_encoder.{l}"), dim, config.encoder.heads);
        Ok(Self {
            values: ValueEmbedding {
                mlp: tensors.linear("token_emb.mlp", 1, bins)?,
                mlp2: tensors.linear("token_emb.mlp2", bins, bins)?,
                bins: tensors.get("token_emb.emb.weight", &[bins, dim])?,
                alpha: config.bin_alpha,
            },
            positions: tensors.get("pos_emb.weight", &[config.seq_len + 1, dim])?,
            layers: (0..config.encoder.depth).map(layer).collect::<Result<_>>()?,
            norm: tensors.norm("encoder.norm", dim)?,
            device: device.clone(),
        })
    }

    /// Encodes a batch: `[tokens, dim]`, row after row.
    pub(super) fn forward(&self, batch: &Packed) -> candle_core::Result<Vec<f32>> {
        let tokens = batch.values.len();
        let values = Tensor::from_slice(&batch.values, (tokens, 1), &self.device)?;
        let positions = Tensor::from_slice(&batch.positions, tokens, &self.device)?;
        let mut x = (self.values.forward(&values)? + self.positions.index_select(&positions, 0)?)?;
        for layer in &self.layers {
            x = layer.forward(&x, &batch.starts)?;
        }
        debug_assert_eq!(x.dim(D::Minus1)?, self.norm.weight.dim(0)?);
        self.norm.forward(&x)?.flatten_all()?.to_vec1()
    }
}
