//! FAVOR+ attention with gradients: what [`crate::Favor`] computes, in f32, and the way back.
//!
//! With e = exp(x'·Pᵀ − ‖x‖²/(2√d) − m) and φ = e + 1e-4 (as there), S = Σ φ(k)ᵀv and z = Σ φ(k), a query gives
//! a = φ(q)·S / φ(q)·z. Gradients: with n = da/(φ(q)·z) and c = −(da·a)/(φ(q)·z), dφ(q) = n·Sᵀ + c·z, dS += φ(q)ᵀn,
//! dz += φ(q)·c; once every query is done, dφ(k) = v·dSᵀ + dz and dv = φ(k)·dS; and for both, with t = dφ·e,
//! dx = d^-¼·t·P − Σt·x/√d. The largest values m are constants of the gradient.
//!
//! Sums are linear in their keys, so those of many cells that share keys can be added: [`KeyGradient::add`] brings them to
//! one m.

use super::backward::add_scaled;
use super::dense::panel_of;
use super::favor::{EPS, exponentials};
use super::linear::{Activations, Linear, Then};
use super::memory::{Aligned, stride};
use super::tile::{Form, Isa, Operand, PANEL, multiply_f32_of};
use crate::simd::{dispatch, dot, max_of, sum_of};

/// Attention of one decoder layer that learns. Rows hold heads side by side, `[rows, heads·dim]`.
#[derive(Debug)]
pub struct LearningFavor {
    isa: Isa,
    heads: usize,
    dim: usize,
    features: usize,
    /// P·d^-¼, from numbers to features.
    there: Linear,
    /// The same from features to numbers.
    back: Linear,
}

/// Sums over keys, against one maximum.
#[derive(Debug, Clone)]
pub struct LearningSums {
    /// Largest x'·Pᵀ so far, of any head.
    pub max: f32,
    /// Σ eᵀv, per head panels `[features, 32]`.
    products: Vec<f32>,
    /// Σ e, `[heads, features]`.
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
}

/// Features of a block of queries, kept from the way there for the way back.
#[derive(Debug, Default)]
pub struct QueryFeatures {
    /// e, per head `[rows, stride(features)]`.
    e: Aligned<f32>,
    /// 1 / φ(q)·z, `[heads, rows]`.
    over: Vec<f32>,
}

/// dS and dz while queries are gone through.
#[derive(Debug, Clone)]
pub struct SumsGradient {
    products: Vec<f32>,
    totals: Vec<f32>,
}

/// What keys and values are asked for on the way back: dS and dz for keys against `max`.
#[derive(Debug, Clone)]
pub struct KeyGradient {
    /// The maximum that e is taken against.
    pub max: f32,
    products: Vec<f32>,
    turned: Vec<f32>,
    totals: Vec<f32>,
    /// 1e-4·Σ over features of dS, `[heads, dim]`.
    ones: Vec<f32>,
}

/// Memory of one thread.
#[derive(Debug, Default)]
pub struct LearningScratch {
    features: Aligned<f32>,
    gradients: Aligned<f32>,
    panel: Aligned<f32>,
    sums: Aligned<f32>,
    activations: Activations,
}

