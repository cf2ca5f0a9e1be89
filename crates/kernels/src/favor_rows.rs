//! What random features of one head pass through, a block of rows at a time: each loop is chosen for the CPU once a block, since
//! rows of some fifty features are too short to choose for each. Rows are `.1` apart. Limit: exponentials and bytes.

use super::memory::LANES;
use super::numeric::exp_nonpositive;
use super::tile::PANEL;
use crate::simd::{dispatch, dot_body, max_of, multiply_add, sum_of};

/// The largest of some rows.
#[inline(always)]
fn largest_body(y: &[f32], apart: usize, rows: usize, width: usize) -> f32 {
    (0..rows).map(|i| max_of(&y[i * apart..][..width])).fold(f32::NEG_INFINITY, f32::max)
}

dispatch! {
    pub(crate) fn largest(y: &[f32], apart: usize, rows: usize, width: usize) -> f32 = largest_body
}

/// exp(y − less)·sign in place of y; zero beyond the features.
#[inline(always)]
fn exponentials<const FUSED: bool>(y: &mut [f32], features: usize, less: f32, sign: f32) {
    for chunk in y.as_chunks_mut::<LANES>().0 {
        for y in chunk {
            *y = sign * exp_nonpositive::<FUSED>(*y - less);
        }
    }
    y[features..].fill(0.0);
}

/// ‖x‖²/(2√d).
#[inline(always)]
fn half_norm(x: &[f32]) -> f32 {
    sum_of(x, |v| v * v) * (0.5 / (x.len() as f32).sqrt())
}

#[inline(always)]
fn query_features_body<const FUSED: bool>(
    x: (&[f32], usize),
    dim: usize,
    y: (&mut [f32], usize),
    features: usize,
    rows: usize,
) {
    let padded = features.next_multiple_of(LANES);
    for i in 0..rows {
        let y = &mut y.0[i * y.1..][..padded];
        // Past the features stand copies of the first.
        let max = max_of(y);
        exponentials::<FUSED>(y, features, max + half_norm(&x.0[i * x.1..][..dim]), 1.0);
    }
}

dispatch! {
    /// Features of a head's queries in place of x'·Pᵀ.
    pub(crate) fn query_features(x: (&[f32], usize), dim: usize, y: (&mut [f32], usize), features: usize, rows: usize)
        = fused query_features_body
}

#[inline(always)]
fn key_features_body<const FUSED: bool>(
    x: (&[f32], usize),
    dim: usize,
    y: (&mut [f32], usize),
    features: usize,
    rows: usize,
    max: f32,
    sign: f32,
) {
    let padded = features.next_multiple_of(LANES);
    for i in 0..rows {
        let less = max + half_norm(&x.0[i * x.1..][..dim]);
        exponentials::<FUSED>(&mut y.0[i * y.1..][..padded], features, less, sign);
    }
}

dispatch! {
    /// Features of a head's keys in place of x'·Pᵀ, times `sign`.
    pub(crate) fn key_features(
        x: (&[f32], usize), dim: usize, y: (&mut [f32], usize), features: usize, rows: usize, max: f32, sign: f32,
    ) = fused key_features_body
}

#[inline(always)]
fn sum_rows_body<const FUSED: bool>(to: &mut [f32], from: (&[f32], usize), rows: usize, scale: f32) {
    for i in 0..rows {
        let from = &from.0[i * from.1..][..to.len()];
        to.iter_mut().zip(from).for_each(|(to, from)| *to = multiply_add::<FUSED>(scale, *from, *to));
    }
}

dispatch! {
    /// Adds `scale` times some rows.
    pub(crate) fn sum_rows(to: &mut [f32], from: (&[f32], usize), rows: usize, scale: f32) = fused sum_rows_body
}

