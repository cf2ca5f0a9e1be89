//! Softmax attention inside each cell of a ragged batch.
//!
//! `softmax(q·kᵀ/√d)·v` per cell and head, in tiles of queries against blocks of keys with a running maximum and sum
//! (Milakov & Gimelshein 2018; Dao et al. 2022), so no cell's K × K matrix is ever stored. Blocks of keys are the same
//! however many queries or threads there are, so a query's result depends on its cell alone. Limit: the FLOPs of two
//! products of 2·K²·d per head, plus K² exponentials, which at d = 64 take about a tenth of the time.

use std::cell::RefCell;

use rayon::prelude::*;

use super::isa::Isa;
use super::linear::{bf16, to_bf16};
use super::numeric::exp2_nonpositive;
use super::panel::{Extent, Operand, PANEL, STRIP, Sums};
use super::product::{multiply_bf16, multiply_f32};
use super::rows::{Aligned, Rows, stride};
use crate::simd::{dispatch, max_of, sum_of};
use cellql_dtype::Dtype;

/// Queries of a tile.
const QUERIES: usize = 4 * STRIP;
/// Keys of a block: with 64 numbers a head, keys and values of a block stay in the second-level cache.
const KEYS: usize = 256;
/// Distance between rows of scores: an odd number of cache lines.
const SCORES: usize = KEYS + 16;
/// Queries of one task where there are few cells, a multiple of [`QUERIES`].
const SPLIT: usize = 8 * QUERIES;

/// Attention of a model's encoder.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// Instructions to use.
    pub isa: Isa,
    /// Of products. int8 computes in bf16: scores and weights keep what 8 bits of a whole row would lose.
    pub dtype: Dtype,
    /// Heads.
    pub heads: usize,
    /// Numbers of a head.
    pub dim: usize,
}

/// Queries `[first, last)` of one head of one cell.
struct Task<'a> {
    attention: Attention,
    qkv: &'a Rows,
    /// Tokens of the cell.
    cell: (usize, usize),
    head: usize,
    first: usize,
    last: usize,
}

