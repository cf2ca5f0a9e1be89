//! The decoder, there and back, for one cell: a Performer over every position of the vocabulary, T and S.
//!
//! What is kept of a cell is what enters each layer, `[positions, width]`; a block of positions is computed again on its way
//! back, so a thread's memory is `depth + 1` such arrays whatever the batch. The last layer asks only the masked positions
//! for queries, since the loss is about nothing else; all are keys.
//!
//! Genes without expression, seen as zero, enter the first layer with vectors that no cell of the batch changes
//! ([`Shared`]). Their keys are summed once for a batch, and a cell takes off what stands at its own positions and adds
//! those instead; on the way back sums over cells come first, and the shared rows go through once ([`SharedGradient`]).

use cellql_kernels::{
    Activations, BLOCK, DenseGradient, DenseScratch, Form, Isa, KeyGradient, LearningContext, LearningFavor,
    LearningScratch, LearningSums, QueryFeatures, Rows, SumsGradient, Then, gelu, gelu_back,
};

use super::super::parameters::Parameters;
use super::encoder::blocks;
use super::layers::{Linear, Norm, NormGradient};
use crate::error::Result;

/// One layer, packed for a step.
#[derive(Debug)]
pub(super) struct Layer {
    norm: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    favor: LearningFavor,
    feed_norm: Norm,
    w1: Linear,
    w2: Linear,
}

#[derive(Debug, Clone)]
pub(super) struct LayerGradient {
    norm: NormGradient,
    query: DenseGradient,
    key: DenseGradient,
    value: DenseGradient,
    out: DenseGradient,
    feed_norm: NormGradient,
    w1: DenseGradient,
    w2: DenseGradient,
}

/// Memory of one thread for a block of positions.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    h: Rows,
    q: Rows,
    k: Rows,
    v: Rows,
    attended: Rows,
    y: Rows,
    h2: Rows,
    hidden: Rows,
    d_hidden: Rows,
    d_y: Rows,
    d_h: Rows,
    d_attended: Rows,
    d_q: Rows,
    kept: QueryFeatures,
    favor: LearningScratch,
    activations: Activations,
    dense: DenseScratch,
}

impl Layer {
    pub(super) fn pack(parameters: &Parameters, form: Form, n: usize) -> Result<Self> {
        let (decoder, at) = (&parameters.config().decoder, format!("decoder.performer.net.layers.{n}"));
        let (width, inner) = (decoder.hidden_dim, decoder.heads * decoder.dim_head);
        let linear = |name: &str, from, to| Linear::pack(parameters, form, &format!("{at}.{name}"), from, to);
        let shape = [parameters.config().nb_features(), decoder.dim_head];
        let projection = parameters.buffer(&format!("{at}.0.fn.fast_attention.projection_matrix"), &shape)?;
        Ok(Self {
            norm: Norm::pack(parameters, &format!("{at}.0.norm"), width)?,
            query: linear("0.fn.to_q", width, inner)?,
            key: linear("0.fn.to_k", width, inner)?,
            value: linear("0.fn.to_v", width, inner)?,
            out: linear("0.fn.to_out", inner, width)?,
            favor: LearningFavor::new(Isa::best(), &projection, decoder.heads, decoder.dim_head),
            feed_norm: Norm::pack(parameters, &format!("{at}.1.norm"), width)?,
            w1: linear("1.fn.fn.w1", width, 4 * width)?,
            w2: linear("1.fn.fn.w2", 4 * width, width)?,
        })
    }

    pub(super) fn favor(&self) -> &LearningFavor {
        &self.favor
    }

    pub(super) fn gradient(&self) -> LayerGradient {
        LayerGradient {
            norm: self.norm.gradient(),
            query: self.query.gradient(),
            key: self.key.gradient(),
            value: self.value.gradient(),
            out: self.out.gradient(),
            feed_norm: self.feed_norm.gradient(),
            w1: self.w1.gradient(),
            w2: self.w2.gradient(),
        }
    }

