//! FAVOR+ attention with gradients: what [`crate::Favor`] computes, in f32, and the way back.
//!
//! With e = exp(x'·Pᵀ − ‖x‖²/(2√d) − m) and φ = e + ε (ε = 1e-4, as there), S = Σ φ(k)ᵀv and z = Σ φ(k), a query gives
//! a = φ(q)·S / φ(q)·z. Gradients: with n = da/(φ(q)·z) and c = −(da·a)/(φ(q)·z), dφ(q) = n·Sᵀ + c·z, dS += φ(q)ᵀn,
//! dz += φ(q)·c; once every query is done, dφ(k) = v·dSᵀ + dz and dv = φ(k)·dS; and for both, with t = dφ·e,
//! dx = d^-¼·t·P − Σt·x/√d. The largest values m are constants of the gradient.
//!
//! φ itself is never made: what ε adds to a sum is ε times a sum without features, so `e·S + ε·ΣS` is `φ·S`. Features of a row
//! are its heads side by side, each filled up with zeros to whole vectors of sixteen.
//!
//! Sums are linear in their keys, so those of many cells that share keys can be added: [`KeyGradient::add`] brings them to
//! one m. Queries that many cells share have one e, and their t can be added.

use super::backward::add_scaled;
use super::favor::EPS;
use super::favor_rows::{
    denominators, features_back, key_features, largest, norms_back, query_features, quotients, quotients_back, sum_rows,
};
use super::linear::{Activations, BLOCK, Linear, Then};
use super::memory::{Aligned, LANES, Rows};
use super::operands::panel_of;
use super::projection::{Projection, scaled};
use super::tile::{Form, Isa, Operand, PANEL, multiply_f32_of};

/// Attention of one decoder layer that learns. Rows hold heads side by side, `[rows, heads·dim]`.
#[derive(Debug)]
pub struct LearningFavor {
    isa: Isa,
    heads: usize,
    dim: usize,
    features: usize,
    there: Projection,
    /// P·d^-¼ from features to numbers.
    back: Linear,
}

