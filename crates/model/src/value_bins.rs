//! The value embedding up to its mixture of bins: `h = leaky(v·w + b)`, `m = softmax(α·h + W₂·h + b₂)`. The embedding
//! of a value is then `m·E`. Inference and training share these two functions; each packs the product with W₂ for
//! itself.

use cellql_kernels::{Rows, softmax};

/// Derivative of the activation below zero.
pub const LEAK: f32 = 0.1;

/// `h = leaky(v·w + b)`: one row of `h`, `[values, bins]`, for each value. `weight` and `bias` are `[bins]`.
pub fn value_bins(values: &[f32], weight: &[f32], bias: &[f32], h: &mut Rows) {
    for (i, v) in values.iter().enumerate() {
        for ((h, w), b) in h.row_mut(i).iter_mut().zip(weight).zip(bias) {
            let x = v * w + b;
            *h = if x > 0.0 { x } else { LEAK * x };
        }
    }
}

/// `softmax(α·h + mixture)` in place of `mixture`, `[rows, bins]`, which holds `W₂·h + b₂`.
pub fn mix_bins(h: &Rows, alpha: f32, rows: usize, mixture: &mut Rows) {
    for i in 0..rows {
        let mixture = mixture.row_mut(i);
        mixture.iter_mut().zip(h.row(i)).for_each(|(m, h)| *m += alpha * h);
        softmax(mixture);
    }
}
