//! Exponentials and the Gaussian error function, in operations that vectorise.

use crate::simd::{dispatch, multiply_add};

/// 2^x for x ≤ 0: x = n + r with |r| ≤ ½, a polynomial of 2^r of degree 6 or 4, and n added to the exponent's bits. Of
/// degree 6 it is within 3e-7 of 2^x, its remainder below f32's precision; of degree 4 within 1e-5, a two-hundredth of
/// what bf16 leaves out. Below -126 it gives about 1e-38.
#[inline(always)]
pub(crate) fn exp2_nonpositive<const FUSED: bool, const DEGREE: usize>(x: f32) -> f32 {
    // Adding 1.5·2²³ leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Taylor: (ln 2)ᵏ / k!
    const SIX: [f32; 6] =
        [std::f32::consts::LN_2, 0.240_226_5, 0.055_504_11, 0.009_618_129, 0.001_333_355_8, 0.000_154_035_3];
    // The same without its last, and r⁵ by the polynomial of degree 3 nearest to it for |r| ≤ ½, 5/16·r³ − 5/256·r
    // (Chebyshev): Taylor's four alone are wrong by 6e-5 near r = −½.
    const FOUR: [f32; 4] = [SIX[0] - SIX[4] * 5.0 / 256.0, SIX[1], SIX[2] + SIX[4] * 5.0 / 16.0, SIX[3]];
    const { assert!(DEGREE == 4 || DEGREE == 6) };
    let c: &[f32] = if DEGREE == 4 { &FOUR } else { &SIX };
    let x = if x > -126.0 { x } else { -126.0 };
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let mut p = c[DEGREE - 1];
    for c in c[..DEGREE - 1].iter().rev() {
        p = multiply_add::<FUSED>(p, r, *c);
    }
    p = multiply_add::<FUSED>(p, r, 1.0);
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// e^x for x ≤ 0 within 1e-6 of it near 0, and within 8e-6 at -87, where it ends.
#[inline(always)]
pub(crate) fn exp_nonpositive<const FUSED: bool>(x: f32) -> f32 {
    exp2_nonpositive::<FUSED, 6>(x * std::f32::consts::LOG2_E)
}

/// Φ(x) = (1 + erf(x/√2))/2 by Abramowitz & Stegun 7.1.26, and the e^(−x²/2) that it takes.
#[inline(always)]
pub(crate) fn normal_distribution<const FUSED: bool>(x: f32) -> (f32, f32) {
    const A: [f32; 5] = [0.254_829_6, -0.284_496_74, 1.421_413_7, -1.453_152, 1.061_405_4];
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / multiply_add::<FUSED>(0.327_591_1, z, 1.0);
    let mut p = A[4];
    for a in [A[3], A[2], A[1], A[0]] {
        p = multiply_add::<FUSED>(p, t, a);
    }
    let e = exp_nonpositive::<FUSED>(-z * z);
    let tail = p * t * e;
    // 1 + erf(z) is 2 - tail, 1 + erf(-z) is tail: no cancellation on either side.
    (0.5 * if x > 0.0 { 2.0 - tail } else { tail }, e)
}

/// x·Φ(x) within 2e-7·(1 + |x|).
#[inline(always)]
fn gelu_body<const FUSED: bool>(values: &mut [f32]) {
    values.iter_mut().for_each(|x| *x *= normal_distribution::<FUSED>(*x).0);
}

dispatch! {
    /// Gaussian error linear units, in place (Hendrycks & Gimpel 2016, the exact form).
    pub fn gelu(values: &mut [f32]) = fused gelu_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_agree_with_the_standard_library() {
        let mut x = 0f32;
        while x > -80.0 {
            let exact = f64::from(x).exp();
            for ours in [exp_nonpositive::<true>(x), exp_nonpositive::<false>(x)] {
                let allowed = (5e-7 - f64::from(x) * 1e-7) * exact;
                assert!((f64::from(ours) - exact).abs() <= allowed, "e^{x}: {ours} against {exact}");
            }
            let exact = f64::from(x).exp2();
            assert!((f64::from(exp2_nonpositive::<true, 6>(x)) - exact).abs() <= 3e-7 * exact);
            assert!((f64::from(exp2_nonpositive::<true, 4>(x)) - exact).abs() <= 1e-5 * exact);
            x -= 0.000_7;
        }
        assert_eq!(exp_nonpositive::<true>(0.0), 1.0);
        assert!(exp_nonpositive::<false>(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn gelu_agrees_with_integrated_density() {
        // The normal distribution function by Simpson's rule: no table and no second approximation.
        let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        for i in -60..=60 {
            let x = f64::from(i) / 10.0;
            let (n, h) = (2000, x / 2000.0);
            let sum: f64 = (0..=n)
                .map(|k| density(h * f64::from(k)) * if k == 0 || k == n { 1.0 } else { f64::from(2 + 2 * (k % 2)) })
                .sum();
            let exact = x * (0.5 + sum * h / 3.0);
            let mut ours = [x as f32];
            gelu(&mut ours);
            assert!((f64::from(ours[0]) - exact).abs() < 3e-7 * (1.0 + x.abs()), "{x}: {} {exact}", ours[0]);
        }
    }
}
