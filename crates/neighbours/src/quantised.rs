//! Scalar quantisation: vectors in 8 bits a dimension, and queries encoded for products with them.
//!
//! Each dimension has its own range, divided into 255 steps: x ≈ min + step · code. So v·x ≈ v·min + Σ (v · step) ·
//! code. With the weights v · step in 16 bits the sum is over integers. Only x is rounded to 8 bits, by at most a 510th
//! of its dimension's range, so dimensions of very different ranges lose nothing to each other.

use rayon::prelude::*;

use crate::dot::{BLOCK, Isa, Table, Weights, products};
use crate::memory::Bytes;

/// Scalar-quantised vectors.
#[derive(Debug)]
pub(crate) struct QuantisedVectors {
    /// Dimension of the vectors.
    pub(crate) dim: usize,
    /// Bytes from one row of codes to the next: `dim` rounded up to whole blocks.
    pub(crate) stride: usize,
    /// `[dim]`: the smallest value of each dimension.
    pub(crate) min: Vec<f32>,
    /// `[dim]`: the difference of value between two neighbouring codes.
    pub(crate) step: Vec<f32>,
    /// `[n, stride]`: the codes.
    pub(crate) rows: Bytes,
    isa: Isa,
}

/// A query encoded for products with quantised vectors.
#[derive(Debug, Clone, Default)]
pub(crate) struct EncodedQuery {
    weights: Weights,
    /// Product of the query with `min`.
    offset: f32,
    /// Product of f32 vectors for one unit of the integer product.
    scale: f32,
    /// Standard deviation of an integer product that quantisation causes.
    pub(crate) error: f32,
    /// Buffer of `[dim]` values.
    values: Vec<f32>,
}

impl EncodedQuery {
    /// The dot product of the f32 vectors, estimated from the integer product.
    pub(crate) fn dot(&self, integer: i32) -> f32 {
        self.offset + self.scale * integer as f32
    }

    /// Difference of two products that may be an error of the codes alone, whatever their vectors: three standard
    /// deviations.
    pub(crate) fn margin_of_codes(&self) -> i32 {
        (3.0 * std::f32::consts::SQRT_2 * self.error) as i32
    }

    /// The same where a product is given. The error of a code is nearly orthogonal to its vector, so the nearer the
    /// vector, the smaller the error of the product: it is that of the difference from the query. The factor allows
    /// for vectors that share a node, and the term for what is left of the error along the vector.
    pub(crate) fn margin(&self, product: i32) -> i32 {
        const FACTOR: f32 = 8.0;
        const ALONG: f32 = 0.02;
        let distance = (2.0 * (1.0 - self.dot(product))).max(0.0).sqrt();
        (FACTOR * self.error * (distance + ALONG).min(1.0)) as i32
    }
}