impl Attention {
    /// From `[tokens, 3·width]` (q, k, v side by side) to `out`: cell after cell, head after head, `[tokens of the
    /// cell, dim]`. `starts` says where cells begin and is one longer than the cells.
    pub fn run(self, qkv: &Rows, starts: &[usize], out: &mut [f32]) {
        let cells = starts.len() - 1;
        // Whole cells where they keep every thread busy: packing keys is done once per task.
        let split = if cells * self.heads >= 4 * rayon::current_num_threads() { usize::MAX } else { SPLIT };
        let mut tasks = Vec::new();
        let mut rest = out;
        for cell in starts.windows(2) {
            let cell = (cell[0], cell[1]);
            for head in 0..self.heads {
                for first in (cell.0..cell.1).step_by(split) {
                    let last = first.saturating_add(split).min(cell.1);
                    let (rows, after) = std::mem::take(&mut rest).split_at_mut((last - first) * self.dim);
                    rest = after;
                    tasks.push((Task { attention: self, qkv, cell, head, first, last }, rows));
                }
            }
        }
        // Long ones first, so that none is left over at the end.
        tasks.sort_by_key(|(task, _)| std::cmp::Reverse((task.last - task.first) * (task.cell.1 - task.cell.0)));
        tasks.into_par_iter().with_max_len(1).for_each(|(task, rows)| {
            SCRATCH.with_borrow_mut(|scratch| match self.dtype {
                Dtype::F32 => task.run_f32(scratch, rows),
                Dtype::Bf16 | Dtype::Int8 => task.run_bf16(scratch, rows),
            });
        });
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

#[derive(Default)]
struct Scratch {
    /// Keys as panels `[dim, 32]`, one per 32 keys.
    keys: Aligned<f32>,
    /// Values as panels `[keys, 32]`, one per 32 of dim.
    values: Aligned<f32>,
    /// `[QUERIES, stride(dim)]`, scaled by log2 e / √dim.
    queries: Aligned<f32>,
    /// `[QUERIES, SCORES]`.
    scores: Aligned<f32>,
    /// `[QUERIES, dim padded to panels]`.
    sums: Aligned<f32>,
    /// The same in pairs of bf16.
    key_lanes: Aligned<u32>,
    value_lanes: Aligned<u32>,
    query_lanes: Aligned<u32>,
    weights: Aligned<u32>,
    /// Running maximum and sum of exponentials of each query.
    running: Vec<(f32, f32)>,
}

impl Task<'_> {
    fn width(&self) -> usize {
        self.attention.heads * self.attention.dim
    }

    fn keys(&self) -> usize {
        self.cell.1 - self.cell.0
    }

    /// The numbers of a token in part 0 (q), 1 (k) or 2 (v).
    fn part(&self, token: usize, part: usize) -> &[f32] {
        let dim = self.attention.dim;
        &self.qkv.row(token)[part * self.width() + self.head * dim..][..dim]
    }

    fn scale(&self) -> f32 {
        std::f32::consts::LOG2_E / (self.attention.dim as f32).sqrt()
    }

    fn run_f32(&self, scratch: &mut Scratch, out: &mut [f32]) {
        let Attention { isa, dim, .. } = self.attention;
        let Scratch { keys, values, queries, scores, sums, running, .. } = scratch;
        let (n, columns) = (self.keys(), dim.next_multiple_of(PANEL));
        let padded = n.next_multiple_of(PANEL);
        let keys = keys.at_least(padded * dim);
        let values = values.at_least(n * columns);
        self.pack_f32(keys, values);
        let (q_row, scores) = (stride(dim), scores.at_least(QUERIES * SCORES));
        let (queries, sums) = (queries.at_least(QUERIES * q_row), sums.at_least(QUERIES * columns));
        for (first, out) in (self.first..self.last).step_by(QUERIES).zip(out.chunks_mut(QUERIES * dim)) {
            let rows = out.len() / dim;
            for (i, row) in queries.chunks_exact_mut(q_row).take(rows).enumerate() {
                row.iter_mut().zip(self.part(first + i, 0)).for_each(|(to, q)| *to = q * self.scale());
            }
            start(running, sums, rows);
            for key in (0..n).step_by(KEYS) {
                let some = KEYS.min(n - key);
                for panel in (key..key + some).step_by(PANEL) {
                    let (extent, a) = (Extent { rows, lanes: dim, columns: PANEL }, Operand::by_rows(&*queries, q_row));
                    let c = Sums::new(&mut scores[panel - key..], SCORES);
                    multiply_f32(isa, extent, a, &keys[panel * dim..], c);
                }
                softmax_step_f32(scores, some, running, sums, columns);
                for panel in (0..columns).step_by(PANEL) {
                    let extent = Extent { rows, lanes: some, columns: dim - panel };
                    let (b, c) = (&values[panel * n + key * PANEL..], Sums::added(&mut sums[panel..], columns));
                    multiply_f32(isa, extent, Operand::by_rows(&*scores, SCORES), b, c);
                }
            }
            finish(running, sums, columns, out, dim);
        }
    }

    fn pack_f32(&self, keys: &mut [f32], values: &mut [f32]) {
        let (dim, n) = (self.attention.dim, self.keys());
        for t in 0..n.next_multiple_of(PANEL) {
            let panel = &mut keys[t / PANEL * PANEL * dim..][t % PANEL..];
            let key = if t < n { self.part(self.cell.0 + t, 1) } else { &[] };
            for i in 0..dim {
                panel[i * PANEL] = key.get(i).copied().unwrap_or(0.0);
            }
        }
        for t in 0..n {
            for (panel, part) in self.part(self.cell.0 + t, 2).chunks(PANEL).enumerate() {
                let row = &mut values[(panel * n + t) * PANEL..][..PANEL];
                row[..part.len()].copy_from_slice(part);
                row[part.len()..].fill(0.0);
            }
        }
    }

    fn run_bf16(&self, scratch: &mut Scratch, out: &mut [f32]) {
        let Attention { isa, dim, .. } = self.attention;
        let Scratch { scores, sums, key_lanes, value_lanes, query_lanes, weights, running, queries, .. } = scratch;
        let (n, columns, inner) = (self.keys(), dim.next_multiple_of(PANEL), Dtype::Bf16.lanes(dim));
        let (padded, pairs) = (n.next_multiple_of(PANEL), Dtype::Bf16.lanes(n));
        let keys = key_lanes.at_least(padded * inner);
        let values = value_lanes.at_least(pairs * columns);
        self.pack_bf16(keys, values, inner, pairs);
        let (q_row, w_row) = (stride(inner), stride(KEYS / 2));
        let (scores, sums) = (scores.at_least(QUERIES * SCORES), sums.at_least(QUERIES * columns));
        let (lanes, weights) = (query_lanes.at_least(QUERIES * q_row), weights.at_least(QUERIES * w_row));
        let scaled = queries.at_least(dim);
        for (first, out) in (self.first..self.last).step_by(QUERIES).zip(out.chunks_mut(QUERIES * dim)) {
            let rows = out.len() / dim;
            for (i, row) in lanes.chunks_exact_mut(q_row).take(rows).enumerate() {
                scaled.iter_mut().zip(self.part(first + i, 0)).for_each(|(to, q)| *to = q * self.scale());
                to_bf16(scaled, &mut row[..inner]);
            }
            start(running, sums, rows);
            for key in (0..n).step_by(KEYS) {
                let some = KEYS.min(n - key);
                for panel in (key..key + some).step_by(PANEL) {
                    let (extent, a) = (Extent { rows, lanes: inner, columns: PANEL }, Operand::by_rows(&*lanes, q_row));
                    let c = Sums::new(&mut scores[panel - key..], SCORES);
                    multiply_bf16(isa, extent, a, &keys[panel * inner..], c);
                }
                softmax_step_bf16(scores, some, running, sums, columns);
                let pairs_here = Dtype::Bf16.lanes(some);
                for (row, scores) in weights.chunks_exact_mut(w_row).zip(scores.chunks_exact(SCORES)).take(rows) {
                    to_bf16(&scores[..some], &mut row[..pairs_here]);
                }
                for panel in (0..columns).step_by(PANEL) {
                    let extent = Extent { rows, lanes: pairs_here, columns: PANEL };
                    let b = &values[panel * pairs + key / 2 * PANEL..];
                    let (a, c) = (Operand::by_rows(&*weights, w_row), Sums::added(&mut sums[panel..], columns));
                    multiply_bf16(isa, extent, a, b, c);
                }
            }
            finish(running, sums, columns, out, dim);
        }
    }

    fn pack_bf16(&self, keys: &mut [u32], values: &mut [u32], inner: usize, pairs: usize) {
        let (dim, n) = (self.attention.dim, self.keys());
        let mut row = vec![0u32; inner];
        for t in 0..n.next_multiple_of(PANEL) {
            to_bf16(if t < n { self.part(self.cell.0 + t, 1) } else { &[] }, &mut row);
            let panel = &mut keys[t / PANEL * PANEL * inner..][t % PANEL..];
            row.iter().enumerate().for_each(|(i, lane)| panel[i * PANEL] = *lane);
        }
        let zeros = vec![0f32; dim];
        let value = |t: usize| if t < n { self.part(self.cell.0 + t, 2) } else { &zeros };
        for pair in 0..pairs {
            let (low, high) = (value(2 * pair), value(2 * pair + 1));
            for (panel, (low, high)) in low.chunks(PANEL).zip(high.chunks(PANEL)).enumerate() {
                let row = &mut values[(panel * pairs + pair) * PANEL..][..PANEL];
                row.fill(0);
                row.iter_mut().zip(low.iter().zip(high)).for_each(|(to, (l, h))| *to = bf16(*h) << 16 | bf16(*l));
            }
        }
    }
}

fn start(running: &mut Vec<(f32, f32)>, sums: &mut [f32], rows: usize) {
    running.clear();
    running.resize(rows, (f32::NEG_INFINITY, 0.0));
    sums.fill(0.0);
}

/// Turns a tile of scores, in powers of two, into weights against each query's running maximum, and scales what was
/// summed before.
#[inline(always)]
fn softmax_step_body<const FUSED: bool, const DEGREE: usize>(
    scores: &mut [f32],
    keys: usize,
    running: &mut [(f32, f32)],
    sums: &mut [f32],
    columns: usize,
) {
    for ((row, state), sums) in scores.chunks_exact_mut(SCORES).zip(running).zip(sums.chunks_exact_mut(columns)) {
        let row = &mut row[..keys];
        let (before, total) = *state;
        let block = max_of(row);
        let max = if block > before { block } else { before };
        row.iter_mut().for_each(|s| *s = exp2_nonpositive::<FUSED, DEGREE>(*s - max));
        let keep = exp2_nonpositive::<FUSED, 6>(before - max);
        sums.iter_mut().for_each(|s| *s *= keep);
        *state = (max, total * keep + sum_of(row, |v| v));
    }
}

/// [`softmax_step_body`] for weights that stay f32.
#[inline(always)]
fn for_f32<const FUSED: bool>(
    s: &mut [f32],
    keys: usize,
    running: &mut [(f32, f32)],
    sums: &mut [f32],
    columns: usize,
) {
    softmax_step_body::<FUSED, 6>(s, keys, running, sums, columns);
}

/// [`softmax_step_body`] for weights that become bf16.
#[inline(always)]
fn for_bf16<const FUSED: bool>(
    s: &mut [f32],
    keys: usize,
    running: &mut [(f32, f32)],
    sums: &mut [f32],
    columns: usize,
) {
    softmax_step_body::<FUSED, 4>(s, keys, running, sums, columns);
}

dispatch! {
    fn softmax_step_f32(s: &mut [f32], keys: usize, running: &mut [(f32, f32)], sums: &mut [f32], columns: usize)
        = fused for_f32
}

dispatch! {
    fn softmax_step_bf16(s: &mut [f32], keys: usize, running: &mut [(f32, f32)], sums: &mut [f32], columns: usize)
        = fused for_bf16
}

fn finish(running: &[(f32, f32)], sums: &[f32], columns: usize, out: &mut [f32], dim: usize) {
    for ((sums, (_, total)), out) in sums.chunks_exact(columns).zip(running).zip(out.chunks_exact_mut(dim)) {
        out.iter_mut().zip(sums).for_each(|(o, s)| *o = s / total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    const HEADS: usize = 3;
    const DIM: usize = 8;

    /// The definition, in f64, one query at a time; laid out as [`Attention::run`] does.
    fn plain(qkv: &[f32], starts: &[usize]) -> Vec<f32> {
        let width = HEADS * DIM;
        let at = |token: usize, part: usize, h: usize, i: usize| {
            f64::from(qkv[token * 3 * width + part * width + h * DIM + i])
        };
        let mut out = Vec::new();
        for cell in starts.windows(2) {
            for (h, token) in (0..HEADS).flat_map(|h| (cell[0]..cell[1]).map(move |t| (h, t))) {
                let score = |k: usize| (0..DIM).map(|i| at(token, 0, h, i) * at(k, 1, h, i)).sum::<f64>();
                let scores: Vec<f64> = (cell[0]..cell[1]).map(|k| score(k) / (DIM as f64).sqrt()).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..DIM {
                    let sum: f64 = weights.iter().enumerate().map(|(k, w)| w * at(cell[0] + k, 2, h, i)).sum();
                    out.push((sum / total) as f32);
                }
            }
        }
        out
    }

    fn run(qkv: &[f32], starts: &[usize], dtype: Dtype) -> Vec<f32> {
        let width = 3 * HEADS * DIM;
        let mut rows = Rows::new(qkv.len() / width, width);
        qkv.chunks(width).enumerate().for_each(|(i, row)| rows.row_mut(i).copy_from_slice(row));
        let mut out = vec![0.0; qkv.len() / 3];
        Attention { isa: Isa::best(), dtype, heads: HEADS, dim: DIM }.run(&rows, starts, &mut out);
        out
    }

    fn random(n: usize, spread: f32) -> Vec<f32> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        (0..n).map(|_| rng.random_range(-spread..spread)).collect()
    }

    #[test]
    fn tiles_give_what_the_definition_gives() {
        let starts = [0, 1, 3, 70, 70 + 2 * KEYS + 5];
        // Larger values make larger scores, and those are rounded by more.
        let cases = [(Dtype::F32, 1.0, 1e-5), (Dtype::F32, 6.0, 3e-4), (Dtype::Bf16, 1.0, 2e-2)];
        for (dtype, spread, tolerance) in cases {
            let qkv = random(starts[4] * 3 * HEADS * DIM, spread);
            let (ours, exact) = (run(&qkv, &starts, dtype), plain(&qkv, &starts));
            let worst = ours.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < tolerance, "{dtype:?}: {worst}");
        }
    }

    #[test]
    fn a_cell_gets_the_same_bits_alone_and_among_others() {
        let (width, long) = (HEADS * DIM, 2 * SPLIT + 3);
        let starts = [0, 90, 90 + long, 90 + long + 40];
        let qkv = random(starts[3] * 3 * width, 2.0);
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let among = run(&qkv, &starts, dtype);
            let alone = run(&qkv[starts[1] * 3 * width..starts[2] * 3 * width], &[0, long], dtype);
            assert_eq!(among[starts[1] * width..starts[2] * width], alone);
        }
    }
}
