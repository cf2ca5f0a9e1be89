//! FAVOR+ attention (Choromanski et al. 2021) with the softmax kernel, as the authors' decoder has it.
//!
//! The vector x of a head becomes features φ(x) = exp(x'·Pᵀ − ‖x‖²/(2√d) − m) + 1e-4 with x' = x·d^-¼ (a common factor
//! of all features cancels between numerator and denominator and is left out). Attention is φ(q)·(Σ φ(k)ᵀv) / (φ(q)·Σ
//! φ(k)): keys are summed first, then queries read the sums. That is linear in positions, and the sums are the only
//! point where positions depend on each other. For queries m is the largest of a token's own x'·Pᵀ; for keys it is the
//! largest of a whole cell, every head and position. Keys are summed against a running maximum and the 1e-4 is added in
//! the end, from Σ v and their number. Limit: FLOPs of the products with P and with the sums.

use super::isa::Isa;
use super::linear::{bf16, to_bf16};
use super::numeric::exp_nonpositive;
use super::panel::{Extent, Operand, PANEL, Sums};
use super::product::{multiply_bf16, multiply_f32};
use super::projection::Projection;
use super::rows::{Aligned, stride};
use super::view::{RowsView, RowsViewMut};
use crate::simd::{dispatch, dot, max_of, multiply_add, sum_of};
use cellql_dtype::Dtype;

/// Added to every random feature, as the authors' code does.
pub const FEATURE_EPS: f32 = 1e-4;

/// Attention of one decoder layer.
#[derive(Debug)]
pub struct Favor {
    isa: Isa,
    heads: usize,
    dim: usize,
    features: usize,
    projection: Projection,
    /// Of the products with features: f32 or bf16.
    dtype: Dtype,
}

/// Sums over keys of one cell, or of a part of its positions.
#[derive(Debug, Clone)]
pub struct KeySums {
    heads: Vec<HeadSums>,
    keys: isize,
}

impl KeySums {
    /// Largest x'·Pᵀ of any head.
    pub fn largest(&self) -> f32 {
        self.heads.iter().map(|h| h.max).fold(f32::NEG_INFINITY, f32::max)
    }

    /// Sums of no keys, with the same maxima for the exponentials.
    pub fn empty(&self) -> Self {
        let mut empty = self.clone();
        empty.keys = 0;
        for head in &mut empty.heads {
            for sums in [&mut head.products, &mut head.totals, &mut head.values] {
                sums.fill(0.0);
            }
        }
        empty
    }

    /// The same keys, to be subtracted.
    pub fn negated(mut self) -> Self {
        self.keys = -self.keys;
        for head in &mut self.heads {
            let sums = head.products.iter_mut().chain(&mut head.totals).chain(&mut head.values);
            sums.for_each(|s| *s = -*s);
        }
        self
    }
}

#[derive(Debug, Clone)]
struct HeadSums {
    /// Largest x'·Pᵀ so far.
    max: f32,
    /// Σ exp(…)ᵀv as panels `[features, 32]`.
    products: Vec<f32>,
    /// Σ exp(…), `[features]`.
    totals: Vec<f32>,
    /// Σ v, `[dim]` padded to panels.
    values: Vec<f32>,
}

/// The sums as queries read them.
#[derive(Debug)]
pub struct Context {
    heads: Vec<HeadContext>,
}

#[derive(Debug)]
struct HeadContext {
    /// Panels `[features, 32]`.
    products: Vec<f32>,
    /// The same in pairs of bf16; empty in f32.
    lanes: Vec<u32>,
    totals: Vec<f32>,
}

/// Buffers that one thread uses again for each call.
#[derive(Debug, Default)]
pub struct FavorScratch {
    features: Aligned<f32>,
    values: Aligned<f32>,
    sums: Aligned<f32>,
    lanes: Aligned<u32>,
    value_lanes: Aligned<u32>,
}

