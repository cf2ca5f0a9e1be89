//! Attention of one cell's tokens with gradients: what [`crate::Attention`] computes, in f32 or bf16, and its backward
//! pass.
//!
//! Scores are stored transposed: rows are keys, columns are queries, 32 queries by 128 keys at a time. Every step of a
//! softmax then goes down 32 columns side by side. Sums over queries read single rows, sums over keys read pairs of
//! rows, and no K × K matrix is kept. The forward pass keeps a running maximum and sum (Milakov & Gimelshein 2018) and
//! returns the logarithm of each query's sum, from which the backward pass computes the weights in one pass (Dao et al.
//! 2022).
//!
//! With P = softmax(QKᵀ/√d) and O = PV: dV = PᵀdO, dP = dOVᵀ, dS = P∘(dP − Σ dO∘O), dQ = dS·K/√d, dK = dSᵀ·Q/√d. In
//! bf16 the seven products read bf16 and sum in f32. Limit: FLOPs, and in bf16 the exponentials.

use super::attention_operands::{Group, KEYS, QUERIES, Shape, Side, scaled, unpanel};
use super::isa::Isa;
use super::numeric::exp2_nonpositive;
use super::panel::PANEL;
use super::rows::Aligned;
use super::view::{RowsView, RowsViewMut};
use crate::simd::{dispatch, dot};
use cellql_dtype::Dtype;

/// Attention of one encoder layer that learns. Queries, keys and values of a token lie side by side, `[tokens,
/// 3·heads·dim]`.
#[derive(Debug, Clone, Copy)]
pub struct TrainableAttention {
    /// Instructions to use.
    pub isa: Isa,
    /// Of products: f32 or bf16, the latter for int8 too.
    pub dtype: Dtype,
    /// Heads.
    pub heads: usize,
    /// Numbers of a head.
    pub dim: usize,
}

/// Buffers that one thread uses again for each call.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    numbers: Aligned<f32>,
    lanes: Aligned<u32>,
    keys: Side,
    values: Side,
    queries: Group,
    d_out: Group,
    weights: Aligned<f32>,
    gradients: Aligned<f32>,
    weight_rows: Aligned<u32>,
    gradient_rows: Aligned<u32>,
    pairs: Aligned<u32>,
    /// Sums over keys, transposed: `[dim, QUERIES]`.
    sums: Aligned<f32>,
    running: Vec<Column>,
    d_keys: Aligned<f32>,
    d_values: Aligned<f32>,
}

/// Two numbers of each of 32 queries. Forward: running maximum and sum. Backward: logarithm of the sum and Σ dO∘O.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Column([f32; PANEL], [f32; PANEL]);

impl TrainableAttention {
    /// Attention of `tokens` tokens into `out`, `[tokens, heads·dim]`, and into `log_sums`, `[heads, tokens]`, the
    /// logarithm to base 2 of each query's sum of exponentials.
    pub fn forward(
        &self,
        qkv: RowsView,
        tokens: usize,
        mut out: RowsViewMut,
        log_sums: &mut [f32],
        scratch: &mut AttentionScratch,
    ) {
        let AttentionScratch { numbers, lanes, keys, values, queries, weights, pairs, sums, running, .. } = scratch;
        let (shape, dim) = (self.shape(tokens), self.dim);
        let numbers = numbers.at_least(tokens * dim);
        for (head, log_sums) in log_sums.chunks_exact_mut(tokens).take(self.heads).enumerate() {
            let [head_queries, head_keys, head_values] = self.parts(qkv, head);
            shape.side(scaled(head_keys, self.scale(), numbers), false, lanes, keys);
            shape.side(scaled(head_values, 1.0, numbers), true, lanes, values);
            let numbers = scaled(head_queries, 1.0, numbers);
            for (first, count) in shape.steps(QUERIES) {
                shape.group(&numbers[first * dim..][..count * dim], count, false, lanes, queries);
                running.clear();
                running.resize(count.div_ceil(PANEL), Column([f32::NEG_INFINITY; PANEL], [0.0; PANEL]));
                let sums = sums.at_least(dim * QUERIES);
                sums.fill(0.0);
                for block in shape.steps(KEYS) {
                    for (panel, column) in running.iter_mut().enumerate() {
                        let weights = weights.at_least(block.1 * PANEL);
                        shape.scores(&keys.rows, block, panel, queries, weights);
                        let sums = &mut sums[panel * PANEL..];
                        match self.dtype {
                            Dtype::F32 => softmax_step_f32(weights, column, sums),
                            _ => softmax_step_bf16(weights, column, sums),
                        }
                        shape.sum_over_keys(&values.transposed, block, weights, pairs, sums);
                    }
                }
                for i in 0..count {
                    let Column(max, total) = &running[i / PANEL];
                    let (max, total) = (max[i % PANEL], total[i % PANEL]);
                    log_sums[first + i] = max + total.log2();
                    let out = &mut out.row_mut(first + i)[head * dim..][..dim];
                    out.iter_mut().zip(sums.chunks_exact(QUERIES)).for_each(|(out, sums)| *out = sums[i] / total);
                }
            }
        }
    }

