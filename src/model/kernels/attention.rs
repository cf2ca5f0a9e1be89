//! Softmax attention inside each cell of a ragged batch.
//!
//! `softmax(q·kᵀ/√d)·v` per cell and head, in tiles of queries against tiles of keys with a running maximum and sum
//! (Milakov & Gimelshein 2018; Dao et al. 2022), so no cell's K × K matrix is ever stored. Limit: the FLOPs of two
//! products of 2·K²·d per head, plus K² exponentials.

use std::cell::RefCell;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, bail};
use rayon::prelude::*;

use super::{exp_nonpositive, floats};
use crate::simd::{dispatch, max_of, sum_of};

/// Queries per tile.
const QUERIES: usize = 64;
/// Keys per tile: a tile of scores stays in the second-level cache.
const KEYS: usize = 512;

/// `[tokens, 3·width]` (q, k, v side by side) to `[tokens, width]`.
pub(crate) struct RaggedAttention<'a> {
    /// Where each cell's tokens start; one longer than the cells.
    pub(crate) starts: &'a [usize],
    /// Heads; they divide the width.
    pub(crate) heads: usize,
}

impl CustomOp1 for RaggedAttention<'_> {
    fn name(&self) -> &'static str {
        "ragged-attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (tokens, packed) = layout.shape().dims2()?;
        let width = packed / 3;
        if packed != 3 * width || width % self.heads != 0 || self.starts.last() != Some(&tokens) {
            bail!("ragged attention: {tokens} × {packed} does not fit {} heads", self.heads);
        }
        let qkv = floats(storage, layout)?;
        let mut out = vec![0f32; tokens * width];
        let mut tiles = Vec::new();
        let mut rest = out.as_mut_slice();
        for cell in self.starts.windows(2) {
            for first in (cell[0]..cell[1]).step_by(QUERIES) {
                let queries = QUERIES.min(cell[1] - first);
                let (rows, after) = rest.split_at_mut(queries * width);
                rest = after;
                tiles.push((Tile { qkv, width, heads: self.heads, keys: (cell[0], cell[1]), first, queries }, rows));
            }
        }
        tiles.into_par_iter().for_each(|(tile, rows)| SCRATCH.with_borrow_mut(|scratch| tile.run(scratch, rows)));
        Ok((CpuStorage::F32(out), Shape::from((tokens, width))))
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

#[derive(Default)]
struct Scratch {
    /// `[queries, keys]`
    scores: Vec<f32>,
    /// `[queries, head]`
    sums: Vec<f32>,
    /// Running maximum and sum of exponentials of each query.
    running: Vec<(f32, f32)>,
}

/// Some queries of one cell, all heads.
struct Tile<'a> {
    qkv: &'a [f32],
    width: usize,
    heads: usize,
    /// First and one past the last token of the cell.
    keys: (usize, usize),
    /// First query token.
    first: usize,
    queries: usize,
}

impl Tile<'_> {
    fn run(&self, scratch: &mut Scratch, out: &mut [f32]) {
        let head = self.width / self.heads;
        scratch.scores.resize(QUERIES * KEYS, 0.0);
        for h in 0..self.heads {
            scratch.sums.clear();
            scratch.sums.resize(self.queries * head, 0.0);
            scratch.running.clear();
            scratch.running.resize(self.queries, (f32::NEG_INFINITY, 0.0));
            for key in (self.keys.0..self.keys.1).step_by(KEYS) {
                let keys = KEYS.min(self.keys.1 - key);
                let scores = &mut scratch.scores[..self.queries * keys];
                self.scores(h, key, keys, scores);
                softmax_step(scores, keys, &mut scratch.running, &mut scratch.sums, head);
                self.add_values(h, key, keys, scores, &mut scratch.sums);
            }
            for (query, (sums, (_, total))) in scratch.sums.chunks_exact(head).zip(&scratch.running).enumerate() {
                let target = &mut out[query * self.width + h * head..][..head];
                target.iter_mut().zip(sums).for_each(|(t, s)| *t = s / total);
            }
        }
    }

    /// The tokens from `token` on, at part 0 (q), 1 (k) or 2 (v) of a head.
    fn part(&self, token: usize, part: usize, head: usize) -> &[f32] {
        let at = token * 3 * self.width + part * self.width + head * (self.width / self.heads);
        &self.qkv[at..]
    }

    /// q·kᵀ/√d into `[queries, keys]`.
    fn scores(&self, h: usize, key: usize, keys: usize, scores: &mut [f32]) {
        let head = self.width / self.heads;
        let row = 3 * self.width;
        let q = Matrix { data: self.part(self.first, 0, h), rows: self.queries, columns: head, row, column: 1 };
        let k = Matrix { data: self.part(key, 1, h), rows: head, columns: keys, row: 1, column: row };
        multiply(q, k, scores, false, 1.0 / (head as f32).sqrt());
    }

    /// Adds p·v to `[queries, head]`.
    fn add_values(&self, h: usize, key: usize, keys: usize, p: &[f32], sums: &mut [f32]) {
        let head = self.width / self.heads;
        let p = Matrix { data: p, rows: self.queries, columns: keys, row: keys, column: 1 };
        let v = Matrix { data: self.part(key, 2, h), rows: keys, columns: head, row: 3 * self.width, column: 1 };
        multiply(p, v, sums, true, 1.0);
    }
}