impl Favor {
    /// `projection` is P, `[features, dim]`. The products with features are done in f32 or bf16, the latter for int8
    /// too.
    pub fn new(isa: Isa, dtype: Dtype, projection: &[f32], heads: usize, dim: usize) -> Self {
        let features = projection.len() / dim;
        let projection = Projection::new(isa, projection, heads, dim);
        Self { isa, heads, dim, features, projection, dtype: dtype.floating() }
    }

    /// Sums of no keys.
    pub fn no_keys(&self) -> KeySums {
        let padded = self.dim.next_multiple_of(PANEL);
        let head = HeadSums {
            max: f32::NEG_INFINITY,
            products: vec![0.0; self.features * padded],
            totals: vec![0.0; self.features],
            values: vec![0.0; padded],
        };
        KeySums { heads: vec![head; self.heads], keys: 0 }
    }

    /// Adds keys and values of `rows` tokens, `[rows, heads·dim]` each, to sums.
    pub fn add_keys(&self, k: RowsView, v: RowsView, rows: usize, sums: &mut KeySums, scratch: &mut FavorScratch) {
        let (dim, features, apart) = (self.dim, self.features, stride(self.features));
        let FavorScratch { features: buffer, values, lanes, value_lanes, .. } = scratch;
        sums.keys += rows as isize;
        for (h, head) in sums.heads.iter_mut().enumerate() {
            let [k, v] = [k, v].map(|x| x.columns(h * dim, dim));
            let e = buffer.at_least(rows * apart);
            self.projection.of(k, rows, RowsViewMut::new(&mut *e, apart, features));
            let largest = e.chunks(apart).map(|e| max_of(&e[..features])).fold(head.max, f32::max);
            if largest > head.max {
                let keep = (head.max - largest).exp();
                head.products.iter_mut().chain(&mut head.totals).for_each(|s| *s *= keep);
                head.max = largest;
            }
            for (i, e) in e.chunks_mut(apart).enumerate() {
                exponentials(k.row(i), &mut e[..features], head.max);
                add(&mut head.totals, &e[..features]);
                add(&mut head.values, v.row(i));
            }
            for (panel, products) in head.products.chunks_exact_mut(features * PANEL).enumerate() {
                let columns = PANEL.min(dim - panel * PANEL);
                let v = v.columns(panel * PANEL, columns);
                match self.dtype {
                    Dtype::F32 => {
                        let values = values.at_least(rows * PANEL);
                        for (i, to) in values.chunks_exact_mut(PANEL).enumerate() {
                            to.fill(0.0);
                            to[..columns].copy_from_slice(v.row(i));
                        }
                        let extent = Extent { rows: features, lanes: rows, columns };
                        let (a, c) = (Operand::by_columns(&*e, apart), Sums::added(products, PANEL));
                        multiply_f32(self.isa, extent, a, values, c);
                    }
                    _ => {
                        let pairs = rows.div_ceil(2);
                        let lanes = lanes.at_least(pairs * apart);
                        if panel == 0 {
                            pair_rows(e, apart, rows, lanes);
                        }
                        let values = value_lanes.at_least(pairs * PANEL);
                        for (p, to) in values.chunks_exact_mut(PANEL).enumerate() {
                            to.fill(0);
                            for (j, to) in to.iter_mut().take(columns).enumerate() {
                                let high = if 2 * p + 1 < rows { bf16(v.row(2 * p + 1)[j]) } else { 0 };
                                *to = high << 16 | bf16(v.row(2 * p)[j]);
                            }
                        }
                        let extent = Extent { rows: features, lanes: pairs, columns };
                        let (a, c) = (Operand::by_columns(&*lanes, apart), Sums::added(products, PANEL));
                        multiply_bf16(self.isa, extent, a, values, c);
                    }
                }
            }
        }
    }

