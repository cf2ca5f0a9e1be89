//! FAVOR+ attention with gradients: what [`crate::Favor`] computes, in f32, and its backward pass.
//!
//! With e = exp(x'·Pᵀ − ‖x‖²/(2√d) − m) and φ = e + ε (ε = 1e-4, as there), S = Σ φ(k)ᵀv and z = Σ φ(k), a query gives
//! a = φ(q)·S / φ(q)·z. Gradients: with n = da/(φ(q)·z) and c = −(da·a)/(φ(q)·z), dφ(q) = n·Sᵀ + c·z, dS += φ(q)ᵀn,
//! dz += φ(q)·c; once every query is done, dφ(k) = v·dSᵀ + dz and dv = φ(k)·dS; and for both, with t = dφ·e,
//! dx = d^-¼·t·P − Σt·x/√d. The largest values m are constants of the gradient.
//!
//! φ itself is never stored: ε adds ε times a sum without features to a sum, so `φ·S` is `e·S + ε·ΣS`. A row of
//! features holds the heads side by side, each filled up with zeros to whole vectors of sixteen.
//!
//! Sums are linear in their keys, so the gradients of cells that share keys can be added, once [`KeyGradient::against`]
//! has brought them to one m. Queries that cells share have one e, and their t can be added.

use super::backward::add_scaled;
use super::favor::FEATURE_EPS;
use super::favor_rows::{
    denominators, features_backward, key_features, largest, norms_backward, query_features, quotients,
    quotients_backward, sum_rows,
};
use super::isa::Isa;
use super::linear::{Activations, BLOCK, Linear, Then};
use super::linear_backward::transposed;
use super::operands::panel_of;
use super::panel::{Extent, Operand, PANEL, Sums};
use super::product::multiply_f32;
use super::projection::{Projection, scaled};
use super::rows::{Aligned, LANES, Rows};
use super::view::{RowsView, RowsViewMut};
use cellql_dtype::Dtype;

/// Attention of one decoder layer that learns. Rows hold heads side by side, `[rows, heads·dim]`.
#[derive(Debug)]
pub struct TrainableFavor {
    isa: Isa,
    heads: usize,
    dim: usize,
    features: usize,
    projection: Projection,
    /// P·d^-¼ from features back to the numbers of a head.
    backward: Linear,
}

/// Sums over keys, against one maximum.
#[derive(Debug, Clone)]
pub struct TrainableSums {
    /// Largest x'·Pᵀ so far, of any head.
    pub max: f32,
    /// Σ eᵀv, per head panels `[features, 32]`.
    products: Vec<f32>,
    /// Σ e, `[heads, features in whole vectors]`.
    totals: Vec<f32>,
    /// Σ v, `[heads, dim]`.
    values: Vec<f32>,
    keys: f32,
}

/// S and z of a cell as queries read them, and the transpose of S for the backward pass.
#[derive(Debug)]
pub struct TrainableContext {
    /// Largest x'·Pᵀ of the cell's keys.
    pub max: f32,
    products: Vec<f32>,
    transposed: Vec<f32>,
    totals: Vec<f32>,
    /// ε·Σ over features of S, `[heads, dim]`, and of z, `[heads]`.
    ones: Vec<f32>,
    one_totals: Vec<f32>,
}

/// Sums over queries of dS and dz, and of what is to be multiplied by ε: Σ n, `[heads, dim]`, and Σ c, `[heads]`.
#[derive(Debug, Clone)]
pub struct SumsGradient {
    products: Vec<f32>,
    totals: Vec<f32>,
    values: Vec<f32>,
    along: Vec<f32>,
}

/// dS and dz of a cell as the backward pass of its keys and values reads them.
#[derive(Debug, Clone)]
pub struct KeyGradient {
    /// The maximum that e is taken against.
    pub max: f32,
    products: Vec<f32>,
    transposed: Vec<f32>,
    totals: Vec<f32>,
    /// ε·Σ over features of dS, `[heads, dim]`.
    ones: Vec<f32>,
}

/// Buffers that one thread uses again for each call.
#[derive(Debug, Default)]
pub struct FavorBackwardScratch {
    features: Rows,
    gradients: Rows,
    largest: Aligned<f32>,
    panel: Aligned<f32>,
    sums: Aligned<f32>,
    activations: Activations,
}

