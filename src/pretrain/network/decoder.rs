//! The decoder, there and back, for one cell: a Performer over every position of the vocabulary, T and S.
//!
//! What is kept of a cell is what enters each layer, `[positions, width]`; a block of positions is computed again on its way
//! back, so a thread's memory is `depth + 1` such arrays whatever the batch. The last layer asks only the masked positions
//! for queries, since the loss is about nothing else; all are keys.
//!
//! Genes without expression, seen as zero, enter the first layer with vectors that no cell of the batch changes
//! ([`super::shared`]): their keys are summed and the features of their queries made once for a batch.

use std::ops::Range;

use cellql_kernels::{
    Activations, BLOCK, DenseGradient, DenseScratch, Form, Isa, KeyGradient, LearningContext, LearningFavor,
    LearningScratch, LearningSums, Rows, SumsGradient, Then, add_scaled, gelu, gelu_back,
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

/// Rows that ask a layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// What they are some of, `[…, width]`.
    pub(super) from: &'a Rows,
    /// Features of their queries, at the same places, where those are known.
    pub(super) features: Option<&'a Rows>,
    /// Where they stand there.
    pub(super) at: &'a [usize],
    /// Where their answers and gradients stand.
    pub(super) to: &'a [usize],
}

impl<'a> Asked<'a> {
    /// The first rows, answered in their order.
    pub(super) fn rows(from: &'a Rows, places: &'a [usize]) -> Self {
        Self { from, features: None, at: places, to: places }
    }

    fn blocks(&self) -> impl Iterator<Item = (&'a [usize], &'a [usize])> {
        self.at.chunks(BLOCK).zip(self.to.chunks(BLOCK))
    }
}

/// What the shared rows of the first layer are asked of by all cells of a thread.
#[derive(Debug)]
pub(super) struct SharedQueries<'a> {
    /// Gradient that goes around attention, `[positions, width]`.
    pub(super) rows: &'a mut Rows,
    /// t of the queries, `[positions, features]`.
    pub(super) features: &'a mut Rows,
}

