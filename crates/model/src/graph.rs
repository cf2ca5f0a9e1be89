//! The whole model in plain tensor operations, on any device and with gradients: what training runs, what a GPU runs, and
//! what the kernels of the CPU are held against.
//!
//! Only operations whose gradients candle keeps are used (its fused norms and softmax drop them silently). The largest
//! values that keep exponentials in range are constants of the gradient, as in the authors' code. Attention takes a cell
//! and a block of queries at a time, so no K × K matrix is held.
//! On a CUDA device both kinds of attention, linear layers, norms, GELU and rows by name are functions of [`crate::fused`].
//!
//! In bf16, products are bf16; value embedding, norms, softmax and random features are computed in f32, where bf16's eight
//! bits would be too few.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{D, DType, Device, Result, Tensor};

use crate::fused::{Cells, Fused};
use crate::{Config, Tokens};

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
    dtype: DType,
    /// Functions of the device, in place of plain tensors.
    fused: Option<Fused>,
}

/// A cell as the decoder reads it.
#[derive(Debug, Clone)]
pub struct Whole {
    /// A value for every position, T and S included.
    pub values: Vec<f32>,
    /// What the encoder read: at their positions its results stand in place of values.
    pub tokens: Tokens,
}

impl Graph {
    /// Of named tensors, moved to a device and a type: f32, or bf16 where the device is fast at it. A CUDA device must have a stream of
    /// its own, as [`Device::new_cuda_with_stream`] opens it.
    ///
    /// # Errors
    /// The device has no room, or its compiler says no.
    pub fn new(config: Config, tensors: &HashMap<String, Tensor>, device: &Device, dtype: DType) -> Result<Self> {
        let fused = device.is_cuda().then(|| Fused::new(device, &config, tensors)).transpose()?;
        Self::over(config, tensors, device, dtype, fused)
    }

    /// The same with functions of the device that are there already, or with none.
    ///
    /// # Errors
    /// As [`Graph::new`].
    pub fn over(
        config: Config,
        tensors: &HashMap<String, Tensor>,
        device: &Device,
        dtype: DType,
        fused: Option<Fused>,
    ) -> Result<Self> {
        let moved = |(name, tensor): (&String, &Tensor)| -> Result<(String, Tensor)> {
            let exact = name.contains("norm") || name.starts_with("token_emb") || name.ends_with("projection_matrix");
            let dtype = if exact { DType::F32 } else { dtype };
            Ok((name.clone(), tensor.to_device(device)?.to_dtype(dtype)?))
        };
        let tensors = tensors.iter().map(moved).collect::<Result<_>>()?;
        Ok(Self { config, tensors, device: device.clone(), dtype, fused })
    }

    /// Positions of the decoder, T and S included.
    pub fn positions(&self) -> usize {
        self.config.seq_len
    }