/// Turns a tile of scores into weights against each query's running maximum, and scales what was summed before.
#[inline(always)]
fn softmax_step_body(scores: &mut [f32], keys: usize, running: &mut [(f32, f32)], sums: &mut [f32], head: usize) {
    for ((row, state), sums) in scores.chunks_exact_mut(keys).zip(running).zip(sums.chunks_exact_mut(head)) {
        let (before, total) = *state;
        let tile = max_of(row);
        let max = if tile > before { tile } else { before };
        row.iter_mut().for_each(|s| *s = exp_nonpositive(*s - max));
        let keep = exp_nonpositive(before - max);
        sums.iter_mut().for_each(|s| *s *= keep);
        *state = (max, total * keep + sum_of(row, |v| v));
    }
}

dispatch! {
    fn softmax_step(scores: &mut [f32], keys: usize, running: &mut [(f32, f32)], sums: &mut [f32], head: usize)
        = softmax_step_body
}

/// A view of a matrix by strides.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    /// Distance between rows.
    row: usize,
    /// Distance between columns.
    column: usize,
}

impl Matrix<'_> {
    fn fits(&self) -> bool {
        let last = (self.rows - 1) * self.row + (self.columns - 1) * self.column;
        self.rows > 0 && self.columns > 0 && last < self.data.len()
    }
}

/// `out = scale·a·b`, or `out += scale·a·b`; `out` is dense.
#[allow(unsafe_code, reason = "gemm takes raw pointers; the one call is here, behind checks of every bound")]
fn multiply(a: Matrix, b: Matrix, out: &mut [f32], add: bool, scale: f32) {
    assert!(a.fits() && b.fits() && a.columns == b.rows && out.len() == a.rows * b.columns);
    // SAFETY: `fits` shows that the last element of either input lies in its slice, `out` holds exactly
    // rows × columns, and it is borrowed mutably, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            b.columns as isize,
            add,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};
    use rand::{Rng, SeedableRng};

    /// The definition, in f64, one query at a time.
    fn plain(qkv: &[f32], starts: &[usize], width: usize, heads: usize) -> Vec<f32> {
        let head = width / heads;
        let at = |token: usize, part: usize, h: usize, i: usize| {
            f64::from(qkv[token * 3 * width + part * width + h * head + i])
        };
        let mut out = vec![0f32; qkv.len() / 3];
        for cell in starts.windows(2) {
            for (token, h) in (cell[0]..cell[1]).flat_map(|t| (0..heads).map(move |h| (t, h))) {
                let score = |k: usize| (0..head).map(|i| at(token, 0, h, i) * at(k, 1, h, i)).sum::<f64>();
                let scores: Vec<f64> = (cell[0]..cell[1]).map(|k| score(k) / (head as f64).sqrt()).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..head {
                    let sum: f64 = weights.iter().enumerate().map(|(k, w)| w * at(cell[0] + k, 2, h, i)).sum();
                    out[token * width + h * head + i] = (sum / total) as f32;
                }
            }
        }
        out
    }

    fn run(qkv: &[f32], starts: &[usize], width: usize, heads: usize) -> Vec<f32> {
        let tokens = qkv.len() / (3 * width);
        let tensor = Tensor::from_slice(qkv, (tokens, 3 * width), &Device::Cpu).unwrap();
        let out = tensor.apply_op1_no_bwd(&RaggedAttention { starts, heads }).unwrap();
        out.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn random(n: usize, spread: f32) -> Vec<f32> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        (0..n).map(|_| rng.random_range(-spread..spread)).collect()
    }

    #[test]
    fn tiles_give_what_the_definition_gives() {
        let (width, heads) = (24, 3);
        let starts = [0, 1, 3, 70, 70 + 2 * KEYS + 5];
        // Larger values make larger scores, and f32 rounds those by more.
        for (spread, tolerance) in [(1.0, 1e-5), (6.0, 2e-4)] {
            let qkv = random(starts[4] * 3 * width, spread);
            let (ours, exact) = (run(&qkv, &starts, width, heads), plain(&qkv, &starts, width, heads));
            let worst = ours.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < tolerance, "{worst}");
        }
    }

    #[test]
    fn a_cell_gets_the_same_bits_alone_and_among_others() {
        let (width, heads) = (16, 2);
        let qkv = random(300 * 3 * width, 2.0);
        let among = run(&qkv, &[0, 90, 220, 300], width, heads);
        let alone = run(&qkv[90 * 3 * width..220 * 3 * width], &[0, 130], width, heads);
        assert_eq!(among[90 * width..220 * width], alone);
    }
}
