//! The encoder, forward and backward, for one cell: post-norm transformer layers over its tokens.
//!
//! Each thread stores the activations that the backward pass reads: of each layer its input, queries, keys and values,
//! the result of attention, and the feed-forward, some `11·depth + 1` times `[tokens, dim]`. With activation
//! checkpointing it stores only the input and the result of attention, `2·depth + 1`, and recomputes the rest in the
//! backward pass.

use cellql_kernels::{
    Activations, AttentionScratch, BLOCK, Dtype, Isa, LinearGradient, LinearScratch, Rows, Then, TrainableAttention,
};

use super::layers::{Linear, Norm, NormGradient};
use crate::error::Result;
use crate::flat_weights::FlatWeights;

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
    in_proj: LinearGradient,
    out_proj: LinearGradient,
    linear1: LinearGradient,
    linear2: LinearGradient,
    norm1: NormGradient,
    norm2: NormGradient,
}

/// The encoder, packed for a step.
#[derive(Debug)]
pub(super) struct Encoder {
    layers: Vec<Layer>,
    norm: Norm,
    attention: TrainableAttention,
    dim: usize,
}

/// Its gradient.
#[derive(Debug, Clone)]
pub(super) struct EncoderGradient {
    layers: Vec<LayerGradient>,
    norm: NormGradient,
}

/// Activations that the backward pass reads.
#[derive(Debug, Default)]
struct StoredActivations {
    /// Inputs of each layer and of the last norm, `[tokens, dim]` each.
    entered: Vec<Rows>,
    /// Results of attention in each layer, and the logarithms of its sums, `[heads, tokens]`.
    attended: Vec<(Rows, Vec<f32>)>,
    /// Queries, keys and values, `[tokens, 3·dim]`, of each layer or of the one that was computed last.
    qkv: Vec<Rows>,
    /// What stands between attention and the next layer, of each layer or of the block that was computed last.
    layer_activations: Vec<LayerActivations>,
}

/// Activations of a layer after attention: the sums before each norm, `[…, dim]`, and the hidden layer, `[…, 4·dim]`.
#[derive(Debug, Default)]
struct LayerActivations {
    before1: Rows,
    hidden: Rows,
    before2: Rows,
}

