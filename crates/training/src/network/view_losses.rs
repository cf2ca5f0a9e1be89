//! Losses of pooled vectors after their heads, and the gradients of these.

use cellql_kernels::{add_scaled, dot};

/// Squared errors of predictions, as a part of what the mean of the targets would leave: Σ |p − t|² / Σ |t − t̄|², over
/// `[views, dim]` predictions and targets. 0 where all targets are equal. Adds `weight` times the gradient of the
/// predictions to `d`.
pub(super) fn component_loss(predicted: &[f32], targets: &[f32], dim: usize, weight: f64, d: &mut [f32]) -> f64 {
    let spread = spread(targets, dim);
    if spread == 0.0 {
        return 0.0;
    }
    let mut squares = 0.0;
    for ((p, t), d) in predicted.iter().zip(targets).zip(d) {
        let error = f64::from(p - t);
        squares += error * error;
        *d += (weight * 2.0 * error / spread) as f32;
    }
    squares / spread
}

/// Σ |t − t̄|² of rows of `dim` numbers; 0 where that is no more than rounding leaves of equal rows.
pub(crate) fn spread(rows: &[f32], dim: usize) -> f64 {
    let count = (rows.len() / dim.max(1)) as f64;
    let mut means = vec![0f64; dim];
    for row in rows.chunks_exact(dim) {
        means.iter_mut().zip(row).for_each(|(mean, value)| *mean += f64::from(*value) / count);
    }
    let of_row = |row: &[f32]| row.iter().zip(&means).map(|(v, m)| (f64::from(*v) - m).powi(2)).sum::<f64>();
    let spread: f64 = rows.chunks_exact(dim.max(1)).map(of_row).sum();
    let squares: f64 = rows.iter().map(|value| f64::from(*value).powi(2)).sum();
    if spread > 1e-9 * squares { spread } else { 0.0 }
}

/// The normalised temperature-scaled cross-entropy of SimCLR (Chen et al. 2020, equation 1) of `[views, dim]` vectors,
/// of which 2i and 2i + 1 are views of one cell. 0 for fewer than four vectors, among which there is nothing to choose.
/// Adds `weight` times the gradient to `d`.
pub(super) fn contrast_loss(z: &[f32], dim: usize, temperature: f64, weight: f64, d: &mut [f32]) -> f64 {
    let n = z.len() / dim.max(1);
    if n < 4 {
        return 0.0;
    }
    let lengths: Vec<f32> = z.chunks_exact(dim).map(|row| dot(row, row).sqrt().max(1e-12)).collect();
    let unit: Vec<f32> =
        z.chunks_exact(dim).zip(&lengths).flat_map(|(row, l)| row.iter().map(move |v| v / l)).collect();
    let row = |i: usize| &unit[i * dim..][..dim];
    let (mut loss, mut d_unit) = (0.0, vec![0f32; z.len()]);
    for i in 0..n {
        let logits: Vec<f64> = (0..n).map(|j| f64::from(dot(row(i), row(j))) / temperature).collect();
        let others = || logits.iter().enumerate().filter(|(j, _)| *j != i);
        let largest = others().fold(f64::NEG_INFINITY, |largest, (_, logit)| largest.max(*logit));
        let sum: f64 = others().map(|(_, logit)| (logit - largest).exp()).sum();
        let pair = i ^ 1;
        loss += (largest + sum.ln() - logits[pair]) / n as f64;
        for (j, logit) in others() {
            let share = (logit - largest).exp() / sum - f64::from(u8::from(j == pair));
            let share = (weight * share / n as f64 / temperature) as f32;
            add_scaled(&mut d_unit[i * dim..][..dim], row(j), share);
            add_scaled(&mut d_unit[j * dim..][..dim], row(i), share);
        }
    }
    for (i, (d, d_unit)) in d.chunks_exact_mut(dim).zip(d_unit.chunks_exact(dim)).enumerate() {
        let along = dot(d_unit, row(i));
        add_scaled(d, d_unit, 1.0 / lengths[i]);
        add_scaled(d, row(i), -along / lengths[i]);
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_judged_against_their_mean() {
        let targets = [1.0, 0.0, 3.0, 0.0, 5.0, 6.0];
        assert_eq!(spread(&targets, 2), 8.0 + 24.0);
        let mut d = [0.0; 6];
        // Predicting the mean is a loss of 1, the targets themselves one of 0.
        let mean = [3.0, 2.0, 3.0, 2.0, 3.0, 2.0];
        assert_eq!(component_loss(&mean, &targets, 2, 0.5, &mut d), 1.0);
        assert_eq!(d[0], 0.5 * 2.0 * 2.0 / 32.0);
        assert_eq!(component_loss(&targets, &targets, 2, 1.0, &mut [0.0; 6]), 0.0);
        assert_eq!(component_loss(&mean[..2], &targets[..2], 2, 1.0, &mut d), 0.0, "one cell has no variance");
        let equal = [0.1, -0.7].repeat(7);
        assert_eq!(spread(&equal, 2), 0.0, "rounding is no variance");
    }

    #[test]
    fn contrast_is_the_cross_entropy_of_the_other_view() {
        // Two cells, whose views are equal and orthogonal to the other's: logits 1/τ for the pair, 0 for two others.
        let z = [2.0, 0.0, 1.0, 0.0, 0.0, 3.0, 0.0, 1.0];
        let loss = contrast_loss(&z, 2, 0.5, 1.0, &mut [0.0; 8]);
        assert!((loss - (1.0 + 2.0 * (-2f64).exp()).ln()).abs() < 1e-6, "{loss}");
        assert_eq!(contrast_loss(&z[..4], 2, 0.5, 1.0, &mut [0.0; 4]), 0.0);
    }
}