    /// Keys and values of a block, into `scratch.k` and `scratch.v`; its normalised rows stay in `scratch.h`.
    fn keys(&self, x: (&[f32], usize), rows: usize, inner: usize, scratch: &mut Scratch) {
        let Scratch { h, k, v, activations, .. } = scratch;
        self.norm.forward(x, rows, h);
        k.resize(BLOCK, inner);
        v.resize(BLOCK, inner);
        self.key.dense.forward(h.part(0), rows, Then::Bias, k.part_mut(0), activations);
        self.value.dense.forward(h.part(0), rows, Then::Bias, v.part_mut(0), activations);
    }

    #[allow(clippy::too_many_arguments, reason = "rows, sizes, and what they add to")]
    /// Adds the keys of some rows to sums (`sign` 1) or takes them off (−1); where asked, their largest x'·Pᵀ too.
    pub(super) fn add_keys(
        &self,
        x: &Rows,
        count: usize,
        inner: usize,
        sign: f32,
        sums: &mut LearningSums,
        mut largest: Option<&mut Vec<f32>>,
        scratch: &mut Scratch,
    ) {
        for (first, rows) in blocks(count) {
            self.keys(x.part(first), rows, inner, scratch);
            if let Some(largest) = largest.as_deref_mut() {
                self.favor.largest(scratch.k.part(0), rows, &mut scratch.favor, largest);
            }
            self.favor.add_keys(scratch.k.part(0), scratch.v.part(0), rows, sign, sums, &mut scratch.favor);
        }
    }

    /// Attention of a block's queries and the sum before the feed-forward, into `scratch.y`; what it fed into
    /// `scratch.h2`, and the feed-forward's hidden numbers, before their GELU, into `scratch.hidden`.
    fn feed(
        &self,
        x: (&[f32], usize),
        rows: usize,
        (width, inner): (usize, usize),
        context: &LearningContext,
        scratch: &mut Scratch,
    ) {
        let Scratch { h, q, attended, y, h2, hidden, kept, favor, activations, .. } = scratch;
        self.norm.forward(x, rows, h);
        q.resize(BLOCK, inner);
        attended.resize(BLOCK, inner);
        y.resize(BLOCK, width);
        hidden.resize(BLOCK, 4 * width);
        self.query.dense.forward(h.part(0), rows, Then::Bias, q.part_mut(0), activations);
        self.favor.attend(q.part(0), rows, context, attended.part_mut(0), kept, favor);
        let add = Then::Add { data: x.0, row: x.1 };
        self.out.dense.forward(attended.part(0), rows, add, y.part_mut(0), activations);
        self.feed_norm.forward(y.part(0), rows, h2);
        self.w1.dense.forward(h2.part(0), rows, Then::Bias, hidden.part_mut(0), activations);
    }

    /// Some rows through the layer.
    pub(super) fn forward(
        &self,
        x: &Rows,
        count: usize,
        sizes: (usize, usize),
        context: &LearningContext,
        out: &mut Rows,
        scratch: &mut Scratch,
    ) {
        for (first, rows) in blocks(count) {
            self.feed(x.part(first), rows, sizes, context, scratch);
            let Scratch { y, hidden, activations, .. } = &mut *scratch;
            (0..rows).for_each(|i| gelu(hidden.row_mut(i)));
            let add = Then::Add { data: y.from(0), row: y.stride() };
            self.w2.dense.forward(hidden.part(0), rows, add, out.part_mut(first), activations);
        }
    }

