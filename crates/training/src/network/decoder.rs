//! The decoder, forward and backward, for one cell: a Performer over every position of the vocabulary, T and S.
//!
//! Stored activations of a cell: the input of each layer, `[positions, width]`, and the results of its attention and
//! feed-forward, some eight times as much. With activation checkpointing only the inputs are stored, `depth + 1` such
//! arrays, and blocks of positions are recomputed in the backward pass. A thread also holds the gradients of the rows
//! that cells share. The last layer has queries at masked positions only, because no other position has a loss; every
//! position has a key.
//!
//! Genes without expression enter the first layer with rows that are the same in every cell ([`super::shared_rows`]):
//! their keys and query features are computed once per batch.

use std::ops::Range;

use cellql_kernels::{
    Activations, BLOCK, Dtype, FavorBackwardScratch, Isa, KeyGradient, LinearGradient, LinearScratch, Rows, RowsView,
    SumsGradient, Then, TrainableContext, TrainableFavor, TrainableSums, add_scaled, gelu, gelu_backward,
};

use super::encoder::blocks;
use super::layers::{Linear, Norm, NormGradient};
use crate::error::Result;
use crate::flat_weights::FlatWeights;

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
    favor: TrainableFavor,
    feed_norm: Norm,
    w1: Linear,
    w2: Linear,
}

#[derive(Debug, Clone)]
pub(super) struct LayerGradient {
    norm: NormGradient,
    query: LinearGradient,
    key: LinearGradient,
    value: LinearGradient,
    out: LinearGradient,
    feed_norm: NormGradient,
    w1: LinearGradient,
    w2: LinearGradient,
}

/// Rows whose queries a layer answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueryRows<'a> {
    /// The matrix that they are rows of, `[…, width]`.
    pub(super) from: &'a Rows,
    /// Features of their queries at the same row numbers, if they were computed before.
    pub(super) features: Option<&'a Rows>,
    /// Their row numbers in `from`.
    pub(super) at: &'a [usize],
    /// Row numbers of their results and gradients.
    pub(super) to: &'a [usize],
    /// How many other query rows of the layer come before them.
    pub(super) after: usize,
}

impl<'a> QueryRows<'a> {
    /// The rows `places`, with results at the same row numbers.
    pub(super) fn rows(from: &'a Rows, places: &'a [usize]) -> Self {
        Self { from, features: None, at: places, to: places, after: 0 }
    }

    /// Blocks of rows: row numbers, row numbers of the results, and how many query rows come before.
    fn blocks(&self) -> impl Iterator<Item = (&'a [usize], &'a [usize], usize)> {
        let before = (self.after..).step_by(BLOCK);
        self.at.chunks(BLOCK).zip(self.to.chunks(BLOCK)).zip(before).map(|((at, to), before)| (at, to, before))
    }
}

/// Gradients of the shared rows of the first layer, summed over the cells of a thread.
#[derive(Debug)]
pub(super) struct SharedQueries<'a> {
    /// Gradient that goes around attention, `[positions, width]`.
    pub(super) rows: &'a mut Rows,
    /// t of the queries, `[positions, features]`.
    pub(super) features: &'a mut Rows,
}

/// Activations of a layer for its query rows, in their order.
#[derive(Debug, Default)]
struct LayerActivations {
    /// 1/φ(q)·z, `[heads, rows]` block after block.
    over: Vec<f32>,
    /// `[…, heads·dim_head]`.
    attended: Rows,
    /// The sum before the feed-forward, `[…, width]`.
    y: Rows,
    /// Hidden numbers before their GELU, `[…, 4·width]`.
    hidden: Rows,
}

/// KeysAndValues and values, `[…, heads·dim_head]`.
#[derive(Debug, Default)]
struct KeysAndValues {
    k: Rows,
    v: Rows,
}