impl TrainableFavor {
    /// `projection` is P, `[features, dim]`.
    pub fn new(isa: Isa, projection: &[f32], heads: usize, dim: usize) -> Self {
        let features = projection.len() / dim;
        let scaled = scaled(projection, dim);
        let backward = Linear::pack(isa, Dtype::F32, &transposed(&scaled, dim), &[], features, dim);
        Self { isa, heads, dim, features, projection: Projection::new(isa, projection, heads, dim), backward }
    }

    /// Features of a head in whole vectors.
    fn padded(&self) -> usize {
        self.features.next_multiple_of(LANES)
    }

    /// Numbers in a row of features.
    pub fn width(&self) -> usize {
        self.heads * self.padded()
    }

    /// f32 in the panels of a head.
    fn size(&self) -> usize {
        self.dim.next_multiple_of(PANEL) * self.features
    }

    /// f32 in the transposed panels of a head.
    fn transposed_size(&self) -> usize {
        self.features.next_multiple_of(PANEL) * self.dim
    }

    /// Sums of no keys.
    pub fn no_keys(&self) -> TrainableSums {
        TrainableSums {
            max: f32::NEG_INFINITY,
            products: vec![0.0; self.heads * self.size()],
            totals: vec![0.0; self.width()],
            values: vec![0.0; self.heads * self.dim],
            keys: 0.0,
        }
    }

    /// The largest x'·Pᵀ of each of some keys, over all heads; appended.
    pub fn largest(&self, k: RowsView, rows: usize, scratch: &mut FavorBackwardScratch, out: &mut Vec<f32>) {
        self.projection.largest(k, rows, &mut scratch.largest, out);
    }

    /// x'·Pᵀ of every head, a row of features each.
    fn project(&self, x: RowsView, rows: usize, out: &mut Rows) {
        out.resize(BLOCK, self.width());
        let mut out = out.view_mut(0);
        for head in 0..self.heads {
            let features = out.columns(head * self.padded(), self.padded());
            self.projection.of(x.columns(head * self.dim, self.dim), rows, features);
        }
    }

    /// Adds (`sign` 1) or subtracts (−1) keys and values, `[rows, heads·dim]` each.
    pub fn add_keys(
        &self,
        k: RowsView,
        v: RowsView,
        rows: usize,
        sign: f32,
        sums: &mut TrainableSums,
        scratch: &mut FavorBackwardScratch,
    ) {
        let (dim, padded) = (self.dim, self.padded());
        let FavorBackwardScratch { features, panel, .. } = scratch;
        self.project(k, rows, features);
        let mut features = features.view_mut(0);
        sums.keys += sign * rows as f32;
        sums.raise(largest(features.view(), rows).max(sums.max));
        for head in 0..self.heads {
            let [k, v] = [k, v].map(|x| x.columns(head * dim, dim));
            let mut e = features.columns(head * padded, padded);
            key_features(k, e.reborrow(), self.features, rows, sums.max, sign);
            let totals = &mut sums.totals[head * padded..][..padded];
            sum_rows(totals, e.view(), rows, 1.0);
            sum_rows(&mut sums.values[head * dim..][..dim], v, rows, sign);
            let products = &mut sums.products[head * self.size()..][..self.size()];
            self.add_products(e.view(), v, rows, products, panel);
        }
    }

    /// Adds eᵀ·v to the panels of a head.
    fn add_products(&self, e: RowsView, v: RowsView, rows: usize, products: &mut [f32], panel: &mut Aligned<f32>) {
        for (n, products) in products.chunks_exact_mut(self.features * PANEL).enumerate() {
            let values = panel.at_least(rows * PANEL);
            let columns = PANEL.min(self.dim - n * PANEL);
            panel_of(v.columns(n * PANEL, columns), values);
            let extent = Extent { rows: self.features, lanes: rows, columns };
            let a = Operand::by_columns(e.data(), e.stride());
            multiply_f32(self.isa, extent, a, values, Sums::added(products, PANEL));
        }
    }

