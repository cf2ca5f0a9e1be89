//! Exact nearest neighbours by euclidean distance.
//!
//! Every pair is compared: right for the ten thousand cells of an evaluation, where an approximate index would add an
//! error of its own to the score. Depends on `distance`; knows no cells, only vectors.

use crate::distance::for_each_row;

/// The nearest neighbours of `n` vectors, none of them its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Neighbours {
    /// Vectors.
    pub n: usize,
    /// Neighbours per vector.
    pub k: usize,
    /// `[n, k]`: which vectors, the nearest first, of equal ones the lower index.
    pub indices: Vec<u32>,
    /// `[n, k]`: their euclidean distances.
    pub distances: Vec<f64>,
}

/// The `k` nearest of `vectors` (`[n, dim]`) to each of them, itself left out; all others where there are fewer.
///
/// scanpy counts a cell among its own neighbours: its `n_neighbors` is `k + 1`. What is not a number is infinitely far.
///
/// # Panics
/// If `vectors` is not whole rows of at least one value.
pub fn nearest_neighbours(vectors: &[f32], dim: usize, k: usize) -> Neighbours {
    let n = vectors.len() / dim.max(1);
    let k = k.min(n.saturating_sub(1));
    let rows = for_each_row(
        vectors,
        dim,
        || Vec::with_capacity(k + 1),
        |nearest, row, first, squared| {
            for (other, &squared) in (first..).zip(squared) {
                if other != row {
                    offer(nearest, k, if squared.is_nan() { f64::INFINITY } else { squared }, other as u32);
                }
            }
        },
    );
    let nearest = rows.iter().flatten();
    Neighbours {
        n,
        k,
        indices: nearest.clone().map(|(_, other)| *other).collect(),
        distances: nearest.map(|(squared, _)| squared.sqrt()).collect(),
    }
}

/// Puts a neighbour where it belongs among the `k` nearest so far. They come by rising index: of equal ones the first
/// stays.
fn offer(nearest: &mut Vec<(f64, u32)>, k: usize, squared: f64, other: u32) {
    if nearest.len() == k && nearest.last().is_none_or(|(worst, _)| squared >= *worst) {
        return;
    }
    let at = nearest.partition_point(|(nearer, _)| *nearer <= squared);
    nearest.insert(at, (squared, other));
    nearest.truncate(k);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plainly(vectors: &[f32], dim: usize, k: usize) -> Vec<u32> {
        let rows: Vec<&[f32]> = vectors.chunks(dim).collect();
        let mut found = Vec::new();
        for (i, a) in rows.iter().enumerate() {
            let squared = |b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            let mut others: Vec<(f64, usize)> = rows.iter().map(|b| squared(b)).zip(0..).filter(|o| o.1 != i).collect();
            others.sort_by(|a, b| a.partial_cmp(b).unwrap());
            found.extend(others.iter().take(k).map(|(_, j)| *j as u32));
        }
        found
    }

    proptest! {
        /// Small whole numbers: distances are exact and often equal.
        #[test]
        fn they_are_those_of_sorting_all_distances(
            values in prop::collection::vec(-3i8..4, 1..240), dim in 1usize..5, k in 0usize..8,
        ) {
            let values: Vec<f32> = values[..values.len() / dim * dim].iter().map(|v| f32::from(*v)).collect();
            let found = nearest_neighbours(&values, dim, k);
            prop_assert_eq!(&found.indices, &plainly(&values, dim, k));
            prop_assert_eq!(found.distances.len(), found.indices.len());
            prop_assert_eq!(found.k, k.min((values.len() / dim).saturating_sub(1)));
        }
    }

    #[test]
    fn a_vector_that_is_not_a_number_is_last() {
        let found = nearest_neighbours(&[0.0, f32::NAN, 1.0, 9.0], 1, 3);
        assert_eq!(found.indices[..3], [2, 3, 1]);
        assert_eq!(found.distances[..3], [1.0, 9.0, f64::INFINITY]);
    }
}