/// Memory of one thread for a block of positions.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    x: Rows,
    e: Rows,
    t: Rows,
    over: Vec<f32>,
    d: Rows,
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

    /// Features of the queries of some rows, one to a row of `out`.
    pub(super) fn query_features(&self, x: &Rows, count: usize, inner: usize, out: &mut Rows, scratch: &mut Scratch) {
        for (first, rows) in blocks(count) {
            self.norm.forward(x.part(first), rows, &mut scratch.h);
            scratch.q.resize(BLOCK, inner);
            let h = scratch.h.part(0);
            self.query.dense.forward(h, rows, Then::Bias, scratch.q.part_mut(0), &mut scratch.activations);
            self.favor.query_features(scratch.q.part(0), rows, &mut scratch.e);
            out.scatter(&scratch.e, first..first + rows);
        }
    }

    /// Attention of a block of rows and the sum before the feed-forward, into `scratch.y`; what it fed into
    /// `scratch.h2`, and the feed-forward's hidden numbers, before their GELU, into `scratch.hidden`. The rows themselves into
    /// `scratch.x`, and where features are not known, normalised into `scratch.h` and their queries into `scratch.q`.
    fn feed(
        &self,
        asked: &Asked,
        at: &[usize],
        (width, inner): (usize, usize),
        context: &LearningContext,
        scratch: &mut Scratch,
    ) {
        let rows = at.len();
        let Scratch { x, e, over, h, q, attended, y, h2, hidden, favor, activations, .. } = scratch;
        for (rows, width) in [(&mut *x, width), (&mut *q, inner), (&mut *attended, inner), (&mut *y, width)] {
            rows.resize(BLOCK, width);
        }
        hidden.resize(BLOCK, 4 * width);
        x.gather(asked.from, at.iter().copied());
        match asked.features {
            Some(features) => {
                e.resize(BLOCK, self.favor.width());
                e.gather(features, at.iter().copied());
            }
            None => {
                self.norm.forward(x.part(0), rows, h);
                self.query.dense.forward(h.part(0), rows, Then::Bias, q.part_mut(0), activations);
                self.favor.query_features(q.part(0), rows, e);
            }
        }
        self.favor.attend(e.part(0), rows, context, attended.part_mut(0), over, favor);
        let add = Then::Add { data: x.from(0), row: x.stride() };
        self.out.dense.forward(attended.part(0), rows, add, y.part_mut(0), activations);
        self.feed_norm.forward(y.part(0), rows, h2);
        self.w1.dense.forward(h2.part(0), rows, Then::Bias, hidden.part_mut(0), activations);
    }

    /// Some rows through the layer.
    pub(super) fn forward(
        &self,
        asked: &Asked,
        sizes: (usize, usize),
        context: &LearningContext,
        out: &mut Rows,
        scratch: &mut Scratch,
    ) {
        for (at, to) in asked.blocks() {
            self.feed(asked, at, sizes, context, scratch);
            let Scratch { y, d_y: answer, hidden, activations, .. } = &mut *scratch;
            answer.resize(BLOCK, sizes.0);
            (0..at.len()).for_each(|i| gelu(hidden.row_mut(i)));
            let add = Then::Add { data: y.from(0), row: y.stride() };
            self.w2.dense.forward(hidden.part(0), at.len(), add, answer.part_mut(0), activations);
            out.scatter(answer, to.iter().copied());
        }
    }

    /// The way back of [`Layer::forward`], without what the rows ask as keys: `d` turns from the gradient of what left the
    /// layer into that of what entered. Where features are known, what entered is shared, and its gradient is added there.
    #[allow(clippy::too_many_arguments, reason = "a layer's inputs and the gradients of each")]
    pub(super) fn back(
        &self,
        asked: &Asked,
        sizes: (usize, usize),
        context: &LearningContext,
        d: &mut Rows,
        mut shared: Option<SharedQueries>,
        sums: &mut SumsGradient,
        gradient: &mut LayerGradient,
        scratch: &mut Scratch,
    ) {
        for (at, to) in asked.blocks() {
            self.feed(asked, at, sizes, context, scratch);
            scratch.d.resize(BLOCK, sizes.0);
            scratch.d.gather(d, to.iter().copied());
            self.attended_back(at.len(), sizes, context, sums, gradient, scratch);
            if let Some(SharedQueries { rows, features }) = &mut shared {
                for (i, at) in at.iter().enumerate() {
                    add_scaled(rows.row_mut(*at), scratch.d_y.row(i), 1.0);
                    add_scaled(features.row_mut(*at), scratch.t.row(i), 1.0);
                }
            } else {
                self.queries_back(at.len(), sizes, gradient, scratch);
                d.scatter(&scratch.d_y, to.iter().copied());
            }
        }
    }

    /// From the gradient of a block's answers, `scratch.d`, to that of what goes around attention, `scratch.d_y`, and to t of
    /// its queries, `scratch.t`.
    fn attended_back(
        &self,
        rows: usize,
        (width, inner): (usize, usize),
        context: &LearningContext,
        sums: &mut SumsGradient,
        gradient: &mut LayerGradient,
        scratch: &mut Scratch,
    ) {
        let Scratch {
            e,
            t,
            over,
            d,
            attended,
            y,
            h2,
            hidden,
            d_hidden,
            d_y,
            d_h,
            d_attended,
            favor,
            activations,
            dense,
            ..
        } = scratch;
        for (rows, width) in [(&mut *d_hidden, 4 * width), (&mut *d_y, width), (&mut *d_h, width)] {
            rows.resize(BLOCK, width);
        }
        d_attended.resize(BLOCK, inner);
        self.w2.dense.back(d.part(0), rows, Then::Bias, d_hidden.part_mut(0), activations);
        (0..rows).for_each(|i| gelu_back(hidden.row_mut(i), d_hidden.row_mut(i)));
        gradient.w2.add(d.part(0), hidden.part(0), rows, dense);
        gradient.w1.add(d_hidden.part(0), h2.part(0), rows, dense);
        self.w1.dense.back(d_hidden.part(0), rows, Then::Bias, d_h.part_mut(0), activations);
        d_y.gather(d, 0..rows);
        self.feed_norm.back(y.part(0), d_h.part(0), rows, d_y.part_mut(0), &mut gradient.feed_norm);
        gradient.out.add(d_y.part(0), attended.part(0), rows, dense);
        self.out.dense.back(d_y.part(0), rows, Then::Bias, d_attended.part_mut(0), activations);
        let (attended, d_attended) = (attended.part(0), d_attended.part_mut(0));
        self.favor.attend_back(e.part(0), rows, context, over, attended, d_attended, t, sums, favor);
    }

    /// Adds to `scratch.d_y` what the queries of a block, `scratch.x`, ask of it, by their t.
    fn queries_back(
        &self,
        rows: usize,
        (width, inner): (usize, usize),
        gradient: &mut LayerGradient,
        scratch: &mut Scratch,
    ) {
        let Scratch { x, t, h, q, d_y, d_h, d_q, favor, activations, dense, .. } = scratch;
        d_h.resize(BLOCK, width);
        d_q.resize(BLOCK, inner);
        self.favor.numbers_back(q.part(0), rows, t.part(0), d_q.part_mut(0), favor);
        gradient.query.add(d_q.part(0), h.part(0), rows, dense);
        self.query.dense.back(d_q.part(0), rows, Then::Bias, d_h.part_mut(0), activations);
        self.norm.back(x.part(0), d_h.part(0), rows, d_y.part_mut(0), &mut gradient.norm);
    }

    /// Adds to `d` what shared rows are asked as queries, by the sums of their t over cells.
    #[allow(clippy::too_many_arguments, reason = "a layer's inputs and the gradients of each")]
    pub(super) fn shared_queries_back(
        &self,
        x: &Rows,
        features: &Rows,
        at: Range<usize>,
        sizes: (usize, usize),
        d: &mut Rows,
        gradient: &mut LayerGradient,
        scratch: &mut Scratch,
    ) {
        let (width, inner) = sizes;
        for (first, rows) in blocks(at.len()) {
            let Scratch { x: block, t, h, q, d_y, activations, .. } = &mut *scratch;
            for (rows, width) in
                [(&mut *block, width), (&mut *t, self.favor.width()), (&mut *d_y, width), (&mut *q, inner)]
            {
                rows.resize(BLOCK, width);
            }
            block.gather(x, first..first + rows);
            t.gather(features, at.start + first..at.start + first + rows);
            d_y.gather(d, first..first + rows);
            self.norm.forward(block.part(0), rows, h);
            self.query.dense.forward(h.part(0), rows, Then::Bias, q.part_mut(0), activations);
            self.queries_back(rows, sizes, gradient, scratch);
            d.scatter(&scratch.d_y, first..first + rows);
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
