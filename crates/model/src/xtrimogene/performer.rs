//! Decoder: a Performer (pre-norm, FAVOR+ attention, GELU) over all positions of each cell. Paper: Choromanski et
//! al., "Rethinking Attention with Performers", 2021, <https://arxiv.org/abs/2009.14794>. Original code:
//! `model/pretrainmodels/performer.py`, after <https://github.com/lucidrains/performer-pytorch>.

use std::ops::Range;

use candle_core::{D, DType, Result, Tensor};
use candle_nn::{LayerNorm, Linear, VarBuilder, linear};

use super::ops::{LayerOps, layer_norm};
use crate::fused::CellOffsets;
use crate::{Config, DecoderConfig};

/// Added to every random feature.
const FEATURE_EPS: f64 = 1e-4;

/// Attention of linear cost by positive random features (FAVOR+), within each cell.
#[derive(Debug, Clone)]
struct FavorAttention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    /// Random features, `[features, head dim]`, f32.
    projection_matrix: Tensor,
    heads: usize,
    dim_head: usize,
    ops: LayerOps,
}

impl FavorAttention {
    fn load(vb: VarBuilder, config: &Config, ops: &LayerOps) -> Result<Self> {
        let DecoderConfig { hidden_dim, heads, dim_head, .. } = config.decoder;
        let projection_vb = vb.pp("fast_attention").to_dtype(DType::F32);
        Ok(Self {
            to_q: linear(hidden_dim, heads * dim_head, vb.pp("to_q"))?,
            to_k: linear(hidden_dim, heads * dim_head, vb.pp("to_k"))?,
            to_v: linear(hidden_dim, heads * dim_head, vb.pp("to_v"))?,
            to_out: linear(heads * dim_head, hidden_dim, vb.pp("to_out"))?,
            projection_matrix: projection_vb.get((config.nb_features(), dim_head), "projection_matrix")?,
            heads,
            dim_head,
            ops: ops.clone(),
        })
    }

    /// Rows `[queries, width]` attend to rows `[keys, width]` of their own cell; random features and sums are f32.
    fn forward(&self, queries: (&Tensor, &CellOffsets), keys: (&Tensor, &CellOffsets)) -> Result<Tensor> {
        let project = |layer: &Linear, xs: &Tensor| self.ops.linear(layer, xs)?.to_dtype(DType::F32);
        let (q, k) = (project(&self.to_q, queries.0)?, project(&self.to_k, keys.0)?);
        let v = project(&self.to_v, keys.0)?;
        let attended = match self.ops.fused() {
            Some(fused) => fused.favor([&q, &k, &v], &self.projection_matrix, queries.1, keys.1)?,
            None => {
                let rows = |xs: &Tensor, range: &Range<usize>| xs.narrow(0, range.start, range.len());
                let attend = |(queries, keys): (Range<usize>, Range<usize>)| {
                    self.attend([&rows(&q, &queries)?, &rows(&k, &keys)?, &rows(&v, &keys)?])
                };
                let cells = queries.1.ranges().zip(keys.1.ranges());
                Tensor::cat(&cells.map(attend).collect::<Result<Vec<_>>>()?, 0)?
            }
        };
        self.ops.linear(&self.to_out, &attended.to_dtype(queries.0.dtype())?)
    }

    /// Attention of one cell: `[queries, heads · head dim]`.
    fn attend(&self, [q, k, v]: [&Tensor; 3]) -> Result<Tensor> {
        let rows = q.dim(0)?;
        let q = self.features(q, |projected| projected.max_keepdim(D::Minus1))?;
        let k = self.features(k, |projected| projected.max_keepdim(D::Minus1)?.max_keepdim(1)?.max_keepdim(0))?;
        let v = self.by_head(v)?;
        let sums = k.t()?.contiguous()?.matmul(&v)?;
        let totals = k.sum_keepdim(1)?.t()?.contiguous()?;
        let attended = q.matmul(&sums)?.broadcast_div(&q.matmul(&totals)?)?;
        attended.transpose(0, 1)?.reshape((rows, self.heads * self.dim_head))
    }

    /// `[rows, heads · head dim]` to `[heads, rows, head dim]`.
    fn by_head(&self, xs: &Tensor) -> Result<Tensor> {
        xs.reshape((xs.dim(0)?, self.heads, self.dim_head))?.transpose(0, 1)?.contiguous()
    }

