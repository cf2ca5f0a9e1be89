//! Principal components of a sparse matrix, without making it dense.
//!
//! The block Krylov method of Halko, Martinsson, Shkolnisky and Tygert 2011 ("An algorithm for the principal component
//! analysis of large data sets", SIAM J. Sci. Comput. 33:2580): random columns are multiplied repeatedly by the matrix
//! and its transpose, all products are kept, and the components are computed in their span. Centring is part of the
//! products. The caller normalises values and selects columns.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::dense::{dot, eigen, extend_orthonormal, gram};

/// Number of blocks of columns that are kept.
const BLOCKS: usize = 16;
/// Oversampling: columns of a block beyond a quarter of the requested components.
const SPARE: usize = 8;

/// A sparse matrix by rows (CSR), `[offsets.len() - 1, dim]`.
#[derive(Debug, Clone, Copy)]
pub struct SparseRows<'a> {
    /// Number of columns.
    pub dim: usize,
    /// `[n + 1]`: offset of each row in `columns` and `values`.
    pub offsets: &'a [usize],
    /// Column of each value, below `dim` and unique within a row.
    pub columns: &'a [u32],
    /// The values that are not zero.
    pub values: &'a [f32],
}

/// The leading principal components of `n` rows.
#[derive(Debug, Clone, PartialEq)]
pub struct PrincipalComponents {
    /// Number of components: as requested, or the rank of the centred matrix if that is lower.
    pub count: usize,
    /// `[n, count]`: scores of each row. The sign of a component is such that its score of largest magnitude is
    /// positive.
    pub scores: Vec<f32>,
    /// `[count]`: sample variance (divisor n - 1) of each component, descending.
    pub variances: Vec<f64>,
    /// Total sample variance of the rows.
    pub total_variance: f64,
}

/// The first `count` principal components of rows, centred.
///
/// Scores have a relative error of 1e-4 or less where the variances of components are well separated. Components of
/// nearly equal variance mix, as in any iterative method. The result is determined by the seed.
///
/// # Panics
/// If the matrix is not well formed.
pub fn principal_components(rows: SparseRows<'_>, count: usize, seed: u64) -> PrincipalComponents {
    let centred = Centred::new(rows);
    let n = centred.n;
    let (basis, images) = krylov(&centred, count / 4 + SPARE, (2 * count).max(count + SPARE), seed);
    let total_variance = centred.squares() / n.saturating_sub(1).max(1) as f64;
    let pairs = eigen(gram(&images));
    // Threshold of rounding errors: the rows do not vary in directions below it.
    let raw: f64 = rows.values.iter().map(|value| f64::from(*value).powi(2)).sum();
    let least = (1e-14 * pairs.first().map_or(0.0, |pair| pair.0)).max(1e-20 * raw);
    let found: Vec<_> = pairs.into_iter().take(count).take_while(|(square, _)| *square > least).collect();
    let score = |(square, weights): &(f64, Vec<f64>)| {
        let mut column = vec![0.0; n];
        for (basis, weight) in basis.iter().zip(weights) {
            column.iter_mut().zip(basis).for_each(|(sum, value)| *sum += weight * value);
        }
        let largest = column.iter().fold(0.0, |most: f64, value| if value.abs() > most.abs() { *value } else { most });
        let scale = square.sqrt() * largest.signum();
        column.iter_mut().for_each(|value| *value *= scale);
        column
    };
    let columns: Vec<Vec<f64>> = found.par_iter().map(score).collect();
    PrincipalComponents {
        count: found.len(),
        scores: (0..n).flat_map(|row| columns.iter().map(move |column| column[row] as f32)).collect(),
        variances: found.iter().map(|(square, _)| square / (n - 1) as f64).collect(),
        total_variance,
    }
}

/// Orthonormal columns Q that nearly span the leading left singular vectors of the centred matrix A, and AᵀQ.
fn krylov(centred: &Centred<'_>, width: usize, least: usize, seed: u64) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let most = (BLOCKS * width).max(least);
    let mut column = || (0..centred.rows.dim).map(|_| random.random_range(-1.0..1.0)).collect();
    let start: Vec<Vec<f64>> = (0..width).map(|_| column()).collect();
    let (mut basis, mut images) = (Vec::new(), Vec::new());
    let mut next = centred.multiply(&start);
    loop {
        let before = basis.len();
        extend_orthonormal(&mut basis, next);
        // No new direction: the span is complete.
        if basis.len() == before {
            return (basis, images);
        }
        let image = centred.multiply_transposed(&basis[before..]);
        if basis.len() >= most {
            images.extend(image);
            return (basis, images);
        }
        next = centred.multiply(&image);
        images.extend(image);
    }
}