/// Buffers of one thread: stored activations of a cell, and a block of positions.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Whether activations that could be recomputed are stored.
    pub(super) keeps: bool,
    /// Of each layer, or of the block that was computed last.
    layer_activations: Vec<LayerActivations>,
    /// Of the block that was computed last, then of each layer after the first.
    keys: Vec<KeysAndValues>,
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
    favor: FavorBackwardScratch,
    activations: Activations,
    linear: LinearScratch,
}

impl Scratch {
    /// Where a layer's numbers stand, and those of its first row.
    fn slot(&self, layer: usize, first: usize) -> (usize, usize) {
        if self.keeps { (layer, first) } else { (0, 0) }
    }

    /// Where a layer's keys stand, and those of its first row. The first layer has keys of several kinds, and keeps
    /// none.
    fn keys_slot(&self, layer: usize, first: usize) -> (usize, usize) {
        if layer > 0 { self.slot(layer, first) } else { (0, 0) }
    }

    /// Makes room for the activations of `rows` query rows of a layer.
    fn reserve_activations(&mut self, layer: &Layer, rows: usize) {
        let (slot, rows) = (self.slot(layer.n, 0).0, if self.keeps { rows.max(1) } else { BLOCK });
        self.layer_activations.resize_with(self.layer_activations.len().max(slot + 1), LayerActivations::default);
        let layer_activations = &mut self.layer_activations[slot];
        layer_activations.over.resize(layer_activations.over.len().max(layer.heads * rows), 0.0);
        layer_activations.attended.resize(rows, layer.inner);
        layer_activations.y.resize(rows, layer.width);
        layer_activations.hidden.resize(rows, 4 * layer.width);
    }

    /// Room for keys of `rows` rows.
    fn reserve_keys(&mut self, layer: &Layer, rows: usize) {
        let (slot, _) = self.keys_slot(layer.n, 0);
        let rows = if slot > 0 { rows } else { BLOCK };
        self.keys.resize_with(self.keys.len().max(slot + 1), KeysAndValues::default);
        let keys = &mut self.keys[slot];
        keys.k.resize(rows, layer.inner);
        keys.v.resize(rows, layer.inner);
    }
}

impl Layer {
    pub(super) fn pack(parameters: &FlatWeights, dtype: Dtype, n: usize) -> Result<Self> {
        let (decoder, at) = (&parameters.config().decoder, format!("decoder.performer.net.layers.{n}"));
        let (width, inner) = (decoder.hidden_dim, decoder.heads * decoder.dim_head);
        let layer = |name: &str, from, to| Linear::pack(parameters, dtype, &format!("{at}.{name}"), from, to);
        let shape = [parameters.config().nb_features(), decoder.dim_head];
        let projection = parameters.buffer(&format!("{at}.0.fn.fast_attention.projection_matrix"), &shape)?;
        Ok(Self {
            n,
            width,
            heads: decoder.heads,
            inner,
            norm: Norm::pack(parameters, &format!("{at}.0.norm"), width)?,
            query: layer("0.fn.to_q", width, inner)?,
            key: layer("0.fn.to_k", width, inner)?,
            value: layer("0.fn.to_v", width, inner)?,
            out: layer("0.fn.to_out", inner, width)?,
            favor: TrainableFavor::new(Isa::best(), &projection, decoder.heads, decoder.dim_head),
            feed_norm: Norm::pack(parameters, &format!("{at}.1.norm"), width)?,
            w1: layer("1.fn.fn.w1", width, 4 * width)?,
            w2: layer("1.fn.fn.w2", 4 * width, width)?,
        })
    }

