//! Squared Euclidean distances between all pairs of rows of a matrix, computed tile by tile and not stored.
//!
//! Differences are computed before they are squared. The faster formula with dot products cancels for close rows far
//! from the origin, such as raw counts.

use rayon::prelude::*;

/// Rows on each side of a tile. With [`SPAN`], each side takes 32 KiB, which fits in the L1 or L2 cache.
const ROWS: usize = 32;
/// Number of values that are summed in `f32` before the sum is added to an `f64`.
const SPAN: usize = 256;
/// Independent sums, so that the compiler can use SIMD of any width.
const LANES: usize = 16;

/// Folds, for each row of `vectors` (`[n, dim]`), its squared distances to all rows, itself included, in ascending
/// order.
///
/// The state of a row begins as `start()`. `take(state, row, first, squared)` is called with the squared distances from
/// `row` to rows `first..first + squared.len()`. Rows are distributed over threads; results do not depend on their
/// number. Distances are symmetric to the bit and have a relative error of about 1e-7. States are returned in the order
/// of the rows.
pub(crate) fn for_each_row<T: Send>(
    vectors: &[f32],
    dim: usize,
    start: impl Fn() -> T + Sync,
    take: impl Fn(&mut T, usize, usize, &[f64]) + Sync,
) -> Vec<T> {
    assert!(dim > 0 && vectors.len().is_multiple_of(dim), "whole rows of at least one value");
    let scan = |(block, rows): (usize, &[f32])| {
        let mut states: Vec<T> = rows.chunks(dim).map(|_| start()).collect();
        let mut tile = [0.0; ROWS * ROWS];
        for (other, columns) in vectors.chunks(ROWS * dim).enumerate() {
            squared_distances(rows, columns, dim, &mut tile);
            for (i, state) in states.iter_mut().enumerate() {
                take(state, block * ROWS + i, other * ROWS, &tile[i * ROWS..][..columns.len() / dim]);
            }
        }
        states
    };
    vectors.par_chunks(ROWS * dim).enumerate().flat_map_iter(scan).collect()
}

/// Squared distances from each of at most [`ROWS`] rows of `a` to each of `b`, at `[row · ROWS + column]` of `tile`.
fn squared_distances(a: &[f32], b: &[f32], dim: usize, tile: &mut [f64; ROWS * ROWS]) {
    tile.fill(0.0);
    for from in (0..dim).step_by(SPAN) {
        let span = from..dim.min(from + SPAN);
        for (a, sums) in a.chunks(dim).zip(tile.chunks_mut(ROWS)) {
            for (b, sum) in b.chunks(dim).zip(sums) {
                *sum += f64::from(squared_distance(&a[span.clone()], &b[span.clone()]));
            }
        }
    }
}

fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sums[i] += (a[i] - b[i]) * (a[i] - b[i]);
        }
    }
    for (sum, (a, b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum += (a - b) * (a - b);
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_distance_comes_once_in_order_and_the_same_both_ways() {
        for (n, dim) in [(1, 1), (31, 7), (70, 300)] {
            let vectors: Vec<f32> = (0..n * dim).map(|i| 1000.0 + (i * i % 101) as f32 / 8.0).collect();
            let rows = for_each_row(&vectors, dim, Vec::new, |seen, _, first, squared| {
                assert_eq!(seen.len(), first);
                seen.extend_from_slice(squared);
            });
            for (i, row) in rows.iter().enumerate() {
                assert_eq!(row.len(), n);
                for (j, found) in row.iter().enumerate() {
                    let pairs = vectors[i * dim..][..dim].iter().zip(&vectors[j * dim..][..dim]);
                    let expected: f64 = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum();
                    assert!((found - expected).abs() <= 1e-6 * expected && *found == rows[j][i]);
                }
            }
        }
    }
}