/// A sparse matrix minus the mean of its rows, and its transpose.
struct Centred<'a> {
    rows: SparseRows<'a>,
    n: usize,
    /// `[dim + 1]`: offset of each column in `transposed`.
    starts: Vec<usize>,
    /// The values by column, as (row, value).
    transposed: Vec<(u32, f32)>,
    /// `[dim]`: mean of each column.
    means: Vec<f64>,
}

impl<'a> Centred<'a> {
    fn new(rows: SparseRows<'a>) -> Self {
        let n = rows.offsets.len().saturating_sub(1);
        let mut starts = vec![0; rows.dim + 1];
        rows.columns.iter().for_each(|column| starts[*column as usize + 1] += 1);
        (0..rows.dim).for_each(|column| starts[column + 1] += starts[column]);
        let (mut ends, mut transposed) = (starts.clone(), vec![(0, 0.0); rows.values.len()]);
        for row in 0..n {
            for at in rows.offsets[row]..rows.offsets[row + 1] {
                let end = &mut ends[rows.columns[at] as usize];
                transposed[*end] = (row as u32, rows.values[at]);
                *end += 1;
            }
        }
        let sum = |of: &[(u32, f32)]| of.iter().map(|(_, value)| f64::from(*value)).sum::<f64>();
        let means = starts.windows(2).map(|ends| sum(&transposed[ends[0]..ends[1]]) / n.max(1) as f64).collect();
        Self { rows, n, starts, transposed, means }
    }

    /// Sum of squares of the centred values.
    fn squares(&self) -> f64 {
        let of_column = |(ends, mean): (&[usize], &f64)| {
            let values = &self.transposed[ends[0]..ends[1]];
            let zeros = (self.n - values.len()) as f64;
            values.iter().map(|(_, value)| (f64::from(*value) - mean).powi(2)).sum::<f64>() + zeros * mean * mean
        };
        self.starts.windows(2).zip(&self.means).map(of_column).sum()
    }

    /// A times columns of `dim` values.
    fn multiply(&self, columns: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let shift: Vec<f64> = columns.iter().map(|column| dot(column, &self.means)).collect();
        let entries = |row: usize| {
            let ends = self.rows.offsets[row]..self.rows.offsets[row + 1];
            self.rows.columns[ends.clone()].iter().copied().zip(self.rows.values[ends].iter().copied())
        };
        products(columns, self.n, self.rows.dim, entries, |_| 1.0, &shift)
    }

    /// The transpose of A times columns of `n` values.
    fn multiply_transposed(&self, columns: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let shift: Vec<f64> = columns.iter().map(|column| column.iter().sum()).collect();
        let entries = |column: usize| self.transposed[self.starts[column]..self.starts[column + 1]].iter().copied();
        products(columns, self.rows.dim, self.n, entries, |column| self.means[column], &shift)
    }
}

/// Columns of `height` values: the sparse rows of `entries` times `columns`, `width` values each, less `factor` of the
/// row times `shift` of the column.
fn products<E: Iterator<Item = (u32, f32)>>(
    columns: &[Vec<f64>],
    height: usize,
    width: usize,
    entries: impl Fn(usize) -> E + Sync,
    factor: impl Fn(usize) -> f64 + Sync,
    shift: &[f64],
) -> Vec<Vec<f64>> {
    let count = columns.len();
    // Row-major, so that the values read for an entry are adjacent.
    let dense = transpose(columns, width);
    let mut out = vec![0.0; height * count];
    out.par_chunks_mut(count).enumerate().for_each(|(row, out)| {
        out.iter_mut().zip(shift).for_each(|(sum, shift)| *sum = -factor(row) * shift);
        for (at, value) in entries(row) {
            let values = &dense[at as usize * count..][..count];
            out.iter_mut().zip(values).for_each(|(sum, dense)| *sum += f64::from(value) * dense);
        }
    });
    (0..columns.len()).map(|column| out.iter().skip(column).step_by(count).copied().collect()).collect()
}