    /// Rows of features times the panels of a head: `[rows, 32]` of each panel, its first column and how many there
    /// are.
    fn times(
        &self,
        e: RowsView,
        rows: usize,
        products: &[f32],
        sums: &mut Aligned<f32>,
        mut put: impl FnMut(usize, usize, &[f32]),
    ) {
        for (n, products) in products.chunks_exact(self.features * PANEL).enumerate() {
            let sums = sums.at_least(rows * PANEL);
            let columns = PANEL.min(self.dim - n * PANEL);
            let (extent, a) = (Extent { rows, lanes: self.features, columns }, Operand::by_rows(e.data(), e.stride()));
            multiply_f32(self.isa, extent, a, products, Sums::new(sums, PANEL));
            put(n * PANEL, columns, sums);
        }
    }

    /// Numbers of a head times transposed panels, whole vectors of features into rows of `out`.
    fn times_transposed(&self, x: RowsView, rows: usize, transposed: &[f32], mut out: RowsViewMut) {
        let (a, stride) = (Operand::by_rows(x.data(), x.stride()), out.stride());
        for (n, panel) in transposed.chunks_exact(self.dim * PANEL).enumerate() {
            let extent = Extent { rows, lanes: self.dim, columns: self.features - n * PANEL };
            multiply_f32(self.isa, extent, a, panel, Sums::new(&mut out.data_mut()[n * PANEL..], stride));
        }
    }

    /// Panels `[features, 32]` of every head as panels `[dim, 32]` of their transpose.
    fn transpose(&self, products: &[f32]) -> Vec<f32> {
        let mut transposed = vec![0.0; self.heads * self.transposed_size()];
        for (from, to) in products.chunks_exact(self.size()).zip(transposed.chunks_exact_mut(self.transposed_size())) {
            for f in 0..self.features {
                for j in 0..self.dim {
                    let value = from[(j / PANEL * self.features + f) * PANEL + j % PANEL];
                    to[(f / PANEL * self.dim + j) * PANEL + f % PANEL] = value;
                }
            }
        }
        transposed
    }

    /// ε·Σ over features of panels `[features, 32]`, `[heads, dim]`.
    fn ones(&self, products: &[f32]) -> Vec<f32> {
        let mut ones = vec![0.0; self.heads * self.dim];
        for (ones, products) in ones.chunks_mut(self.dim).zip(products.chunks_exact(self.size())) {
            for (ones, panel) in ones.chunks_mut(PANEL).zip(products.chunks_exact(self.features * PANEL)) {
                panel.chunks_exact(PANEL).for_each(|row| add_scaled(ones, row, FEATURE_EPS));
            }
        }
        ones
    }

    /// Adds ε times a vector `[dim]` of each head to every feature's row of its panels, and ε times a number to its
    /// totals.
    fn add_ones(&self, products: &mut [f32], totals: &mut [f32], values: &[f32], numbers: impl Iterator<Item = f32>) {
        for (products, values) in products.chunks_exact_mut(self.size()).zip(values.chunks(self.dim)) {
            for (panel, values) in products.chunks_exact_mut(self.features * PANEL).zip(values.chunks(PANEL)) {
                panel.chunks_exact_mut(PANEL).for_each(|row| add_scaled(row, values, FEATURE_EPS));
            }
        }
        for (totals, number) in totals.chunks_mut(self.padded()).zip(numbers) {
            totals[..self.features].iter_mut().for_each(|total| *total += FEATURE_EPS * number);
        }
    }

    /// S and z of a cell. `largest` is its largest x'·Pᵀ; the sums' own if `None`. They differ where keys were
    /// subtracted.
    pub fn context(&self, sums: &TrainableSums, largest: Option<f32>) -> TrainableContext {
        let mut whole = sums.clone();
        whole.raise(largest.unwrap_or(sums.max));
        let TrainableSums { max, mut products, mut totals, values, keys } = whole;
        self.add_ones(&mut products, &mut totals, &values, std::iter::repeat(keys));
        TrainableContext {
            max,
            transposed: self.transpose(&products),
            ones: self.ones(&products),
            one_totals: totals.chunks(self.padded()).map(|totals| FEATURE_EPS * totals.iter().sum::<f32>()).collect(),
            products,
            totals,
        }
    }

