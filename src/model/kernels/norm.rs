//! Layer normalisation over the last axis (Ba et al. 2016), with scale and shift. Limit: bytes, one pass in and out.

use candle_core::{CpuStorage, CustomOp3, Layout, Shape, bail};
use rayon::prelude::*;

use super::floats;
use crate::simd::{dispatch, sum_of};

/// Rows one thread takes at a time.
const ROWS: usize = 64;

/// `[rows, dim]`, weight `[dim]`, bias `[dim]` to `[rows, dim]`.
pub(crate) struct LayerNorm {
    /// Added to the variance.
    pub(crate) eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, weight, bias) = (floats(x, x_layout)?, floats(weight, weight_layout)?, floats(bias, bias_layout)?);
        let dim = weight.len();
        if x_layout.dims().last() != Some(&dim) || bias.len() != dim {
            bail!("layer norm: {:?} rows do not have {dim} columns", x_layout.shape());
        }
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(ROWS * dim)
            .zip(x.par_chunks(ROWS * dim))
            .for_each(|(out, x)| normalise(x, weight, bias, self.eps, out));
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

#[inline(always)]
fn normalise_body(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let dim = weight.len();
    for (row, out) in x.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
        let mean = sum_of(row, |v| v) / dim as f32;
        let variance = sum_of(row, |v| (v - mean) * (v - mean)) / dim as f32;
        let scale = 1.0 / (variance + eps).sqrt();
        for (((o, v), w), b) in out.iter_mut().zip(row).zip(weight).zip(bias) {
            *o = (v - mean) * scale * w + b;
        }
    }
}

dispatch! {
    fn normalise(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) = normalise_body
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn rows_are_normalised_scaled_and_shifted() {
        let dim = 37;
        let x: Vec<f32> = (0..3 * dim).map(|i| ((i * 7919) % 101) as f32 / 10.0).collect();
        let weight: Vec<f32> = (0..dim).map(|i| 1.0 + i as f32 / 50.0).collect();
        let bias: Vec<f32> = (0..dim).map(|i| i as f32 / 9.0).collect();
        let tensor = |v: &[f32]| Tensor::from_slice(v, v.len(), &Device::Cpu).unwrap();
        let rows = Tensor::from_slice(&x, (3, dim), &Device::Cpu).unwrap();
        let out = rows.apply_op3_no_bwd(&tensor(&weight), &tensor(&bias), &LayerNorm { eps: 1e-5 }).unwrap();
        let out: Vec<f32> = out.flatten_all().unwrap().to_vec1().unwrap();
        for (r, row) in x.chunks(dim).enumerate() {
            let row: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
            let mean = row.iter().sum::<f64>() / dim as f64;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / dim as f64;
            for i in 0..dim {
                let exact = (row[i] - mean) / (variance + 1e-5).sqrt() * f64::from(weight[i]) + f64::from(bias[i]);
                assert!((f64::from(out[r * dim + i]) - exact).abs() < 1e-5);
            }
        }
    }
}