    /// Adds up parts, in their order, against the largest of each head.
    pub fn merge(&self, parts: &[KeySums]) -> KeySums {
        let mut whole = self.no_keys();
        for (h, to) in whole.heads.iter_mut().enumerate() {
            to.max = parts.iter().map(|p| p.heads[h].max).fold(f32::NEG_INFINITY, f32::max);
            for head in parts.iter().map(|p| &p.heads[h]) {
                let scale = (head.max - to.max).exp();
                to.products.iter_mut().zip(&head.products).for_each(|(t, p)| *t += p * scale);
                to.totals.iter_mut().zip(&head.totals).for_each(|(t, p)| *t += p * scale);
                add(&mut to.values, &head.values);
            }
        }
        whole.keys = parts.iter().map(|p| p.keys).sum();
        whole
    }

    /// Appends the largest x'·Pᵀ of each of `rows` keys, over all heads.
    pub fn largest(&self, k: RowsView, rows: usize, scratch: &mut FavorScratch, out: &mut Vec<f32>) {
        self.projection.largest(k, rows, &mut scratch.features, out);
    }

    /// Finishes the sums of all parts of a cell, in their order. `largest` is the cell's largest x'·Pᵀ; the largest of
    /// the parts if `None`. They differ where keys were subtracted.
    pub fn context(&self, parts: &[KeySums], largest: Option<f32>) -> Context {
        let mut whole = self.merge(parts);
        let max = largest.unwrap_or_else(|| whole.largest());
        let (features, keys) = (self.features, whole.keys);
        for head in &mut whole.heads {
            let scale = (head.max - max).exp();
            head.products.iter_mut().chain(&mut head.totals).for_each(|s| *s *= scale);
        }
        let close = |mut head: HeadSums| {
            for (panel, values) in head.products.chunks_exact_mut(features * PANEL).zip(head.values.chunks(PANEL)) {
                for row in panel.chunks_exact_mut(PANEL) {
                    row.iter_mut().zip(values).for_each(|(p, v)| *p += FEATURE_EPS * v);
                }
            }
            head.totals.iter_mut().for_each(|t| *t += FEATURE_EPS * keys as f32);
            let lanes = match self.dtype {
                Dtype::F32 => Vec::new(),
                _ => head.products.chunks_exact(features * PANEL).flat_map(pair_panel).collect(),
            };
            HeadContext { products: head.products, lanes, totals: head.totals }
        };
        Context { heads: whole.heads.into_iter().map(close).collect() }
    }

    /// Attention of `rows` queries, `[rows, heads·dim]`, into `out` of the same shape.
    pub fn attend(
        &self,
        q: RowsView,
        rows: usize,
        context: &Context,
        mut out: RowsViewMut,
        scratch: &mut FavorScratch,
    ) {
        let (dim, features, apart) = (self.dim, self.features, stride(self.features));
        let FavorScratch { features: buffer, sums, lanes, .. } = scratch;
        let sums = sums.at_least(rows * PANEL);
        for (h, head) in context.heads.iter().enumerate() {
            let q = q.columns(h * dim, dim);
            let e = buffer.at_least(rows * apart);
            self.projection.of(q, rows, RowsViewMut::new(&mut *e, apart, features));
            let mut over = [0f32; super::linear::BLOCK];
            for ((i, e), over) in e.chunks_mut(apart).enumerate().zip(&mut over) {
                let e = &mut e[..features];
                let max = max_of(e);
                exponentials(q.row(i), e, max);
                e.iter_mut().for_each(|e| *e += FEATURE_EPS);
                *over = 1.0 / dot(e, &head.totals);
            }
            let pairs = features.div_ceil(2);
            for panel in 0..dim.div_ceil(PANEL) {
                match self.dtype {
                    Dtype::F32 => {
                        let extent = Extent { rows, lanes: features, columns: dim - panel * PANEL };
                        let b = &head.products[panel * features * PANEL..];
                        multiply_f32(self.isa, extent, Operand::by_rows(&*e, apart), b, Sums::new(sums, PANEL));
                    }
                    _ => {
                        let lanes = lanes.at_least(rows * apart);
                        if panel == 0 {
                            for (lanes, e) in lanes.chunks_exact_mut(apart).zip(e.chunks(apart)) {
                                to_bf16(&e[..features], &mut lanes[..pairs]);
                            }
                        }
                        let extent = Extent { rows, lanes: pairs, columns: PANEL };
                        let b = &head.lanes[panel * pairs * PANEL..];
                        multiply_bf16(self.isa, extent, Operand::by_rows(&*lanes, apart), b, Sums::new(sums, PANEL));
                    }
                }
                let mut out = out.columns(h * dim + panel * PANEL, PANEL.min(dim - panel * PANEL));
                for (i, (sums, over)) in sums.chunks_exact(PANEL).zip(&over).enumerate() {
                    out.row_mut(i).iter_mut().zip(sums).for_each(|(o, s)| *o = s * over);
                }
            }
        }
    }
}

