//! Loops over the random features of one head, a block of rows at a time. Each loop is chosen for the CPU once per
//! block, because rows of some fifty features are too short to choose for each. Limit: exponentials and bytes.

use super::numeric::exp_nonpositive;
use super::panel::PANEL;
use super::rows::LANES;
use super::view::{RowsView, RowsViewMut};
use crate::simd::{dispatch, dot_body, max_of, multiply_add, sum_of};

/// The largest of some rows.
#[inline(always)]
fn largest_body(y: RowsView, rows: usize) -> f32 {
    (0..rows).map(|i| max_of(y.row(i))).fold(f32::NEG_INFINITY, f32::max)
}

dispatch! {
    pub(crate) fn largest(y: RowsView, rows: usize) -> f32 = largest_body
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
fn query_features_body<const FUSED: bool>(x: RowsView, mut y: RowsViewMut, features: usize, rows: usize) {
    for i in 0..rows {
        let y = y.row_mut(i);
        // Past the features there are copies of the first.
        let max = max_of(y);
        exponentials::<FUSED>(y, features, max + half_norm(x.row(i)), 1.0);
    }
}

dispatch! {
    /// Features of a head's queries in place of x'·Pᵀ, in rows of whole vectors.
    pub(crate) fn query_features(x: RowsView, y: RowsViewMut, features: usize, rows: usize) = fused query_features_body
}

#[inline(always)]
fn key_features_body<const FUSED: bool>(
    x: RowsView,
    mut y: RowsViewMut,
    features: usize,
    rows: usize,
    max: f32,
    sign: f32,
) {
    for i in 0..rows {
        exponentials::<FUSED>(y.row_mut(i), features, max + half_norm(x.row(i)), sign);
    }
}

dispatch! {
    /// Features of a head's keys in place of x'·Pᵀ, times `sign`, in rows of whole vectors.
    pub(crate) fn key_features(x: RowsView, y: RowsViewMut, features: usize, rows: usize, max: f32, sign: f32)
        = fused key_features_body
}

#[inline(always)]
fn sum_rows_body<const FUSED: bool>(to: &mut [f32], from: RowsView, rows: usize, scale: f32) {
    for i in 0..rows {
        let from = from.row(i);
        to.iter_mut().zip(from).for_each(|(to, from)| *to = multiply_add::<FUSED>(scale, *from, *to));
    }
}

dispatch! {
    /// Adds `scale` times some rows.
    pub(crate) fn sum_rows(to: &mut [f32], from: RowsView, rows: usize, scale: f32) = fused sum_rows_body
}

#[inline(always)]
fn denominators_body<const FUSED: bool>(e: RowsView, totals: &[f32], one: f32, over: &mut [f32]) {
    for (i, over) in over.iter_mut().enumerate() {
        let mut lanes = [0f32; LANES];
        let e = e.row(i);
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
    pub(crate) fn denominators(e: RowsView, totals: &[f32], one: f32, over: &mut [f32]) = fused denominators_body
}

#[inline(always)]
fn quotients_body(sums: &[f32], ones: &[f32], over: &[f32], mut out: RowsViewMut) {
    for ((i, sums), over) in sums.chunks_exact(PANEL).enumerate().zip(over) {
        let out = out.row_mut(i);
        out.iter_mut().zip(sums).zip(ones).for_each(|((out, sum), one)| *out = (sum + one) * over);
    }
}

dispatch! {
    /// (sums + ones)·over of each row of a panel.
    pub(crate) fn quotients(sums: &[f32], ones: &[f32], over: &[f32], out: RowsViewMut) = quotients_body
}

#[inline(always)]
fn quotients_backward_body<const FUSED: bool>(a: RowsView, over: &[f32], mut d: RowsViewMut, along: &mut [f32]) {
    for ((i, over), along) in over.iter().enumerate().zip(along) {
        let (a, d) = (a.row(i), d.row_mut(i));
        *along = -dot_body::<FUSED>(a, d) * over;
        d.iter_mut().for_each(|d| *d *= over);
    }
}

dispatch! {
    /// c of each row, and n in place of the gradient of what attention gave.
    pub(crate) fn quotients_backward(a: RowsView, over: &[f32], d: RowsViewMut, along: &mut [f32])
        = fused quotients_backward_body
}

#[inline(always)]
fn features_backward_body<const FUSED: bool>(
    e: RowsView,
    totals: &[f32],
    along: &[f32],
    mut t: RowsViewMut,
    d_totals: &mut [f32],
) {
    for (i, along) in along.iter().enumerate() {
        let (e, t) = (e.row(i), t.row_mut(i));
        d_totals.iter_mut().zip(e).for_each(|(to, e)| *to = multiply_add::<FUSED>(*along, *e, *to));
        t.iter_mut().zip(e).zip(totals).for_each(|((t, e), z)| *t = multiply_add::<FUSED>(*along, *z, *t) * e);
    }
}

dispatch! {
    /// From x·Sᵀ of each row to t = (x·Sᵀ + c·z)·e. Adds c·e to dz, unless `d_totals` is empty.
    pub(crate) fn features_backward(e: RowsView, totals: &[f32], along: &[f32], t: RowsViewMut, d_totals: &mut [f32])
        = fused features_backward_body
}

#[inline(always)]
fn norms_backward_body<const FUSED: bool>(x: RowsView, t: RowsView, mut dx: RowsViewMut, rows: usize) {
    let root = 1.0 / (x.width() as f32).sqrt();
    for i in 0..rows {
        let less = -root * sum_of(t.row(i), |t| t);
        let (x, dx) = (x.row(i), dx.row_mut(i));
        dx.iter_mut().zip(x).for_each(|(dx, x)| *dx = multiply_add::<FUSED>(less, *x, *dx));
    }
}

dispatch! {
    /// Subtracts Σt·x/√d from the gradient of x.
    pub(crate) fn norms_backward(x: RowsView, t: RowsView, dx: RowsViewMut, rows: usize) = fused norms_backward_body
}
