//! Attention of one cell's tokens with gradients, in f32: what [`crate::Attention`] computes, and the way back.
//!
//! Queries go a block at a time against every key, so memory is a block of scores and never K × K; the way back computes the
//! scores again. With P = softmax(QKᵀ/√d) and O = PV: dV = PᵀdO, dP = dOVᵀ, dS = P∘(dP − Σ P∘dP), dQ = dS·K/√d,
//! dK = dSᵀ·Q/√d. Limit: FLOPs.

use super::backward::softmax_back;
use super::dense::panel_of;
use super::memory::{Aligned, stride};
use super::softmax::softmax;
use super::tile::{Isa, Operand, PANEL, multiply_f32_of};

/// Queries of a block.
const QUERIES: usize = 112;

/// Attention of one encoder layer that learns. Queries, keys and values of a token lie side by side, `[tokens, 3·heads·dim]`.
#[derive(Debug, Clone, Copy)]
pub struct LearningAttention {
    /// Instructions to use.
    pub isa: Isa,
    /// Heads.
    pub heads: usize,
    /// Numbers of a head.
    pub dim: usize,
}

/// Memory of one thread.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    keys: Aligned<f32>,
    keys_turned: Aligned<f32>,
    values: Aligned<f32>,
    values_turned: Aligned<f32>,
    weights: Aligned<f32>,
    gradients: Aligned<f32>,
    panel: Aligned<f32>,
    sums: Aligned<f32>,
    d_keys: Aligned<f32>,
    d_values: Aligned<f32>,
}

impl LearningAttention {
    /// Attention of `tokens` tokens into `out`, `[tokens, heads·dim]`; rows are `.1` apart.
    pub fn forward(
        &self,
        qkv: (&[f32], usize),
        tokens: usize,
        out: (&mut [f32], usize),
        scratch: &mut AttentionScratch,
    ) {
        let AttentionScratch { keys_turned, values, weights, sums, .. } = scratch;
        let (dim, apart, scale) = (self.dim, row_of(tokens), 1.0 / (self.dim as f32).sqrt());
        for head in 0..self.heads {
            let [queries, keys, head_values] = self.parts(qkv, head);
            turned_panels(keys, tokens, dim, scale, keys_turned);
            panels(head_values, tokens, dim, values);
            for first in (0..tokens).step_by(QUERIES) {
                let rows = QUERIES.min(tokens - first);
                self.weights((&queries.0[first * qkv.1..], qkv.1), rows, tokens, keys_turned, weights);
                let a = Operand { data: &weights[..], row: apart, step: 1 };
                product(self.isa, a, (rows, tokens, dim), values, sums, |i, at, sums| {
                    out.0[(first + i) * out.1 + head * dim + at..][..sums.len()].copy_from_slice(sums);
                });
            }
        }
    }

    /// The way back: from the gradient of what [`LearningAttention::forward`] gave to that of queries, keys and values.
    pub fn back(
        &self,
        qkv: (&[f32], usize),
        tokens: usize,
        d_out: (&[f32], usize),
        d_qkv: (&mut [f32], usize),
        scratch: &mut AttentionScratch,
    ) {
        let AttentionScratch { keys, keys_turned, values_turned, weights, gradients, panel, sums, .. } = scratch;
        let (d_keys, d_values) = (&mut scratch.d_keys, &mut scratch.d_values);
        let (dim, width, apart) = (self.dim, self.heads * self.dim, row_of(tokens));
        let scale = 1.0 / (dim as f32).sqrt();
        for head in 0..self.heads {
            let [queries, head_keys, head_values] = self.parts(qkv, head);
            turned_panels(head_keys, tokens, dim, scale, keys_turned);
            panels(head_keys, tokens, dim, keys);
            turned_panels(head_values, tokens, dim, 1.0, values_turned);
            for sums in [&mut *d_keys, &mut *d_values] {
                sums.at_least(dim.next_multiple_of(PANEL) * tokens).fill(0.0);
            }
            for first in (0..tokens).step_by(QUERIES) {
                let rows = QUERIES.min(tokens - first);
                let queries = (&queries.0[first * qkv.1..], qkv.1);
                let d_out = (&d_out.0[first * d_out.1 + head * dim..], d_out.1);
                self.weights(queries, rows, tokens, keys_turned, weights);
                add_turned(self.isa, (weights, apart), d_out, (tokens, rows, dim), panel, d_values);
                let d = gradients.at_least(rows * apart);
                let a = Operand { data: d_out.0, row: d_out.1, step: 1 };
                product_in_place(self.isa, a, (rows, dim, tokens), values_turned, d);
                for (weights, d) in weights.chunks(apart).zip(d.chunks_mut(apart)).take(rows) {
                    softmax_back(&weights[..tokens], &mut d[..tokens]);
                }
                add_turned(self.isa, (d, apart), queries, (tokens, rows, dim), panel, d_keys);
                let a = Operand { data: &*d, row: apart, step: 1 };
                product(self.isa, a, (rows, tokens, dim), keys, sums, |i, at, sums| {
                    let to = &mut d_qkv.0[(first + i) * d_qkv.1 + head * dim + at..][..sums.len()];
                    to.iter_mut().zip(sums).for_each(|(to, sum)| *to = sum * scale);
                });
            }
            unpanel(d_keys, (tokens, dim), scale, (&mut d_qkv.0[width + head * dim..], d_qkv.1));
            unpanel(d_values, (tokens, dim), 1.0, (&mut d_qkv.0[2 * width + head * dim..], d_qkv.1));
        }
    }

