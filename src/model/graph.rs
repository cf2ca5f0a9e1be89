//! The whole model in plain tensor operations, on any device and with gradients: what training runs, what a GPU runs, and
//! what the kernels of the CPU are held against.
//!
//! Only operations whose gradients candle keeps are used (its fused norms and softmax drop them silently). The largest
//! values that keep exponentials in range are constants of the gradient, as in the authors' code. Attention takes a block
//! of queries at a time, so no cell's K × K matrix is held at once.

use std::collections::HashMap;

use candle_core::{D, DType, Device, Result, Tensor};

use super::{Config, Tokens};

/// torch's default for layer norms.
const EPS: f64 = 1e-5;
/// Slope below zero in the value embedding.
const LEAK: f64 = 0.1;
/// Added to every random feature.
const FEATURE_EPS: f64 = 1e-4;
/// Queries of a block.
const QUERIES: usize = 512;

/// A model as named tensors, without the prefix `model.`; trainable where they are variables.
#[derive(Debug, Clone)]
pub struct Graph {
    config: Config,
    tensors: HashMap<String, Tensor>,
    device: Device,
}

impl Graph {
    /// Of named tensors, moved to a device and a type: f32, or bf16 where the device is fast at it.
    ///
    /// # Errors
    /// The device has no room.
    pub fn new(config: Config, tensors: &HashMap<String, Tensor>, device: &Device, dtype: DType) -> Result<Self> {
        let moved = |(name, tensor): (&String, &Tensor)| -> Result<(String, Tensor)> {
            Ok((name.clone(), tensor.to_device(device)?.to_dtype(dtype)?))
        };
        let tensors = tensors.iter().map(moved).collect::<Result<_>>()?;
        Ok(Self { config, tensors, device: device.clone() })
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| candle_core::Error::Msg(format!("weight '{name}' is missing")))
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        self.linear_named(x, &format!("{name}.weight"), &format!("{name}.bias"))
    }

    fn linear_named(&self, x: &Tensor, weight: &str, bias: &str) -> Result<Tensor> {
        x.matmul(&self.tensor(weight)?.t()?)?.broadcast_add(self.tensor(bias)?)
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
        let scaled = centred.broadcast_div(&deviation)?.broadcast_mul(self.tensor(&format!("{name}.weight"))?)?;
        scaled.broadcast_add(self.tensor(&format!("{name}.bias"))?)
    }

    /// `[values]` to `[values, dim]`.
    fn values(&self, values: &[f32]) -> Result<Tensor> {
        let bins = self.tensor("token_emb.emb.weight")?;
        let v = Tensor::from_slice(values, (values.len(), 1), &self.device)?.to_dtype(bins.dtype())?;
        let h = self.linear(&v, "token_emb.mlp")?;
        let h = h.maximum(&(&h * LEAK)?)?;
        let mixture = softmax(&(self.linear(&h, "token_emb.mlp2")? + (h * self.config.bin_alpha)?)?)?;
        let mut out = mixture.matmul(bins)?;
        for (id, name) in [(self.config.mask_token_id, "emb_mask"), (self.config.pad_token_id, "emb_pad")] {
            let is: Vec<u8> = values.iter().map(|v| u8::from(f64::from(*v) == id)).collect();
            if is.contains(&1) {
                let is = Tensor::from_vec(is, (values.len(), 1), &self.device)?.broadcast_as(out.shape())?;
                let special = self.tensor(&format!("token_emb.{name}.weight"))?.broadcast_as(out.shape())?;
                out = is.where_cond(&special, &out)?;
            }
        }
        Ok(out)
    }

    fn genes(&self, positions: &[u32]) -> Result<Tensor> {
        let positions = Tensor::from_slice(positions, positions.len(), &self.device)?;
        self.tensor("pos_emb.weight")?.index_select(&positions, 0)
    }

    /// Encodes the tokens of some cells, packed end to end: `[tokens, dim]`. `starts` says where cells begin and is one
    /// longer than the cells.
    ///
    /// # Errors
    /// A weight is missing or misshapen, or the device has no room.
    pub fn encode(&self, positions: &[u32], values: &[f32], starts: &[usize]) -> Result<Tensor> {
        let mut x = (self.values(values)? + self.genes(positions)?)?;
        for layer in 0..self.config.encoder.depth {
            let at = format!("encoder.transformer_encoder.{layer}");
            let (weight, bias) = (format!("{at}.self_attn.in_proj_weight"), format!("{at}.self_attn.in_proj_bias"));
            let qkv = self.linear_named(&x, &weight, &bias)?;
            let mixed = self.attention(&qkv, starts)?;
            let mixed = self.linear(&mixed, &format!("{at}.self_attn.out_proj"))?;
            x = self.norm(&(x + mixed)?, &format!("{at}.norm1"))?;
            let fed = self.linear(&self.linear(&x, &format!("{at}.linear1"))?.relu()?, &format!("{at}.linear2"))?;
            x = self.norm(&(x + fed)?, &format!("{at}.norm2"))?;
        }
        self.norm(&x, "encoder.norm")
    }

    /// `[tokens, 3·dim]` to `[tokens, dim]`, each cell by itself.
    fn attention(&self, qkv: &Tensor, starts: &[usize]) -> Result<Tensor> {
        let (heads, dim) = (self.config.encoder.heads, self.config.encoder.hidden_dim);
        let mut mixed = Vec::new();
        for cell in starts.windows(2) {
            let n = cell[1] - cell[0];
            let part = |part: usize| {
                let columns = qkv.narrow(0, cell[0], n)?.narrow(1, part * dim, dim)?;
                columns.reshape((n, heads, dim / heads))?.transpose(0, 1)?.contiguous()
            };
            let (q, k, v) =
                ((part(0)? * (1.0 / ((dim / heads) as f64).sqrt()))?, part(1)?.t()?.contiguous()?, part(2)?);
            for first in (0..n).step_by(QUERIES) {
                let q = q.narrow(1, first, QUERIES.min(n - first))?.contiguous()?;
                let weights = softmax(&q.matmul(&k)?)?;
                mixed.push(weights.matmul(&v)?.transpose(0, 1)?.reshape(((), dim))?);
            }
        }
        Tensor::cat(&mixed, 0)
    }

    /// Context embeddings of every position of a cell, T and S included: `[positions, width]`. `encoded` is `[tokens, dim]`;
    /// `values` holds a value for every position, and those of `tokens` are replaced by what the encoder made of them.
    ///
    /// # Errors
    /// As [`Graph::encode`].
    pub fn decode(&self, values: &[f32], tokens: &Tokens, encoded: &Tensor) -> Result<Tensor> {
        let every: Vec<u32> = (0..values.len() as u32).collect();
        let at = Tensor::from_slice(&tokens.positions, tokens.len(), &self.device)?;
        let x = self.values(values)?;
        // What stood there is taken off exactly, and the encoder's put in its place.
        let x = x.index_add(&at, &(encoded - x.index_select(&at, 0)?)?, 0)?;
        let mut x = self.linear(&(x + self.genes(&every)?)?, "decoder_embed")?;
        for layer in 0..self.config.decoder.depth {
            let at = format!("decoder.performer.net.layers.{layer}");
            let attended = self.favor(&self.norm(&x, &format!("{at}.0.norm"))?, &at)?;
            x = (x + attended)?;
            let h = self.linear(&self.norm(&x, &format!("{at}.1.norm"))?, &format!("{at}.1.fn.fn.w1"))?;
            x = (x + self.linear(&h.gelu_erf()?, &format!("{at}.1.fn.fn.w2"))?)?;
        }
        self.norm(&self.norm(&x, "decoder.norm")?, "norm")
    }

    /// Predicted log-normalised expression, `[positions]`, of what [`Graph::decode`] gave.
    ///
    /// # Errors
    /// As [`Graph::encode`].
    pub fn predict(&self, contexts: &Tensor) -> Result<Tensor> {
        self.linear(contexts, "to_final")?.squeeze(D::Minus1)
    }

    fn favor(&self, h: &Tensor, at: &str) -> Result<Tensor> {
        let decoder = &self.config.decoder;
        let (n, heads, dim) = (h.dim(0)?, decoder.heads, decoder.dim_head);
        let part = |name: &str| {
            let x = self.linear(h, &format!("{at}.0.fn.{name}"))?;
            x.reshape((n, heads, dim))?.transpose(0, 1)?.contiguous()
        };
        let matrix = self.tensor(&format!("{at}.0.fn.fast_attention.projection_matrix"))?.t()?;
        let features = |x: &Tensor, is_query: bool| -> Result<Tensor> {
            let scaled = (x * (dim as f64).powf(-0.25))?;
            let y = scaled.reshape((heads * n, dim))?.matmul(&matrix)?.reshape((heads, n, ()))?;
            let norm = (scaled.sqr()?.sum_keepdim(D::Minus1)? * 0.5)?;
            let largest = y.detach().max_keepdim(D::Minus1)?;
            let largest = if is_query { largest } else { largest.max_keepdim(1)?.max_keepdim(0)? };
            y.broadcast_sub(&norm)?.broadcast_sub(&largest)?.exp()? + FEATURE_EPS
        };
        let (q, k, v) = (features(&part("to_q")?, true)?, features(&part("to_k")?, false)?, part("to_v")?);
        let sums = k.t()?.contiguous()?.matmul(&v)?;
        let totals = k.sum_keepdim(1)?.t()?.contiguous()?;
        let attended = q.matmul(&sums)?.broadcast_div(&q.matmul(&totals)?)?;
        self.linear(&attended.transpose(0, 1)?.reshape((n, heads * dim))?, &format!("{at}.0.fn.to_out"))
    }
}

/// Over the last axis, with gradients.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}
