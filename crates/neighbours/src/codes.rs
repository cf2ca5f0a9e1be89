//! Vectors in 8 bits, and what a vector is to them.
//!
//! A dimension has a range of its own, cut into 255 steps: x ≈ low + step · code. So v·x ≈ v·low + Σ (v · step) · code, and
//! with the weights v · step in 16 bits the sum is one of integers. Rounding hits only x, by a 510th of its dimension's
//! range, however much the ranges differ.

use rayon::prelude::*;

use crate::dot::{BLOCK, Isa, Table, Weights, products};
use crate::memory::Bytes;

/// Codes of all vectors.
#[derive(Debug)]
pub(crate) struct Codes {
    pub(crate) dim: usize,
    pub(crate) stride: usize,
    /// `[dim]`, the smallest value of each dimension.
    pub(crate) low: Vec<f32>,
    /// `[dim]`, a step of the code.
    pub(crate) step: Vec<f32>,
    /// `[n, stride]`
    pub(crate) rows: Bytes,
    isa: Isa,
}

/// A vector prepared for products with codes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query {
    weights: Weights,
    base: f32,
    scale: f32,
    /// Standard deviation of an integer product, by rounding of codes.
    pub(crate) error: f32,
    floats: Vec<f32>,
}

impl Query {
    /// The product with a vector, from the integer product with its code.
    pub(crate) fn product(&self, integer: i32) -> f32 {
        self.base + self.scale * integer as f32
    }
}

impl Codes {
    pub(crate) fn new(vectors: &[f32], dim: usize) -> Self {
        let n = vectors.len() / dim;
        let rows = 4096 * dim;
        let ranges = vectors.par_chunks(rows).map(|part| range(part, dim)).reduce_with(|mut a, b| {
            for (a, b) in a.iter_mut().zip(b) {
                *a = (a.0.min(b.0), a.1.max(b.1));
            }
            a
        });
        let ranges = ranges.unwrap_or_else(|| vec![(0.0, 0.0); dim]);
        let low = ranges.iter().map(|(low, _)| *low).collect();
        let step: Vec<f32> = ranges.iter().map(|(low, high)| (high - low) / 255.0).collect();
        let mut codes = Self::zeroed(n, dim, low, step);
        let (stride, low, step) = (codes.stride, &codes.low, &codes.step);
        let inverse: Vec<f32> = step.iter().map(|s| if *s > 0.0 { 1.0 / s } else { 0.0 }).collect();
        codes.rows.get_mut().par_chunks_mut(stride).zip(vectors.par_chunks(dim)).for_each(|(row, vector)| {
            for (i, code) in row[..dim].iter_mut().enumerate() {
                *code = ((vector[i] - low[i]) * inverse[i]).round_ties_even() as u8;
            }
        });
        codes
    }

    pub(crate) fn zeroed(n: usize, dim: usize, low: Vec<f32>, step: Vec<f32>) -> Self {
        let stride = dim.next_multiple_of(BLOCK);
        Self { dim, stride, low, step, rows: Bytes::zeroed(n * stride), isa: Isa::best() }
    }

    pub(crate) fn code(&self, id: u32) -> &[u8] {
        &self.rows.get()[id as usize * self.stride..][..self.dim]
    }

    /// Prepares a vector `[dim]`.
    pub(crate) fn prepare(&self, vector: &[f32], query: &mut Query) {
        let mut floats = std::mem::take(&mut query.floats);
        floats.clear();
        floats.extend(vector);
        self.weigh(floats, query);
    }

    /// Prepares the vector that a code stands for.
    pub(crate) fn prepare_code(&self, id: u32, query: &mut Query) {
        let mut floats = std::mem::take(&mut query.floats);
        floats.clear();
        floats.extend(self.code(id).iter().zip(&self.low).zip(&self.step).map(|((c, l), s)| l + s * f32::from(*c)));
        self.weigh(floats, query);
    }

