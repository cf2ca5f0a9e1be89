//! The whole model in plain tensor operations, on any device and with gradients: what training runs, what a GPU runs, and
//! what the kernels of the CPU are held against.
//!
//! Only operations whose gradients candle keeps are used (its fused norms and softmax drop them silently). The largest
//! values that keep exponentials in range are constants of the gradient, as in the authors' code. Attention takes cells of
//! like length together, padded to the longest of them, and a block of queries at a time, so no K × K matrix is held.
//!
//! In bf16, products are bf16; value embedding, norms, softmax and random features are computed in f32, where bf16's eight
//! bits would be too few.

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
/// Scores held at once.
const SCORES: usize = 1 << 26;
/// On a device, lengths that differ by less than this are padded to one: a kernel's launch costs as much as some rows.
const BUCKET: usize = 128;

/// A model as named tensors, without the prefix `model.`; trainable where they are variables.
#[derive(Debug, Clone)]
pub struct Graph {
    config: Config,
    tensors: HashMap<String, Tensor>,
    device: Device,
    dtype: DType,
    bucket: usize,
}

impl Graph {
    /// Of named tensors, moved to a device and a type: f32, or bf16 where the device is fast at it.
    ///
    /// # Errors
    /// The device has no room.
    pub fn new(config: Config, tensors: &HashMap<String, Tensor>, device: &Device, dtype: DType) -> Result<Self> {
        let moved = |(name, tensor): (&String, &Tensor)| -> Result<(String, Tensor)> {
            let exact = name.contains("norm") || name.starts_with("token_emb") || name.ends_with("projection_matrix");
            let dtype = if exact { DType::F32 } else { dtype };
            Ok((name.clone(), tensor.to_device(device)?.to_dtype(dtype)?))
        };
        let tensors = tensors.iter().map(moved).collect::<Result<_>>()?;
        let bucket = if device.is_cpu() { 1 } else { BUCKET };
        Ok(Self { config, tensors, device: device.clone(), dtype, bucket })
    }

    /// Pads cells whose lengths differ by less than this together.
    #[cfg(test)]
    pub(super) fn with_bucket(self, bucket: usize) -> Self {
        Self { bucket, ..self }
    }

    /// Positions of the decoder, T and S included.
    pub(super) fn positions(&self) -> usize {
        self.config.seq_len
    }

    /// Where tensors stand.
    pub(super) fn device(&self) -> &Device {
        &self.device
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
        let x = &x.to_dtype(DType::F32)?;
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
        let scaled = centred.broadcast_div(&deviation)?.broadcast_mul(self.tensor(&format!("{name}.weight"))?)?;
        scaled.broadcast_add(self.tensor(&format!("{name}.bias"))?)?.to_dtype(self.dtype)
    }