    pub(super) fn favor(&self) -> &TrainableFavor {
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

    /// KeysAndValues and values of a block, to their place; its normalised rows stay in `scratch.h`.
    fn keys(&self, x: RowsView, (first, rows): (usize, usize), scratch: &mut Scratch) {
        let (slot, place) = scratch.keys_slot(self.n, first);
        let Scratch { h, keys, activations, .. } = scratch;
        let KeysAndValues { k, v } = &mut keys[slot];
        self.norm.forward(x, rows, h);
        self.key.linear.forward(h.view(0), rows, Then::Bias, k.view_mut(place), activations);
        self.value.linear.forward(h.view(0), rows, Then::Bias, v.view_mut(place), activations);
    }

    /// Adds the keys of some rows to sums (`sign` 1) or subtracts them (−1). Appends their largest x'·Pᵀ to `largest`,
    /// if given.
    pub(super) fn add_keys(
        &self,
        x: &Rows,
        count: usize,
        sign: f32,
        sums: &mut TrainableSums,
        mut largest: Option<&mut Vec<f32>>,
        scratch: &mut Scratch,
    ) {
        scratch.reserve_keys(self, count);
        for (first, rows) in blocks(count) {
            self.keys(x.view(first), (first, rows), scratch);
            let (slot, place) = scratch.keys_slot(self.n, first);
            let Scratch { keys, favor, .. } = &mut *scratch;
            let (k, v) = (keys[slot].k.view(place), keys[slot].v.view(place));
            if let Some(largest) = largest.as_deref_mut() {
                self.favor.largest(k, rows, favor, largest);
            }
            self.favor.add_keys(k, v, rows, sign, sums, favor);
        }
    }

    /// Features of the queries of some rows, one to a row of `out`.
    pub(super) fn query_features(&self, x: &Rows, count: usize, out: &mut Rows, scratch: &mut Scratch) {
        for (first, rows) in blocks(count) {
            self.norm.forward(x.view(first), rows, &mut scratch.h);
            scratch.q.resize(BLOCK, self.inner);
            let h = scratch.h.view(0);
            self.query.linear.forward(h, rows, Then::Bias, scratch.q.view_mut(0), &mut scratch.activations);
            self.favor.query_features(scratch.q.view(0), rows, &mut scratch.e);
            out.scatter(&scratch.e, first..first + rows);
        }
    }

    /// A block of rows into `scratch.x` and the features of their queries into `scratch.e`; where those are not known,
    /// the normalised rows into `scratch.h` and the queries into `scratch.q`.
    fn query_block(&self, queries: &QueryRows, at: &[usize], scratch: &mut Scratch) {
        let Scratch { x, e, h, q, activations, .. } = scratch;
        x.resize(BLOCK, self.width);
        q.resize(BLOCK, self.inner);
        x.gather(queries.from, at.iter().copied());
        match queries.features {
            Some(features) => {
                e.resize(BLOCK, self.favor.width());
                e.gather(features, at.iter().copied());
            }
            None => {
                self.norm.forward(x.view(0), at.len(), h);
                self.query.linear.forward(h.view(0), at.len(), Then::Bias, q.view_mut(0), activations);
                self.favor.query_features(q.view(0), at.len(), e);
            }
        }
    }

    /// Computes the [`LayerActivations`] of `rows` query rows, which come after `before` others. The input of the
    /// feed-forward goes to `scratch.h2`.
    fn feed_forward(&self, rows: usize, before: usize, context: &TrainableContext, scratch: &mut Scratch) {
        let (slot, place) = scratch.slot(self.n, before);
        let Scratch { x, e, layer_activations, h2, favor, activations, .. } = scratch;
        let LayerActivations { over, attended, y, hidden } = &mut layer_activations[slot];
        let over = &mut over[place * self.heads..][..rows * self.heads];
        self.favor.attend(e.view(0), rows, context, attended.view_mut(place), over, favor);
        let add = Then::Add(x.view(0));
        self.out.linear.forward(attended.view(place), rows, add, y.view_mut(place), activations);
        self.feed_norm.forward(y.view(place), rows, h2);
        self.w1.linear.forward(h2.view(0), rows, Then::Bias, hidden.view_mut(place), activations);
    }

    /// Some rows through the layer, which has `all` query rows in total.
    pub(super) fn forward(
        &self,
        queries: &QueryRows,
        all: usize,
        context: &TrainableContext,
        out: &mut Rows,
        scratch: &mut Scratch,
    ) {
        scratch.reserve_activations(self, all);
        for (at, to, before) in queries.blocks() {
            let rows = at.len();
            self.query_block(queries, at, scratch);
            self.feed_forward(rows, before, context, scratch);
            let (slot, place) = scratch.slot(self.n, before);
            let Scratch { layer_activations, d_y: answer, d_hidden: hidden, activations, .. } = &mut *scratch;
            answer.resize(BLOCK, self.width);
            hidden.resize(BLOCK, 4 * self.width);
            hidden.gather(&layer_activations[slot].hidden, place..place + rows);
            (0..rows).for_each(|i| gelu(hidden.row_mut(i)));
            let add = Then::Add(layer_activations[slot].y.view(place));
            self.w2.linear.forward(hidden.view(0), rows, add, answer.view_mut(0), activations);
            out.scatter(answer, to.iter().copied());
        }
    }

    /// Backward pass of [`Layer::forward`], without the part of keys: `d` changes from the gradient of the layer's
    /// output to that of its input. Where the rows are shared, the gradient of the input is added to `shared` instead.
    #[allow(clippy::too_many_arguments, reason = "a layer's inputs and the gradients of each")]
    pub(super) fn backward(
        &self,
        queries: &QueryRows,
        context: &TrainableContext,
        d: &mut Rows,
        mut shared: Option<SharedQueries>,
        sums: &mut SumsGradient,
        gradient: &mut LayerGradient,
        scratch: &mut Scratch,
    ) {
        for (at, to, before) in queries.blocks() {
            let rows = at.len();
            self.query_block(queries, at, scratch);
            let (slot, place) = scratch.slot(self.n, before);
            match scratch.keeps {
                true => self.feed_norm.forward(scratch.layer_activations[slot].y.view(place), rows, &mut scratch.h2),
                false => self.feed_forward(rows, before, context, scratch),
            }
            scratch.d.resize(BLOCK, self.width);
            scratch.d.gather(d, to.iter().copied());
            self.attended_backward(rows, before, context, sums, gradient, scratch);
            if let Some(SharedQueries { rows, features }) = &mut shared {
                for (i, at) in at.iter().enumerate() {
                    add_scaled(rows.row_mut(*at), scratch.d_y.row(i), 1.0);
                    add_scaled(features.row_mut(*at), scratch.t.row(i), 1.0);
                }
            } else {
                self.queries_backward(rows, gradient, scratch);
                d.scatter(&scratch.d_y, to.iter().copied());
            }
        }
    }

    /// From the gradient of a block's answers, `scratch.d`, to that of what goes around attention, `scratch.d_y`, and
    /// to t of its queries, `scratch.t`.
    fn attended_backward(
        &self,
        rows: usize,
        before: usize,
        context: &TrainableContext,
        sums: &mut SumsGradient,
        gradient: &mut LayerGradient,
        scratch: &mut Scratch,
    ) {
        let (slot, place) = scratch.slot(self.n, before);
        let Scratch {
            layer_activations, e, t, d, h2, d_hidden, d_y, d_h, d_attended, favor, activations, linear, ..
        } = scratch;
        let LayerActivations { over, attended, y, hidden } = &mut layer_activations[slot];
        let over = &over[place * self.heads..][..rows * self.heads];
        let (width, inner) = (self.width, self.inner);
        for (rows, width) in [(&mut *d_hidden, 4 * width), (&mut *d_y, width), (&mut *d_h, width)] {
            rows.resize(BLOCK, width);
        }
        d_attended.resize(BLOCK, inner);
        self.w2.linear.backward(d.view(0), rows, Then::Bias, d_hidden.view_mut(0), activations);
        (0..rows).for_each(|i| gelu_backward(hidden.row_mut(place + i), d_hidden.row_mut(i)));
        gradient.w2.add(d.view(0), hidden.view(place), rows, linear);
        gradient.w1.add(d_hidden.view(0), h2.view(0), rows, linear);
        self.w1.linear.backward(d_hidden.view(0), rows, Then::Bias, d_h.view_mut(0), activations);
        d_y.gather(d, 0..rows);
        self.feed_norm.backward(y.view(place), d_h.view(0), rows, d_y.view_mut(0), &mut gradient.feed_norm);
        gradient.out.add(d_y.view(0), attended.view(place), rows, linear);
        self.out.linear.backward(d_y.view(0), rows, Then::Bias, d_attended.view_mut(0), activations);
        let (attended, d_attended) = (attended.view(place), d_attended.view_mut(0));
        self.favor.attend_backward(e.view(0), rows, context, over, attended, d_attended, t, sums, favor);
    }

    /// Adds the gradient through the queries of a block, `scratch.x`, to `scratch.d_y`, from their t.
    fn queries_backward(&self, rows: usize, gradient: &mut LayerGradient, scratch: &mut Scratch) {
        let Scratch { x, t, h, q, d_y, d_h, d_q, favor, activations, linear, .. } = scratch;
        d_h.resize(BLOCK, self.width);
        d_q.resize(BLOCK, self.inner);
        self.favor.inputs_backward(q.view(0), rows, t.view(0), d_q.view_mut(0), favor);
        gradient.query.add(d_q.view(0), h.view(0), rows, linear);
        self.query.linear.backward(d_q.view(0), rows, Then::Bias, d_h.view_mut(0), activations);
        self.norm.backward(x.view(0), d_h.view(0), rows, d_y.view_mut(0), &mut gradient.norm);
    }

    /// Adds the gradient through the queries of shared rows to `d`, from the sums of their t over cells.
    #[allow(clippy::too_many_arguments, reason = "a layer's inputs and the gradients of each")]
    pub(super) fn shared_queries_backward(
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
            self.norm.forward(block.view(0), rows, h);
            self.query.linear.forward(h.view(0), rows, Then::Bias, q.view_mut(0), activations);
            self.queries_backward(rows, gradient, scratch);
            d.scatter(&scratch.d_y, first..first + rows);
        }
    }