impl QuantisedVectors {
    /// Quantises vectors `[n, dim]`.
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
        let min = ranges.iter().map(|(min, _)| *min).collect();
        let step: Vec<f32> = ranges.iter().map(|(min, max)| (max - min) / 255.0).collect();
        let mut codes = Self::zeroed(n, dim, min, step);
        let (stride, min, step) = (codes.stride, &codes.min, &codes.step);
        const ROWS: usize = 256;
        let rows = codes.rows.get_mut().par_chunks_mut(ROWS * stride).zip(vectors.par_chunks(ROWS * dim));
        rows.for_each(|(rows, vectors)| {
            let mut rounding = Rounding::new(min, step);
            for (row, vector) in rows.chunks_mut(stride).zip(vectors.chunks(dim)) {
                rounding.round(vector, &mut row[..dim]);
            }
        });
        codes
    }

    /// `n` rows of codes that are all zero, with ranges `min` and `step` `[dim]`.
    pub(crate) fn zeroed(n: usize, dim: usize, min: Vec<f32>, step: Vec<f32>) -> Self {
        let stride = dim.next_multiple_of(BLOCK);
        Self { dim, stride, min, step, rows: Bytes::zeroed(n * stride), isa: Isa::best() }
    }

    /// Keeps only the vectors of `ids`, which ascend, in their order.
    pub(crate) fn keep(&mut self, ids: &[u32]) {
        let stride = self.stride;
        for (to, from) in ids.iter().enumerate() {
            let from = *from as usize * stride;
            self.rows.get_mut().copy_within(from..from + stride, to * stride);
        }
        self.rows.truncate(ids.len() * stride);
    }

    /// Length of a typical quantisation error: the errors are uniform within half a step in each dimension.
    pub(crate) fn typical_error(&self) -> f32 {
        (self.step.iter().map(|step| step * step).sum::<f32>() / 12.0).sqrt()
    }

    /// `[dim]`: the codes of a vector.
    pub(crate) fn code(&self, id: u32) -> &[u8] {
        &self.rows.get()[id as usize * self.stride..][..self.dim]
    }

    /// Encodes a vector `[dim]`.
    pub(crate) fn encode(&self, vector: &[f32], query: &mut EncodedQuery) {
        let mut values = std::mem::take(&mut query.values);
        values.clear();
        values.extend(vector);
        self.encode_values(values, query);
    }

    /// Encodes one of the quantised vectors as a query.
    pub(crate) fn encode_row(&self, id: u32, query: &mut EncodedQuery) {
        let mut values = std::mem::take(&mut query.values);
        values.clear();
        values.extend(
            self.code(id)
                .iter()
                .zip(&self.min)
                .zip(&self.step)
                .map(|((code, min), step)| min + step * f32::from(*code)),
        );
        self.encode_values(values, query);
    }

    fn encode_values(&self, mut values: Vec<f32>, query: &mut EncodedQuery) {
        query.offset = cellql_kernels::dot(&values, &self.min);
        for (weight, step) in values.iter_mut().zip(&self.step) {
            *weight *= step;
        }
        let largest = values.iter().fold(0f32, |a, b| a.max(b.abs()));
        let sum: f32 = values.iter().map(|w| w.abs()).sum();
        // The finest unit for which weights fit 16 bits, and 255 times the sum of all weights, each rounded up, fits
        // 32.
        let room = (i32::MAX / 255) as f32 * 0.999 - self.dim as f32;
        let units = (32_512.0 / largest).min(room / sum);
        let units = if units.is_finite() { units } else { 0.0 };
        query.scale = if units > 0.0 { 1.0 / units } else { 0.0 };
        // The error of a code is uniform within half a step: its standard deviation is 1/√12 of a step.
        let squares: f32 = values.iter().map(|w| w * w).sum();
        query.error = (squares / 12.0).sqrt() * units;
        query.weights.set(self.stride, values.iter().map(|w| w * units));
        query.values = values;
    }

    /// Integer products of a query with the vectors of `ids`, in their order.
    pub(crate) fn products(&self, query: &EncodedQuery, ids: &[u32], out: &mut Vec<i32>) {
        products(self.isa, &query.weights, Table { codes: self.rows.get(), stride: self.stride }, ids, out);
    }

    /// The estimated dot product of a query with one vector.
    pub(crate) fn dot(&self, query: &EncodedQuery, id: u32, out: &mut Vec<i32>) -> f32 {
        self.products(query, &[id], out);
        query.dot(out.first().copied().unwrap_or_default())
    }
}

/// Rounds codes `[dim]` of vectors to the nearest, and some of them the other way, so that the error of a vector's
/// codes is nearly orthogonal to the vector.
///
/// The product of a query with an error e is vector·e + (query − vector)·e. This makes the first term nearly zero; the
/// second is small where the query is near the vector, and there products must distinguish vectors. The loss is
/// |e|² + weight · (vector·e)², that of Guo et al. 2020 (arXiv:1908.10396), lowered one code at a time.
#[derive(Debug)]
struct Rounding<'a> {
    min: &'a [f32],
    step: &'a [f32],
    /// One over the steps, 0 for those that are 0.
    inverse: Vec<f32>,
    /// By how much vector·e and |e|² change if a code is rounded the other way.
    changes: Vec<(f32, f32)>,
    /// Where the other code is greater.
    up: Vec<bool>,
}

impl<'a> Rounding<'a> {
    fn new(min: &'a [f32], step: &'a [f32]) -> Self {
        let inverse = step.iter().map(|s| if *s > 0.0 { 1.0 / s } else { 0.0 }).collect();
        Self { min, step, inverse, changes: Vec::new(), up: Vec::new() }
    }

    fn round(&mut self, vector: &[f32], codes: &mut [u8]) {
        self.changes.resize(codes.len(), (0.0, 0.0));
        self.up.resize(codes.len(), false);
        let values = vector.iter().zip(self.min).zip(self.step).zip(&self.inverse);
        let turns = self.changes.iter_mut().zip(&mut self.up);
        for ((((value, min), step), inverse), (code, (change, up))) in values.zip(codes.iter_mut().zip(turns)) {
            let exact = (value - min) * inverse;
            let nearest = nearest_integer(exact);
            let error = nearest - exact;
            *code = nearest as u8;
            *up = error < 0.0;
            let by = if *up { 1.0 } else { -1.0 };
            // A value that is a code exactly keeps it.
            let by = if error == 0.0 { 0.0 } else { by };
            *change = (value * step * by, step * step * by * (2.0 * error + by));
        }
        let errors = codes.iter().zip(vector).zip(self.min).zip(self.step);
        let mut along: f32 = errors.map(|(((code, v), min), step)| v * (min + step * f32::from(*code) - v)).sum();
        let dim = vector.len() as f32;
        // The weight grows, so that the codes nearest to a tie are turned first.
        for weight in [dim.sqrt(), dim, dim * dim] {
            along = self.turn_each(codes, along, weight);
        }
        self.turn_two(codes, along);
    }