    /// The gradient of queries, keys and values, from what [`TrainableAttention::forward`] read and wrote and from the
    /// gradient of its output.
    #[allow(clippy::too_many_arguments, reason = "what went in, what came out, and the gradients of both")]
    pub fn backward(
        &self,
        qkv: RowsView,
        tokens: usize,
        out: RowsView,
        log_sums: &[f32],
        d_out: RowsView,
        mut d_qkv: RowsViewMut,
        scratch: &mut AttentionScratch,
    ) {
        let (shape, dim, width) = (self.shape(tokens), self.dim, self.heads * self.dim);
        for head in 0..self.heads {
            self.prepare_backward(self.parts(qkv, head), shape, scratch);
            let log_sums = &log_sums[head * tokens..][..tokens];
            for (first, count) in shape.steps(QUERIES) {
                let queries = self.parts(qkv, head)[0].from(first);
                let [out, d_out] = [out, d_out].map(|rows| rows.from(first).columns(head * dim, dim));
                let mut d_queries = d_qkv.from(first);
                let d_queries = d_queries.columns(head * dim, dim);
                self.group_backward(shape, count, queries, out, d_out, &log_sums[first..], d_queries, scratch);
            }
            let scale = 1.0 / (dim as f32).sqrt();
            let AttentionScratch { d_keys, d_values, .. } = &*scratch;
            unpanel(d_keys, (tokens, dim), scale, d_qkv.columns(width + head * dim, dim));
            unpanel(d_values, (tokens, dim), 1.0, d_qkv.columns(2 * width + head * dim, dim));
        }
    }

    /// Operands of a head's keys and values, and sums of zero for their gradients.
    fn prepare_backward(&self, parts: [RowsView; 3], shape: Shape, scratch: &mut AttentionScratch) {
        let AttentionScratch { numbers, lanes, keys, values, d_keys, d_values, .. } = scratch;
        let [_, head_keys, head_values] = parts;
        let numbers = numbers.at_least(shape.tokens * self.dim);
        shape.side(scaled(head_keys, self.scale(), numbers), true, lanes, keys);
        shape.side(scaled(head_values, 1.0, numbers), false, lanes, values);
        for sums in [d_keys, d_values] {
            sums.at_least(self.dim.next_multiple_of(PANEL) * shape.tokens).fill(0.0);
        }
    }