    /// Random features, `[heads, rows, features]`. The maximum of the projections keeps exponentials in range and is
    /// a constant of the gradient, as in the authors' code: that of each row for queries, that of all rows for keys.
    fn features(&self, xs: &Tensor, max: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let scaled = (self.by_head(xs)? * (self.dim_head as f64).powf(-0.25))?;
        let projected = scaled.reshape(((), self.dim_head))?.matmul(&self.projection_matrix.t()?)?;
        let projected = projected.reshape((self.heads, xs.dim(0)?, ()))?;
        let half_square = (scaled.sqr()?.sum_keepdim(D::Minus1)? * 0.5)?;
        let max = max(&projected.detach())?;
        projected.broadcast_sub(&half_square)?.broadcast_sub(&max)?.exp()? + FEATURE_EPS
    }
}

/// Attention and feed-forward network, each after a layer norm and within a residual sum.
#[derive(Debug, Clone)]
struct PerformerLayer {
    attn_norm: LayerNorm,
    attn: FavorAttention,
    ff_norm: LayerNorm,
    w1: Linear,
    w2: Linear,
    ops: LayerOps,
}

impl PerformerLayer {
    fn load(vb: VarBuilder, config: &Config, ops: &LayerOps) -> Result<Self> {
        let (dim, attn, ff) = (config.decoder.hidden_dim, vb.pp(0), vb.pp(1));
        Ok(Self {
            attn_norm: layer_norm(dim, attn.pp("norm"))?,
            attn: FavorAttention::load(attn.pp("fn"), config, ops)?,
            ff_norm: layer_norm(dim, ff.pp("norm"))?,
            w1: linear(dim, 4 * dim, ff.pp("fn.fn.w1"))?,
            w2: linear(4 * dim, dim, ff.pp("fn.fn.w2"))?,
            ops: ops.clone(),
        })
    }

    /// `[rows, dim]` to `[rows, dim]`, or to the `selected` rows with their offsets.
    fn forward(&self, xs: &Tensor, cells: &CellOffsets, selected: Option<(&[u32], &CellOffsets)>) -> Result<Tensor> {
        let keys = self.ops.layer_norm(&self.attn_norm, xs)?;
        let xs = match selected {
            None => (xs + self.attn.forward((&keys, cells), (&keys, cells))?)?,
            Some((rows, offsets)) => {
                let queries = self.ops.index_select(&keys, rows)?;
                let attended = self.attn.forward((&queries, offsets), (&keys, cells))?;
                (self.ops.index_select(xs, rows)? + attended)?
            }
        };
        let hidden = self.ops.linear(&self.w1, &self.ops.layer_norm(&self.ff_norm, &xs)?)?;
        let hidden = self.ops.linear(&self.w2, &self.ops.gelu(&hidden)?)?;
        xs + hidden
    }
}

/// Layers of the decoder and a final layer norm.
#[derive(Debug, Clone)]
pub(super) struct Performer {
    layers: Vec<PerformerLayer>,
    norm: LayerNorm,
    ops: LayerOps,
}

impl Performer {
    pub(super) fn load(vb: VarBuilder, config: &Config, ops: &LayerOps) -> Result<Self> {
        let layer = |i| PerformerLayer::load(vb.pp("performer.net.layers").pp(i), config, ops);
        Ok(Self {
            layers: (0..config.decoder.depth).map(layer).collect::<Result<_>>()?,
            norm: layer_norm(config.decoder.hidden_dim, vb.pp("norm"))?,
            ops: ops.clone(),
        })
    }

    /// `[rows, dim]` to `[rows, dim]`, or to the `selected` rows, which are ascending. The last layer computes only
    /// those.
    pub(super) fn forward(&self, xs: &Tensor, cells: &CellOffsets, selected: Option<&[u32]>) -> Result<Tensor> {
        let offsets = selected.map(|rows| cells.select(rows, xs.device())).transpose()?;
        let selected = selected.zip(offsets.as_ref());
        let mut xs = xs.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            xs = layer.forward(&xs, cells, selected.filter(|_| i + 1 == self.layers.len()))?;
        }
        self.ops.layer_norm(&self.norm, &xs)
    }
}