/// Sums over keys, against one maximum.
#[derive(Debug, Clone)]
pub struct LearningSums {
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

/// S and z of a cell as queries read them, and S turned for the way back.
#[derive(Debug)]
pub struct LearningContext {
    /// Largest x'·Pᵀ of the cell's keys.
    pub max: f32,
    products: Vec<f32>,
    turned: Vec<f32>,
    totals: Vec<f32>,
    /// ε·Σ over features of S, `[heads, dim]`, and of z, `[heads]`.
    ones: Vec<f32>,
    one_totals: Vec<f32>,
}

/// dS and dz while queries are gone through, and what ε is to be added of: Σ n, `[heads, dim]`, and Σ c, `[heads]`.
#[derive(Debug, Clone)]
pub struct SumsGradient {
    products: Vec<f32>,
    totals: Vec<f32>,
    values: Vec<f32>,
    along: Vec<f32>,
}

/// What keys and values are asked for on the way back: dS and dz for keys against `max`.
#[derive(Debug, Clone)]
pub struct KeyGradient {
    /// The maximum that e is taken against.
    pub max: f32,
    products: Vec<f32>,
    turned: Vec<f32>,
    totals: Vec<f32>,
    /// ε·Σ over features of dS, `[heads, dim]`.
    ones: Vec<f32>,
}

/// Memory of one thread.
#[derive(Debug, Default)]
pub struct LearningScratch {
    features: Rows,
    gradients: Rows,
    largest: Aligned<f32>,
    panel: Aligned<f32>,
    sums: Aligned<f32>,
    activations: Activations,
}

impl LearningFavor {
    /// `projection` is P, `[features, dim]`.
    pub fn new(isa: Isa, projection: &[f32], heads: usize, dim: usize) -> Self {
        let features = projection.len() / dim;
        let scaled = scaled(projection, dim);
        let turned: Vec<f32> = (0..scaled.len()).map(|i| scaled[i % features * dim + i / features]).collect();
        let there = Projection::new(isa, projection, heads, dim);
        Self { isa, heads, dim, features, there, back: Linear::pack(isa, Form::F32, &turned, &[], features, dim) }
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

    /// f32 in the panels of a head when turned.
    fn turned_size(&self) -> usize {
        self.features.next_multiple_of(PANEL) * self.dim
    }

    /// Sums of no keys.
    pub fn no_keys(&self) -> LearningSums {
        LearningSums {
            max: f32::NEG_INFINITY,
            products: vec![0.0; self.heads * self.size()],
            totals: vec![0.0; self.width()],
            values: vec![0.0; self.heads * self.dim],
            keys: 0.0,
        }
    }

    /// The largest x'·Pᵀ of each of some keys, over all heads; appended.
    pub fn largest(&self, k: (&[f32], usize), rows: usize, scratch: &mut LearningScratch, out: &mut Vec<f32>) {
        self.there.largest(k, rows, &mut scratch.largest, out);
    }

    /// x'·Pᵀ of every head, a row of features each.
    fn project(&self, x: (&[f32], usize), rows: usize, out: &mut Rows) {
        out.resize(BLOCK, self.width());
        for head in 0..self.heads {
            let (all, apart) = out.part_mut(0);
            self.there.of((&x.0[head * self.dim..], x.1), rows, (&mut all[head * self.padded()..], apart));
        }
    }

    /// Adds (`sign` 1) or takes off (−1) keys and values.
    pub fn add_keys(
        &self,
        k: (&[f32], usize),
        v: (&[f32], usize),
        rows: usize,
        sign: f32,
        sums: &mut LearningSums,
        scratch: &mut LearningScratch,
    ) {
        let (dim, padded) = (self.dim, self.padded());
        let LearningScratch { features, panel, .. } = scratch;
        self.project(k, rows, features);
        let (e, apart) = features.part_mut(0);
        sums.keys += sign * rows as f32;
        sums.raise(largest(e, apart, rows, self.width()).max(sums.max));
        for head in 0..self.heads {
            let (k, v) = ((&k.0[head * dim..], k.1), (&v.0[head * dim..], v.1));
            let e = &mut e[head * padded..];
            key_features(k, dim, (&mut *e, apart), self.features, rows, sums.max, sign);
            let totals = &mut sums.totals[head * padded..][..padded];
            sum_rows(totals, (e, apart), rows, 1.0);
            sum_rows(&mut sums.values[head * dim..][..dim], v, rows, sign);
            let products = &mut sums.products[head * self.size()..][..self.size()];
            self.add_products((e, apart), v, rows, products, panel);
        }
    }

    /// Adds eᵀ·v to the panels of a head.
    fn add_products(
        &self,
        e: (&[f32], usize),
        v: (&[f32], usize),
        rows: usize,
        products: &mut [f32],
        panel: &mut Aligned<f32>,
    ) {
        for (n, products) in products.chunks_exact_mut(self.features * PANEL).enumerate() {
            let values = panel.at_least(rows * PANEL);
            let columns = PANEL.min(self.dim - n * PANEL);
            panel_of((&v.0[n * PANEL..], v.1), columns, values);
            let a = Operand { data: e.0, row: 1, step: e.1 };
            multiply_f32_of(self.isa, self.features, rows, columns, a, values, products, PANEL, true);
        }
    }

    /// Rows of features times the panels of a head: `[rows, 32]` of each panel, its first column and how many there are.
    fn times(
        &self,
        e: (&[f32], usize),
        rows: usize,
        products: &[f32],
        sums: &mut Aligned<f32>,
        mut put: impl FnMut(usize, usize, &[f32]),
    ) {
        for (n, products) in products.chunks_exact(self.features * PANEL).enumerate() {
            let sums = sums.at_least(rows * PANEL);
            let a = Operand { data: e.0, row: e.1, step: 1 };
            let columns = PANEL.min(self.dim - n * PANEL);
            multiply_f32_of(self.isa, rows, self.features, columns, a, products, sums, PANEL, false);
            put(n * PANEL, columns, sums);
        }
    }

    /// Numbers of a head times turned panels, whole vectors of features into rows of `out`.
    fn times_turned(&self, x: (&[f32], usize), rows: usize, turned: &[f32], out: (&mut [f32], usize)) {
        for (n, turned) in turned.chunks_exact(self.dim * PANEL).enumerate() {
            let columns = self.features - n * PANEL;
            let a = Operand { data: x.0, row: x.1, step: 1 };
            multiply_f32_of(self.isa, rows, self.dim, columns, a, turned, &mut out.0[n * PANEL..], out.1, false);
        }
    }

    /// Panels `[features, 32]` of every head as panels `[dim, 32]` of their transpose.
    fn turn(&self, products: &[f32]) -> Vec<f32> {
        let mut turned = vec![0.0; self.heads * self.turned_size()];
        for (from, to) in products.chunks_exact(self.size()).zip(turned.chunks_exact_mut(self.turned_size())) {
            for f in 0..self.features {
                for j in 0..self.dim {
                    let value = from[(j / PANEL * self.features + f) * PANEL + j % PANEL];
                    to[(f / PANEL * self.dim + j) * PANEL + f % PANEL] = value;
                }
            }
        }
        turned
    }

    /// ε·Σ over features of panels `[features, 32]`, `[heads, dim]`.
    fn ones(&self, products: &[f32]) -> Vec<f32> {
        let mut ones = vec![0.0; self.heads * self.dim];
        for (ones, products) in ones.chunks_mut(self.dim).zip(products.chunks_exact(self.size())) {
            for (ones, panel) in ones.chunks_mut(PANEL).zip(products.chunks_exact(self.features * PANEL)) {
                panel.chunks_exact(PANEL).for_each(|row| add_scaled(ones, row, EPS));
            }
        }
        ones
    }

    /// Adds ε times a vector `[dim]` of each head to every feature's row of its panels, and ε times a number to its totals.
    fn add_ones(&self, products: &mut [f32], totals: &mut [f32], values: &[f32], numbers: impl Iterator<Item = f32>) {
        for (products, values) in products.chunks_exact_mut(self.size()).zip(values.chunks(self.dim)) {
            for (panel, values) in products.chunks_exact_mut(self.features * PANEL).zip(values.chunks(PANEL)) {
                panel.chunks_exact_mut(PANEL).for_each(|row| add_scaled(row, values, EPS));
            }
        }
        for (totals, number) in totals.chunks_mut(self.padded()).zip(numbers) {
            totals[..self.features].iter_mut().for_each(|total| *total += EPS * number);
        }
    }

    /// S and z of a cell. `largest` is its largest x'·Pᵀ where that is not the sums' (keys were taken off).
    pub fn context(&self, sums: &LearningSums, largest: Option<f32>) -> LearningContext {
        let mut whole = sums.clone();
        whole.raise(largest.unwrap_or(sums.max));
        let LearningSums { max, mut products, mut totals, values, keys } = whole;
        self.add_ones(&mut products, &mut totals, &values, std::iter::repeat(keys));
        LearningContext {
            max,
            turned: self.turn(&products),
            ones: self.ones(&products),
            one_totals: totals.chunks(self.padded()).map(|totals| EPS * totals.iter().sum::<f32>()).collect(),
            products,
            totals,
        }
    }

    /// Features of some queries, each row against its own largest, into the first rows of `e`.
    pub fn query_features(&self, q: (&[f32], usize), rows: usize, e: &mut Rows) {
        self.project(q, rows, e);
        let (e, apart) = e.part_mut(0);
        for head in 0..self.heads {
            let q = (&q.0[head * self.dim..], q.1);
            query_features(q, self.dim, (&mut e[head * self.padded()..], apart), self.features, rows);
        }
    }

    /// Attention of queries with features `e` into `out`, and 1/φ(q)·z into `over`, `[heads, rows]`, for the way back.
    pub fn attend(
        &self,
        e: (&[f32], usize),
        rows: usize,
        context: &LearningContext,
        out: (&mut [f32], usize),
        over: &mut [f32],
        scratch: &mut LearningScratch,
    ) {
        let (dim, padded) = (self.dim, self.padded());
        for (head, over) in over.chunks_exact_mut(rows).take(self.heads).enumerate() {
            let e = (&e.0[head * padded..], e.1);
            denominators(e, &context.totals[head * padded..][..padded], context.one_totals[head], over);
            let products = &context.products[head * self.size()..][..self.size()];
            self.times(e, rows, products, &mut scratch.sums, |first, columns, sums| {
                let ones = &context.ones[head * dim + first..][..columns];
                quotients(sums, ones, over, (&mut out.0[head * dim + first..], out.1));
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

    /// The way back of [`LearningFavor::attend`]: from the gradients of what it gave, which are overwritten, to t = dφ·e of the
    /// queries, into the first rows of `t`, and to dS and dz.
    #[allow(clippy::too_many_arguments, reason = "what attention read, what it gave, and the gradients of both")]
    pub fn attend_back(
        &self,
        e: (&[f32], usize),
        rows: usize,
        context: &LearningContext,
        over: &[f32],
        attended: (&[f32], usize),
        d_attended: (&mut [f32], usize),
        t: &mut Rows,
        gradient: &mut SumsGradient,
        scratch: &mut LearningScratch,
    ) {
        let (dim, padded) = (self.dim, self.padded());
        t.resize(BLOCK, self.width());
        let (t, t_apart) = t.part_mut(0);
        for (head, over) in over.chunks_exact(rows).take(self.heads).enumerate() {
            let (e, t) = ((&e.0[head * padded..], e.1), &mut t[head * padded..]);
            let mut along = [0f32; BLOCK];
            let along = &mut along[..rows];
            let n = (&mut d_attended.0[head * dim..], d_attended.1);
            quotients_back((&attended.0[head * dim..], attended.1), dim, over, n, along);
            gradient.along[head] += along.iter().sum::<f32>();
            let n = (&d_attended.0[head * dim..], d_attended.1);
            sum_rows(&mut gradient.values[head * dim..][..dim], n, rows, 1.0);
            let products = &mut gradient.products[head * self.size()..][..self.size()];
            self.add_products(e, n, rows, products, &mut scratch.panel);
            let turned = &context.turned[head * self.turned_size()..][..self.turned_size()];
            self.times_turned(n, rows, turned, (&mut *t, t_apart));
            let totals = &context.totals[head * padded..][..padded];
            features_back(e, totals, along, (t, t_apart), &mut gradient.totals[head * padded..][..padded]);
        }
    }

    /// From t of some rows to the gradient of their numbers.
    pub fn numbers_back(
        &self,
        x: (&[f32], usize),
        rows: usize,
        t: (&[f32], usize),
        dx: (&mut [f32], usize),
        scratch: &mut LearningScratch,
    ) {
        let (dim, padded) = (self.dim, self.padded());
        for head in 0..self.heads {
            let (t, dx) = ((&t.0[head * padded..], t.1), (&mut dx.0[head * dim..], dx.1));
            let input = scratch.activations.of(Form::F32, t.0, t.1, rows, self.features);
            self.back.forward(input, rows, Then::Bias, dx.0, dx.1);
            norms_back((&x.0[head * dim..], x.1), dim, t, padded, dx, rows);
        }
    }

    /// dS and dz as keys read them.
    pub fn key_gradient(&self, context: &LearningContext, gradient: SumsGradient) -> KeyGradient {
        let SumsGradient { mut products, mut totals, values, along } = gradient;
        self.add_ones(&mut products, &mut totals, &values, along.into_iter());
        let (turned, ones) = (self.turn(&products), self.ones(&products));
        KeyGradient { max: context.max, products, turned, totals, ones }
    }

    /// No cell's gradient of keys against a maximum.
    pub fn no_key_gradient(&self, max: f32) -> KeyGradient {
        KeyGradient {
            max,
            products: vec![0.0; self.heads * self.size()],
            turned: vec![0.0; self.heads * self.turned_size()],
            totals: vec![0.0; self.width()],
            ones: vec![0.0; self.heads * self.dim],
        }
    }

    /// Gradients of some keys and values.
    #[allow(clippy::too_many_arguments, reason = "keys and values, and the gradients of both")]
    pub fn keys_back(
        &self,
        k: (&[f32], usize),
        v: (&[f32], usize),
        rows: usize,
        gradient: &KeyGradient,
        dk: (&mut [f32], usize),
        dv: (&mut [f32], usize),
        scratch: &mut LearningScratch,
    ) {
        let (dim, padded) = (self.dim, self.padded());
        let (mut features, mut gradients) =
            (std::mem::take(&mut scratch.features), std::mem::take(&mut scratch.gradients));
        self.project(k, rows, &mut features);
        gradients.resize(BLOCK, self.width());
        let ((all, apart), (all_t, t_apart)) = (features.part_mut(0), gradients.part_mut(0));
        for head in 0..self.heads {
            let (k, v) = ((&k.0[head * dim..], k.1), (&v.0[head * dim..], v.1));
            let (e, t) = (&mut all[head * padded..], &mut all_t[head * padded..]);
            key_features(k, dim, (&mut *e, apart), self.features, rows, gradient.max, 1.0);
            let products = &gradient.products[head * self.size()..][..self.size()];
            self.times((e, apart), rows, products, &mut scratch.sums, |first, columns, sums| {
                let ones = &gradient.ones[head * dim + first..][..columns];
                quotients(sums, ones, &[1.0; BLOCK][..rows], (&mut dv.0[head * dim + first..], dv.1));
            });
            let turned = &gradient.turned[head * self.turned_size()..][..self.turned_size()];
            self.times_turned(v, rows, turned, (&mut *t, t_apart));
            let totals = &gradient.totals[head * padded..][..padded];
            features_back((e, apart), totals, &[1.0; BLOCK][..rows], (t, t_apart), &mut []);
        }
        self.numbers_back(k, rows, (all_t, t_apart), dk, scratch);
        (scratch.features, scratch.gradients) = (features, gradients);
    }
}

impl LearningSums {
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
        for values in [&mut scaled.products, &mut scaled.turned, &mut scaled.totals] {
            values.iter_mut().for_each(|value| *value *= scale);
        }
        Self { max, ..scaled }
    }

    /// Adds the gradient of another cell against the same maximum.
    pub fn add(&mut self, other: &Self) {
        debug_assert!(self.max == other.max);
        add_scaled(&mut self.products, &other.products, 1.0);
        add_scaled(&mut self.turned, &other.turned, 1.0);
        add_scaled(&mut self.totals, &other.totals, 1.0);
        add_scaled(&mut self.ones, &other.ones, 1.0);
    }
}