    /// Backward pass of a group of queries: their gradient, and what they add to those of keys and values.
    #[allow(clippy::too_many_arguments, reason = "what went in, what came out, and the gradients of both")]
    fn group_backward(
        &self,
        shape: Shape,
        count: usize,
        group_queries: RowsView,
        out: RowsView,
        group_d_out: RowsView,
        log_sums: &[f32],
        mut d_queries: RowsViewMut,
        scratch: &mut AttentionScratch,
    ) {
        let AttentionScratch {
            numbers,
            lanes,
            keys,
            values,
            queries,
            d_out,
            weights,
            gradients,
            weight_rows,
            gradient_rows,
            pairs,
            sums,
            running,
            d_keys,
            d_values,
        } = scratch;
        let dim = self.dim;
        let numbers = numbers.at_least(count * dim);
        shape.group(scaled(group_queries, 1.0, numbers), count, true, lanes, queries);
        shape.group(scaled(group_d_out, 1.0, numbers), count, true, lanes, d_out);
        running.clear();
        running.resize(count.div_ceil(PANEL), Column([0.0; PANEL], [0.0; PANEL]));
        for i in 0..count {
            let Column(log_sum, along) = &mut running[i / PANEL];
            log_sum[i % PANEL] = log_sums[i];
            along[i % PANEL] = dot(out.row(i), &numbers[i * dim..][..dim]);
        }
        let sums = sums.at_least(dim * QUERIES);
        sums.fill(0.0);
        let size = KEYS * shape.group_row();
        let (weight_rows, gradient_rows) = (weight_rows.at_least(size), gradient_rows.at_least(size));
        let size = dim.next_multiple_of(PANEL) * shape.tokens;
        let (d_keys, d_values) = (d_keys.at_least(size), d_values.at_least(size));
        for block in shape.steps(KEYS) {
            for (panel, column) in running.iter().enumerate() {
                let weights = weights.at_least(block.1 * PANEL);
                let gradients = gradients.at_least(block.1 * PANEL);
                shape.scores(&keys.rows, block, panel, queries, weights);
                shape.scores(&values.rows, block, panel, d_out, gradients);
                match self.dtype {
                    Dtype::F32 => weights_backward_f32(weights, gradients, column),
                    _ => weights_backward_bf16(weights, gradients, column),
                }
                shape.put_rows(weights, panel, weight_rows);
                shape.put_rows(gradients, panel, gradient_rows);
                shape.sum_over_keys(&keys.transposed, block, gradients, pairs, &mut sums[panel * PANEL..]);
            }
            shape.sum_over_queries(weight_rows, block, count, d_out, d_values);
            shape.sum_over_queries(gradient_rows, block, count, queries, d_keys);
        }
        // Keys were scaled by log2 e / √d.
        for i in 0..count {
            let to = d_queries.row_mut(i);
            to.iter_mut().zip(sums.chunks_exact(QUERIES)).for_each(|(to, s)| *to = s[i] * std::f32::consts::LN_2);
        }
    }

    fn shape(&self, tokens: usize) -> Shape {
        Shape { isa: self.isa, dtype: self.dtype.floating(), tokens, dim: self.dim }
    }

    /// What keys are scaled by, so that scores are powers of two.
    fn scale(&self) -> f32 {
        std::f32::consts::LOG2_E / (self.dim as f32).sqrt()
    }

    /// Queries, keys and values of a head.
    fn parts<'a>(&self, qkv: RowsView<'a>, head: usize) -> [RowsView<'a>; 3] {
        [0, 1, 2].map(|part| qkv.columns((part * self.heads + head) * self.dim, self.dim))
    }
}

/// Turns scores of a block, in powers of two, into weights against each query's running maximum, and scales what was
/// summed before, rows `QUERIES` apart.
#[inline(always)]
fn softmax_step_body<const FUSED: bool, const DEGREE: usize>(
    scores: &mut [f32],
    column: &mut Column,
    sums: &mut [f32],
) {
    let (rows, _) = scores.as_chunks_mut::<PANEL>();
    let mut top = column.0;
    for row in rows.iter() {
        for i in 0..PANEL {
            top[i] = if row[i] > top[i] { row[i] } else { top[i] };
        }
    }
    let mut total = [0f32; PANEL];
    for row in rows.iter_mut() {
        for i in 0..PANEL {
            row[i] = exp2_nonpositive::<FUSED, DEGREE>(row[i] - top[i]);
            total[i] += row[i];
        }
    }
    let mut keep = [0f32; PANEL];
    for i in 0..PANEL {
        keep[i] = exp2_nonpositive::<FUSED, 6>(column.0[i] - top[i]);
        column.1[i] = column.1[i] * keep[i] + total[i];
    }
    column.0 = top;
    for sums in sums.chunks_mut(QUERIES) {
        sums.iter_mut().zip(&keep).for_each(|(sum, keep)| *sum *= keep);
    }
}

