//! From the numbers of a head to the exponents of its random features, x'·Pᵀ with x' = x·d^-¼. In f32 always: the result goes
//! into an exponential.

use super::linear::Linear;
use super::memory::{Aligned, LANES, stride};
use super::tile::{Form, Isa};
use crate::simd::max_of;

/// The features of one decoder layer's attention. Rows hold heads side by side, `[rows, heads·dim]`.
#[derive(Debug)]
pub(crate) struct Projection {
    linear: Linear,
    heads: usize,
    dim: usize,
    features: usize,
}

impl Projection {
    /// Of P, `[features, dim]`. The last vector of features is filled up with copies of the first, which change no maximum.
    pub(crate) fn new(isa: Isa, projection: &[f32], heads: usize, dim: usize) -> Self {
        let features = projection.len() / dim;
        let mut scaled = scaled(projection, dim);
        for _ in features..features.next_multiple_of(LANES) {
            scaled.extend_from_within(..dim);
        }
        let linear = Linear::pack(isa, Form::F32, &scaled, &[], dim, scaled.len() / dim);
        Self { linear, heads, dim, features }
    }

    /// x'·Pᵀ of one head for some rows, `.1` apart: whole vectors of features into `out`, `.1` apart.
    pub(crate) fn of(&self, x: (&[f32], usize), rows: usize, out: (&mut [f32], usize)) {
        self.linear.product(x, rows, out);
    }

    /// Appends the largest x'·Pᵀ of each of some keys, over all heads.
    pub(crate) fn largest(&self, k: (&[f32], usize), rows: usize, buffer: &mut Aligned<f32>, out: &mut Vec<f32>) {
        let apart = stride(self.features);
        let first = out.len();
        out.resize(first + rows, f32::NEG_INFINITY);
        for head in 0..self.heads {
            let y = buffer.at_least(rows * apart);
            self.of((&k.0[head * self.dim..], k.1), rows, (y, apart));
            for (y, largest) in y.chunks(apart).zip(&mut out[first..]) {
                *largest = largest.max(max_of(&y[..self.features]));
            }
        }
    }
}

/// P·d^-¼.
pub(crate) fn scaled(projection: &[f32], dim: usize) -> Vec<f32> {
    let scale = (dim as f32).powf(-0.25);
    projection.iter().map(|p| p * scale).collect()
}
