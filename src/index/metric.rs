//! Distance metrics.

use std::str::FromStr;

use cellql_kernels::dot;
use cellql_schemas::suggest::did_you_mean;

/// A distance metric between vectors. The nearest vectors have the smallest distance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Cosine distance: 1 − cosine of the angle, 0 to 2.
    #[default]
    Cosine,
    /// Euclidean distance.
    L2,
    /// The negated dot product, so that the largest product is nearest.
    InnerProduct,
    /// Correlation distance: 1 − Pearson correlation, 0 to 2.
    Correlation,
}

const NAMES: [(Metric, &str); 4] = [
    (Metric::Cosine, "cosine"),
    (Metric::L2, "l2"),
    (Metric::InnerProduct, "inner_product"),
    (Metric::Correlation, "correlation"),
];

impl FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = NAMES.iter().find(|(_, name)| *name == text);
        known.map(|(metric, _)| *metric).ok_or_else(|| {
            let names = NAMES.map(|(_, name)| name);
            format!("unknown metric '{text}'; there are: {}.{}", names.join(", "), did_you_mean(text, names))
        })
    }
}

impl Metric {
    /// Every metric.
    pub const ALL: [Metric; 4] = [Metric::Cosine, Metric::L2, Metric::InnerProduct, Metric::Correlation];

    /// Name of the metric in SQL.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(metric, _)| *metric == self).map_or("cosine", |(_, name)| name)
    }

    /// Prepares a vector for [`Metric::distance`]: scales it to length one for cosine, centres it before that for
    /// correlation. `None` if the vector has values that are not finite, or length 0 after that centring where it must
    /// be scaled.
    pub fn prepare(self, vector: &[f32]) -> Option<Vec<f32>> {
        match self {
            Metric::L2 | Metric::InnerProduct => vector.iter().all(|v| v.is_finite()).then(|| vector.to_vec()),
            Metric::Cosine => unit(vector.iter().map(|v| f64::from(*v))),
            Metric::Correlation => {
                let mean = vector.iter().map(|v| f64::from(*v)).sum::<f64>() / vector.len().max(1) as f64;
                unit(vector.iter().map(|v| f64::from(*v) - mean))
            }
        }
    }

    /// Distance of two prepared vectors `[dim]`.
    pub fn distance(self, a: &[f32], b: &[f32]) -> f32 {
        match self {
            // Rounding must not make it negative.
            Metric::Cosine | Metric::Correlation => (1.0 - dot(a, b)).max(0.0),
            Metric::InnerProduct => -dot(a, b),
            Metric::L2 => a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f32>().sqrt(),
        }
    }
}

/// Scales a vector to length one; `None` if its length is 0 or not finite.
fn unit(vector: impl Iterator<Item = f64> + Clone) -> Option<Vec<f32>> {
    let norm = vector.clone().map(|v| v * v).sum::<f64>().sqrt();
    (norm.is_finite() && norm > 0.0).then(|| vector.map(|v| (v / norm) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_the_definitions() {
        let (a, b) = ([1.0f32, 2.0, 4.0], [2.0f32, 1.0, -1.0]);
        let between = |metric: Metric| metric.distance(&metric.prepare(&a).unwrap(), &metric.prepare(&b).unwrap());
        let near = |x: f32, y: f64| assert!((f64::from(x) - y).abs() < 1e-6, "{x} {y}");
        near(between(Metric::Cosine), 1.0);
        near(between(Metric::InnerProduct), 0.0);
        near(between(Metric::L2), 27f64.sqrt());
        // Deviations (-4, -1, 5)/3 and (4, 1, -5)/3: opposite.
        near(between(Metric::Correlation), 2.0);
    }

    #[test]
    fn vectors_without_a_direction_are_not_prepared() {
        assert!(Metric::Cosine.prepare(&[0.0, 0.0]).is_none());
        assert!(Metric::Correlation.prepare(&[3.0, 3.0]).is_none());
        assert!(Metric::L2.prepare(&[f32::NAN]).is_none());
        assert_eq!(Metric::Cosine.prepare(&[3.0, 4.0]), Some(vec![0.6, 0.8]));
        assert_eq!("l2".parse(), Ok(Metric::L2));
        assert!("cosin".parse::<Metric>().unwrap_err().contains("Did you mean 'cosine'"));
    }
}
