//! Operands of an encoder layer's attention that learns: a head's keys, values and queries as its products read them, and those
//! products. What they are for is in [`super::attention_learning`].

use super::memory::{Aligned, stride};
use super::operands::{across, along, multiply, panels_across, turn};
use super::tile::{Form, Isa, Operand, PANEL};

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
    pub(crate) turned: Aligned<u32>,
}

/// Queries or gradients of answers of a group, as right operands.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// Panels `[lanes of QUERIES, 32]`, one per 32 of dim.
    pub(crate) across: Aligned<u32>,
    /// Panels `[lanes of dim, 32]`, one per 32 queries.
    pub(crate) turned: Aligned<u32>,
}

/// Sizes of operands, fixed by a head's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) isa: Isa,
    pub(crate) form: Form,
    pub(crate) tokens: usize,
    pub(crate) dim: usize,
}

impl Shape {
    /// Lanes of a row of a head, and how far apart such rows are.
    fn row(&self) -> (usize, usize) {
        let lanes = self.form.lanes(self.dim);
        (lanes, stride(lanes))
    }

    /// Distance between rows that lie along all tokens.
    fn turned_row(&self) -> usize {
        stride(self.form.lanes(self.tokens))
    }

    /// Distance between rows of weights that lie along a group's queries.
    pub(crate) fn group_row(&self) -> usize {
        stride(self.form.lanes(QUERIES))
    }

    /// Groups of queries, or blocks of keys: the first token and how many.
    pub(crate) fn steps(&self, size: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let tokens = self.tokens;
        (0..tokens).step_by(size).map(move |first| (first, size.min(tokens - first)))
    }

    /// One part of a head, `[tokens, dim]`, as left operands; the turned one where asked.
    pub(crate) fn side(&self, x: &[f32], turned: bool, lanes: &mut Aligned<u32>, side: &mut Side) {
        let (_, apart) = self.row();
        along(self.form, x, self.dim, side.rows.at_least(self.tokens * apart), apart);
        if turned {
            let count = self.form.lanes(self.tokens);
            let lanes = lanes.at_least(count * self.dim);
            across(self.form, (x, self.dim), (self.tokens, self.dim), lanes, self.dim);
            let apart = self.turned_row();
            turn(lanes, (count, self.dim), side.turned.at_least(self.dim * apart), apart);
        }
    }

    /// Queries of a group, `[queries, dim]`, as right operands; the one across queries where asked.
    pub(crate) fn group(
        &self,
        x: &[f32],
        queries: usize,
        is_across: bool,
        lanes: &mut Aligned<u32>,
        group: &mut Group,
    ) {
        let (count, _) = self.row();
        let turned = group.turned.at_least(queries.next_multiple_of(PANEL) * count);
        for (x, panel) in x.chunks(PANEL * self.dim).zip(turned.chunks_exact_mut(count * PANEL)) {
            let lanes = lanes.at_least(PANEL * count);
            lanes.fill(0);
            along(self.form, x, self.dim, lanes, count);
            turn(lanes, (PANEL, count), panel, PANEL);
        }
        if is_across {
            let count = self.form.lanes(queries.next_multiple_of(PANEL));
            let panels = group.across.at_least(self.dim.next_multiple_of(PANEL) * count);
            panels_across(self.form, (x, self.dim), (queries, self.dim), count, panels);
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
        let a = Operand { data: &rows[first * apart..], row: apart, step: 1 };
        let b = &group.turned[panel * lanes * PANEL..];
        multiply(self.isa, self.form, (keys, lanes, PANEL), a, b, out, PANEL, false);
    }

    /// Adds to sums over keys, `[dim, 32]` of rows `QUERIES` apart, those of a panel of scores.
    pub(crate) fn sum_over_keys(
        &self,
        turned: &[u32],
        (first, keys): (usize, usize),
        scores: &[f32],
        pairs: &mut Aligned<u32>,
        sums: &mut [f32],
    ) {
        let lanes = self.form.lanes(keys);
        let b = match self.form {
            Form::F32 => bytemuck::cast_slice(scores),
            _ => {
                let pairs = pairs.at_least(lanes * PANEL);
                across(self.form, (scores, PANEL), (keys, PANEL), pairs, PANEL);
                &*pairs
            }
        };
        let a = Operand { data: &turned[first / self.form.per_lane()..], row: self.turned_row(), step: 1 };
        multiply(self.isa, self.form, (self.dim, lanes, PANEL), a, b, sums, QUERIES, true);
    }

    /// A panel of scores as lanes along a group's queries.
    pub(crate) fn put_rows(&self, scores: &[f32], panel: usize, rows: &mut [u32]) {
        let lanes = self.form.lanes(PANEL);
        along(self.form, scores, PANEL, &mut rows[panel * lanes..], self.group_row());
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
        let lanes = self.form.lanes(queries.next_multiple_of(PANEL));
        let a = Operand { data: rows, row: self.group_row(), step: 1 };
        for (n, sums) in sums.chunks_exact_mut(self.tokens * PANEL).enumerate() {
            let columns = self.dim - n * PANEL;
            let (b, c) = (&group.across[n * lanes * PANEL..], &mut sums[first * PANEL..]);
            multiply(self.isa, self.form, (keys, lanes, columns), a, b, c, PANEL, true);
        }
    }
}

/// Rows from one on, and of each the numbers from one on.
pub(crate) fn from(x: (&[f32], usize), row: usize, column: usize) -> (&[f32], usize) {
    (&x.0[row * x.1 + column..], x.1)
}

/// The first `dim` numbers of rows that are `.1` apart, scaled, without gaps.
pub(crate) fn scaled<'a>(x: (&[f32], usize), dim: usize, scale: f32, out: &'a mut [f32]) -> &'a [f32] {
    for (to, from) in out.chunks_exact_mut(dim).zip(x.0.chunks(x.1)) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = scale * from);
    }
    out
}

/// Panels back to rows, scaled.
pub(crate) fn unpanel(from: &[f32], (rows, columns): (usize, usize), scale: f32, to: (&mut [f32], usize)) {
    for (n, panel) in from.chunks_exact(rows * PANEL).take(columns.div_ceil(PANEL)).enumerate() {
        let some = PANEL.min(columns - n * PANEL);
        for (i, from) in panel.chunks_exact(PANEL).enumerate() {
            let to = &mut to.0[i * to.1 + n * PANEL..][..some];
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
        }
    }
}