impl LearningFavor {
    /// `projection` is P, `[features, dim]`.
    pub fn new(isa: Isa, projection: &[f32], heads: usize, dim: usize) -> Self {
        let features = projection.len() / dim;
        let scale = (dim as f32).powf(-0.25);
        let scaled: Vec<f32> = projection.iter().map(|p| p * scale).collect();
        let turned: Vec<f32> = (0..scaled.len()).map(|i| scaled[i % features * dim + i / features]).collect();
        let there = Linear::pack(isa, Form::F32, &scaled, &[], dim, features);
        Self { isa, heads, dim, features, there, back: Linear::pack(isa, Form::F32, &turned, &[], features, dim) }
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
            totals: vec![0.0; self.heads * self.features],
            values: vec![0.0; self.heads * self.dim],
            keys: 0.0,
        }
    }

    /// x'·Pᵀ of one head, `[rows, stride(features)]`.
    fn project<'a>(
        &self,
        x: (&[f32], usize),
        rows: usize,
        activations: &mut Activations,
        out: &'a mut Aligned<f32>,
    ) -> &'a mut [f32] {
        let apart = stride(self.features);
        let out = out.at_least(rows * apart);
        self.there.forward(activations.of(Form::F32, x.0, x.1, rows, self.dim), rows, Then::Bias, out, apart);
        out
    }

    /// The largest x'·Pᵀ of each of some keys, over all heads; appended.
    pub fn largest(&self, k: (&[f32], usize), rows: usize, scratch: &mut LearningScratch, out: &mut Vec<f32>) {
        let first = out.len();
        out.resize(first + rows, f32::NEG_INFINITY);
        let LearningScratch { features, activations, .. } = scratch;
        for head in 0..self.heads {
            let y = self.project((&k.0[head * self.dim..], k.1), rows, activations, features);
            for (y, largest) in y.chunks(stride(self.features)).zip(&mut out[first..]) {
                *largest = largest.max(max_of(&y[..self.features]));
            }
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
        let (dim, features, apart) = (self.dim, self.features, stride(self.features));
        let LearningScratch { features: buffer, panel, activations, .. } = scratch;
        sums.keys += sign * rows as f32;
        for head in 0..self.heads {
            let (k, v) = ((&k.0[head * dim..], k.1), (&v.0[head * dim..], v.1));
            let e = self.project(k, rows, activations, buffer);
            let largest = e.chunks(apart).map(|e| max_of(&e[..features])).fold(sums.max, f32::max);
            if largest > sums.max {
                sums.raise(largest);
            }
            let (totals, values) = (&mut sums.totals[head * features..], &mut sums.values[head * dim..]);
            for (i, e) in e.chunks_mut(apart).enumerate() {
                exponentials(&k.0[i * k.1..][..dim], &mut e[..features], sums.max);
                if sign < 0.0 {
                    e[..features].iter_mut().for_each(|e| *e = -*e);
                }
                add_scaled(&mut totals[..features], &e[..features], 1.0);
                add_scaled(&mut values[..dim], &v.0[i * v.1..][..dim], sign);
            }
            let products = &mut sums.products[head * self.size()..][..self.size()];
            self.add_products(e, v, rows, products, panel);
        }
    }

    /// Adds eᵀ·v to the panels of a head.
    fn add_products(&self, e: &[f32], v: (&[f32], usize), rows: usize, products: &mut [f32], panel: &mut Aligned<f32>) {
        for (n, products) in products.chunks_exact_mut(self.features * PANEL).enumerate() {
            let values = panel.at_least(rows * PANEL);
            let columns = PANEL.min(self.dim - n * PANEL);
            panel_of((&v.0[n * PANEL..], v.1), columns, values);
            let a = Operand { data: e, row: 1, step: stride(self.features) };
            multiply_f32_of(self.isa, self.features, rows, columns, a, values, products, PANEL, true);
        }
    }

    /// Rows of features times the panels of a head, `[rows, dim]`; each row is then scaled and `then` added.
    fn times(
        &self,
        e: &[f32],
        rows: usize,
        products: &[f32],
        sums: &mut Aligned<f32>,
        mut put: impl FnMut(usize, usize, &[f32]),
    ) {
        for (n, products) in products.chunks_exact(self.features * PANEL).enumerate() {
            let sums = sums.at_least(rows * PANEL);
            let a = Operand { data: e, row: stride(self.features), step: 1 };
            let columns = PANEL.min(self.dim - n * PANEL);
            multiply_f32_of(self.isa, rows, self.features, columns, a, products, sums, PANEL, false);
            for (i, sums) in sums.chunks_exact(PANEL).enumerate() {
                put(i, n * PANEL, &sums[..columns]);
            }
        }
    }

    /// Numbers of a head times turned panels, `[rows, stride(features)]` into `out`.
    fn times_turned(&self, x: (&[f32], usize), rows: usize, turned: &[f32], sums: &mut Aligned<f32>, out: &mut [f32]) {
        let apart = stride(self.features);
        for (n, turned) in turned.chunks_exact(self.dim * PANEL).enumerate() {
            let sums = sums.at_least(rows * PANEL);
            let columns = PANEL.min(self.features - n * PANEL);
            let a = Operand { data: x.0, row: x.1, step: 1 };
            multiply_f32_of(self.isa, rows, self.dim, columns, a, turned, sums, PANEL, false);
            for (sums, out) in sums.chunks_exact(PANEL).zip(out.chunks_mut(apart)) {
                out[n * PANEL..][..columns].copy_from_slice(&sums[..columns]);
            }
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

    /// S and z of a cell. `largest` is its largest x'·Pᵀ where that is not the sums' (keys were taken off).
    pub fn context(&self, sums: &LearningSums, largest: Option<f32>) -> LearningContext {
        let mut whole = sums.clone();
        whole.raise(largest.unwrap_or(sums.max));
        for (products, values) in whole.products.chunks_exact_mut(self.size()).zip(whole.values.chunks(self.dim)) {
            for (panel, values) in products.chunks_exact_mut(self.features * PANEL).zip(values.chunks(PANEL)) {
                panel.chunks_exact_mut(PANEL).for_each(|row| add_scaled(row, values, EPS));
            }
        }
        whole.totals.iter_mut().for_each(|total| *total += EPS * sums.keys);
        let turned = self.turn(&whole.products);
        LearningContext { max: whole.max, products: whole.products, turned, totals: whole.totals }
    }

    /// Attention of some queries into `out`; their features are kept for the way back.
    pub fn attend(
        &self,
        q: (&[f32], usize),
        rows: usize,
        context: &LearningContext,
        out: (&mut [f32], usize),
        kept: &mut QueryFeatures,
        scratch: &mut LearningScratch,
    ) {
        let (dim, features, apart) = (self.dim, self.features, stride(self.features));
        let LearningScratch { sums, features: buffer, gradients, activations, .. } = scratch;
        let all = kept.e.at_least(self.heads * rows * apart);
        kept.over.clear();
        for (head, kept_e) in all.chunks_exact_mut(rows * apart).enumerate() {
            let q = (&q.0[head * dim..], q.1);
            let e = self.project(q, rows, activations, buffer);
            let totals = &context.totals[head * features..][..features];
            let phi = gradients.at_least(rows * apart);
            for (i, ((e, kept_e), phi)) in
                e.chunks_mut(apart).zip(kept_e.chunks_mut(apart)).zip(phi.chunks_mut(apart)).enumerate()
            {
                let e = &mut e[..features];
                let max = max_of(e);
                exponentials(&q.0[i * q.1..][..dim], e, max);
                kept_e[..features].copy_from_slice(e);
                phi[..features].iter_mut().zip(e.iter()).for_each(|(phi, e)| *phi = e + EPS);
                kept.over.push(1.0 / dot(&phi[..features], totals));
            }
            let over = &kept.over[head * rows..];
            let products = &context.products[head * self.size()..][..self.size()];
            self.times(phi, rows, products, sums, |i, first, sums| {
                let out = &mut out.0[i * out.1 + head * dim + first..][..sums.len()];
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * over[i]);
            });
        }
    }

    /// dS and dz of no queries.
    pub fn no_queries(&self) -> SumsGradient {
        SumsGradient { products: vec![0.0; self.heads * self.size()], totals: vec![0.0; self.heads * self.features] }
    }

    /// The way back of [`LearningFavor::attend`]: from the gradients of what it gave, which are overwritten, to those of the
    /// queries, and to dS and dz.
    #[allow(clippy::too_many_arguments, reason = "what attention read, what it gave, and the gradients of both")]
    pub fn attend_back(
        &self,
        q: (&[f32], usize),
        rows: usize,
        context: &LearningContext,
        kept: &QueryFeatures,
        attended: (&[f32], usize),
        d_attended: (&mut [f32], usize),
        dq: (&mut [f32], usize),
        gradient: &mut SumsGradient,
        scratch: &mut LearningScratch,
    ) {
        let (dim, features, apart) = (self.dim, self.features, stride(self.features));
        let LearningScratch { features: phi, gradients, panel, sums, activations } = scratch;
        for head in 0..self.heads {
            let e = &kept.e[head * rows * apart..][..rows * apart];
            let (phi, dphi) = (phi.at_least(rows * apart), gradients.at_least(rows * apart));
            let d_totals = &mut gradient.totals[head * features..][..features];
            let mut along = [0f32; super::linear::BLOCK];
            for i in 0..rows {
                let at = head * dim + i * attended.1;
                let (a, da) = (&attended.0[at..][..dim], &mut d_attended.0[head * dim + i * d_attended.1..][..dim]);
                let over = kept.over[head * rows + i];
                along[i] = -dot(a, da) * over;
                da.iter_mut().for_each(|d| *d *= over);
                let phi = &mut phi[i * apart..][..features];
                phi.iter_mut().zip(&e[i * apart..]).for_each(|(phi, e)| *phi = e + EPS);
                add_scaled(d_totals, phi, along[i]);
            }
            let n = (&d_attended.0[head * dim..], d_attended.1);
            self.add_products(phi, n, rows, &mut gradient.products[head * self.size()..][..self.size()], panel);
            let turned = &context.turned[head * self.turned_size()..][..self.turned_size()];
            self.times_turned(n, rows, turned, sums, dphi);
            let totals = &context.totals[head * features..][..features];
            for (i, dphi) in dphi.chunks_mut(apart).enumerate() {
                add_scaled(&mut dphi[..features], totals, along[i]);
            }
            let (q, dq) = ((&q.0[head * dim..], q.1), (&mut dq.0[head * dim..], dq.1));
            self.features_back(q, rows, e, dphi, dq, activations);
        }
    }

    /// From dφ, which becomes t = dφ·e, to the gradient of the numbers.
    fn features_back(
        &self,
        x: (&[f32], usize),
        rows: usize,
        e: &[f32],
        dphi: &mut [f32],
        dx: (&mut [f32], usize),
        activations: &mut Activations,
    ) {
        let (dim, features, apart) = (self.dim, self.features, stride(self.features));
        let mut totals = [0f32; super::linear::BLOCK];
        for ((t, e), total) in dphi.chunks_mut(apart).zip(e.chunks(apart)).zip(&mut totals) {
            times_sum(&mut t[..features], &e[..features], total);
        }
        let input = activations.of(Form::F32, dphi, apart, rows, features);
        self.back.forward(input, rows, Then::Bias, dx.0, dx.1);
        let root = 1.0 / (dim as f32).sqrt();
        for (i, total) in totals.iter().enumerate().take(rows) {
            add_scaled(&mut dx.0[i * dx.1..][..dim], &x.0[i * x.1..][..dim], -total * root);
        }
    }

    /// dS and dz as keys read them.
    pub fn key_gradient(&self, context: &LearningContext, gradient: SumsGradient) -> KeyGradient {
        let mut ones = vec![0.0; self.heads * self.dim];
        for (ones, products) in ones.chunks_mut(self.dim).zip(gradient.products.chunks_exact(self.size())) {
            for (ones, panel) in ones.chunks_mut(PANEL).zip(products.chunks_exact(self.features * PANEL)) {
                panel.chunks_exact(PANEL).for_each(|row| add_scaled(ones, row, EPS));
            }
        }
        let turned = self.turn(&gradient.products);
        KeyGradient { max: context.max, products: gradient.products, turned, totals: gradient.totals, ones }
    }

    /// No cell's gradient of keys against a maximum.
    pub fn no_key_gradient(&self, max: f32) -> KeyGradient {
        KeyGradient {
            max,
            products: vec![0.0; self.heads * self.size()],
            turned: vec![0.0; self.heads * self.turned_size()],
            totals: vec![0.0; self.heads * self.features],
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
        let (dim, features, apart) = (self.dim, self.features, stride(self.features));
        let LearningScratch { features: buffer, gradients, sums, activations, .. } = scratch;
        for head in 0..self.heads {
            let (k, v) = ((&k.0[head * dim..], k.1), (&v.0[head * dim..], v.1));
            let e = self.project(k, rows, activations, buffer);
            for (i, e) in e.chunks_mut(apart).enumerate() {
                exponentials(&k.0[i * k.1..][..dim], &mut e[..features], gradient.max);
            }
            let products = &gradient.products[head * self.size()..][..self.size()];
            let ones = &gradient.ones[head * dim..][..dim];
            self.times(e, rows, products, sums, |i, first, sums| {
                let dv = &mut dv.0[i * dv.1 + head * dim + first..][..sums.len()];
                dv.iter_mut().zip(sums).zip(&ones[first..]).for_each(|((dv, sum), one)| *dv = sum + one);
            });
            let dphi = gradients.at_least(rows * apart);
            let turned = &gradient.turned[head * self.turned_size()..][..self.turned_size()];
            self.times_turned(v, rows, turned, sums, dphi);
            let totals = &gradient.totals[head * features..][..features];
            dphi.chunks_mut(apart).for_each(|dphi| add_scaled(&mut dphi[..features], totals, 1.0));
            self.features_back(k, rows, e, dphi, (&mut dk.0[head * dim..], dk.1), activations);
        }
    }
}

#[inline(always)]
fn times_sum_body(t: &mut [f32], e: &[f32], total: &mut f32) {
    t.iter_mut().zip(e).for_each(|(t, e)| *t *= e);
    *total = sum_of(t, |t| t);
}

dispatch! {
    /// `t` times `e`, and the sum of it.
    fn times_sum(t: &mut [f32], e: &[f32], total: &mut f32) = times_sum_body
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
