//! Softmax over the last axis. Limit: one exponential per value.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, bail};
use rayon::prelude::*;

use super::{exp_nonpositive, floats};
use crate::simd::{dispatch, max_of, sum_of};

/// Rows one thread takes at a time.
const ROWS: usize = 64;

/// `[rows, dim]` to `[rows, dim]`.
pub(crate) struct SoftmaxRows;

impl CustomOp1 for SoftmaxRows {
    fn name(&self) -> &'static str {
        "softmax-rows"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = floats(storage, layout)?;
        let Some(&dim) = layout.dims().last().filter(|d| **d > 0) else {
            bail!("softmax over rows of {:?}", layout.shape());
        };
        let mut out = x.to_vec();
        out.par_chunks_mut(ROWS * dim).for_each(|rows| softmax(rows, dim));
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

#[inline(always)]
fn softmax_body(rows: &mut [f32], dim: usize) {
    for row in rows.chunks_exact_mut(dim) {
        let max = max_of(row);
        row.iter_mut().for_each(|v| *v = exp_nonpositive(*v - max));
        let total = sum_of(row, |v| v);
        row.iter_mut().for_each(|v| *v /= total);
    }
}

dispatch! {
    fn softmax(rows: &mut [f32], dim: usize) = softmax_body
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn rows_sum_to_one_in_the_right_proportions() {
        let x: Vec<f32> = (0..2 * 19).map(|i| (i % 7) as f32 * 3.0 - 5.0).collect();
        let out = Tensor::from_slice(&x, (2, 19), &Device::Cpu).unwrap().apply_op1_no_bwd(&SoftmaxRows).unwrap();
        let out: Vec<Vec<f32>> = out.to_vec2().unwrap();
        for (row, x) in out.iter().zip(x.chunks(19)) {
            let total: f64 = x.iter().map(|v| f64::from(*v).exp()).sum();
            for (ours, v) in row.iter().zip(x) {
                assert!((f64::from(*ours) - f64::from(*v).exp() / total).abs() < 1e-6);
            }
        }
    }
}