    /// Turns each code that lowers the loss. Takes vector·e and returns what it is then.
    fn turn_each(&mut self, codes: &mut [u8], mut along: f32, weight: f32) -> f32 {
        for i in 0..codes.len() {
            let (change, cost) = self.changes[i];
            if weight * change * (2.0 * along + change) + cost < 0.0 {
                along += change;
                self.turn(codes, i);
            }
        }
        along
    }

    /// Turns the two codes that bring vector·e nearest to zero: few dimensions leave few choices of one.
    fn turn_two(&mut self, codes: &mut [u8], along: f32) {
        const FEW: usize = 48;
        let few = &self.changes[..codes.len().min(FEW)];
        let (mut least, mut pair) = (along.abs(), None);
        for (i, (first, _)) in few.iter().enumerate() {
            for (j, (second, _)) in few[..i].iter().enumerate() {
                let then = (along + first + second).abs();
                if then < least {
                    (least, pair) = (then, Some([i, j]));
                }
            }
        }
        pair.into_iter().flatten().for_each(|i| self.turn(codes, i));
    }

    fn turn(&mut self, codes: &mut [u8], i: usize) {
        codes[i] = if self.up[i] { codes[i].saturating_add(1) } else { codes[i].saturating_sub(1) };
        self.up[i] = !self.up[i];
        let (change, cost) = self.changes[i];
        self.changes[i] = (-change, -cost);
    }
}

/// The nearest integer, ties to even, of a value below 2²²: adding 1.5 · 2²³ leaves no bits for a fraction. Unlike
/// `round_ties_even` it needs no SSE4.1, so loops of it are compiled to vector instructions for every x86-64.
fn nearest_integer(value: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (value + SHIFT) - SHIFT
}

/// `[dim]`: smallest and largest value of each dimension.
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
    fn products_with_quantised_vectors_are_those_with_vectors_within_rounding() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for dim in [3usize, 64, 100, 3072] {
            // Dimensions of very different widths, one of no width at all.
            let widths: Vec<f32> = (0..dim).map(|d| if d == 1 { 0.0 } else { 10f32.powi(-(d as i32 % 4)) }).collect();
            let vectors: Vec<f32> = (0..20 * dim).map(|i| widths[i % dim] * rng.random_range(-1.0f32..1.0)).collect();
            let codes = QuantisedVectors::new(&vectors, dim);
            let (mut query, mut out) = (EncodedQuery::default(), Vec::new());
            let v = &vectors[7 * dim..8 * dim];
            codes.encode(v, &mut query);
            for (id, x) in vectors.chunks(dim).enumerate() {
                let exact: f64 = v.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                // Half a step for x, and weights rounded to a 2¹³th of the largest.
                let bound: f32 =
                    v.iter().zip(&widths).map(|(v, w)| v.abs() * w * 2.0 / 510.0).sum::<f32>() * 1.2 + 0.03;
                let got = codes.dot(&query, id as u32, &mut out);
                assert!((f64::from(got) - exact).abs() < f64::from(bound), "{dim}: {got} {exact} {bound}");
            }
        }
    }

    #[test]
    fn vectors_with_nan_infinity_or_zeros_are_harmless() {
        let vectors = [f32::NAN, f32::INFINITY, -f32::INFINITY, 0.0, 1.0, f32::MAX];
        let codes = QuantisedVectors::new(&vectors, 2);
        let (mut query, mut out) = (EncodedQuery::default(), Vec::new());
        for vector in vectors.chunks(2) {
            codes.encode(vector, &mut query);
            codes.products(&query, &[0, 1, 2], &mut out);
            assert_eq!(out.len(), 3);
        }
    }

    /// Rounding to the nearest leaves an error along the vector of one standard deviation of a product.
    #[test]
    fn errors_of_codes_are_nearly_orthogonal_to_their_vectors() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for dim in [16usize, 64, 512] {
            let vectors: Vec<f32> = (0..500 * dim).map(|_| rng.random_range(-1.0f32..1.0)).collect();
            let codes = QuantisedVectors::new(&vectors, dim);
            let (mut along, mut squares) = (0.0f64, 0.0f64);
            for (id, vector) in vectors.chunks(dim).enumerate() {
                let rounded = codes.code(id as u32).iter().zip(&codes.min).zip(&codes.step);
                let rounded = rounded.map(|((code, min), step)| f64::from(*min) + f64::from(*step) * f64::from(*code));
                let errors: Vec<f64> = rounded.zip(vector).map(|(rounded, v)| rounded - f64::from(*v)).collect();
                let norm = vector.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
                let product = errors.iter().zip(vector).map(|(e, v)| e * f64::from(*v)).sum::<f64>() / norm;
                along += product * product / 500.0;
                squares += errors.iter().map(|e| e * e).sum::<f64>() / 500.0;
            }
            let typical = f64::from(codes.typical_error());
            assert!(along.sqrt() < 0.1 * typical / (dim as f64).sqrt(), "{dim}: {}", along.sqrt());
            assert!(squares.sqrt() < 1.5 * typical, "{dim}: {}", squares.sqrt());
        }
    }
}