/// Buffers of one thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Whether what could be computed again is stored.
    pub(super) keeps: bool,
    stored: StoredActivations,
    d_qkv: Rows,
    d_attended: Rows,
    y: Rows,
    d_before2: Rows,
    d_hidden: Rows,
    d_y: Rows,
    activations: Activations,
    linear: LinearScratch,
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
        let StoredActivations { entered, attended, qkv, layer_activations } = &mut self.stored;
        entered.resize_with(layers + 1, Rows::default);
        entered.iter_mut().skip(1).for_each(|entered| entered.resize(tokens, dim));
        attended.resize_with(layers, Default::default);
        for (attended, log_sums) in attended {
            attended.resize(tokens, dim);
            log_sums.resize(heads * tokens, 0.0);
        }
        qkv.resize_with(slots, Rows::default);
        qkv.iter_mut().for_each(|qkv| qkv.resize(tokens, 3 * dim));
        layer_activations.resize_with(slots, LayerActivations::default);
        for LayerActivations { before1, hidden, before2 } in layer_activations {
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
    pub(super) fn pack(parameters: &FlatWeights, dtype: Dtype) -> Result<Self> {
        let (dim, heads) = (parameters.config().encoder.hidden_dim, parameters.config().encoder.heads);
        let layer = |n: usize| -> Result<Layer> {
            let at = format!("encoder.transformer_encoder.{n}");
            let (weight, bias) = (format!("{at}.self_attn.in_proj_weight"), format!("{at}.self_attn.in_proj_bias"));
            let layer = |name: &str, from, to| Linear::pack(parameters, dtype, &format!("{at}.{name}"), from, to);
            Ok(Layer {
                in_proj: Linear::pack_named(parameters, dtype, &weight, &bias, dim, 3 * dim)?,
                out_proj: layer("self_attn.out_proj", dim, dim)?,
                linear1: layer("linear1", dim, 4 * dim)?,
                linear2: layer("linear2", 4 * dim, dim)?,
                norm1: Norm::pack(parameters, &format!("{at}.norm1"), dim)?,
                norm2: Norm::pack(parameters, &format!("{at}.norm2"), dim)?,
            })
        };
        Ok(Self {
            layers: (0..parameters.config().encoder.depth).map(layer).collect::<Result<_>>()?,
            norm: Norm::pack(parameters, "encoder.norm", dim)?,
            attention: TrainableAttention { isa: Isa::best(), dtype, heads, dim: dim / heads },
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

    /// Encodes the tokens of a cell, `[tokens, dim]`. `scratch` keeps the activations for the backward pass.
    pub(super) fn forward(&self, x: Rows, tokens: usize, scratch: &mut Scratch) -> Rows {
        scratch.make_room((self.layers.len(), tokens, self.dim, self.attention.heads));
        scratch.stored.entered[0] = x;
        for (n, layer) in self.layers.iter().enumerate() {
            self.queries(n, tokens, scratch);
            let slot = scratch.slot(n);
            let Scratch { stored, attention, .. } = &mut *scratch;
            let (attended, log_sums) = &mut stored.attended[n];
            self.attention.forward(stored.qkv[slot].view(0), tokens, attended.view_mut(0), log_sums, attention);
            for (first, rows) in blocks(tokens) {
                self.feed_forward(n, first, rows, scratch);
                let place = scratch.place(first);
                let Scratch { stored, d_y: out, .. } = &mut *scratch;
                layer.norm2.forward(stored.layer_activations[slot].before2.view(place), rows, out);
                stored.entered[n + 1].scatter(out, first..first + rows);
            }
        }
        let mut encoded = Rows::new(tokens, self.dim);
        for (first, rows) in blocks(tokens) {
            self.norm.forward(scratch.stored.entered[self.layers.len()].view(first), rows, &mut scratch.y);
            encoded.scatter(&scratch.y, first..first + rows);
        }
        encoded
    }

    /// Queries, keys and values of every token.
    fn queries(&self, n: usize, tokens: usize, scratch: &mut Scratch) {
        let slot = scratch.slot(n);
        let Scratch { stored: StoredActivations { entered, qkv, .. }, activations, .. } = scratch;
        for (first, rows) in blocks(tokens) {
            let (x, out) = (entered[n].view(first), qkv[slot].view_mut(first));
            self.layers[n].in_proj.linear.forward(x, rows, Then::Bias, out, activations);
        }
    }

    /// A block after attention: sums before each norm, and what stands between; what left the first norm into
    /// `scratch.y`.
    fn feed_forward(&self, n: usize, first: usize, rows: usize, scratch: &mut Scratch) {
        let (layer, slot, place) = (&self.layers[n], scratch.slot(n), scratch.place(first));
        let Scratch { stored: StoredActivations { entered, attended, layer_activations, .. }, y, activations, .. } =
            scratch;
        let LayerActivations { before1, hidden, before2 } = &mut layer_activations[slot];
        let residual = entered[n].view(first);
        let add = Then::Add(residual);
        let attended = attended[n].0.view(first);
        layer.out_proj.linear.forward(attended, rows, add, before1.view_mut(place), activations);
        layer.norm1.forward(before1.view(place), rows, y);
        layer.linear1.linear.forward(y.view(0), rows, Then::Relu, hidden.view_mut(place), activations);
        let add = Then::Add(y.view(0));
        layer.linear2.linear.forward(hidden.view(place), rows, add, before2.view_mut(place), activations);
    }

    /// From the gradient of the encoded tokens to that of the tokens, in place. `scratch` is as [`Encoder::forward`]
    /// left it.
    pub(super) fn backward(&self, tokens: usize, d: &mut Rows, gradient: &mut EncoderGradient, scratch: &mut Scratch) {
        let before = Rows::clone(d);
        d.clear();
        let last = &scratch.stored.entered[self.layers.len()];
        self.norm.backward(last.view(0), before.view(0), tokens, d.view_mut(0), &mut gradient.norm);
        for (n, layer) in self.layers.iter().enumerate().rev() {
            if !scratch.keeps {
                self.queries(n, tokens, scratch);
            }
            let gradient = &mut gradient.layers[n];
            scratch.d_attended.resize(tokens, self.dim);
            scratch.d_qkv.resize(tokens, 3 * self.dim);
            for (first, rows) in blocks(tokens) {
                self.feed_forward_backward(n, first, rows, d, gradient, scratch);
            }
            let slot = scratch.slot(n);
            let Scratch { stored, d_qkv, d_attended, y: around, attention, activations, linear, .. } = scratch;
            let (qkv, (attended, log_sums)) = (stored.qkv[slot].view(0), &stored.attended[n]);
            let (out, d_out) = (attended.view(0), d_attended.view(0));
            self.attention.backward(qkv, tokens, out, log_sums, d_out, d_qkv.view_mut(0), attention);
            for (first, rows) in blocks(tokens) {
                gradient.in_proj.add(d_qkv.view(first), stored.entered[n].view(first), rows, linear);
                around.gather(d, first..first + rows);
                let add = Then::Add(around.view(0));
                layer.in_proj.linear.backward(d_qkv.view(first), rows, add, d.view_mut(first), activations);
            }
        }
    }

    /// Backward pass of [`Encoder::feed_forward`] and of the norm after it: `d` becomes the gradient of the residual
    /// connection.
    fn feed_forward_backward(
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
            true => {
                layer.norm1.forward(scratch.stored.layer_activations[slot].before1.view(place), rows, &mut scratch.y)
            }
            false => self.feed_forward(n, first, rows, scratch),
        }
        let Scratch { stored, d_attended, y, d_before2, d_hidden, d_y, activations, linear, .. } = scratch;
        let LayerActivations { before1, hidden, before2 } = &stored.layer_activations[slot];
        for (rows, width) in [(&mut *d_before2, self.dim), (&mut *d_hidden, 4 * self.dim), (&mut *d_y, self.dim)] {
            rows.resize(BLOCK, width);
        }
        d_before2.clear();
        layer.norm2.backward(before2.view(place), d.view(first), rows, d_before2.view_mut(0), &mut gradient.norm2);
        gradient.linear2.add(d_before2.view(0), hidden.view(place), rows, linear);
        layer.linear2.linear.backward(d_before2.view(0), rows, Then::Bias, d_hidden.view_mut(0), activations);
        for i in 0..rows {
            let through = d_hidden.row_mut(i).iter_mut().zip(hidden.row(place + i));
            through.for_each(|(d, h)| *d = if *h > 0.0 { *d } else { 0.0 });
        }
        gradient.linear1.add(d_hidden.view(0), y.view(0), rows, linear);
        let add = Then::Add(d_before2.view(0));
        layer.linear1.linear.backward(d_hidden.view(0), rows, add, d_y.view_mut(0), activations);
        (first..first + rows).for_each(|i| d.row_mut(i).fill(0.0));
        layer.norm1.backward(before1.view(place), d_y.view(0), rows, d.view_mut(first), &mut gradient.norm1);
        let attended = stored.attended[n].0.view(first);
        gradient.out_proj.add(d.view(first), attended, rows, linear);
        layer.out_proj.linear.backward(d.view(first), rows, Then::Bias, d_attended.view_mut(first), activations);
    }

    /// Adds a gradient to the flat vector of all gradients.
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
