//! The encoder, there and back, for one cell: post-norm transformer layers over its tokens.
//!
//! Only what enters each layer and what attention gave is kept; on the way back a layer computes the rest again. So a cell
//! takes `2·depth + 1` rows a token, and one layer's own numbers at a time.

use cellql_kernels::{
    Activations, AttentionScratch, BLOCK, DenseGradient, DenseScratch, Form, Isa, LearningAttention, Rows, Then,
};

use super::super::parameters::Parameters;
use super::layers::{Linear, Norm, NormGradient};
use crate::error::Result;

#[derive(Debug)]
struct Layer {
    in_proj: Linear,
    out_proj: Linear,
    linear1: Linear,
    linear2: Linear,
    norm1: Norm,
    norm2: Norm,
}

#[derive(Debug, Clone)]
struct LayerGradient {
    in_proj: DenseGradient,
    out_proj: DenseGradient,
    linear1: DenseGradient,
    linear2: DenseGradient,
    norm1: NormGradient,
    norm2: NormGradient,
}

/// The encoder, packed for a step.
#[derive(Debug)]
pub(super) struct Encoder {
    layers: Vec<Layer>,
    norm: Norm,
    attention: LearningAttention,
    dim: usize,
}

/// Its gradient.
#[derive(Debug, Clone)]
pub(super) struct EncoderGradient {
    layers: Vec<LayerGradient>,
    norm: NormGradient,
}

/// What the way back needs of the way there.
#[derive(Debug)]
pub(super) struct Kept {
    /// What entered each layer, and the last norm: `[tokens, dim]` each.
    entered: Vec<Rows>,
    /// What attention gave in each layer.
    attended: Vec<Rows>,
}

/// Memory of one thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    qkv: Rows,
    d_qkv: Rows,
    d_attended: Rows,
    before1: Rows,
    y: Rows,
    hidden: Rows,
    before2: Rows,
    d_before2: Rows,
    d_hidden: Rows,
    d_y: Rows,
    activations: Activations,
    dense: DenseScratch,
    attention: AttentionScratch,
}

/// Blocks of some rows: the first row and how many.
pub(super) fn blocks(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(BLOCK).map(move |first| (first, BLOCK.min(rows - first)))
}

impl Encoder {
    pub(super) fn pack(parameters: &Parameters, form: Form) -> Result<Self> {
        let (dim, heads) = (parameters.config().encoder.hidden_dim, parameters.config().encoder.heads);
        let layer = |n: usize| -> Result<Layer> {
            let at = format!("encoder.transformer_encoder.{n}");
            let (weight, bias) = (format!("{at}.self_attn.in_proj_weight"), format!("{at}.self_attn.in_proj_bias"));
            let linear = |name: &str, from, to| Linear::pack(parameters, form, &format!("{at}.{name}"), from, to);
            Ok(Layer {
                in_proj: Linear::pack_named(parameters, form, &weight, &bias, dim, 3 * dim)?,
                out_proj: linear("self_attn.out_proj", dim, dim)?,
                linear1: linear("linear1", dim, 4 * dim)?,
                linear2: linear("linear2", 4 * dim, dim)?,
                norm1: Norm::pack(parameters, &format!("{at}.norm1"), dim)?,
                norm2: Norm::pack(parameters, &format!("{at}.norm2"), dim)?,
            })
        };
        Ok(Self {
            layers: (0..parameters.config().encoder.depth).map(layer).collect::<Result<_>>()?,
            norm: Norm::pack(parameters, "encoder.norm", dim)?,
            attention: LearningAttention { isa: Isa::best(), heads, dim: dim / heads },
            dim,
        })
    }

    pub(super) fn gradient(&self) -> EncoderGradient {
        let layer = |layer: &Layer| LayerGradient {
            in_proj: layer.in_proj.gradient(),
            out_proj: layer.out_proj.gradient(),
            linear1: layer.linear1.gradient(),
            linear2: layer.linear2.gradient(),
            norm1: layer.norm1.gradient(),
            norm2: layer.norm2.gradient(),
        };
        EncoderGradient { layers: self.layers.iter().map(layer).collect(), norm: self.norm.gradient() }
    }

    /// Encodes the tokens of a cell, `[tokens, dim]`; also what the way back needs.
    pub(super) fn forward(&self, x: Rows, tokens: usize, scratch: &mut Scratch) -> (Rows, Kept) {
        let (mut entered, mut attended) = (vec![x], Vec::new());
        for (n, layer) in self.layers.iter().enumerate() {
            let x = &entered[n];
            self.queries(layer, x, tokens, scratch);
            let mut mixed = Rows::new(tokens, self.dim);
            self.attention.forward(scratch.qkv.part(0), tokens, mixed.part_mut(0), &mut scratch.attention);
            let mut out = Rows::new(tokens, self.dim);
            for (first, rows) in blocks(tokens) {
                self.feed(layer, x, &mixed, first, rows, scratch);
                layer.norm2.forward(scratch.before2.part(0), rows, &mut scratch.d_y);
                (0..rows).for_each(|i| out.row_mut(first + i).copy_from_slice(scratch.d_y.row(i)));
            }
            entered.push(out);
            attended.push(mixed);
        }
        let mut encoded = Rows::new(tokens, self.dim);
        for (first, rows) in blocks(tokens) {
            self.norm.forward(entered[self.layers.len()].part(first), rows, &mut scratch.y);
            (0..rows).for_each(|i| encoded.row_mut(first + i).copy_from_slice(scratch.y.row(i)));
        }
        (encoded, Kept { entered, attended })
    }

