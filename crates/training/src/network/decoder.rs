//! The decoder, there and back, for one cell: a Performer over every position of the vocabulary, T and S.
//!
//! Of a cell is kept what enters each layer, `[positions, width]`, and what its attention and feed-forward computed, some
//! eight times as much. Where memory is short only the first is, and a block of positions is computed again on its way
//! back: then a cell takes `depth + 1` such arrays. Beside them a thread has the gradients of what cells share. The last layer
//! asks only the masked positions for queries, since the loss is about nothing else; all are keys.
//!
//! Genes without expression, seen as zero, enter the first layer with vectors that no cell of the batch changes
//! ([`super::shared`]): their keys are summed and the features of their queries made once for a batch.

use std::ops::Range;

use cellql_kernels::{
    Activations, BLOCK, DenseGradient, DenseScratch, Form, Isa, KeyGradient, LearningContext, LearningFavor,
    LearningScratch, LearningSums, Rows, SumsGradient, Then, add_scaled, gelu, gelu_back,
};

use super::encoder::blocks;
use super::layers::{Linear, Norm, NormGradient};
use crate::error::Result;
use crate::parameters::Parameters;

/// One layer, packed for a step.
#[derive(Debug)]
pub(super) struct Layer {
    /// Layers before it.
    n: usize,
    width: usize,
    heads: usize,
    /// Numbers of all heads.
    inner: usize,
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
    /// How many others ask the layer before them.
    pub(super) after: usize,
}

impl<'a> Asked<'a> {
    /// The first rows, answered in their order.
    pub(super) fn rows(from: &'a Rows, places: &'a [usize]) -> Self {
        Self { from, features: None, at: places, to: places, after: 0 }
    }

    /// Rows of a block, where their answers stand, and how many rows ask before them.
    fn blocks(&self) -> impl Iterator<Item = (&'a [usize], &'a [usize], usize)> {
        let before = (self.after..).step_by(BLOCK);
        self.at.chunks(BLOCK).zip(self.to.chunks(BLOCK)).zip(before).map(|((at, to), before)| (at, to, before))
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

/// What a layer computes for those who ask it, in their order.
#[derive(Debug, Default)]
struct Fed {
    /// 1/φ(q)·z, `[heads, rows]` block after block.
    over: Vec<f32>,
    /// `[…, heads·dim_head]`.
    attended: Rows,
    /// The sum before the feed-forward, `[…, width]`.
    y: Rows,
    /// Hidden numbers before their GELU, `[…, 4·width]`.
    hidden: Rows,
}

/// Keys and values, `[…, heads·dim_head]`.
#[derive(Debug, Default)]
struct Keys {
    k: Rows,
    v: Rows,
}

/// Memory of one thread: what is kept of a cell, and a block of positions.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Whether what could be computed again is kept.
    pub(super) keeps: bool,
    /// Of each layer, or of the block that was computed last.
    fed: Vec<Fed>,
    /// Of the block that was computed last, then of each layer after the first.
    keys: Vec<Keys>,
    x: Rows,
    e: Rows,
    t: Rows,
    d: Rows,
    h: Rows,
    q: Rows,
    h2: Rows,
    d_hidden: Rows,
    d_y: Rows,
    d_h: Rows,
    d_attended: Rows,
    d_q: Rows,
    favor: LearningScratch,
    activations: Activations,
    dense: DenseScratch,
}

impl Scratch {
    /// Where a layer's numbers stand, and those of its first row.
    fn slot(&self, layer: usize, first: usize) -> (usize, usize) {
        if self.keeps { (layer, first) } else { (0, 0) }
    }

    /// Where a layer's keys stand, and those of its first row. The first layer has keys of several kinds, and keeps none.
    fn keys_slot(&self, layer: usize, first: usize) -> (usize, usize) {
        if layer > 0 { self.slot(layer, first) } else { (0, 0) }
    }