    /// Adds the gradient through the keys of some rows to `d`, times `sign`.
    #[allow(clippy::too_many_arguments, reason = "a layer's inputs and the gradients of each")]
    pub(super) fn keys_backward(
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
                true => self.norm.forward(x.view(first), rows, &mut scratch.h),
                false => {
                    scratch.reserve_keys(self, rows);
                    self.keys(x.view(first), (first, rows), scratch);
                }
            }
            let Scratch { h, keys: made, d_h, d_q: d_k, d_attended: d_v, d_y, favor, activations, linear, .. } =
                &mut *scratch;
            let (k, v) = (made[slot].k.view(place), made[slot].v.view(place));
            for (rows, width) in [(&mut *d_k, inner), (&mut *d_v, inner), (&mut *d_h, width), (&mut *d_y, width)] {
                rows.resize(BLOCK, width);
            }
            self.favor.keys_backward(k, v, rows, keys, d_k.view_mut(0), d_v.view_mut(0), favor);
            if sign < 0.0 {
                for i in 0..rows {
                    d_k.row_mut(i).iter_mut().chain(d_v.row_mut(i)).for_each(|d| *d = -*d);
                }
            }
            gradient.key.add(d_k.view(0), h.view(0), rows, linear);
            gradient.value.add(d_v.view(0), h.view(0), rows, linear);
            self.key.linear.backward(d_k.view(0), rows, Then::Bias, d_y.view_mut(0), activations);
            let add = Then::Add(d_y.view(0));
            self.value.linear.backward(d_v.view(0), rows, add, d_h.view_mut(0), activations);
            self.norm.backward(x.view(first), d_h.view(0), rows, d.view_mut(first), &mut gradient.norm);
        }
    }

    /// Adds a gradient to the flat vector of all gradients.
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