    /// Features of some queries, each row against its own largest, into the first rows of `e`.
    pub fn query_features(&self, q: RowsView, rows: usize, e: &mut Rows) {
        self.project(q, rows, e);
        let mut e = e.view_mut(0);
        for head in 0..self.heads {
            let e = e.columns(head * self.padded(), self.padded());
            query_features(q.columns(head * self.dim, self.dim), e, self.features, rows);
        }
    }

    /// Attention of queries with features `e` into `out`, `[rows, heads·dim]`, and 1/φ(q)·z into `over`, `[heads,
    /// rows]`, which the backward pass reads.
    pub fn attend(
        &self,
        e: RowsView,
        rows: usize,
        context: &TrainableContext,
        mut out: RowsViewMut,
        over: &mut [f32],
        scratch: &mut FavorBackwardScratch,
    ) {
        let (dim, padded) = (self.dim, self.padded());
        for (head, over) in over.chunks_exact_mut(rows).take(self.heads).enumerate() {
            let e = e.columns(head * padded, padded);
            denominators(e, &context.totals[head * padded..][..padded], context.one_totals[head], over);
            let products = &context.products[head * self.size()..][..self.size()];
            self.times(e, rows, products, &mut scratch.sums, |first, columns, sums| {
                let ones = &context.ones[head * dim + first..][..columns];
                quotients(sums, ones, over, out.columns(head * dim + first, columns));
            });
        }
    }

    /// dS and dz of no queries.
    pub fn no_queries(&self) -> SumsGradient {
        SumsGradient {
            products: vec![0.0; self.heads * self.size()],
            totals: vec![0.0; self.width()],
            values: vec![0.0; self.heads * self.dim],
            along: vec![0.0; self.heads],
        }
    }

    /// Backward pass of [`TrainableFavor::attend`]: from the gradient of its output, which is overwritten, to
    /// t = dφ·e of the queries, written to the first rows of `t`, and to dS and dz, added to `gradient`.
    #[allow(clippy::too_many_arguments, reason = "what attention read, what it gave, and the gradients of both")]
    pub fn attend_backward(
        &self,
        e: RowsView,
        rows: usize,
        context: &TrainableContext,
        over: &[f32],
        attended: RowsView,
        mut d_attended: RowsViewMut,
        t: &mut Rows,
        gradient: &mut SumsGradient,
        scratch: &mut FavorBackwardScratch,
    ) {
        let (dim, padded) = (self.dim, self.padded());
        t.resize(BLOCK, self.width());
        let mut t = t.view_mut(0);
        for (head, over) in over.chunks_exact(rows).take(self.heads).enumerate() {
            let (e, mut t) = (e.columns(head * padded, padded), t.columns(head * padded, padded));
            let mut along = [0f32; BLOCK];
            let along = &mut along[..rows];
            let mut n = d_attended.columns(head * dim, dim);
            quotients_backward(attended.columns(head * dim, dim), over, n.reborrow(), along);
            gradient.along[head] += along.iter().sum::<f32>();
            let n = n.view();
            sum_rows(&mut gradient.values[head * dim..][..dim], n, rows, 1.0);
            let products = &mut gradient.products[head * self.size()..][..self.size()];
            self.add_products(e, n, rows, products, &mut scratch.panel);
            let transposed = &context.transposed[head * self.transposed_size()..][..self.transposed_size()];
            self.times_transposed(n, rows, transposed, t.reborrow());
            let totals = &context.totals[head * padded..][..padded];
            features_backward(e, totals, along, t, &mut gradient.totals[head * padded..][..padded]);
        }
    }

    /// From t of some rows to the gradient of their numbers.
    pub fn inputs_backward(
        &self,
        x: RowsView,
        rows: usize,
        t: RowsView,
        mut dx: RowsViewMut,
        scratch: &mut FavorBackwardScratch,
    ) {
        let (dim, padded) = (self.dim, self.padded());
        for head in 0..self.heads {
            let (t, mut dx) = (t.columns(head * padded, padded), dx.columns(head * dim, dim));
            let input = scratch.activations.of(Dtype::F32, t.columns(0, self.features), rows);
            self.backward.forward(input, rows, Then::Bias, dx.reborrow());
            norms_backward(x.columns(head * dim, dim), t, dx, rows);
        }
    }