/// Turns scores into weights, and gradients of weights into those of scores.
#[inline(always)]
fn weights_backward_body<const FUSED: bool, const DEGREE: usize>(scores: &mut [f32], d: &mut [f32], column: &Column) {
    let (rows, _) = scores.as_chunks_mut::<PANEL>();
    let (d_rows, _) = d.as_chunks_mut::<PANEL>();
    for (row, d) in rows.iter_mut().zip(d_rows) {
        for i in 0..PANEL {
            row[i] = exp2_nonpositive::<FUSED, DEGREE>(row[i] - column.0[i]);
            d[i] = row[i] * (d[i] - column.1[i]);
        }
    }
}

#[inline(always)]
fn step_f32<const FUSED: bool>(scores: &mut [f32], column: &mut Column, sums: &mut [f32]) {
    softmax_step_body::<FUSED, 6>(scores, column, sums);
}

#[inline(always)]
fn step_bf16<const FUSED: bool>(scores: &mut [f32], column: &mut Column, sums: &mut [f32]) {
    softmax_step_body::<FUSED, 4>(scores, column, sums);
}

#[inline(always)]
fn backward_f32<const FUSED: bool>(scores: &mut [f32], d: &mut [f32], column: &Column) {
    weights_backward_body::<FUSED, 6>(scores, d, column);
}

#[inline(always)]
fn backward_bf16<const FUSED: bool>(scores: &mut [f32], d: &mut [f32], column: &Column) {
    weights_backward_body::<FUSED, 4>(scores, d, column);
}