    /// Room for `rows` rows that ask a layer.
    fn room_to_feed(&mut self, layer: &Layer, rows: usize) {
        let (slot, rows) = (self.slot(layer.n, 0).0, if self.keeps { rows.max(1) } else { BLOCK });
        self.fed.resize_with(self.fed.len().max(slot + 1), Fed::default);
        let fed = &mut self.fed[slot];
        fed.over.resize(fed.over.len().max(layer.heads * rows), 0.0);
        fed.attended.resize(rows, layer.inner);
        fed.y.resize(rows, layer.width);
        fed.hidden.resize(rows, 4 * layer.width);
    }

    /// Room for keys of `rows` rows.
    fn room_for_keys(&mut self, layer: &Layer, rows: usize) {
        let (slot, _) = self.keys_slot(layer.n, 0);
        let rows = if slot > 0 { rows } else { BLOCK };
        self.keys.resize_with(self.keys.len().max(slot + 1), Keys::default);
        let keys = &mut self.keys[slot];
        keys.k.resize(rows, layer.inner);
        keys.v.resize(rows, layer.inner);
    }
}

impl Layer {
    pub(super) fn pack(parameters: &Parameters, form: Form, n: usize) -> Result<Self> {
        let (decoder, at) = (&parameters.config().decoder, format!("decoder.performer.net.layers.{n}"));
        let (width, inner) = (decoder.hidden_dim, decoder.heads * decoder.dim_head);
        let linear = |name: &str, from, to| Linear::pack(parameters, form, &format!("{at}.{name}"), from, to);
        let shape = [parameters.config().nb_features(), decoder.dim_head];
        let projection = parameters.buffer(&format!("{at}.0.fn.fast_attention.projection_matrix"), &shape)?;
        Ok(Self {
            n,
            width,
            heads: decoder.heads,
            inner,
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

    /// Keys and values of a block, to their place; its normalised rows stay in `scratch.h`.
    fn keys(&self, x: (&[f32], usize), (first, rows): (usize, usize), scratch: &mut Scratch) {
        let (slot, place) = scratch.keys_slot(self.n, first);
        let Scratch { h, keys, activations, .. } = scratch;
        let Keys { k, v } = &mut keys[slot];
        self.norm.forward(x, rows, h);
        self.key.dense.forward(h.part(0), rows, Then::Bias, k.part_mut(place), activations);
        self.value.dense.forward(h.part(0), rows, Then::Bias, v.part_mut(place), activations);
    }

    /// Adds the keys of some rows to sums (`sign` 1) or takes them off (−1); where asked, their largest x'·Pᵀ too.
    pub(super) fn add_keys(
        &self,
        x: &Rows,
        count: usize,
        sign: f32,
        sums: &mut LearningSums,
        mut largest: Option<&mut Vec<f32>>,
        scratch: &mut Scratch,
    ) {
        scratch.room_for_keys(self, count);
        for (first, rows) in blocks(count) {
            self.keys(x.part(first), (first, rows), scratch);
            let (slot, place) = scratch.keys_slot(self.n, first);
            let Scratch { keys, favor, .. } = &mut *scratch;
            let (k, v) = (keys[slot].k.part(place), keys[slot].v.part(place));
            if let Some(largest) = largest.as_deref_mut() {
                self.favor.largest(k, rows, favor, largest);
            }
            self.favor.add_keys(k, v, rows, sign, sums, favor);
        }
    }

    /// Features of the queries of some rows, one to a row of `out`.
    pub(super) fn query_features(&self, x: &Rows, count: usize, out: &mut Rows, scratch: &mut Scratch) {
        for (first, rows) in blocks(count) {
            self.norm.forward(x.part(first), rows, &mut scratch.h);
            scratch.q.resize(BLOCK, self.inner);
            let h = scratch.h.part(0);
            self.query.dense.forward(h, rows, Then::Bias, scratch.q.part_mut(0), &mut scratch.activations);
            self.favor.query_features(scratch.q.part(0), rows, &mut scratch.e);
            out.scatter(&scratch.e, first..first + rows);
        }
    }

    /// A block of rows into `scratch.x` and the features of their queries into `scratch.e`; where those are not known, the
    /// normalised rows into `scratch.h` and the queries into `scratch.q`.
    fn ask(&self, asked: &Asked, at: &[usize], scratch: &mut Scratch) {
        let Scratch { x, e, h, q, activations, .. } = scratch;
        x.resize(BLOCK, self.width);
        q.resize(BLOCK, self.inner);
        x.gather(asked.from, at.iter().copied());
        match asked.features {
            Some(features) => {
                e.resize(BLOCK, self.favor.width());
                e.gather(features, at.iter().copied());
            }
            None => {
                self.norm.forward(x.part(0), at.len(), h);
                self.query.dense.forward(h.part(0), at.len(), Then::Bias, q.part_mut(0), activations);
                self.favor.query_features(q.part(0), at.len(), e);
            }
        }
    }

    /// What [`Fed`] says of `rows` rows that ask, the first after `before` others; what the feed-forward read into
    /// `scratch.h2`.
    fn feed(&self, rows: usize, before: usize, context: &LearningContext, scratch: &mut Scratch) {
        let (slot, place) = scratch.slot(self.n, before);
        let Scratch { x, e, fed, h2, favor, activations, .. } = scratch;
        let Fed { over, attended, y, hidden } = &mut fed[slot];
        let over = &mut over[place * self.heads..][..rows * self.heads];
        self.favor.attend(e.part(0), rows, context, attended.part_mut(place), over, favor);
        let add = Then::Add { data: x.from(0), row: x.stride() };
        self.out.dense.forward(attended.part(place), rows, add, y.part_mut(place), activations);
        self.feed_norm.forward(y.part(place), rows, h2);
        self.w1.dense.forward(h2.part(0), rows, Then::Bias, hidden.part_mut(place), activations);
    }

    /// Some rows through the layer; `all` is how many ask it in all.
    pub(super) fn forward(
        &self,
        asked: &Asked,
        all: usize,
        context: &LearningContext,
        out: &mut Rows,
        scratch: &mut Scratch,
    ) {
        scratch.room_to_feed(self, all);
        for (at, to, before) in asked.blocks() {
            let rows = at.len();
            self.ask(asked, at, scratch);
            self.feed(rows, before, context, scratch);
            let (slot, place) = scratch.slot(self.n, before);
            let Scratch { fed, d_y: answer, d_hidden: hidden, activations, .. } = &mut *scratch;
            answer.resize(BLOCK, self.width);
            hidden.resize(BLOCK, 4 * self.width);
            hidden.gather(&fed[slot].hidden, place..place + rows);
            (0..rows).for_each(|i| gelu(hidden.row_mut(i)));
            let (y, row) = fed[slot].y.part(place);
            let add = Then::Add { data: y, row };
            self.w2.dense.forward(hidden.part(0), rows, add, answer.part_mut(0), activations);
            out.scatter(answer, to.iter().copied());
        }
    }

    /// The way back of [`Layer::forward`], without what the rows ask as keys: `d` turns from the gradient of what left the
    /// layer into that of what entered. Where features are known, what entered is shared, and its gradient is added there.
    #[allow(clippy::too_many_arguments, reason = "a layer's inputs and the gradients of each")]
    pub(super) fn back(
        &self,
        asked: &Asked,
        context: &LearningContext,
        d: &mut Rows,
        mut shared: Option<SharedQueries>,
        sums: &mut SumsGradient,
        gradient: &mut LayerGradient,
        scratch: &mut Scratch,
    ) {
        for (at, to, before) in asked.blocks() {
            let rows = at.len();
            self.ask(asked, at, scratch);
            let (slot, place) = scratch.slot(self.n, before);
            match scratch.keeps {
                true => self.feed_norm.forward(scratch.fed[slot].y.part(place), rows, &mut scratch.h2),
                false => self.feed(rows, before, context, scratch),
            }
            scratch.d.resize(BLOCK, self.width);
            scratch.d.gather(d, to.iter().copied());
            self.attended_back(rows, before, context, sums, gradient, scratch);
            if let Some(SharedQueries { rows, features }) = &mut shared {
                for (i, at) in at.iter().enumerate() {
                    add_scaled(rows.row_mut(*at), scratch.d_y.row(i), 1.0);
                    add_scaled(features.row_mut(*at), scratch.t.row(i), 1.0);
                }
            } else {
                self.queries_back(rows, gradient, scratch);
                d.scatter(&scratch.d_y, to.iter().copied());
            }
        }
    }

    /// From the gradient of a block's answers, `scratch.d`, to that of what goes around attention, `scratch.d_y`, and to t of
    /// its queries, `scratch.t`.
    fn attended_back(
        &self,
        rows: usize,
        before: usize,
        context: &LearningContext,
        sums: &mut SumsGradient,
        gradient: &mut LayerGradient,
        scratch: &mut Scratch,
    ) {
        let (slot, place) = scratch.slot(self.n, before);
        let Scratch { fed, e, t, d, h2, d_hidden, d_y, d_h, d_attended, favor, activations, dense, .. } = scratch;
        let Fed { over, attended, y, hidden } = &mut fed[slot];
        let over = &over[place * self.heads..][..rows * self.heads];
        let (width, inner) = (self.width, self.inner);
        for (rows, width) in [(&mut *d_hidden, 4 * width), (&mut *d_y, width), (&mut *d_h, width)] {
            rows.resize(BLOCK, width);
        }
        d_attended.resize(BLOCK, inner);
        self.w2.dense.back(d.part(0), rows, Then::Bias, d_hidden.part_mut(0), activations);
        (0..rows).for_each(|i| gelu_back(hidden.row_mut(place + i), d_hidden.row_mut(i)));
        gradient.w2.add(d.part(0), hidden.part(place), rows, dense);
        gradient.w1.add(d_hidden.part(0), h2.part(0), rows, dense);
        self.w1.dense.back(d_hidden.part(0), rows, Then::Bias, d_h.part_mut(0), activations);
        d_y.gather(d, 0..rows);
        self.feed_norm.back(y.part(place), d_h.part(0), rows, d_y.part_mut(0), &mut gradient.feed_norm);
        gradient.out.add(d_y.part(0), attended.part(place), rows, dense);
        self.out.dense.back(d_y.part(0), rows, Then::Bias, d_attended.part_mut(0), activations);
        let (attended, d_attended) = (attended.part(place), d_attended.part_mut(0));
        self.favor.attend_back(e.part(0), rows, context, over, attended, d_attended, t, sums, favor);
    }

    /// Adds to `scratch.d_y` what the queries of a block, `scratch.x`, ask of it, by their t.
    fn queries_back(&self, rows: usize, gradient: &mut LayerGradient, scratch: &mut Scratch) {
        let Scratch { x, t, h, q, d_y, d_h, d_q, favor, activations, dense, .. } = scratch;
        d_h.resize(BLOCK, self.width);
        d_q.resize(BLOCK, self.inner);
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
        d: &mut Rows,
        gradient: &mut LayerGradient,
        scratch: &mut Scratch,
    ) {
        let (width, inner) = (self.width, self.inner);
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
            self.queries_back(rows, gradient, scratch);
            d.scatter(&scratch.d_y, first..first + rows);
        }
    }

    /// Adds to `d` what some rows are asked as keys, times `sign`.
    #[allow(clippy::too_many_arguments, reason = "a layer's inputs and the gradients of each")]
    pub(super) fn keys_back(
        &self,
        x: &Rows,
        count: usize,
        sign: f32,
        keys: &KeyGradient,
        d: &mut Rows,
        gradient: &mut LayerGradient,
        scratch: &mut Scratch,
    ) {
        let (width, inner) = (self.width, self.inner);
        for (first, rows) in blocks(count) {
            let (slot, place) = scratch.keys_slot(self.n, first);
            match slot > 0 {
                true => self.norm.forward(x.part(first), rows, &mut scratch.h),
                false => {
                    scratch.room_for_keys(self, rows);
                    self.keys(x.part(first), (first, rows), scratch);
                }
            }
            let Scratch { h, keys: made, d_h, d_q: d_k, d_attended: d_v, d_y, favor, activations, dense, .. } =
                &mut *scratch;
            let (k, v) = (made[slot].k.part(place), made[slot].v.part(place));
            for (rows, width) in [(&mut *d_k, inner), (&mut *d_v, inner), (&mut *d_h, width), (&mut *d_y, width)] {
                rows.resize(BLOCK, width);
            }
            self.favor.keys_back(k, v, rows, keys, d_k.part_mut(0), d_v.part_mut(0), favor);
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