    /// Queries, keys and values of every token.
    fn queries(&self, layer: &Layer, x: &Rows, tokens: usize, scratch: &mut Scratch) {
        let Scratch { qkv, activations, .. } = scratch;
        qkv.resize(tokens, 3 * self.dim);
        for (first, rows) in blocks(tokens) {
            layer.in_proj.dense.forward(x.part(first), rows, Then::Bias, qkv.part_mut(first), activations);
        }
    }

    /// A block after attention: sums before each norm, and what stands between.
    fn feed(&self, layer: &Layer, x: &Rows, attended: &Rows, first: usize, rows: usize, scratch: &mut Scratch) {
        let Scratch { before1, y, hidden, before2, activations, .. } = scratch;
        before1.resize(BLOCK, self.dim);
        hidden.resize(BLOCK, 4 * self.dim);
        before2.resize(BLOCK, self.dim);
        let residual = x.part(first);
        let add = Then::Add { data: residual.0, row: residual.1 };
        layer.out_proj.dense.forward(attended.part(first), rows, add, before1.part_mut(0), activations);
        layer.norm1.forward(before1.part(0), rows, y);
        layer.linear1.dense.forward(y.part(0), rows, Then::Relu, hidden.part_mut(0), activations);
        let add = Then::Add { data: y.from(0), row: y.stride() };
        layer.linear2.dense.forward(hidden.part(0), rows, add, before2.part_mut(0), activations);
    }

    /// From the gradient of the encoded tokens to that of the tokens, in place.
    pub(super) fn back(
        &self,
        kept: &Kept,
        tokens: usize,
        d: &mut Rows,
        gradient: &mut EncoderGradient,
        scratch: &mut Scratch,
    ) {
        let before = Rows::clone(d);
        d.clear();
        let Kept { entered, attended } = kept;
        let last = &entered[self.layers.len()];
        self.norm.back(last.part(0), before.part(0), tokens, d.part_mut(0), &mut gradient.norm);
        for (n, layer) in self.layers.iter().enumerate().rev() {
            self.queries(layer, &entered[n], tokens, scratch);
            let gradient = &mut gradient.layers[n];
            scratch.d_attended.resize(tokens, self.dim);
            scratch.d_qkv.resize(tokens, 3 * self.dim);
            for (first, rows) in blocks(tokens) {
                self.feed(layer, &entered[n], &attended[n], first, rows, scratch);
                self.feed_back(layer, &attended[n], first, rows, d, gradient, scratch);
            }
            let Scratch { qkv, d_qkv, d_attended, y: around, attention, activations, dense, .. } = scratch;
            self.attention.back(qkv.part(0), tokens, d_attended.part(0), d_qkv.part_mut(0), attention);
            for (first, rows) in blocks(tokens) {
                gradient.in_proj.add(d_qkv.part(first), entered[n].part(first), rows, dense);
                (0..rows).for_each(|i| around.row_mut(i).copy_from_slice(d.row(first + i)));
                let add = Then::Add { data: around.from(0), row: around.stride() };
                layer.in_proj.dense.back(d_qkv.part(first), rows, add, d.part_mut(first), activations);
            }
        }
    }

    /// The way back of [`Encoder::feed`] and the norm after it: `d` becomes the gradient that goes around attention.
    #[allow(clippy::too_many_arguments, reason = "a layer's inputs and the gradients of each")]
    fn feed_back(
        &self,
        layer: &Layer,
        attended: &Rows,
        first: usize,
        rows: usize,
        d: &mut Rows,
        gradient: &mut LayerGradient,
        scratch: &mut Scratch,
    ) {
        let Scratch { d_attended, before1, y, hidden, before2, d_before2, d_hidden, d_y, activations, dense, .. } =
            scratch;
        for (rows, width) in [(&mut *d_before2, self.dim), (&mut *d_hidden, 4 * self.dim), (&mut *d_y, self.dim)] {
            rows.resize(BLOCK, width);
        }
        d_before2.clear();
        layer.norm2.back(before2.part(0), d.part(first), rows, d_before2.part_mut(0), &mut gradient.norm2);
        gradient.linear2.add(d_before2.part(0), hidden.part(0), rows, dense);
        layer.linear2.dense.back(d_before2.part(0), rows, Then::Bias, d_hidden.part_mut(0), activations);
        for i in 0..rows {
            let through = d_hidden.row_mut(i).iter_mut().zip(hidden.row(i));
            through.for_each(|(d, h)| *d = if *h > 0.0 { *d } else { 0.0 });
        }
        gradient.linear1.add(d_hidden.part(0), y.part(0), rows, dense);
        let add = Then::Add { data: d_before2.from(0), row: d_before2.stride() };
        layer.linear1.dense.back(d_hidden.part(0), rows, add, d_y.part_mut(0), activations);
        (first..first + rows).for_each(|i| d.row_mut(i).fill(0.0));
        layer.norm1.back(before1.part(0), d_y.part(0), rows, d.part_mut(first), &mut gradient.norm1);
        gradient.out_proj.add(d.part(first), attended.part(first), rows, dense);
        layer.out_proj.dense.back(d.part(first), rows, Then::Bias, d_attended.part_mut(first), activations);
    }

    /// Adds a gradient to the row of all gradients.
    pub(super) fn add_to(&self, gradient: &EncoderGradient, flat: &mut [f32]) {
        for (layer, gradient) in self.layers.iter().zip(&gradient.layers) {
            layer.in_proj.add_to(&gradient.in_proj, flat);
            layer.out_proj.add_to(&gradient.out_proj, flat);
            layer.linear1.add_to(&gradient.linear1, flat);
            layer.linear2.add_to(&gradient.linear2, flat);
            layer.norm1.add_to(&gradient.norm1, flat);
            layer.norm2.add_to(&gradient.norm2, flat);
        }
        self.norm.add_to(&gradient.norm, flat);
    }
}
