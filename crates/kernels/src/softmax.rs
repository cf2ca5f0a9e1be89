//! Softmax over rows. Limit: one exponential per value.

use super::numeric::exp_nonpositive;
use crate::simd::{dispatch, max_of, sum_of};

#[inline(always)]
fn softmax_body<const FUSED: bool>(row: &mut [f32]) {
    let max = max_of(row);
    row.iter_mut().for_each(|v| *v = exp_nonpositive::<FUSED>(*v - max));
    let total = sum_of(row, |v| v);
    row.iter_mut().for_each(|v| *v /= total);
}

dispatch! {
    /// Softmax of one row, in place.
    pub fn softmax(row: &mut [f32]) = fused softmax_body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_exponentials_over_their_sum() {
        let mut row: Vec<f32> = (0..37).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
        let exact: Vec<f64> = row.iter().map(|v| f64::from(*v).exp()).collect();
        let total: f64 = exact.iter().sum();
        softmax(&mut row);
        for (ours, exact) in row.iter().zip(&exact) {
            assert!((f64::from(*ours) - exact / total).abs() < 1e-6);
        }
    }
}