    /// Queries, keys and values of a head.
    fn parts<'a>(&self, qkv: (&'a [f32], usize), head: usize) -> [(&'a [f32], usize); 3] {
        [0, 1, 2].map(|part| (&qkv.0[(part * self.heads + head) * self.dim..], qkv.1))
    }

    /// softmax(q·kᵀ/√d), `[rows, row_of(tokens)]`; the keys are scaled already.
    fn weights(
        &self,
        queries: (&[f32], usize),
        rows: usize,
        tokens: usize,
        keys_turned: &[f32],
        weights: &mut Aligned<f32>,
    ) {
        let weights = weights.at_least(rows * row_of(tokens));
        let a = Operand { data: queries.0, row: queries.1, step: 1 };
        product_in_place(self.isa, a, (rows, self.dim, tokens), keys_turned, weights);
        weights.chunks_mut(row_of(tokens)).for_each(|row| softmax(&mut row[..tokens]));
    }
}

/// Distance between rows of scores: room for whole panels, and an odd number of cache lines.
fn row_of(tokens: usize) -> usize {
    stride(tokens.next_multiple_of(PANEL))
}

/// Panels `[rows, 32]` of `[rows, columns]`, one per 32 columns.
fn panels(x: (&[f32], usize), rows: usize, columns: usize, out: &mut Aligned<f32>) {
    let out = out.at_least(columns.next_multiple_of(PANEL) * rows);
    for (n, panel) in out.chunks_exact_mut(rows * PANEL).enumerate() {
        panel_of((&x.0[n * PANEL..], x.1), PANEL.min(columns - n * PANEL), panel);
    }
}

/// Panels `[columns, 32]` of the transpose, scaled, one per 32 rows.
fn turned_panels(x: (&[f32], usize), rows: usize, columns: usize, scale: f32, out: &mut Aligned<f32>) {
    let out = out.at_least(rows.next_multiple_of(PANEL) * columns);
    for (n, panel) in out.chunks_exact_mut(columns * PANEL).enumerate() {
        for i in 0..PANEL {
            let row = n * PANEL + i;
            for j in 0..columns {
                panel[j * PANEL + i] = if row < rows { scale * x.0[row * x.1 + j] } else { 0.0 };
            }
        }
    }
}

/// `a·b` for `(rows, inner, columns)`, b in panels; `put` takes a row, a first column and some sums.
fn product(
    isa: Isa,
    a: Operand<f32>,
    (rows, inner, columns): (usize, usize, usize),
    b: &[f32],
    sums: &mut Aligned<f32>,
    mut put: impl FnMut(usize, usize, &[f32]),
) {
    for (n, panel) in b.chunks_exact(inner * PANEL).take(columns.div_ceil(PANEL)).enumerate() {
        let sums = sums.at_least(rows * PANEL);
        let some = PANEL.min(columns - n * PANEL);
        multiply_f32_of(isa, rows, inner, some, a, panel, sums, PANEL, false);
        for (i, sums) in sums.chunks_exact(PANEL).enumerate() {
            put(i, n * PANEL, &sums[..some]);
        }
    }
}

/// `a·b` for `(rows, inner, columns)`, b in panels, into rows that are [`row_of`] the columns apart.
fn product_in_place(
    isa: Isa,
    a: Operand<f32>,
    (rows, inner, columns): (usize, usize, usize),
    b: &[f32],
    out: &mut [f32],
) {
    for (n, panel) in b.chunks_exact(inner * PANEL).take(columns.div_ceil(PANEL)).enumerate() {
        multiply_f32_of(isa, rows, inner, PANEL, a, panel, &mut out[n * PANEL..], row_of(columns), false);
    }
}