    /// `[values]` to `[values, dim]`, f32.
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
        let mut x = (self.values(values)?.to_dtype(self.dtype)? + self.genes(positions)?)?;
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
        let parts = self.alike(starts).into_iter().map(|(first, last)| self.attend(qkv, &starts[first..=last]));
        Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
    }

    /// Runs of cells to pad together: `[first, last)`.
    fn alike(&self, starts: &[usize]) -> Vec<(usize, usize)> {
        let length = |cell: usize| starts[cell + 1] - starts[cell];
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for cell in 0..starts.len() - 1 {
            let fits = runs.last().is_some_and(|&(first, last)| {
                let longest = (first..=cell).map(length).max().unwrap_or(0);
                let scores = (last + 1 - first) * self.config.encoder.heads * longest * longest.min(QUERIES);
                (first..=cell).all(|c| length(c) + self.bucket > longest) && scores <= SCORES
            });
            match runs.last_mut() {
                Some(run) if fits => run.1 = cell + 1,
                _ => runs.push((cell, cell + 1)),
            }
        }
        runs
    }

    /// Attention of the cells between these starts, `[their tokens, dim]`.
    fn attend(&self, qkv: &Tensor, starts: &[usize]) -> Result<Tensor> {
        let (heads, dim) = (self.config.encoder.heads, self.config.encoder.hidden_dim);
        let padding = Padding::of(starts);
        let (cells, longest) = (padding.lengths.len(), padding.longest);
        let rows = match padding.is_needed() {
            false => qkv.narrow(0, starts[0], cells * longest)?,
            true => qkv.index_select(&Tensor::new(padding.rows(starts), &self.device)?, 0)?,
        };
        let mask = match padding.is_needed() {
            false => None,
            true => Some(Tensor::from_vec(padding.mask(), (cells, 1, 1, longest), &self.device)?),
        };
        let rows = rows.reshape((cells, longest, 3, heads, dim / heads))?;
        let part = |part: usize| rows.narrow(2, part, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
        let q = (part(0)? * (1.0 / ((dim / heads) as f64).sqrt()))?;
        let (k, v) = (part(1)?.t()?.contiguous()?, part(2)?);
        let mut mixed = Vec::new();
        for first in (0..longest).step_by(QUERIES) {
            let q = q.narrow(2, first, QUERIES.min(longest - first))?.contiguous()?;
            let mut scores = q.matmul(&k)?.to_dtype(DType::F32)?;
            if let Some(mask) = &mask {
                scores = scores.broadcast_add(mask)?;
            }
            let weights = softmax(&scores)?.to_dtype(self.dtype)?;
            mixed.push(weights.matmul(&v)?.transpose(1, 2)?.reshape((cells, (), dim))?);
        }
        let mixed = Tensor::cat(&mixed, 1)?.reshape((cells * longest, dim))?;
        match padding.is_needed() {
            false => Ok(mixed),
            true => mixed.index_select(&Tensor::new(padding.kept(), &self.device)?, 0),
        }
    }

    /// Context embeddings of every position of a cell, T and S included: `[positions, width]`. `encoded` is `[tokens, dim]`;
    /// `values` holds a value for every position, and those of `tokens` are replaced by what the encoder made of them.
    ///
    /// # Errors
    /// As [`Graph::encode`].
    pub fn decode(&self, values: &[f32], tokens: &Tokens, encoded: &Tensor) -> Result<Tensor> {
        let every: Vec<u32> = (0..values.len() as u32).collect();
        let at = Tensor::from_slice(&tokens.positions, tokens.len(), &self.device)?;
        let encoded = encoded.to_dtype(DType::F32)?;
        let x = self.values(values)?;
        // What stood there is taken off exactly, and the encoder's put in its place.
        let x = x.index_add(&at, &(encoded - x.index_select(&at, 0)?)?, 0)?;
        let x = (x.to_dtype(self.dtype)? + self.genes(&every)?)?;
        let mut x = self.linear(&x, "decoder_embed")?;
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
            let scaled = (x.to_dtype(DType::F32)? * (dim as f64).powf(-0.25))?;
            let y = scaled.reshape((heads * n, dim))?.matmul(&matrix)?.reshape((heads, n, ()))?;
            let norm = (scaled.sqr()?.sum_keepdim(D::Minus1)? * 0.5)?;
            let largest = y.detach().max_keepdim(D::Minus1)?;
            let largest = if is_query { largest } else { largest.max_keepdim(1)?.max_keepdim(0)? };
            y.broadcast_sub(&norm)?.broadcast_sub(&largest)?.exp()? + FEATURE_EPS
        };
        let (q, k) = (features(&part("to_q")?, true)?, features(&part("to_k")?, false)?);
        let v = part("to_v")?.to_dtype(DType::F32)?;
        let sums = k.t()?.contiguous()?.matmul(&v)?;
        let totals = k.sum_keepdim(1)?.t()?.contiguous()?;
        let attended = q.matmul(&sums)?.broadcast_div(&q.matmul(&totals)?)?.to_dtype(self.dtype)?;
        self.linear(&attended.transpose(0, 1)?.reshape((n, heads * dim))?, &format!("{at}.0.fn.to_out"))
    }
}

/// Cells of several lengths as rows of one. What is added repeats a cell's last token: as a key it is masked, as a query it
/// is dropped.
struct Padding {
    lengths: Vec<usize>,
    longest: usize,
}

impl Padding {
    fn of(starts: &[usize]) -> Self {
        let lengths: Vec<usize> = starts.windows(2).map(|s| s[1] - s[0]).collect();
        Self { longest: lengths.iter().copied().max().unwrap_or(0), lengths }
    }

    fn is_needed(&self) -> bool {
        self.lengths.iter().any(|n| *n < self.longest)
    }

    /// The packed row that stands at each padded one, `[cells · longest]`.
    fn rows(&self, starts: &[usize]) -> Vec<u32> {
        let cells = starts.iter().zip(&self.lengths);
        cells.flat_map(|(start, n)| (0..self.longest).map(move |i| (start + i.min(n - 1)) as u32)).collect()
    }

    /// What is added to the scores of keys, `[cells · longest]`.
    fn mask(&self) -> Vec<f32> {
        let hidden = |n: usize| (0..self.longest).map(move |i| if i < n { 0.0 } else { f32::NEG_INFINITY });
        self.lengths.iter().flat_map(|n| hidden(*n)).collect()
    }

    /// The padded rows that are tokens, in packed order.
    fn kept(&self) -> Vec<u32> {
        let cells = self.lengths.iter().enumerate();
        cells.flat_map(|(cell, n)| (0..*n).map(move |i| (cell * self.longest + i) as u32)).collect()
    }
}

/// Over the last axis, with gradients.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}
