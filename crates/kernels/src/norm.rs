//! Layer normalisation of rows (Ba et al. 2016), with scale and shift. Limit: bytes, one pass in and out.

use crate::simd::{dispatch, multiply_add, sum_of};

/// Added to the variance, as torch does by default.
pub const NORM_EPS: f32 = 1e-5;

/// Scale and shift of a layer norm.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl LayerNorm {
    /// `weight` and `bias` are `[dim]`.
    pub fn new(weight: Vec<f32>, bias: Vec<f32>) -> Self {
        Self { weight, bias }
    }

    /// Normalises one row, `[dim]`, in place.
    pub fn apply(&self, row: &mut [f32]) {
        normalise(row, &self.weight, &self.bias);
    }
}

#[inline(always)]
fn normalise_body<const FUSED: bool>(row: &mut [f32], weight: &[f32], bias: &[f32]) {
    let dim = row.len() as f32;
    let mean = sum_of(row, |v| v) / dim;
    let variance = sum_of(row, |v| (v - mean) * (v - mean)) / dim;
    let scale = 1.0 / (variance + NORM_EPS).sqrt();
    for ((v, w), b) in row.iter_mut().zip(weight).zip(bias) {
        *v = multiply_add::<FUSED>((*v - mean) * scale, *w, *b);
    }
}

dispatch! {
    fn normalise(row: &mut [f32], weight: &[f32], bias: &[f32]) = fused normalise_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_normalised_scaled_and_shifted() {
        let dim = 37;
        let weight: Vec<f32> = (0..dim).map(|i| 1.0 + i as f32 / 50.0).collect();
        let bias: Vec<f32> = (0..dim).map(|i| i as f32 / 9.0).collect();
        let norm = LayerNorm::new(weight.clone(), bias.clone());
        for r in 0..3 {
            let mut out: Vec<f32> = (0..dim).map(|i| (((r * dim + i) * 7919) % 101) as f32 / 10.0).collect();
            let row: Vec<f64> = out.iter().map(|v| f64::from(*v)).collect();
            norm.apply(&mut out);
            let mean = row.iter().sum::<f64>() / dim as f64;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / dim as f64;
            for i in 0..dim {
                let exact = (row[i] - mean) / (variance + f64::from(NORM_EPS)).sqrt() * f64::from(weight[i])
                    + f64::from(bias[i]);
                assert!((f64::from(out[i]) - exact).abs() < 1e-5);
            }
        }
    }
}
