//! How well predicted expression matches the truth, for read-depth enhancement: MAE, MRE and PCC of the paper.
//!
//! Plain functions of pairs of values. Which genes are compared (the paper: those the full profile expresses), whether
//! values are counts or log-normalised, and whether cells are pooled or averaged is the caller's to choose and to say.
//! Depends on nothing.

/// Mean absolute error, `1/|M| Σ |X_i - P_i|`, in the unit of the values. None of no pairs.
///
/// # Panics
/// If the sides differ in length.
pub fn mean_absolute_error(predicted: &[f32], truth: &[f32]) -> Option<f64> {
    mean(predicted, truth, |p, x| (x - p).abs())
}

/// Mean relative error as the paper has it (Hao et al. 2024, methods, "Read depth enhancement analysis"):
/// `MRE = 1/|M| Σ (X_i - P_i)² / X_i`, X the truth. The difference is squared, so it has the unit of the values.
///
/// A true value of zero makes it infinite or NaN: the caller selects those above. None of no pairs.
///
/// # Panics
/// If the sides differ in length.
pub fn mean_relative_error(predicted: &[f32], truth: &[f32]) -> Option<f64> {
    mean(predicted, truth, |p, x| (x - p).powi(2) / x)
}

/// Pearson's correlation coefficient, in -1..=1. None of fewer than two pairs or where a side does not vary.
///
/// # Panics
/// If the sides differ in length.
pub fn pearson(predicted: &[f32], truth: &[f32]) -> Option<f64> {
    let (mean_p, mean_x) = (mean(predicted, truth, |p, _| p)?, mean(predicted, truth, |_, x| x)?);
    let covariance = mean(predicted, truth, |p, x| (p - mean_p) * (x - mean_x))?;
    let variance_p = mean(predicted, truth, |p, _| (p - mean_p).powi(2))?;
    let variance_x = mean(predicted, truth, |_, x| (x - mean_x).powi(2))?;
    // Of equal values the mean can be off by rounding, so equal is what is asked, not a variance of zero.
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
    assert_eq!(predicted.len(), truth.len(), "a prediction for every value");
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
    fn correlation_knows_nothing_of_scale_and_its_bounds() {
        let (p, x) = pairs();
        let (moved, turned): (Vec<f32>, Vec<f32>) = p.iter().map(|v| (v * 4.0 + 64.0, -v)).unzip();
        assert_near(pearson(&moved, &x), pearson(&p, &x).unwrap());
        assert_near(pearson(&p, &moved), 1.0);
        assert_near(pearson(&p, &turned), -1.0);
    }

    #[test]
    fn what_is_not_defined_is_none() {
        assert_eq!(mean_absolute_error(&[], &[]), None);
        assert_eq!(mean_relative_error(&[], &[]), None);
        assert_eq!(pearson(&[], &[]), None);
        assert_eq!(pearson(&[1.0], &[2.0]), None);
        assert_eq!(pearson(&[0.1; 7], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), None);
    }
}
