//! Errors of predictions: MAE, MRE and Pearson's correlation, as in the read-depth enhancement of scFoundation (Hao et
//! al. 2024, Nature Methods 21:1481).
//!
//! The functions take pairs of values. The caller selects the genes (in the paper, those expressed in the full
//! profile), chooses counts or log-normalised values, and pools or averages cells.

/// Mean absolute error, `1/|M| Σ |X_i - P_i|`, in the unit of the values. `None` if there are no pairs.
///
/// # Panics
/// If the sides differ in length.
pub fn mean_absolute_error(predicted: &[f32], truth: &[f32]) -> Option<f64> {
    mean(predicted, truth, |p, x| (x - p).abs())
}

/// Mean relative error as the paper has it (Hao et al. 2024, methods, "Read depth enhancement analysis"):
/// `MRE = 1/|M| Σ (X_i - P_i)² / X_i`, X the truth. The difference is squared, so it has the unit of the values.
///
/// A true value of zero makes it infinite or NaN; callers select values above zero. `None` if there are no pairs.
///
/// # Panics
/// If the sides differ in length.
pub fn mean_relative_error(predicted: &[f32], truth: &[f32]) -> Option<f64> {
    mean(predicted, truth, |p, x| (x - p).powi(2) / x)
}

/// Pearson's correlation coefficient, in -1..=1. `None` if there are fewer than two pairs or if one side is constant.
///
/// # Panics
/// If the sides differ in length.
pub fn pearson(predicted: &[f32], truth: &[f32]) -> Option<f64> {
    let (mean_p, mean_x) = (mean(predicted, truth, |p, _| p)?, mean(predicted, truth, |_, x| x)?);
    let covariance = mean(predicted, truth, |p, x| (p - mean_p) * (x - mean_x))?;
    let variance_p = mean(predicted, truth, |p, _| (p - mean_p).powi(2))?;
    let variance_x = mean(predicted, truth, |_, x| (x - mean_x).powi(2))?;
    // The variance of equal values can be above zero through rounding, so equality is tested directly.
    if constant(predicted) || constant(truth) {
        return None;
    }
    Some((covariance / variance_p.sqrt() / variance_x.sqrt()).clamp(-1.0, 1.0))
}

fn constant(values: &[f32]) -> bool {
    values.windows(2).all(|pair| pair[0] == pair[1])
}

/// Mean over pairs of `term(predicted, true)`.
fn mean(predicted: &[f32], truth: &[f32], term: impl Fn(f64, f64) -> f64) -> Option<f64> {
    assert_eq!(predicted.len(), truth.len(), "there is a prediction for every value");
    if truth.is_empty() {
        return None;
    }
    let sum: f64 = predicted.iter().zip(truth).map(|(&p, &x)| term(f64::from(p), f64::from(x))).sum();
    Some(sum / truth.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(found: Option<f64>, expected: f64) {
        assert!((found.unwrap() - expected).abs() < 1e-9, "{found:?} {expected}");
    }

    /// `x[i] = (1 + i % 7) / 4`, `p[i] = x[i] + (i * i % 13) / 8`, for i below 50.
    fn pairs() -> (Vec<f32>, Vec<f32>) {
        (0..50u16)
            .map(|i| (f32::from(1 + i % 7) / 4.0 + f32::from(i * i % 13) / 8.0, f32::from(1 + i % 7) / 4.0))
            .unzip()
    }

    /// scikit-learn 1.9.1 and scipy 1.17.1: `i = np.arange(50); x = (1 + i % 7) / 4; p = x + (i * i % 13) / 8`, then
    /// `mean_absolute_error(x, p)`, `np.average((x - p)**2 / x)`, `pearsonr(x, p)[0]`.
    #[test]
    fn scores_are_those_of_scikit_learn_and_scipy() {
        let (p, x) = pairs();
        assert_near(mean_absolute_error(&p, &x), 0.7675);
        assert_near(mean_relative_error(&p, &x), 1.2971130952380951);
        assert_near(pearson(&p, &x), 0.6894734900814711);
    }

    #[test]
    fn relative_error_follows_the_paper() {
        // (4 - 2)² / 4 = 1 and (1 - 4)² / 1 = 9.
        assert_near(mean_relative_error(&[2.0, 4.0], &[4.0, 1.0]), 5.0);
    }

    #[test]
    fn correlation_does_not_depend_on_scale_and_offset() {
        let (p, x) = pairs();
        let (moved, negated): (Vec<f32>, Vec<f32>) = p.iter().map(|v| (v * 4.0 + 64.0, -v)).unzip();
        assert_near(pearson(&moved, &x), pearson(&p, &x).unwrap());
        assert_near(pearson(&p, &moved), 1.0);
        assert_near(pearson(&p, &negated), -1.0);
    }

    #[test]
    fn undefined_scores_are_none() {
        assert_eq!(mean_absolute_error(&[], &[]), None);
        assert_eq!(mean_relative_error(&[], &[]), None);
        assert_eq!(pearson(&[], &[]), None);
        assert_eq!(pearson(&[1.0], &[2.0]), None);
        assert_eq!(pearson(&[0.1; 7], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), None);
    }
}
