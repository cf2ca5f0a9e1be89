//! The encoder, there and back, for one cell: post-norm transformer layers over its tokens.
//!
//! A thread keeps what the way back reads: of each layer what entered, queries, keys and values, what attention gave, and the
//! feed-forward's numbers, some `11·depth + 1` times `[tokens, dim]`. Where memory is short, only what entered and what
//! attention gave, `2·depth + 1`, and a layer computes the rest again on its way back.

use cellql_kernels::{
    Activations, AttentionScratch, BLOCK, DenseGradient, DenseScratch, Form, Isa, LearningAttention, Rows, Then,
};

use super::layers::{Linear, Norm, NormGradient};
use crate::error::Result;
use crate::parameters::Parameters;

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
#[derive(Debug, Default)]
struct Kept {
    /// What entered each layer, and the last norm: `[tokens, dim]` each.
    entered: Vec<Rows>,
    /// What attention gave in each layer, and the logarithms of its sums, `[heads, tokens]`.
    attended: Vec<(Rows, Vec<f32>)>,
    /// Queries, keys and values, `[tokens, 3·dim]`, of each layer or of the one that was computed last.
    qkv: Vec<Rows>,
    /// What stands between attention and the next layer, of each layer or of the block that was computed last.
    fed: Vec<Fed>,
}

/// What a layer computes of what attention gave: the sums before each norm, `[…, dim]`, and hidden numbers, `[…, 4·dim]`.
#[derive(Debug, Default)]
struct Fed {
    before1: Rows,
    hidden: Rows,
    before2: Rows,
}

/// Memory of one thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Whether what could be computed again is kept.
    pub(super) keeps: bool,
    kept: Kept,
    d_qkv: Rows,
    d_attended: Rows,
    y: Rows,
    d_before2: Rows,
    d_hidden: Rows,
    d_y: Rows,
    activations: Activations,
    dense: DenseScratch,
    attention: AttentionScratch,
}

impl Scratch {
    /// Where a layer's numbers stand.
    fn slot(&self, layer: usize) -> usize {
        if self.keeps { layer } else { 0 }
    }

    /// Where those of a block's first row stand.
    fn place(&self, first: usize) -> usize {
        if self.keeps { first } else { 0 }
    }

    /// Room for a cell's tokens in some layers.
    fn make_room(&mut self, (layers, tokens, dim, heads): (usize, usize, usize, usize)) {
        let rows = if self.keeps { tokens } else { BLOCK };
        let slots = self.slot(layers - 1) + 1;
        let Kept { entered, attended, qkv, fed } = &mut self.kept;
        entered.resize_with(layers + 1, Rows::default);
        entered.iter_mut().skip(1).for_each(|entered| entered.resize(tokens, dim));
        attended.resize_with(layers, Default::default);
        for (attended, log_sums) in attended {
            attended.resize(tokens, dim);
            log_sums.resize(heads * tokens, 0.0);
        }
        qkv.resize_with(slots, Rows::default);
        qkv.iter_mut().for_each(|qkv| qkv.resize(tokens, 3 * dim));
        fed.resize_with(slots, Fed::default);
        for Fed { before1, hidden, before2 } in fed {
            before1.resize(rows, dim);
            hidden.resize(rows, 4 * dim);
            before2.resize(rows, dim);
        }
    }
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
            attention: LearningAttention { isa: Isa::best(), form, heads, dim: dim / heads },
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

    /// Encodes the tokens of a cell, `[tokens, dim]`; what the way back needs stays in `scratch`.
    pub(super) fn forward(&self, x: Rows, tokens: usize, scratch: &mut Scratch) -> Rows {
        scratch.make_room((self.layers.len(), tokens, self.dim, self.attention.heads));
        scratch.kept.entered[0] = x;
        for (n, layer) in self.layers.iter().enumerate() {
            self.queries(n, tokens, scratch);
            let slot = scratch.slot(n);
            let Scratch { kept, attention, .. } = &mut *scratch;
            let (attended, log_sums) = &mut kept.attended[n];
            self.attention.forward(kept.qkv[slot].part(0), tokens, attended.part_mut(0), log_sums, attention);
            for (first, rows) in blocks(tokens) {
                self.feed(n, first, rows, scratch);
                let place = scratch.place(first);
                let Scratch { kept, d_y: out, .. } = &mut *scratch;
                layer.norm2.forward(kept.fed[slot].before2.part(place), rows, out);
                kept.entered[n + 1].scatter(out, first..first + rows);
            }
        }
        let mut encoded = Rows::new(tokens, self.dim);
        for (first, rows) in blocks(tokens) {
            self.norm.forward(scratch.kept.entered[self.layers.len()].part(first), rows, &mut scratch.y);
            encoded.scatter(&scratch.y, first..first + rows);
        }
        encoded
    }

    /// Queries, keys and values of every token.
    fn queries(&self, n: usize, tokens: usize, scratch: &mut Scratch) {
        let slot = scratch.slot(n);
        let Scratch { kept: Kept { entered, qkv, .. }, activations, .. } = scratch;
        for (first, rows) in blocks(tokens) {
            let (x, out) = (entered[n].part(first), qkv[slot].part_mut(first));
            self.layers[n].in_proj.dense.forward(x, rows, Then::Bias, out, activations);
        }
    }

