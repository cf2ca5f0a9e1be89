//! Operands of [`super::attention_backward`]: keys, values and queries of a head in the layouts that its products read,
//! and those products.

use super::isa::Isa;
use super::operands::{across, along, multiply, panels_across, transpose};
use super::panel::{Extent, Operand, PANEL, Sums};
use super::rows::{Aligned, stride};
use super::view::{RowsView, RowsViewMut};
use cellql_dtype::Dtype;

/// Queries of a group, whole panels.
pub(crate) const QUERIES: usize = 4 * PANEL;
/// Keys of a block: a panel of scores and one of their gradients stay in the first-level cache.
pub(crate) const KEYS: usize = 128;
// Lanes of bf16 come in sixteens: a block of other lengths would not begin with one.
const _: () = assert!(KEYS.is_multiple_of(PANEL) && QUERIES.is_multiple_of(PANEL));

/// Keys or values of a head, as left operands.
#[derive(Debug, Default)]
pub(crate) struct Side {
    /// `[tokens, lanes of dim]`.
    pub(crate) rows: Aligned<u32>,
    /// `[dim, lanes of tokens]`.
    pub(crate) transposed: Aligned<u32>,
}

/// Queries or gradients of answers of a group, as right operands.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// Panels `[lanes of QUERIES, 32]`, one per 32 of dim.
    pub(crate) across: Aligned<u32>,
    /// Panels `[lanes of dim, 32]`, one per 32 queries.
    pub(crate) transposed: Aligned<u32>,
}

/// Sizes of operands, fixed by a head's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) isa: Isa,
    pub(crate) dtype: Dtype,
    pub(crate) tokens: usize,
    pub(crate) dim: usize,
}

impl Shape {
    /// Lanes of a row of a head, and how far apart such rows are.
    fn row(&self) -> (usize, usize) {
        let lanes = self.dtype.lanes(self.dim);
        (lanes, stride(lanes))
    }

    /// Distance between rows that lie along all tokens.
    fn transposed_row(&self) -> usize {
        stride(self.dtype.lanes(self.tokens))
    }

    /// Distance between rows of weights that lie along a group's queries.
    pub(crate) fn group_row(&self) -> usize {
        stride(self.dtype.lanes(QUERIES))
    }

    /// Groups of queries, or blocks of keys: the first token and how many.
    pub(crate) fn steps(&self, size: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let tokens = self.tokens;
        (0..tokens).step_by(size).map(move |first| (first, size.min(tokens - first)))
    }

    /// One part of a head, `[tokens, dim]`, as left operands; the transposed one only if `transposes`.
    pub(crate) fn side(&self, x: &[f32], transposes: bool, lanes: &mut Aligned<u32>, side: &mut Side) {
        let (_, apart) = self.row();
        along(self.dtype, x, self.dim, side.rows.at_least(self.tokens * apart), apart);
        if transposes {
            let count = self.dtype.lanes(self.tokens);
            let lanes = lanes.at_least(count * self.dim);
            across(self.dtype, RowsView::new(x, self.dim, self.dim), self.tokens, lanes, self.dim);
            let apart = self.transposed_row();
            transpose(lanes, (count, self.dim), side.transposed.at_least(self.dim * apart), apart);
        }
    }

    /// Queries of a group, `[queries, dim]`, as right operands; the one across queries only if `is_across`.
    pub(crate) fn group(
        &self,
        x: &[f32],
        queries: usize,
        is_across: bool,
        lanes: &mut Aligned<u32>,
        group: &mut Group,
    ) {
        let (count, _) = self.row();
        let transposed = group.transposed.at_least(queries.next_multiple_of(PANEL) * count);
        for (x, panel) in x.chunks(PANEL * self.dim).zip(transposed.chunks_exact_mut(count * PANEL)) {
            let lanes = lanes.at_least(PANEL * count);
            lanes.fill(0);
            along(self.dtype, x, self.dim, lanes, count);
            transpose(lanes, (PANEL, count), panel, PANEL);
        }
        if is_across {
            let count = self.dtype.lanes(queries.next_multiple_of(PANEL));
            let panels = group.across.at_least(self.dim.next_multiple_of(PANEL) * count);
            panels_across(self.dtype, RowsView::new(x, self.dim, self.dim), queries, count, panels);
        }
    }

