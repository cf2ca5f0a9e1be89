//! Gradients of what acts on single rows: layer norm, GELU, softmax. Limit: bytes, one pass in and out.

use super::norm::NORM_EPS;
use super::numeric::normal_distribution;
use crate::simd::{dispatch, dot_body, multiply_add, sum_of};

/// Sums that run side by side.
const LANES: usize = 16;

/// With x̂ = (x − mean)/σ and g = dy·w: `dx = (g − mean(g) − x̂·mean(g·x̂))/σ`, `dw = dy·x̂`, `db = dy`. All are added.
#[inline(always)]
fn norm_backward_body<const FUSED: bool>(
    x: &[f32],
    weight: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
    db: &mut [f32],
) {
    let dim = x.len() as f32;
    let mean = sum_of(x, |v| v) / dim;
    let variance = sum_of(x, |v| (v - mean) * (v - mean)) / dim;
    let scale = 1.0 / (variance + NORM_EPS).sqrt();
    let (mut plain, mut along) = ([0f32; LANES], [0f32; LANES]);
    let ((x_all, x_rest), (w_all, w_rest)) = (x.as_chunks::<LANES>(), weight.as_chunks::<LANES>());
    let (d_all, d_rest) = dy.as_chunks::<LANES>();
    // No closure for both: one that is not inlined is compiled for any CPU, and there a fused multiply-add is a call.
    for ((x, w), d) in x_all.iter().zip(w_all).zip(d_all) {
        for i in 0..LANES {
            let g = w[i] * d[i];
            plain[i] += g;
            along[i] = multiply_add::<FUSED>(g, (x[i] - mean) * scale, along[i]);
        }
    }
    for (i, ((x, w), d)) in x_rest.iter().zip(w_rest).zip(d_rest).enumerate() {
        let g = w * d;
        plain[i] += g;
        along[i] = multiply_add::<FUSED>(g, (x - mean) * scale, along[i]);
    }
    let (plain, along) = (plain.iter().sum::<f32>() / dim, along.iter().sum::<f32>() / dim);
    let gradients = dx.iter_mut().zip(dw).zip(db);
    for (((dx, dw), db), ((x, w), dy)) in gradients.zip(x.iter().zip(weight).zip(dy)) {
        let normal = (x - mean) * scale;
        *dx += (w * dy - plain - normal * along) * scale;
        *dw = multiply_add::<FUSED>(*dy, normal, *dw);
        *db += dy;
    }
}

dispatch! {
    /// Backward pass of a layer norm of one row `x`, `[dim]`: adds the gradients of the row, of the scale and of the
    /// shift to `dx`, `dw` and `db`, `[dim]` each.
    pub fn norm_backward(x: &[f32], weight: &[f32], dy: &[f32], dx: &mut [f32], dw: &mut [f32], db: &mut [f32])
        = fused norm_backward_body
}

/// The derivative is Φ(x) + x·e^(−x²/2)/√(2π). It needs the same exponential as the value.
#[inline(always)]
fn gelu_backward_body<const FUSED: bool>(x: &mut [f32], d: &mut [f32]) {
    const DENSITY: f32 = 0.398_942_3;
    for (x, d) in x.iter_mut().zip(d) {
        let (distribution, e) = normal_distribution::<FUSED>(*x);
        *d *= multiply_add::<FUSED>(*x * DENSITY, e, distribution);
        *x *= distribution;
    }
}

dispatch! {
    /// GELU and its backward pass, both in place: `x` becomes gelu(x), and `d`, the gradient of gelu(x), becomes that
    /// of `x`.
    pub fn gelu_backward(x: &mut [f32], d: &mut [f32]) = fused gelu_backward_body
}

#[inline(always)]
fn softmax_backward_body<const FUSED: bool>(weights: &[f32], d: &mut [f32]) {
    let along = dot_body::<FUSED>(weights, d);
    d.iter_mut().zip(weights).for_each(|(d, w)| *d = w * (*d - along));
}

dispatch! {
    /// Backward pass of a softmax, in place: `d`, the gradient of `weights` = softmax(x), becomes that of `x`.
    pub fn softmax_backward(weights: &[f32], d: &mut [f32]) = fused softmax_backward_body
}

#[inline(always)]
fn add_scaled_body<const FUSED: bool>(to: &mut [f32], from: &[f32], scale: f32) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = multiply_add::<FUSED>(scale, *from, *to));
}

dispatch! {
    /// `to += scale · from`.
    pub fn add_scaled(to: &mut [f32], from: &[f32], scale: f32) = fused add_scaled_body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LayerNorm, gelu, softmax};

    fn row(n: usize, step: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * step) % 23) as f32 / 11.0 - 1.0).collect()
    }

    /// Σ dy·f(x) for x one step along each dimension.
    fn differences(x: &[f32], dy: &[f32], f: impl Fn(&mut Vec<f32>)) -> Vec<f64> {
        let at = |i: usize, by: f32| {
            let mut y = x.to_vec();
            y[i] += by;
            f(&mut y);
            y.iter().zip(dy).map(|(y, d)| f64::from(*y) * f64::from(*d)).sum::<f64>()
        };
        (0..x.len()).map(|i| (at(i, 0.01) - at(i, -0.01)) / 0.02).collect()
    }

    #[test]
    fn norms_agree_with_differences() {
        let (x, dy, weight, bias) = (row(37, 7), row(37, 5), row(37, 3), row(37, 2));
        let norm = LayerNorm::new(weight.clone(), bias.clone());
        let (mut dx, mut dw, mut db) = (vec![0.0; 37], vec![0.0; 37], vec![0.0; 37]);
        norm_backward(&x, &weight, &dy, &mut dx, &mut dw, &mut db);
        let exact = differences(&x, &dy, |x| norm.apply(x));
        assert!(dx.iter().zip(&exact).all(|(d, e)| (f64::from(*d) - e).abs() < 2e-3));
        let exact = differences(&weight, &dy, |weight| {
            let norm = LayerNorm::new(weight.clone(), bias.clone());
            weight.copy_from_slice(&x);
            norm.apply(weight);
        });
        assert!(dw.iter().zip(&exact).all(|(d, e)| (f64::from(*d) - e).abs() < 2e-3));
        assert_eq!(db, dy);
    }

    #[test]
    fn gelu_and_its_gradient_come_together() {
        let (x, dy) = (row(40, 7), row(40, 5));
        let (mut y, mut d, mut alone) = (x.clone(), dy.clone(), x.clone());
        gelu_backward(&mut y, &mut d);
        gelu(&mut alone);
        assert!(y.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-6));
        let exact = differences(&x, &dy, |x| gelu(x));
        assert!(d.iter().zip(&exact).all(|(d, e)| (f64::from(*d) - e).abs() < 1e-3));
    }

    #[test]
    fn softmax_agrees_with_differences() {
        let (x, dy) = (row(19, 7), row(19, 5));
        let (mut weights, mut d) = (x.clone(), dy.clone());
        softmax(&mut weights);
        softmax_backward(&weights, &mut d);
        let exact = differences(&x, &dy, |x| softmax(x));
        assert!(d.iter().zip(&exact).all(|(d, e)| (f64::from(*d) - e).abs() < 1e-3));
    }
}