    /// A block after attention: sums before each norm, and what stands between; what left the first norm into `scratch.y`.
    fn feed(&self, n: usize, first: usize, rows: usize, scratch: &mut Scratch) {
        let (layer, slot, place) = (&self.layers[n], scratch.slot(n), scratch.place(first));
        let Scratch { kept: Kept { entered, attended, fed, .. }, y, activations, .. } = scratch;
        let Fed { before1, hidden, before2 } = &mut fed[slot];
        let residual = entered[n].part(first);
        let add = Then::Add { data: residual.0, row: residual.1 };
        let attended = attended[n].0.part(first);
        layer.out_proj.dense.forward(attended, rows, add, before1.part_mut(place), activations);
        layer.norm1.forward(before1.part(place), rows, y);
        layer.linear1.dense.forward(y.part(0), rows, Then::Relu, hidden.part_mut(place), activations);
        let add = Then::Add { data: y.from(0), row: y.stride() };
        layer.linear2.dense.forward(hidden.part(place), rows, add, before2.part_mut(place), activations);
    }

    /// From the gradient of the encoded tokens to that of the tokens, in place. `scratch` is as [`Encoder::forward`] left it.
    pub(super) fn back(&self, tokens: usize, d: &mut Rows, gradient: &mut EncoderGradient, scratch: &mut Scratch) {
        let before = Rows::clone(d);
        d.clear();
        let last = &scratch.kept.entered[self.layers.len()];
        self.norm.back(last.part(0), before.part(0), tokens, d.part_mut(0), &mut gradient.norm);
        for (n, layer) in self.layers.iter().enumerate().rev() {
            if !scratch.keeps {
                self.queries(n, tokens, scratch);
            }
            let gradient = &mut gradient.layers[n];
            scratch.d_attended.resize(tokens, self.dim);
            scratch.d_qkv.resize(tokens, 3 * self.dim);
            for (first, rows) in blocks(tokens) {
                self.feed_back(n, first, rows, d, gradient, scratch);
            }
            let slot = scratch.slot(n);
            let Scratch { kept, d_qkv, d_attended, y: around, attention, activations, dense, .. } = scratch;
            let (qkv, (attended, log_sums)) = (kept.qkv[slot].part(0), &kept.attended[n]);
            let (out, d_out) = (attended.part(0), d_attended.part(0));
            self.attention.back(qkv, tokens, out, log_sums, d_out, d_qkv.part_mut(0), attention);
            for (first, rows) in blocks(tokens) {
                gradient.in_proj.add(d_qkv.part(first), kept.entered[n].part(first), rows, dense);
                around.gather(d, first..first + rows);
                let add = Then::Add { data: around.from(0), row: around.stride() };
                layer.in_proj.dense.back(d_qkv.part(first), rows, add, d.part_mut(first), activations);
            }
        }
    }

    /// The way back of [`Encoder::feed`] and the norm after it: `d` becomes the gradient that goes around attention.
    fn feed_back(
        &self,
        n: usize,
        first: usize,
        rows: usize,
        d: &mut Rows,
        gradient: &mut LayerGradient,
        scratch: &mut Scratch,
    ) {
        let (layer, slot, place) = (&self.layers[n], scratch.slot(n), scratch.place(first));
        match scratch.keeps {
            true => layer.norm1.forward(scratch.kept.fed[slot].before1.part(place), rows, &mut scratch.y),
            false => self.feed(n, first, rows, scratch),
        }
        let Scratch { kept, d_attended, y, d_before2, d_hidden, d_y, activations, dense, .. } = scratch;
        let Fed { before1, hidden, before2 } = &kept.fed[slot];
        for (rows, width) in [(&mut *d_before2, self.dim), (&mut *d_hidden, 4 * self.dim), (&mut *d_y, self.dim)] {
            rows.resize(BLOCK, width);
        }
        d_before2.clear();
        layer.norm2.back(before2.part(place), d.part(first), rows, d_before2.part_mut(0), &mut gradient.norm2);
        gradient.linear2.add(d_before2.part(0), hidden.part(place), rows, dense);
        layer.linear2.dense.back(d_before2.part(0), rows, Then::Bias, d_hidden.part_mut(0), activations);
        for i in 0..rows {
            let through = d_hidden.row_mut(i).iter_mut().zip(hidden.row(place + i));
            through.for_each(|(d, h)| *d = if *h > 0.0 { *d } else { 0.0 });
        }
        gradient.linear1.add(d_hidden.part(0), y.part(0), rows, dense);
        let add = Then::Add { data: d_before2.from(0), row: d_before2.stride() };
        layer.linear1.dense.back(d_hidden.part(0), rows, add, d_y.part_mut(0), activations);
        (first..first + rows).for_each(|i| d.row_mut(i).fill(0.0));
        layer.norm1.back(before1.part(place), d_y.part(0), rows, d.part_mut(first), &mut gradient.norm1);
        let attended = kept.attended[n].0.part(first);
        gradient.out_proj.add(d.part(first), attended, rows, dense);
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