    /// Products of a block's keys or values with one panel of a group, `[keys, 32]`.
    pub(crate) fn scores(
        &self,
        rows: &[u32],
        (first, keys): (usize, usize),
        panel: usize,
        group: &Group,
        out: &mut [f32],
    ) {
        let (lanes, apart) = self.row();
        let (extent, a) =
            (Extent { rows: keys, lanes, columns: PANEL }, Operand::by_rows(&rows[first * apart..], apart));
        let b = &group.transposed[panel * lanes * PANEL..];
        multiply(self.isa, self.dtype, extent, a, b, Sums::new(out, PANEL));
    }

    /// Adds to sums over keys, `[dim, 32]` of rows `QUERIES` apart, those of a panel of scores.
    pub(crate) fn sum_over_keys(
        &self,
        transposed: &[u32],
        (first, keys): (usize, usize),
        scores: &[f32],
        pairs: &mut Aligned<u32>,
        sums: &mut [f32],
    ) {
        let lanes = self.dtype.lanes(keys);
        let b = match self.dtype {
            Dtype::F32 => bytemuck::cast_slice(scores),
            _ => {
                let pairs = pairs.at_least(lanes * PANEL);
                across(self.dtype, RowsView::new(scores, PANEL, PANEL), keys, pairs, PANEL);
                &*pairs
            }
        };
        let a = Operand::by_rows(&transposed[first / self.dtype.per_lane()..], self.transposed_row());
        let extent = Extent { rows: self.dim, lanes, columns: PANEL };
        multiply(self.isa, self.dtype, extent, a, b, Sums::added(sums, QUERIES));
    }

    /// A panel of scores as lanes along a group's queries.
    pub(crate) fn put_rows(&self, scores: &[f32], panel: usize, rows: &mut [u32]) {
        let lanes = self.dtype.lanes(PANEL);
        along(self.dtype, scores, PANEL, &mut rows[panel * lanes..], self.group_row());
    }

    /// Adds to sums over queries, panels `[tokens, 32]`, those of a block's keys.
    pub(crate) fn sum_over_queries(
        &self,
        rows: &[u32],
        (first, keys): (usize, usize),
        queries: usize,
        group: &Group,
        sums: &mut [f32],
    ) {
        let lanes = self.dtype.lanes(queries.next_multiple_of(PANEL));
        let a = Operand::by_rows(rows, self.group_row());
        for (n, sums) in sums.chunks_exact_mut(self.tokens * PANEL).enumerate() {
            let extent = Extent { rows: keys, lanes, columns: self.dim - n * PANEL };
            let (b, c) = (&group.across[n * lanes * PANEL..], Sums::added(&mut sums[first * PANEL..], PANEL));
            multiply(self.isa, self.dtype, extent, a, b, c);
        }
    }
}

/// Copies `out.len() / width` rows without gaps, times `scale`.
pub(crate) fn scaled<'a>(x: RowsView, scale: f32, out: &'a mut [f32]) -> &'a [f32] {
    for (i, to) in out.chunks_exact_mut(x.width()).enumerate() {
        to.iter_mut().zip(x.row(i)).for_each(|(to, from)| *to = scale * from);
    }
    out
}

/// Panels `[rows, 32]` back to rows `[rows, columns]`, times `scale`.
pub(crate) fn unpanel(from: &[f32], (rows, columns): (usize, usize), scale: f32, mut to: RowsViewMut) {
    for (n, panel) in from.chunks_exact(rows * PANEL).take(columns.div_ceil(PANEL)).enumerate() {
        let mut to = to.columns(n * PANEL, PANEL.min(columns - n * PANEL));
        for (i, from) in panel.chunks_exact(PANEL).enumerate() {
            to.row_mut(i).iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
        }
    }
}
