//! Exact k-nearest-neighbour graph by Euclidean distance.
//!
//! Every pair is compared, in O(n²·dim) time. That suits the ten thousand vectors of an evaluation, where an
//! approximate index would add an error to the score.

use crate::distance::for_each_row;

/// The k nearest neighbours of each of `n` vectors, without the vector itself.
#[derive(Debug, Clone, PartialEq)]
pub struct KnnGraph {
    /// Number of vectors.
    pub n: usize,
    /// Number of neighbours per vector.
    pub k: usize,
    /// `[n, k]`: indices of the neighbours, nearest first, ties by lower index.
    pub indices: Vec<u32>,
    /// `[n, k]`: Euclidean distances of the neighbours.
    pub distances: Vec<f64>,
}

/// The `k` nearest neighbours of each of `vectors` (`[n, dim]`) among those of other groups. Where there are fewer than
/// `k`, the index `u32::MAX` and an infinite distance fill the row.
///
/// # Panics
/// If `vectors` is not whole rows of at least one value, with a group for each.
pub fn nearest_in_other_groups(vectors: &[f32], dim: usize, k: usize, groups: &[u32]) -> KnnGraph {
    assert_eq!(vectors.len(), groups.len() * dim, "a group for every vector");
    let rows = nearest_of(vectors, dim, k, |row, other| groups[other] != groups[row]);
    let none = (f64::INFINITY, u32::MAX);
    let nearest = || rows.iter().flat_map(|row| (0..k).map(|i| row.get(i).copied().unwrap_or(none)));
    KnnGraph {
        n: groups.len(),
        k,
        indices: nearest().map(|(_, other)| other).collect(),
        distances: nearest().map(|(squared, _)| squared.sqrt()).collect(),
    }
}

/// The `k` nearest neighbours of each of `vectors` (`[n, dim]`), without itself; all others if there are fewer than
/// `k`.
///
/// scanpy counts a cell among its own neighbours: its `n_neighbors` is `k + 1`. A NaN distance is treated as infinite.
///
/// # Panics
/// If `vectors` is not whole rows of at least one value.
pub fn nearest_neighbours(vectors: &[f32], dim: usize, k: usize) -> KnnGraph {
    let n = vectors.len() / dim.max(1);
    let k = k.min(n.saturating_sub(1));
    let rows = nearest_of(vectors, dim, k, |row, other| other != row);
    let nearest = rows.iter().flatten();
    KnnGraph {
        n,
        k,
        indices: nearest.clone().map(|(_, other)| *other).collect(),
        distances: nearest.map(|(squared, _)| squared.sqrt()).collect(),
    }
}

/// Squared distances and indices of the `k` nearest of the vectors that are candidates for each vector, nearest first.
fn nearest_of(
    vectors: &[f32],
    dim: usize,
    k: usize,
    is_candidate: impl Fn(usize, usize) -> bool + Sync,
) -> Vec<Vec<(f64, u32)>> {
    for_each_row(
        vectors,
        dim,
        || Vec::with_capacity(k + 1),
        |nearest, row, first, squared| {
            for (other, &squared) in (first..).zip(squared) {
                if is_candidate(row, other) {
                    offer(nearest, k, if squared.is_nan() { f64::INFINITY } else { squared }, other as u32);
                }
            }
        },
    )
}

/// Inserts a neighbour into the sorted list of the `k` nearest so far. Neighbours arrive by ascending index, and the
/// first of equally near ones is kept.
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
        fn neighbours_equal_those_of_sorting_all_distances(
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
    fn neighbours_of_other_groups_are_the_nearest_there() {
        let found = nearest_in_other_groups(&[0.0, 1.0, 2.5, 9.0], 1, 2, &[0, 0, 1, 0]);
        assert_eq!(found.indices, [2, u32::MAX, 2, u32::MAX, 1, 0, 2, u32::MAX]);
        assert_eq!(found.distances[..2], [2.5, f64::INFINITY]);
    }

    #[test]
    fn a_nan_vector_is_the_farthest_neighbour() {
        let found = nearest_neighbours(&[0.0, f32::NAN, 1.0, 9.0], 1, 3);
        assert_eq!(found.indices[..3], [2, 3, 1]);
        assert_eq!(found.distances[..3], [1.0, 9.0, f64::INFINITY]);
    }
}