    /// dS and dz as keys read them.
    pub fn key_gradient(&self, context: &TrainableContext, gradient: SumsGradient) -> KeyGradient {
        let SumsGradient { mut products, mut totals, values, along } = gradient;
        self.add_ones(&mut products, &mut totals, &values, along.into_iter());
        let (transposed, ones) = (self.transpose(&products), self.ones(&products));
        KeyGradient { max: context.max, products, transposed, totals, ones }
    }

    /// Gradient of no cell, of keys against a maximum.
    pub fn no_key_gradient(&self, max: f32) -> KeyGradient {
        KeyGradient {
            max,
            products: vec![0.0; self.heads * self.size()],
            transposed: vec![0.0; self.heads * self.transposed_size()],
            totals: vec![0.0; self.width()],
            ones: vec![0.0; self.heads * self.dim],
        }
    }

    /// Gradients of some keys and values.
    #[allow(clippy::too_many_arguments, reason = "keys and values, and the gradients of both")]
    pub fn keys_backward(
        &self,
        k: RowsView,
        v: RowsView,
        rows: usize,
        gradient: &KeyGradient,
        dk: RowsViewMut,
        mut dv: RowsViewMut,
        scratch: &mut FavorBackwardScratch,
    ) {
        let (dim, padded) = (self.dim, self.padded());
        let (mut features, mut gradients) =
            (std::mem::take(&mut scratch.features), std::mem::take(&mut scratch.gradients));
        self.project(k, rows, &mut features);
        gradients.resize(BLOCK, self.width());
        let (mut all_e, mut all_t) = (features.view_mut(0), gradients.view_mut(0));
        for head in 0..self.heads {
            let [k, v] = [k, v].map(|x| x.columns(head * dim, dim));
            let [mut e, mut t] = [&mut all_e, &mut all_t].map(|rows| rows.columns(head * padded, padded));
            key_features(k, e.reborrow(), self.features, rows, gradient.max, 1.0);
            let products = &gradient.products[head * self.size()..][..self.size()];
            self.times(e.view(), rows, products, &mut scratch.sums, |first, columns, sums| {
                let ones = &gradient.ones[head * dim + first..][..columns];
                quotients(sums, ones, &[1.0; BLOCK][..rows], dv.columns(head * dim + first, columns));
            });
            let transposed = &gradient.transposed[head * self.transposed_size()..][..self.transposed_size()];
            self.times_transposed(v, rows, transposed, t.reborrow());
            let totals = &gradient.totals[head * padded..][..padded];
            features_backward(e.view(), totals, &[1.0; BLOCK][..rows], t, &mut []);
        }
        self.inputs_backward(k, rows, all_t.view(), dk, scratch);
        (scratch.features, scratch.gradients) = (features, gradients);
    }
}

impl TrainableSums {
    /// Brings the sums to another maximum.
    fn raise(&mut self, max: f32) {
        if self.max.is_finite() && max != self.max {
            let keep = (self.max - max).exp();
            self.products.iter_mut().chain(&mut self.totals).for_each(|sum| *sum *= keep);
        }
        self.max = max;
    }

    /// Adds the sums of other keys.
    pub fn add(&mut self, other: &Self) {
        let mut other = other.clone();
        let max = self.max.max(other.max);
        self.raise(max);
        other.raise(max);
        add_scaled(&mut self.products, &other.products, 1.0);
        add_scaled(&mut self.totals, &other.totals, 1.0);
        add_scaled(&mut self.values, &other.values, 1.0);
        self.keys += other.keys;
    }
}

impl KeyGradient {
    /// The same against another maximum: e shrinks by what the gradient grows.
    #[must_use]
    pub fn against(&self, max: f32) -> Self {
        let mut scaled = self.clone();
        let scale = (max - self.max).exp();
        for values in [&mut scaled.products, &mut scaled.transposed, &mut scaled.totals] {
            values.iter_mut().for_each(|value| *value *= scale);
        }
        Self { max, ..scaled }
    }

    /// Adds the gradient of another cell against the same maximum.
    pub fn add(&mut self, other: &Self) {
        debug_assert!(self.max == other.max);
        add_scaled(&mut self.products, &other.products, 1.0);
        add_scaled(&mut self.transposed, &other.transposed, 1.0);
        add_scaled(&mut self.totals, &other.totals, 1.0);
        add_scaled(&mut self.ones, &other.ones, 1.0);
    }
}