/// exp(y − ‖x‖²/(2√d) − max), in place of y.
#[inline(always)]
fn exponentials_body<const FUSED: bool>(x: &[f32], y: &mut [f32], max: f32) {
    let less = multiply_add::<FUSED>(sum_of(x, |v| v * v), 0.5 / (x.len() as f32).sqrt(), max);
    y.iter_mut().for_each(|y| *y = exp_nonpositive::<FUSED>(*y - less));
}

dispatch! {
    pub(crate) fn exponentials(x: &[f32], y: &mut [f32], max: f32) = fused exponentials_body
}

fn add(sums: &mut [f32], values: &[f32]) {
    sums.iter_mut().zip(values).for_each(|(s, v)| *s += v);
}

/// Rows two by two as pairs of bf16: lane `[pair, column]`.
#[inline(always)]
fn pair_rows_body(x: &[f32], row: usize, rows: usize, lanes: &mut [u32]) {
    for (pair, lanes) in lanes.chunks_exact_mut(row).enumerate() {
        let low = &x[2 * pair * row..][..row];
        if 2 * pair + 1 < rows {
            let high = &x[(2 * pair + 1) * row..][..row];
            lanes.iter_mut().zip(low.iter().zip(high)).for_each(|(to, (l, h))| *to = bf16(*h) << 16 | bf16(*l));
        } else {
            lanes.iter_mut().zip(low).for_each(|(to, l)| *to = bf16(*l));
        }
    }
}

dispatch! {
    fn pair_rows(x: &[f32], row: usize, rows: usize, lanes: &mut [u32]) = pair_rows_body
}

