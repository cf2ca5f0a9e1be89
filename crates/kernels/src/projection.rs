//! The exponents of a head's random features, x'·Pᵀ with x' = x·d^-¼. They are computed in f32 in every number format,
//! because exponentials amplify rounding.

use super::isa::Isa;
use super::linear::Linear;
use super::rows::{Aligned, LANES, stride};
use super::view::{RowsView, RowsViewMut};
use crate::simd::max_of;
use cellql_dtype::Dtype;

/// The features of one decoder layer's attention. Rows hold heads side by side, `[rows, heads·dim]`.
#[derive(Debug)]
pub(crate) struct Projection {
    linear: Linear,
    heads: usize,
    dim: usize,
    features: usize,
}

impl Projection {
    /// Of P, `[features, dim]`. The last vector of features is filled up with copies of the first, which change no
    /// maximum.
    pub(crate) fn new(isa: Isa, projection: &[f32], heads: usize, dim: usize) -> Self {
        let features = projection.len() / dim;
        let mut scaled = scaled(projection, dim);
        for _ in features..features.next_multiple_of(LANES) {
            scaled.extend_from_within(..dim);
        }
        let linear = Linear::pack(isa, Dtype::F32, &scaled, &[], dim, scaled.len() / dim);
        Self { linear, heads, dim, features }
    }

    /// x'·Pᵀ of one head, `[rows, dim]` to `[rows, features]`. Whole vectors of features are written: rows of `out`
    /// must have room for them.
    pub(crate) fn of(&self, x: RowsView, rows: usize, out: RowsViewMut) {
        self.linear.product(x, rows, out);
    }

    /// Appends the largest x'·Pᵀ of each of some keys, over all heads.
    pub(crate) fn largest(&self, k: RowsView, rows: usize, buffer: &mut Aligned<f32>, out: &mut Vec<f32>) {
        let apart = stride(self.features);
        let first = out.len();
        out.resize(first + rows, f32::NEG_INFINITY);
        for head in 0..self.heads {
            let y = buffer.at_least(rows * apart);
            let mut y = RowsViewMut::new(y, apart, self.features);
            self.of(k.columns(head * self.dim, self.dim), rows, y.reborrow());
            for (y, largest) in y.view().rows(rows).zip(&mut out[first..]) {
                *largest = largest.max(max_of(y));
            }
        }
    }
}

/// P·d^-¼.
pub(crate) fn scaled(projection: &[f32], dim: usize) -> Vec<f32> {
    let scale = (dim as f32).powf(-0.25);
    projection.iter().map(|p| p * scale).collect()
}