dispatch! {
    fn softmax_step_f32(scores: &mut [f32], column: &mut Column, sums: &mut [f32]) = fused step_f32
}
dispatch! {
    fn softmax_step_bf16(scores: &mut [f32], column: &mut Column, sums: &mut [f32]) = fused step_bf16
}
dispatch! {
    fn weights_backward_f32(scores: &mut [f32], d: &mut [f32], column: &Column) = fused backward_f32
}
dispatch! {
    fn weights_backward_bf16(scores: &mut [f32], d: &mut [f32], column: &Column) = fused backward_bf16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attention, Rows};
    use rand::{Rng, SeedableRng};

    fn random(rows: usize, width: usize, seed: u64) -> Rows {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut out = Rows::new(rows, width);
        (0..rows).for_each(|i| out.row_mut(i).iter_mut().for_each(|v| *v = rng.random_range(-1.0..1.0)));
        out
    }

    /// What attention gives, and the logarithms of its sums.
    fn forward(attention: TrainableAttention, qkv: &Rows, tokens: usize) -> (Rows, Vec<f32>) {
        let mut out = Rows::new(tokens, attention.heads * attention.dim);
        let mut log_sums = vec![0.0; attention.heads * tokens];
        attention.forward(qkv.view(0), tokens, out.view_mut(0), &mut log_sums, &mut AttentionScratch::default());
        (out, log_sums)
    }

    fn backward(attention: TrainableAttention, qkv: &Rows, tokens: usize, d_out: &Rows) -> Rows {
        let (out, log_sums) = forward(attention, qkv, tokens);
        let mut d_qkv = Rows::new(tokens, 3 * attention.heads * attention.dim);
        let mut scratch = AttentionScratch::default();
        let (part, d_part) = (out.view(0), d_out.view(0));
        attention.backward(qkv.view(0), tokens, part, &log_sums, d_part, d_qkv.view_mut(0), &mut scratch);
        d_qkv
    }

    /// The largest difference of two rows, and the largest number of the second.
    fn apart(a: &Rows, b: &Rows, rows: usize) -> (f32, f32) {
        let each = (0..rows).flat_map(|i| a.row(i).iter().zip(b.row(i)));
        each.fold((0.0, 0.0), |(d, most), (a, b)| (d.max((a - b).abs()), most.max(b.abs())))
    }

    #[test]
    fn it_is_the_attention_of_inference() {
        for (tokens, heads, dim) in [(1, 2, 5), (130, 3, 40), (300, 2, 16)] {
            for (dtype, tolerance) in [(Dtype::F32, 1e-5), (Dtype::Bf16, 2e-2)] {
                let attention = TrainableAttention { isa: Isa::best(), dtype, heads, dim };
                let qkv = random(tokens, 3 * heads * dim, 1);
                let (ours, log_sums) = forward(attention, &qkv, tokens);
                let mut out = vec![0.0; tokens * heads * dim];
                Attention { isa: Isa::best(), dtype: Dtype::F32, heads, dim }.run(&qkv, &[0, tokens], &mut out);
                for i in 0..tokens {
                    for j in 0..heads * dim {
                        let other = out[(j / dim * tokens + i) * dim + j % dim];
                        assert!((ours.row(i)[j] - other).abs() < tolerance);
                    }
                }
                // The sum of the first query's exponentials by its definition.
                let score = |k: usize| dot(&qkv.row(0)[..dim], &qkv.row(k)[heads * dim..][..dim]) / (dim as f32).sqrt();
                let exact = (0..tokens).map(|k| f64::from(score(k)).exp()).sum::<f64>().log2();
                assert!((f64::from(log_sums[0]) - exact).abs() < f64::from(tolerance));
            }
        }
    }

    #[test]
    fn every_dtype_and_instruction_set_gives_the_same_gradients() {
        for (tokens, heads, dim) in [(1, 1, 3), (33, 2, 16), (300, 2, 32), (129, 1, 40)] {
            let (qkv, d_out) = (random(tokens, 3 * heads * dim, 1), random(tokens, heads * dim, 2));
            let of = |isa, dtype| backward(TrainableAttention { isa, dtype, heads, dim }, &qkv, tokens, &d_out);
            let exact = of(Isa::PLAIN, Dtype::F32);
            for (isa, dtype, tolerance) in
                [(Isa::best(), Dtype::F32, 1e-5), (Isa::PLAIN, Dtype::Bf16, 2e-2), (Isa::best(), Dtype::Bf16, 2e-2)]
            {
                let (worst, most) = apart(&of(isa, dtype), &exact, tokens);
                assert!(worst < tolerance * most, "{tokens} {dim} {dtype:?}: {worst} of {most}");
            }
        }
    }

    #[test]
    fn what_stands_in_memory_is_never_read() {
        let (qkv, d_out) = (random(33, 15, 1), random(33, 5, 2));
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let run = |scratch: &mut AttentionScratch| {
                let attention = TrainableAttention { isa: Isa::best(), dtype, heads: 1, dim: 5 };
                let (mut out, mut d_qkv, mut log_sums) = (Rows::new(33, 5), Rows::new(33, 15), vec![0.0; 33]);
                attention.forward(qkv.view(0), 33, out.view_mut(0), &mut log_sums, scratch);
                let (part, d_part) = (out.view(0), d_out.view(0));
                attention.backward(qkv.view(0), 33, part, &log_sums, d_part, d_qkv.view_mut(0), scratch);
                (0..33).map(|i| (out.row(i).to_vec(), d_qkv.row(i).to_vec())).collect::<Vec<_>>()
            };
            // A larger cell of another shape, all of whose numbers are none.
            let mut used = AttentionScratch::default();
            let attention = TrainableAttention { isa: Isa::best(), dtype, heads: 2, dim: 40 };
            let mut nothing = Rows::new(300, 240);
            nothing.all_mut().fill(f32::NAN);
            let (mut out, mut d_qkv, mut log_sums) = (nothing.clone(), nothing.clone(), vec![0.0; 600]);
            attention.forward(nothing.view(0), 300, out.view_mut(0), &mut log_sums, &mut used);
            let part = nothing.view(0);
            attention.backward(part, 300, part, &log_sums, part, d_qkv.view_mut(0), &mut used);
            assert_eq!(run(&mut used), run(&mut AttentionScratch::default()), "{dtype:?}");
        }
    }

    #[test]
    fn gradients_agree_with_differences() {
        let (tokens, heads, dim) = (150, 2, 6);
        let attention = TrainableAttention { isa: Isa::best(), dtype: Dtype::F32, heads, dim };
        let (qkv, d_out) = (random(tokens, 3 * heads * dim, 1), random(tokens, heads * dim, 2));
        let d_qkv = backward(attention, &qkv, tokens, &d_out);
        let loss = |qkv: &Rows| -> f64 {
            let (out, _) = forward(attention, qkv, tokens);
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
