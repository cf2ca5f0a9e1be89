//! `correlation_distance(a, b)`: one minus Pearson's correlation of two vectors.
//!
//! ```sql
//! SELECT cell_id, correlation_distance(vector, (SELECT vector FROM embeddings WHERE cell_id = 17)) AS distance
//! FROM embeddings ORDER BY distance LIMIT 5;
//! ```

use crate::description::{Description, Kind};
use crate::distances::{Distance, Number, TWO_VECTORS, sum};

/// Name in SQL.
pub const NAME: &str = "correlation_distance";
/// What it is.
pub const DESCRIPTION: Description = Description {
    name: NAME,
    kind: Kind::Scalar,
    parameters: TWO_VECTORS,
    returns: "Float64 from 0 to 2; NULL where a vector or one of its numbers is NULL, \
              or where all numbers of a vector are equal.",
    summary: "One minus Pearson's correlation of two vectors, summed in f64.",
    example: "SELECT cell_id, correlation_distance(vector, (SELECT vector FROM embeddings WHERE cell_id = 17)) AS \
         distance\n\
              FROM embeddings ORDER BY distance LIMIT 5;",
};

#[derive(Debug)]
pub(crate) struct CorrelationDistance;

/// Told by the numbers themselves: the rounding of their mean would leave a variance of noise.
fn is_constant<N: Number>(numbers: &[N]) -> bool {
    numbers.windows(2).all(|pair| pair[0].into() == pair[1].into())
}

impl Distance for CorrelationDistance {
    const DESCRIPTION: &'static Description = &DESCRIPTION;

    fn between<A: Number, B: Number>(a: &[A], b: &[B]) -> Option<f64> {
        if is_constant(a) || is_constant(b) {
            return None;
        }
        let count = a.len() as f64;
        let (mean_a, mean_b) = (sum(a, a, |x, _| x) / count, sum(b, b, |x, _| x) / count);
        let together = sum(a, b, |x, y| (x - mean_a) * (y - mean_b));
        let of_a = sum(a, a, |x, _| (x - mean_a) * (x - mean_a));
        let of_b = sum(b, b, |x, _| (x - mean_b) * (x - mean_b));
        Some(1.0 - (together / (of_a * of_b).sqrt()).clamp(-1.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::shown;

    #[test]
    fn it_is_one_minus_pearson() {
        let (a, b) = ([1.0f32, 2.0, 3.0, 4.0], [1.0f64, 2.0, 2.0, 3.0]);
        // Deviations −1.5, −0.5, 0.5, 1.5 and −1, 0, 0, 1: 3 / (√5 · √2).
        let found = CorrelationDistance::between(&a, &b).unwrap();
        assert!((found - (1.0 - 3.0 / 10f64.sqrt())).abs() < 1e-15, "{found}");
        assert_eq!(CorrelationDistance::between(&a, &a).unwrap(), 0.0);
    }

    #[test]
    fn a_constant_has_no_correlation() {
        assert_eq!(CorrelationDistance::between(&[0.1f64; 3], &[1.0f64, 2.0, 3.0]), None);
        assert_eq!(CorrelationDistance::between::<f32, f32>(&[], &[]), None);
    }

    #[test]
    fn it_is_a_function_of_sql() {
        let sql = "SELECT correlation_distance(vector, [2, 1]) AS v FROM cells ORDER BY cell_id";
        assert_eq!(shown(sql), ["2.0", "2.0", "NULL", "NULL"]);
    }
}