/// Adds `aᵀ·b`, `[outer, columns]`, to panels `[outer, 32]`; a is `[rows, outer]`, b `[rows, columns]`.
fn add_turned(
    isa: Isa,
    a: (&[f32], usize),
    b: (&[f32], usize),
    (outer, rows, columns): (usize, usize, usize),
    panel: &mut Aligned<f32>,
    to: &mut [f32],
) {
    for (n, to) in to.chunks_exact_mut(outer * PANEL).take(columns.div_ceil(PANEL)).enumerate() {
        let panel = panel.at_least(rows * PANEL);
        let some = PANEL.min(columns - n * PANEL);
        panel_of((&b.0[n * PANEL..], b.1), some, panel);
        let a = Operand { data: a.0, row: 1, step: a.1 };
        multiply_f32_of(isa, outer, rows, some, a, panel, to, PANEL, true);
    }
}

/// Panels back to rows, scaled.
fn unpanel(from: &[f32], (rows, columns): (usize, usize), scale: f32, to: (&mut [f32], usize)) {
    for (n, panel) in from.chunks_exact(rows * PANEL).take(columns.div_ceil(PANEL)).enumerate() {
        let some = PANEL.min(columns - n * PANEL);
        for (i, from) in panel.chunks_exact(PANEL).enumerate() {
            let to = &mut to.0[i * to.1 + n * PANEL..][..some];
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attention, Form, Rows};
    use rand::{Rng, SeedableRng};

    fn random(rows: usize, width: usize, seed: u64) -> Rows {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut out = Rows::new(rows, width);
        (0..rows).for_each(|i| out.row_mut(i).iter_mut().for_each(|v| *v = rng.random_range(-1.0..1.0)));
        out
    }

    fn forward(attention: LearningAttention, qkv: &Rows, tokens: usize) -> Rows {
        let mut out = Rows::new(tokens, attention.heads * attention.dim);
        let apart = out.stride();
        attention.forward(
            (qkv.from(0), qkv.stride()),
            tokens,
            (out.all_mut(), apart),
            &mut AttentionScratch::default(),
        );
        out
    }

    #[test]
    fn it_is_the_attention_of_inference() {
        for (tokens, heads, dim) in [(1, 2, 5), (130, 3, 40)] {
            let attention = LearningAttention { isa: Isa::best(), heads, dim };
            let qkv = random(tokens, 3 * heads * dim, 1);
            let ours = forward(attention, &qkv, tokens);
            let mut out = vec![0.0; tokens * heads * dim];
            Attention { isa: Isa::best(), form: Form::F32, heads, dim }.run(&qkv, &[0, tokens], &mut out);
            for i in 0..tokens {
                for j in 0..heads * dim {
                    let other = out[(j / dim * tokens + i) * dim + j % dim];
                    assert!((ours.row(i)[j] - other).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn gradients_agree_with_differences() {
        let (tokens, heads, dim) = (115, 2, 6);
        let attention = LearningAttention { isa: Isa::best(), heads, dim };
        let (qkv, d_out) = (random(tokens, 3 * heads * dim, 1), random(tokens, heads * dim, 2));
        let mut d_qkv = Rows::new(tokens, 3 * heads * dim);
        let apart = d_qkv.stride();
        attention.back(
            (qkv.from(0), qkv.stride()),
            tokens,
            (d_out.from(0), d_out.stride()),
            (d_qkv.all_mut(), apart),
            &mut AttentionScratch::default(),
        );
        let loss = |qkv: &Rows| -> f64 {
            let out = forward(attention, qkv, tokens);
            let of_row = |i: usize| out.row(i).iter().zip(d_out.row(i)).map(|(o, d)| f64::from(*o) * f64::from(*d));
            (0..tokens).flat_map(of_row).sum()
        };
        for seed in 0..6 {
            let direction = random(tokens, 3 * heads * dim, 10 + seed);
            let moved = |by: f32| {
                let mut moved = qkv.clone();
                (0..tokens).for_each(|i| {
                    moved.row_mut(i).iter_mut().zip(direction.row(i)).for_each(|(m, d)| *m += by * d);
                });
                loss(&moved)
            };
            let difference = (moved(0.01) - moved(-0.01)) / 0.02;
            let dot = |i: usize| d_qkv.row(i).iter().zip(direction.row(i)).map(|(a, b)| f64::from(*a) * f64::from(*b));
            let along: f64 = (0..tokens).flat_map(dot).sum();
            assert!((difference - along).abs() < 1e-3 * (1.0 + along.abs()), "{difference} {along}");
        }
    }
}