    /// The way back of [`Layer::forward`], without what the rows ask as keys: `d` turns from the gradient of what left the
    /// layer into that of what entered.
    #[allow(clippy::too_many_arguments, reason = "a layer's inputs and the gradients of each")]
    pub(super) fn back(
        &self,
        x: &Rows,
        count: usize,
        sizes: (usize, usize),
        context: &LearningContext,
        d: &mut Rows,
        sums: &mut SumsGradient,
        gradient: &mut LayerGradient,
        scratch: &mut Scratch,
    ) {
        let (width, inner) = sizes;
        for (first, rows) in blocks(count) {
            self.feed(x.part(first), rows, sizes, context, scratch);
            let Scratch {
                h,
                q,
                attended,
                y,
                h2,
                hidden,
                d_hidden,
                d_y,
                d_h,
                d_attended,
                d_q,
                kept,
                favor,
                activations,
                dense,
                ..
            } = &mut *scratch;
            for (rows, width) in [(&mut *d_hidden, 4 * width), (&mut *d_y, width), (&mut *d_h, width)] {
                rows.resize(BLOCK, width);
            }
            d_attended.resize(BLOCK, inner);
            d_q.resize(BLOCK, inner);
            self.w2.dense.back(d.part(first), rows, Then::Bias, d_hidden.part_mut(0), activations);
            (0..rows).for_each(|i| gelu_back(hidden.row_mut(i), d_hidden.row_mut(i)));
            gradient.w2.add(d.part(first), hidden.part(0), rows, dense);
            gradient.w1.add(d_hidden.part(0), h2.part(0), rows, dense);
            self.w1.dense.back(d_hidden.part(0), rows, Then::Bias, d_h.part_mut(0), activations);
            (0..rows).for_each(|i| d_y.row_mut(i).copy_from_slice(d.row(first + i)));
            self.feed_norm.back(y.part(0), d_h.part(0), rows, d_y.part_mut(0), &mut gradient.feed_norm);
            gradient.out.add(d_y.part(0), attended.part(0), rows, dense);
            self.out.dense.back(d_y.part(0), rows, Then::Bias, d_attended.part_mut(0), activations);
            self.favor.attend_back(
                q.part(0),
                rows,
                context,
                kept,
                attended.part(0),
                d_attended.part_mut(0),
                d_q.part_mut(0),
                sums,
                favor,
            );
            gradient.query.add(d_q.part(0), h.part(0), rows, dense);
            self.query.dense.back(d_q.part(0), rows, Then::Bias, d_h.part_mut(0), activations);
            (0..rows).for_each(|i| d.row_mut(first + i).copy_from_slice(d_y.row(i)));
            self.norm.back(x.part(first), d_h.part(0), rows, d.part_mut(first), &mut gradient.norm);
        }
    }

    /// Adds to `d` what some rows are asked as keys, times `sign`.
    #[allow(clippy::too_many_arguments, reason = "a layer's inputs and the gradients of each")]
    pub(super) fn keys_back(
        &self,
        x: &Rows,
        count: usize,
        (width, inner): (usize, usize),
        sign: f32,
        keys: &KeyGradient,
        d: &mut Rows,
        gradient: &mut LayerGradient,
        scratch: &mut Scratch,
    ) {
        for (first, rows) in blocks(count) {
            self.keys(x.part(first), rows, inner, scratch);
            let Scratch { h, k, v, d_h, d_q: d_k, d_attended: d_v, d_y, favor, activations, dense, .. } = &mut *scratch;
            for (rows, width) in [(&mut *d_k, inner), (&mut *d_v, inner), (&mut *d_h, width), (&mut *d_y, width)] {
                rows.resize(BLOCK, width);
            }
            self.favor.keys_back(k.part(0), v.part(0), rows, keys, d_k.part_mut(0), d_v.part_mut(0), favor);
            if sign < 0.0 {
                for i in 0..rows {
                    d_k.row_mut(i).iter_mut().chain(d_v.row_mut(i)).for_each(|d| *d = -*d);
                }
            }
            gradient.key.add(d_k.part(0), h.part(0), rows, dense);
            gradient.value.add(d_v.part(0), h.part(0), rows, dense);
            self.key.dense.back(d_k.part(0), rows, Then::Bias, d_y.part_mut(0), activations);
            let add = Then::Add { data: d_y.from(0), row: d_y.stride() };
            self.value.dense.back(d_v.part(0), rows, add, d_h.part_mut(0), activations);
            self.norm.back(x.part(first), d_h.part(0), rows, d.part_mut(first), &mut gradient.norm);
        }
    }

    /// Adds a gradient to the row of all gradients.
    pub(super) fn add_to(&self, gradient: &LayerGradient, flat: &mut [f32]) {
        self.norm.add_to(&gradient.norm, flat);
        self.query.add_to(&gradient.query, flat);
        self.key.add_to(&gradient.key, flat);
        self.value.add_to(&gradient.value, flat);
        self.out.add_to(&gradient.out, flat);
        self.feed_norm.add_to(&gradient.feed_norm, flat);
        self.w1.add_to(&gradient.w1, flat);
        self.w2.add_to(&gradient.w2, flat);
    }
}