    fn weigh(&self, mut floats: Vec<f32>, query: &mut Query) {
        query.base = cellql_kernels::dot(&floats, &self.low);
        for (weight, step) in floats.iter_mut().zip(&self.step) {
            *weight *= step;
        }
        let largest = floats.iter().fold(0f32, |a, b| a.max(b.abs()));
        let sum: f32 = floats.iter().map(|w| w.abs()).sum();
        // As fine as 16 bits allow while 255 times the sum of all weights, each rounded up, is within 32.
        let room = (i32::MAX / 255) as f32 * 0.999 - self.dim as f32;
        let units = (32_512.0 / largest).min(room / sum);
        let units = if units.is_finite() { units } else { 0.0 };
        query.scale = if units > 0.0 { 1.0 / units } else { 0.0 };
        // A code is wrong by up to half a step, evenly: 1/√12 of a step.
        let squares: f32 = floats.iter().map(|w| w * w).sum();
        query.error = (squares / 12.0).sqrt() * units;
        query.weights.set(self.stride, floats.iter().map(|w| w * units));
        query.floats = floats;
    }

    /// Integer products of a prepared vector with some codes.
    pub(crate) fn products(&self, query: &Query, ids: &[u32], out: &mut Vec<i32>) {
        products(self.isa, &query.weights, Table { codes: self.rows.get(), stride: self.stride }, ids, out);
    }

    /// The product of a prepared vector with one.
    pub(crate) fn product(&self, query: &Query, id: u32, out: &mut Vec<i32>) -> f32 {
        self.products(query, &[id], out);
        query.product(out.first().copied().unwrap_or_default())
    }
}

/// Smallest and largest value of each dimension.
fn range(vectors: &[f32], dim: usize) -> Vec<(f32, f32)> {
    let mut range = vec![(f32::INFINITY, f32::NEG_INFINITY); dim];
    for vector in vectors.chunks_exact(dim) {
        for (range, value) in range.iter_mut().zip(vector) {
            *range = (range.0.min(*value), range.1.max(*value));
        }
    }
    range
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn products_with_codes_are_those_with_vectors_within_rounding() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for dim in [3usize, 64, 100, 3072] {
            // Dimensions of very different widths, one of no width at all.
            let widths: Vec<f32> = (0..dim).map(|d| if d == 1 { 0.0 } else { 10f32.powi(-(d as i32 % 4)) }).collect();
            let vectors: Vec<f32> = (0..20 * dim).map(|i| widths[i % dim] * rng.random_range(-1.0f32..1.0)).collect();
            let codes = Codes::new(&vectors, dim);
            let (mut query, mut out) = (Query::default(), Vec::new());
            let v = &vectors[7 * dim..8 * dim];
            codes.prepare(v, &mut query);
            for (id, x) in vectors.chunks(dim).enumerate() {
                let exact: f64 = v.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                // Half a step for x, and weights rounded to a 2¹³th of the largest.
                let bound: f32 =
                    v.iter().zip(&widths).map(|(v, w)| v.abs() * w * 2.0 / 510.0).sum::<f32>() * 1.2 + 0.03;
                let got = codes.product(&query, id as u32, &mut out);
                assert!((f64::from(got) - exact).abs() < f64::from(bound), "{dim}: {got} {exact} {bound}");
            }
        }
    }

    #[test]
    fn vectors_that_are_no_numbers_or_all_zero_are_harmless() {
        let vectors = [f32::NAN, f32::INFINITY, -f32::INFINITY, 0.0, 1.0, f32::MAX];
        let codes = Codes::new(&vectors, 2);
        let (mut query, mut out) = (Query::default(), Vec::new());
        for vector in vectors.chunks(2) {
            codes.prepare(vector, &mut query);
            codes.products(&query, &[0, 1, 2], &mut out);
            assert_eq!(out.len(), 3);
        }
    }
}