    /// Where tensors stand.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| candle_core::Error::Msg(format!("weight '{name}' is missing")))
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        self.linear_named(x, &format!("{name}.weight"), &format!("{name}.bias"))
    }

    fn linear_named(&self, x: &Tensor, weight: &str, bias: &str) -> Result<Tensor> {
        let (weight, bias) = (self.tensor(weight)?, self.tensor(bias)?);
        match &self.fused {
            Some(fused) => fused.linear(x, weight, bias),
            None => x.matmul(&weight.t()?)?.broadcast_add(bias),
        }
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let x = &x.to_dtype(DType::F32)?;
        if let Some(fused) = &self.fused {
            let [weight, bias] = [self.tensor(&format!("{name}.weight"))?, self.tensor(&format!("{name}.bias"))?];
            return fused.norm(x, weight, bias)?.to_dtype(self.dtype);
        }
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

    /// Rows of `x` by name.
    fn rows(&self, x: &Tensor, names: &[u32]) -> Result<Tensor> {
        match self.fused.as_ref().filter(|_| x.track_op()) {
            Some(fused) => fused.rows(&x.to_dtype(DType::F32)?, names)?.to_dtype(x.dtype()),
            None => x.index_select(&Tensor::new(names, &self.device)?, 0),
        }
    }

    fn gelu(&self, x: &Tensor) -> Result<Tensor> {
        match &self.fused {
            Some(fused) => fused.gelu(&x.to_dtype(DType::F32)?)?.to_dtype(self.dtype),
            None => x.gelu_erf(),
        }
    }

    /// Encodes the tokens of some cells, packed end to end: `[tokens, dim]`. `starts` says where cells begin and is one
    /// longer than the cells.
    ///
    /// # Errors
    /// A weight is missing or misshapen, or the device has no room.
    pub fn encode(&self, positions: &[u32], values: &[f32], starts: &[usize]) -> Result<Tensor> {
        let mut x =
            (self.values(values)?.to_dtype(self.dtype)? + self.rows(self.tensor("pos_emb.weight")?, positions)?)?;
        let cells = self.fused.as_ref().map(|_| self.cells(starts)).transpose()?;
        for layer in 0..self.config.encoder.depth {
            let at = format!("encoder.transformer_encoder.{layer}");
            let (weight, bias) = (format!("{at}.self_attn.in_proj_weight"), format!("{at}.self_attn.in_proj_bias"));
            let qkv = self.linear_named(&x, &weight, &bias)?;
            let mixed = match (&self.fused, &cells) {
                (Some(fused), Some(cells)) => {
                    fused.attention(&qkv.to_dtype(DType::F32)?, cells)?.to_dtype(self.dtype)?
                }
                _ => self.attention(&qkv, starts)?,
            };
            let mixed = self.linear(&mixed, &format!("{at}.self_attn.out_proj"))?;
            x = self.norm(&(x + mixed)?, &format!("{at}.norm1"))?;
            let fed = self.linear(&self.linear(&x, &format!("{at}.linear1"))?.relu()?, &format!("{at}.linear2"))?;
            x = self.norm(&(x + fed)?, &format!("{at}.norm2"))?;
        }
        self.norm(&x, "encoder.norm")
    }

    fn cells(&self, starts: &[usize]) -> Result<Cells> {
        Cells::new(starts.iter().map(|start| *start as u32).collect(), &self.device)
    }

    /// `[tokens, 3·dim]` to `[tokens, dim]`, each cell by itself.
    fn attention(&self, qkv: &Tensor, starts: &[usize]) -> Result<Tensor> {
        let parts = starts.windows(2).map(|cell| self.attend(&qkv.narrow(0, cell[0], cell[1] - cell[0])?));
        Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
    }

    /// Attention of one cell, a block of queries at a time.
    fn attend(&self, qkv: &Tensor) -> Result<Tensor> {
        let (tokens, heads, dim) = (qkv.dim(0)?, self.config.encoder.heads, self.config.encoder.hidden_dim);
        let rows = qkv.reshape((tokens, 3, heads, dim / heads))?;
        let part = |part: usize| rows.narrow(1, part, 1)?.squeeze(1)?.transpose(0, 1)?.contiguous();
        let q = (part(0)? * (1.0 / ((dim / heads) as f64).sqrt()))?;
        let (k, v) = (part(1)?.t()?.contiguous()?, part(2)?);
        let of_block = |first: usize| {
            let q = q.narrow(1, first, QUERIES.min(tokens - first))?.contiguous()?;
            let weights = softmax(&q.matmul(&k)?.to_dtype(DType::F32)?)?.to_dtype(self.dtype)?;
            weights.matmul(&v)?.transpose(0, 1)?.reshape(((), dim))
        };
        Tensor::cat(&(0..tokens).step_by(QUERIES).map(of_block).collect::<Result<Vec<_>>>()?, 0)
    }

    /// Context embeddings of cells: of all their positions, T and S included, `[cells · positions, width]`, or of the `wanted` rows
    /// of those, in ascending order. `encoded` is `[tokens, dim]`, of all cells' tokens end to end.
    ///
    /// # Errors
    /// As [`Graph::encode`].
    pub fn decode(&self, cells: &[Whole], encoded: &Tensor, wanted: Option<&[u32]>) -> Result<Tensor> {
        let n = self.positions();
        let x = self.entered(cells, encoded)?.reshape((cells.len(), n, ()))?;
        let genes = self.tensor("pos_emb.weight")?.narrow(0, 0, n)?;
        let x = x.to_dtype(self.dtype)?.broadcast_add(&genes)?.reshape((cells.len() * n, ()))?;
        let mut x = self.linear(&x, "decoder_embed")?;
        let firsts = (0..=cells.len()).map(|cell| cell * n);
        let all = self.cells(&firsts.clone().collect::<Vec<_>>())?;
        let before = |rows: &[u32], first: usize| rows.partition_point(|row| (*row as usize) < first);
        let asked = match wanted {
            Some(rows) => self.cells(&firsts.map(|first| before(rows, first)).collect::<Vec<_>>())?,
            None => all.clone(),
        };
        for layer in 0..self.config.decoder.depth {
            let at = format!("decoder.performer.net.layers.{layer}");
            // Nothing asks what else the last layer would give.
            let wanted = wanted.filter(|_| layer + 1 == self.config.decoder.depth);
            let keys = self.norm(&x, &format!("{at}.0.norm"))?;
            let (queries, of) = match wanted {
                None => (keys.clone(), x),
                Some(wanted) => (self.rows(&keys, wanted)?, self.rows(&x, wanted)?),
            };
            x = (of + self.favor([&queries, &keys], &at, [wanted.map_or(&all, |_| &asked), &all])?)?;
            let h = self.linear(&self.norm(&x, &format!("{at}.1.norm"))?, &format!("{at}.1.fn.fn.w1"))?;
            x = (x + self.linear(&self.gelu(&h)?, &format!("{at}.1.fn.fn.w2"))?)?;
        }
        self.norm(&self.norm(&x, "decoder.norm")?, "norm")
    }

    /// What enters the decoder, `[cells · positions, dim]`, f32: at tokens what the encoder made of them, elsewhere embedded values,
    /// each value embedded once.
    fn entered(&self, cells: &[Whole], encoded: &Tensor) -> Result<Tensor> {
        let n = self.positions();
        let (mut values, mut number_of) = (Vec::new(), HashMap::new());
        // First the tokens, then the values as they are met.
        let tokens = encoded.dim(0)? as u32;
        let (mut rows, mut token) = (Vec::with_capacity(cells.len() * n), 0u32);
        for Whole { values: of_cell, tokens: read } in cells {
            let mut token_at = vec![u32::MAX; n];
            for position in &read.positions {
                token_at[*position as usize] = token;
                token += 1;
            }
            rows.extend(token_at.iter().zip(of_cell).map(|(token, value)| match *token {
                u32::MAX => *number_of.entry(value.to_bits()).or_insert_with(|| {
                    values.push(*value);
                    tokens + values.len() as u32 - 1
                }),
                token => token,
            }));
        }
        let encoded = encoded.to_dtype(DType::F32)?;
        match values.is_empty() {
            true => self.rows(&encoded, &rows),
            false => self.rows(&Tensor::cat(&[encoded, self.values(&values)?], 0)?, &rows),
        }
    }

    /// Predicted log-normalised expression, `[positions]`, of what [`Graph::decode`] gave.
    ///
    /// # Errors
    /// As [`Graph::encode`].
    pub fn predict(&self, contexts: &Tensor) -> Result<Tensor> {
        self.linear(contexts, "to_final")?.squeeze(D::Minus1)
    }

    /// Attention of the decoder, from normed rows that ask to normed rows that are asked, each cell's to its own; `cells` of both.
    fn favor(&self, [queries, keys]: [&Tensor; 2], at: &str, cells: [&Cells; 2]) -> Result<Tensor> {
        let part = |h: &Tensor, name: &str| self.linear(h, &format!("{at}.0.fn.{name}"))?.to_dtype(DType::F32);
        let (q, k, v) = (part(queries, "to_q")?, part(keys, "to_k")?, part(keys, "to_v")?);
        let matrix = self.tensor(&format!("{at}.0.fn.fast_attention.projection_matrix"))?;
        let attended = match &self.fused {
            Some(fused) => fused.favor([&q, &k, &v], matrix, cells[0], cells[1])?,
            None => {
                let of = |x: &Tensor, rows: &Range<usize>| x.narrow(0, rows.start, rows.len());
                let of_cell = |(asking, asked): (Range<usize>, Range<usize>)| -> Result<Tensor> {
                    self.favor_of_cell([&of(&q, &asking)?, &of(&k, &asked)?, &of(&v, &asked)?], matrix)
                };
                let cells = cells[0].rows().zip(cells[1].rows());
                Tensor::cat(&cells.map(of_cell).collect::<Result<Vec<_>>>()?, 0)?
            }
        };
        self.linear(&attended.to_dtype(self.dtype)?, &format!("{at}.0.fn.to_out"))
    }

    fn favor_of_cell(&self, [q, k, v]: [&Tensor; 3], matrix: &Tensor) -> Result<Tensor> {
        let (heads, dim) = (self.config.decoder.heads, self.config.decoder.dim_head);
        let by_head = |x: &Tensor| x.reshape((x.dim(0)?, heads, dim))?.transpose(0, 1)?.contiguous();
        let features = |x: &Tensor, is_query: bool| -> Result<Tensor> {
            let scaled = (by_head(x)? * (dim as f64).powf(-0.25))?;
            let y = scaled.reshape(((), dim))?.matmul(&matrix.t()?)?.reshape((heads, x.dim(0)?, ()))?;
            let norm = (scaled.sqr()?.sum_keepdim(D::Minus1)? * 0.5)?;
            let largest = y.detach().max_keepdim(D::Minus1)?;
            let largest = if is_query { largest } else { largest.max_keepdim(1)?.max_keepdim(0)? };
            y.broadcast_sub(&norm)?.broadcast_sub(&largest)?.exp()? + FEATURE_EPS
        };
        let (rows, q, k, v) = (q.dim(0)?, features(q, true)?, features(k, false)?, by_head(v)?);
        let sums = k.t()?.contiguous()?.matmul(&v)?;
        let totals = k.sum_keepdim(1)?.t()?.contiguous()?;
        q.matmul(&sums)?.broadcast_div(&q.matmul(&totals)?)?.transpose(0, 1)?.reshape((rows, heads * dim))
    }
}

/// Over the last axis, with gradients.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}
