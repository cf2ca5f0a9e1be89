//! Kernels of the encoder on the CPU, as candle ops: ragged attention, layer norm, softmax over rows.
//!
//! Within a row, results do not depend on what else is in the batch or on the number of threads: no reduction crosses
//! a row's own tiles.

mod attention;
mod norm;
mod softmax;

pub(super) use attention::RaggedAttention;
pub(super) use norm::LayerNorm;
pub(super) use softmax::SoftmaxRows;

use candle_core::{CpuStorage, Layout, bail};

/// Contiguous f32 data of an op's argument.
fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let CpuStorage::F32(data) = storage else {
        bail!("expected f32");
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("expected contiguous data"),
    }
}

/// e^x for x ≤ 0 within 2 ulp, in operations that vectorise: x = n·ln 2 + r, then a polynomial in r (Taylor to r⁷; on
/// |r| ≤ ln 2 / 2 its remainder is below f32's precision) and 2ⁿ by its exponent bits. Below -87 it gives about 1e-38.
#[inline(always)]
fn exp_nonpositive(x: f32) -> f32 {
    // Adding 1.5·2²³ leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -87.0 { x } else { -87.0 };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        let mut x = 0f32;
        while x > -86.0 {
            let (ours, exact) = (f64::from(exp_nonpositive(x)), f64::from(x).exp());
            assert!((ours - exact).abs() <= 3e-7 * exact, "e^{x}: {ours} against {exact}");
            x -= 0.000_7;
        }
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert!(exp_nonpositive(f32::NEG_INFINITY) < 1e-37);
    }
}