#[inline(always)]
fn denominators_body<const FUSED: bool>(e: (&[f32], usize), totals: &[f32], one: f32, over: &mut [f32]) {
    for (i, over) in over.iter_mut().enumerate() {
        let mut lanes = [0f32; LANES];
        let e = &e.0[i * e.1..][..totals.len()];
        for (e, totals) in e.as_chunks::<LANES>().0.iter().zip(totals.as_chunks::<LANES>().0) {
            for j in 0..LANES {
                lanes[j] = multiply_add::<FUSED>(e[j], totals[j], lanes[j]);
            }
        }
        *over = 1.0 / (lanes.iter().sum::<f32>() + one);
    }
}

dispatch! {
    /// 1/(e·z + ε·Σz) of each row.
    pub(crate) fn denominators(e: (&[f32], usize), totals: &[f32], one: f32, over: &mut [f32]) = fused denominators_body
}

#[inline(always)]
fn quotients_body(sums: &[f32], ones: &[f32], over: &[f32], out: (&mut [f32], usize)) {
    for ((i, sums), over) in sums.chunks_exact(PANEL).enumerate().zip(over) {
        let out = &mut out.0[i * out.1..][..ones.len()];
        out.iter_mut().zip(sums).zip(ones).for_each(|((out, sum), one)| *out = (sum + one) * over);
    }
}

dispatch! {
    /// (sums + ones)·over of each row of a panel.
    pub(crate) fn quotients(sums: &[f32], ones: &[f32], over: &[f32], out: (&mut [f32], usize)) = quotients_body
}

#[inline(always)]
fn quotients_back_body<const FUSED: bool>(
    a: (&[f32], usize),
    dim: usize,
    over: &[f32],
    d: (&mut [f32], usize),
    along: &mut [f32],
) {
    for ((i, over), along) in over.iter().enumerate().zip(along) {
        let (a, d) = (&a.0[i * a.1..][..dim], &mut d.0[i * d.1..][..dim]);
        *along = -dot_body::<FUSED>(a, d) * over;
        d.iter_mut().for_each(|d| *d *= over);
    }
}

dispatch! {
    /// c of each row, and n in place of the gradient of what attention gave.
    pub(crate) fn quotients_back(a: (&[f32], usize), dim: usize, over: &[f32], d: (&mut [f32], usize), along: &mut [f32])
        = fused quotients_back_body
}

#[inline(always)]
fn features_back_body<const FUSED: bool>(
    e: (&[f32], usize),
    totals: &[f32],
    along: &[f32],
    t: (&mut [f32], usize),
    d_totals: &mut [f32],
) {
    for (i, along) in along.iter().enumerate() {
        let (e, t) = (&e.0[i * e.1..][..totals.len()], &mut t.0[i * t.1..][..totals.len()]);
        d_totals.iter_mut().zip(e).for_each(|(to, e)| *to = multiply_add::<FUSED>(*along, *e, *to));
        t.iter_mut().zip(e).zip(totals).for_each(|((t, e), z)| *t = multiply_add::<FUSED>(*along, *z, *t) * e);
    }
}

dispatch! {
    /// From x·Sᵀ of each row to t = (x·Sᵀ + c·z)·e; where asked, adds c·e to dz.
    pub(crate) fn features_back(e: (&[f32], usize), totals: &[f32], along: &[f32], t: (&mut [f32], usize), d_totals: &mut [f32])
        = fused features_back_body
}

#[inline(always)]
fn norms_back_body<const FUSED: bool>(
    x: (&[f32], usize),
    dim: usize,
    t: (&[f32], usize),
    padded: usize,
    dx: (&mut [f32], usize),
    rows: usize,
) {
    let root = 1.0 / (dim as f32).sqrt();
    for i in 0..rows {
        let less = -root * sum_of(&t.0[i * t.1..][..padded], |t| t);
        let (x, dx) = (&x.0[i * x.1..][..dim], &mut dx.0[i * dx.1..][..dim]);
        dx.iter_mut().zip(x).for_each(|(dx, x)| *dx = multiply_add::<FUSED>(less, *x, *dx));
    }
}

dispatch! {
    /// Takes Σt·x/√d off the gradient of x.
    pub(crate) fn norms_back(
        x: (&[f32], usize), dim: usize, t: (&[f32], usize), padded: usize, dx: (&mut [f32], usize), rows: usize,
    ) = fused norms_back_body
}