/// A panel `[rows, 32]` with its rows two by two as pairs of bf16.
fn pair_panel(panel: &[f32]) -> Vec<u32> {
    let rows = panel.len() / PANEL;
    let mut lanes = vec![0; rows.div_ceil(2) * PANEL];
    pair_rows(panel, PANEL, rows, &mut lanes);
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    const HEADS: usize = 2;
    const DIM: usize = 20;
    const FEATURES: usize = 59;
    const ROWS: usize = 75;
    const ROW: usize = HEADS * DIM;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.5..1.5)).collect()
    }

    /// The definition in f64, every feature of every key held at once.
    fn plain(p: &[f32], q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
        let project = |x: &[f32]| -> Vec<f64> {
            let scale = (DIM as f64).powf(-0.25);
            let dot = |p: &[f32]| x.iter().zip(p).map(|(x, p)| f64::from(*x) * f64::from(*p)).sum::<f64>();
            p.chunks(DIM).map(|p| scale * dot(p)).collect()
        };
        let half_norm = |x: &[f32]| x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / (2.0 * (DIM as f64).sqrt());
        let largest = |y: &[f64]| y.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let head = |x: &'_ [f32], i: usize, h: usize| x[i * ROW + h * DIM..][..DIM].to_vec();
        let all: Vec<f64> = (0..ROWS * HEADS).flat_map(|j| project(&head(k, j / HEADS, j % HEADS))).collect();
        let key_max = largest(&all);
        let phi = |x: &[f32], max: f64| -> Vec<f64> {
            project(x).iter().map(|y| (y - half_norm(x) - max).exp() + 1e-4).collect()
        };
        let mut out = vec![0.0; ROWS * ROW];
        for (i, h) in (0..ROWS).flat_map(|i| (0..HEADS).map(move |h| (i, h))) {
            let query = head(q, i, h);
            let fq = phi(&query, largest(&project(&query)));
            let weights: Vec<f64> = (0..ROWS)
                .map(|j| phi(&head(k, j, h), key_max).iter().zip(&fq).map(|(a, b)| a * b).sum::<f64>())
                .collect();
            let total: f64 = weights.iter().sum();
            for c in 0..DIM {
                let sum: f64 = (0..ROWS).map(|j| weights[j] * f64::from(head(v, j, h)[c])).sum();
                out[i * ROW + h * DIM + c] = sum / total;
            }
        }
        out
    }

    #[test]
    fn sums_in_parts_give_what_the_definition_gives() {
        let p = random(FEATURES * DIM, 1);
        let [q, k, v] = [2, 3, 4].map(|seed| random(ROWS * ROW, seed));
        let exact = plain(&p, &q, &k, &v);
        for (dtype, tolerance) in [(Dtype::F32, 1e-5), (Dtype::Bf16, 1e-2)] {
            let favor = Favor::new(Isa::best(), dtype, &p, HEADS, DIM);
            let mut scratch = FavorScratch::default();
            let mut parts = vec![favor.no_keys(), favor.no_keys()];
            for (part, first, rows) in [(0, 0, 31), (0, 31, 9), (1, 40, 35)] {
                let [k, v] = [&k, &v].map(|x| RowsView::new(x, ROW, ROW).from(first));
                favor.add_keys(k, v, rows, &mut parts[part], &mut scratch);
            }
            let mut out = vec![0.0; ROWS * ROW];
            let (q, to) = (RowsView::new(&q, ROW, ROW), RowsViewMut::new(&mut out, ROW, ROW));
            favor.attend(q, ROWS, &favor.context(&parts, None), to, &mut scratch);
            let worst = out.iter().zip(&exact).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            assert!(worst < tolerance, "{dtype:?}: {worst}");
        }
    }

    #[test]
    fn keys_taken_off_leave_no_trace_even_where_they_were_the_largest() {
        let p = random(FEATURES * DIM, 1);
        let [q, mut k, v] = [2, 3, 4].map(|seed| random(ROWS * ROW, seed));
        k[..ROW].iter_mut().for_each(|x| *x *= 1.5);
        let favor = Favor::new(Isa::best(), Dtype::F32, &p, HEADS, DIM);
        let mut scratch = FavorScratch::default();
        let mut sums = |range: std::ops::Range<usize>, mut into: KeySums| {
            let [k, v] = [&k, &v].map(|x| RowsView::new(x, ROW, ROW).from(range.start));
            favor.add_keys(k, v, range.len(), &mut into, &mut scratch);
            into
        };
        let all = sums(0..ROWS, favor.no_keys());
        let one = sums(0..1, all.empty());
        let rest = sums(1..ROWS, favor.no_keys());
        let without = favor.context(&[all, one.negated()], Some(rest.largest()));
        let exact = favor.context(&[rest], None);
        let attend = |context: &Context| {
            let mut out = vec![0.0; ROWS * ROW];
            let (q, to) = (RowsView::new(&q, ROW, ROW), RowsViewMut::new(&mut out, ROW, ROW));
            favor.attend(q, ROWS, context, to, &mut FavorScratch::default());
            out
        };
        let (without, exact) = (attend(&without), attend(&exact));
        assert!(without.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}