/// Columns of `height` values, row by row.
fn transpose(columns: &[Vec<f64>], height: usize) -> Vec<f64> {
    (0..height).flat_map(|row| columns.iter().map(move |column| column[row])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Owned CSR of `[n, dim]` values.
    fn sparse(n: usize, dim: usize, value: impl Fn(usize, usize) -> f32) -> (Vec<usize>, Vec<u32>, Vec<f32>) {
        let (mut offsets, mut columns, mut values) = (vec![0], Vec::new(), Vec::new());
        for row in 0..n {
            for column in (0..dim).filter(|column| value(row, *column) != 0.0) {
                columns.push(column as u32);
                values.push(value(row, column));
            }
            offsets.push(columns.len());
        }
        (offsets, columns, values)
    }

    fn components(
        (offsets, columns, values): &(Vec<usize>, Vec<u32>, Vec<f32>),
        dim: usize,
        count: usize,
    ) -> PrincipalComponents {
        principal_components(SparseRows { dim, offsets, columns, values }, count, 5)
    }

    fn assert_near(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        assert!(
            found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6 * (1.0 + b.abs())),
            "{found:?} {expected:?}"
        );
    }

    /// scikit-learn 1.9.1: `i, j = np.ogrid[:60, :40]; X = np.where((i + 2 * j) % 3 == 0, (i * i * 3 + j * 7 + i * j) %
    /// 23, 0) / 4; p = PCA(4, svd_solver="full").fit(X)`; `p.explained_variance_`, `X.var(0, ddof=1).sum()` and
    /// `p.transform(X)[:2]`, with columns negated where their largest value by size is negative.
    #[test]
    fn components_are_those_of_scikit_learn() {
        let value = |i: usize, j: usize| {
            if (i + 2 * j).is_multiple_of(3) { ((i * i * 3 + j * 7 + i * j) % 23) as f32 / 4.0 } else { 0.0 }
        };
        let found = components(&sparse(60, 40, value), 40, 4);
        assert_near(&found.variances, &[36.11214691, 33.432065667, 2.699206608, 2.272229082]);
        assert_near(&[found.total_variance], &[103.622916667]);
        let rows: Vec<f64> = found.scores[..8].iter().map(|score| f64::from(*score)).collect();
        assert_near(
            &rows,
            &[
                -6.597149784,
                -6.484796325,
                -0.016535664,
                -3.480009836,
                10.843756331,
                -2.800410616,
                -0.020363794,
                -0.154744612,
            ],
        );
    }

    /// A matrix that falls off slowly and has more directions than are looked at: Krylov's space is not all there is.
    #[test]
    fn leading_components_of_a_large_matrix_are_exact() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let (n, dim, count) = (400, 700, 6);
        let noise: Vec<f32> =
            (0..n * dim).map(|_| if random.random_bool(0.1) { random.random::<f32>() } else { 0.0 }).collect();
        let group =
            |i: usize, j: usize| if j % 8 == i % 8 && noise[i * dim + j] > 0.0 { (1 + j % 8) as f32 } else { 0.0 };
        let matrix = sparse(n, dim, |i, j| noise[i * dim + j] + group(i, j));
        let found = components(&matrix, dim, count);
        assert!(2 * (BLOCKS * (count / 4 + SPARE)) < n + dim);
        // The centred matrix made dense, and all its eigenvalues.
        let mut rows = vec![vec![0.0; dim]; n];
        for (i, row) in rows.iter_mut().enumerate() {
            (matrix.0[i]..matrix.0[i + 1]).for_each(|at| row[matrix.1[at] as usize] = f64::from(matrix.2[at]));
        }
        for column in 0..dim {
            let mean = rows.iter().map(|row| row[column]).sum::<f64>() / n as f64;
            rows.iter_mut().for_each(|row| row[column] -= mean);
        }
        let exact = eigen(gram(&rows));
        let variances: Vec<f64> = exact.iter().map(|pair| pair.0 / (n - 1) as f64).collect();
        assert_near(&found.variances, &variances[..count]);
        assert_near(&[found.total_variance], &[variances.iter().sum()]);
        for (component, (square, vector)) in exact.iter().take(count).enumerate() {
            let scores = found.scores.iter().skip(component).step_by(count).map(|score| f64::from(*score));
            let along: f64 = scores.zip(vector).map(|(score, value)| score * value).sum();
            assert!((along.abs() / square.sqrt() - 1.0).abs() < 1e-6, "{component}: {along} {}", square.sqrt());
        }
    }

    #[test]
    fn there_are_no_more_components_than_the_rank() {
        // All on one line, and far from the origin.
        let line = components(&sparse(9, 5, |i, j| (100 + i * (j + 1)) as f32), 5, 3);
        assert_eq!((line.count, line.scores.len()), (1, 9));
        assert!((line.variances[0] / line.total_variance - 1.0).abs() < 1e-9);
        for n in 0..3 {
            let same = components(&sparse(n, 4, |_, j| j as f32), 4, 2);
            assert_eq!((same.count, same.scores.len(), same.total_variance), (0, 0, 0.0));
        }
    }

    #[test]
    fn components_do_not_depend_on_the_number_of_threads() {
        let matrix = sparse(50, 80, |i, j| ((i * 7 + j * j) % 5) as f32);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| components(&matrix, 80, 5))
        };
        assert_eq!(with(1), with(3));
    }
}
