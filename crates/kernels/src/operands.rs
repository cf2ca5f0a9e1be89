//! Rows of numbers as operands of products, in f32 or bf16: along a row or across rows, as stored or transposed.
//!
//! A product sums over lanes ([`super::panel`]), so rows that are summed over their columns become lanes along each
//! row, and rows that are summed over themselves lanes across them. The left operand is rows of lanes, the right one
//! panels of 32 columns.

use super::isa::Isa;
use super::linear::{bf16, to_bf16};
use super::panel::{Extent, Operand, PANEL, Sums};
use super::product::{multiply_bf16, multiply_f32};
use super::view::RowsView;
use crate::simd::dispatch;
use cellql_dtype::Dtype;

/// `c = a·b` or `c += a·b` in f32 or bf16 ([`Dtype::floating`]). Rows of C have room for 32 numbers, in f32 for 16
/// where no more are wanted.
pub(crate) fn multiply(isa: Isa, dtype: Dtype, extent: Extent, a: Operand<u32>, b: &[u32], c: Sums<f32>) {
    match dtype {
        Dtype::F32 => {
            let a = Operand { data: bytemuck::cast_slice(a.data), row: a.row, step: a.step };
            multiply_f32(isa, extent, a, bytemuck::cast_slice(b), c);
        }
        Dtype::Bf16 | Dtype::Int8 => multiply_bf16(isa, extent, a, b, c),
    }
}

/// Lanes along each of some rows without gaps, `[rows, apart]`; what is left of a row's last lanes is zero.
pub(crate) fn along(dtype: Dtype, x: &[f32], columns: usize, lanes: &mut [u32], apart: usize) {
    for (x, to) in x.chunks_exact(columns).zip(lanes.chunks_mut(apart)) {
        match dtype {
            Dtype::F32 => to[..columns].copy_from_slice(bytemuck::cast_slice(x)),
            _ => to_bf16(x, &mut to[..dtype.lanes(columns)]),
        }
    }
}

/// Lanes across `rows` rows, `[lanes, apart]`; what there is no row or column for is zero.
pub(crate) fn across(dtype: Dtype, x: RowsView, rows: usize, lanes: &mut [u32], apart: usize) {
    if dtype != Dtype::F32 {
        return pair_rows(x, rows, lanes, apart);
    }
    for (i, to) in lanes.chunks_exact_mut(apart).enumerate() {
        let some = if i < rows { x.row(i) } else { &[] };
        to[..some.len()].copy_from_slice(bytemuck::cast_slice(some));
        to[some.len()..].fill(0);
    }
}

/// [`across`], one panel per 32 columns.
pub(crate) fn panels_across(dtype: Dtype, x: RowsView, rows: usize, lanes: usize, out: &mut [u32]) {
    for (first, panel) in (0..x.width()).step_by(PANEL).zip(out.chunks_exact_mut(lanes * PANEL)) {
        across(dtype, x.columns(first, PANEL.min(x.width() - first)), rows, panel, PANEL);
    }
}

/// Rows of at most 32 numbers into a panel `[rows, 32]`, the rest zero.
pub(crate) fn panel_of(x: RowsView, panel: &mut [f32]) {
    for (i, to) in panel.chunks_exact_mut(PANEL).enumerate() {
        to[..x.width()].copy_from_slice(x.row(i));
        to[x.width()..].fill(0.0);
    }
}

/// Rows two by two as pairs of bf16, `[pair, column]` with pairs `apart` lanes apart; what there is no row or column
/// for is zero.
fn pair_rows(x: RowsView, rows: usize, lanes: &mut [u32], apart: usize) {
    for (pair, to) in lanes.chunks_exact_mut(apart).enumerate() {
        let (to, rest) = to.split_at_mut(x.width());
        rest.fill(0);
        let row = |i: usize| (i < rows).then(|| x.row(i));
        match (row(2 * pair), row(2 * pair + 1)) {
            (Some(low), Some(high)) => pair_lanes(low, high, to),
            (Some(low), None) => to.iter_mut().zip(low).for_each(|(to, l)| *to = bf16(*l)),
            _ => to.fill(0),
        }
    }
}

/// The transpose: `[rows, columns]` without gaps to `[columns, rows]`, rows of it `apart` lanes apart. By squares of
/// sixteen, so that no line of the cache is fetched twice.
#[inline(always)]
fn transpose_body(from: &[u32], (rows, columns): (usize, usize), to: &mut [u32], apart: usize) {
    const SIDE: usize = 16;
    for (top, left) in (0..rows).step_by(SIDE).flat_map(|top| (0..columns).step_by(SIDE).map(move |left| (top, left))) {
        let mut square = [[0u32; SIDE]; SIDE];
        let (high, wide) = (SIDE.min(rows - top), SIDE.min(columns - left));
        for (i, line) in square.iter_mut().enumerate().take(high) {
            line[..wide].copy_from_slice(&from[(top + i) * columns + left..][..wide]);
        }
        for j in 0..wide {
            let out = &mut to[(left + j) * apart + top..][..high];
            out.iter_mut().zip(&square).for_each(|(out, line)| *out = line[j]);
        }
    }
}

dispatch! {
    pub(crate) fn transpose(from: &[u32], sizes: (usize, usize), to: &mut [u32], apart: usize) = transpose_body
}

#[inline(always)]
fn pair_lanes_body(low: &[f32], high: &[f32], to: &mut [u32]) {
    to.iter_mut().zip(low.iter().zip(high)).for_each(|(to, (l, h))| *to = bf16(*h) << 16 | bf16(*l));
}

dispatch! {
    fn pair_lanes(low: &[f32], high: &[f32], to: &mut [u32]) = pair_lanes_body
}
