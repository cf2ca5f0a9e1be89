//! Dense linear algebra for principal components: orthonormalisation, and eigenvectors of a small symmetric matrix.
//!
//! A matrix is a list of columns. The order of summation is fixed, so results do not depend on the number of threads.

use rayon::prelude::*;

/// A column is linearly dependent on others if its residual is below this fraction of its norm.
const DEPENDENT: f64 = 1e-10;
/// Columns with a smaller cosine count as orthogonal.
const ORTHOGONAL: f64 = 1e-14;
/// Maximum number of Jacobi sweeps; about ten are needed.
const SWEEPS: usize = 40;
/// Independent sums, so that the compiler can use SIMD.
const LANES: usize = 8;

/// Scalar product of two columns.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

/// Extends an orthonormal `basis` so that it also spans `columns`: modified Gram-Schmidt, applied twice for stability
/// (Giraud, Langou and Rozloznik 2005). Linearly dependent columns are left out.
pub(crate) fn extend_orthonormal(basis: &mut Vec<Vec<f64>>, mut columns: Vec<Vec<f64>>) {
    let norms: Vec<f64> = columns.iter().map(|column| dot(column, column).sqrt()).collect();
    columns.par_iter_mut().for_each(|column| (0..2).for_each(|_| project_out(basis, column)));
    let old = basis.len();
    for (mut column, norm) in columns.into_iter().zip(norms) {
        (0..2).for_each(|_| project_out(&basis[old..], &mut column));
        let left = dot(&column, &column).sqrt();
        if left > DEPENDENT * norm {
            // The small residual of a nearly dependent column is no longer orthogonal after scaling.
            column.iter_mut().for_each(|value| *value /= left);
            project_out(basis, &mut column);
            let left = dot(&column, &column).sqrt();
            column.iter_mut().for_each(|value| *value /= left);
            basis.push(column);
        }
    }
}

/// Subtracts from `column` its projection on each column of `basis`, one after the other.
fn project_out(basis: &[Vec<f64>], column: &mut [f64]) {
    for other in basis {
        let along = dot(other, column);
        column.iter_mut().zip(other).for_each(|(value, other)| *value -= along * other);
    }
}

/// Gram matrix: dot products of all pairs of columns, `[n, n]`.
pub(crate) fn gram(columns: &[Vec<f64>]) -> Vec<Vec<f64>> {
    columns.par_iter().map(|a| columns.iter().map(|b| dot(a, b)).collect()).collect()
}

/// Eigenvalues, largest first, and eigenvectors of a symmetric matrix with no negative eigenvalue.
///
/// One-sided Jacobi rotations (Hestenes 1958): columns are rotated until they are orthogonal. They are then the
/// eigenvectors, and their norms the eigenvalues. Vectors of eigenvalue zero are zero.
pub(crate) fn eigen(mut matrix: Vec<Vec<f64>>) -> Vec<(f64, Vec<f64>)> {
    let n = matrix.len();
    for _ in 0..SWEEPS {
        let mut rotated = false;
        for i in 0..n {
            for j in i + 1..n {
                let (head, tail) = matrix.split_at_mut(j);
                rotated |= make_orthogonal(&mut head[i], &mut tail[0]);
            }
        }
        if !rotated {
            break;
        }
    }
    let scaled = |mut column: Vec<f64>| {
        let value = dot(&column, &column).sqrt();
        column.iter_mut().for_each(|v| *v = if value > 0.0 { *v / value } else { 0.0 });
        (value, column)
    };
    let mut pairs: Vec<_> = matrix.into_iter().map(scaled).collect();
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    pairs
}

/// Rotates two columns in their plane so that they are orthogonal and the longer is first. Returns false if they were.
fn make_orthogonal(a: &mut [f64], b: &mut [f64]) -> bool {
    let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b));
    if ab.abs() <= ORTHOGONAL * (aa * bb).sqrt() {
        return false;
    }
    let ratio = (bb - aa) / (2.0 * ab);
    let tangent = ratio.signum() / (ratio.abs() + ratio.hypot(1.0));
    let cosine = 1.0 / tangent.hypot(1.0);
    let sine = cosine * tangent;
    for (a, b) in a.iter_mut().zip(b) {
        (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(count: usize, height: usize) -> Vec<Vec<f64>> {
        let value = |at: usize| ((at * at * 31 + at * 17) % 101) as f64 / 50.0 - 1.0;
        (0..count).map(|c| (0..height).map(|row| value(c * height + row)).collect()).collect()
    }

    fn assert_orthonormal(basis: &[Vec<f64>]) {
        for (i, row) in gram(basis).iter().enumerate() {
            for (j, product) in row.iter().enumerate() {
                assert!((product - f64::from(i == j)).abs() < 1e-13, "{i} {j} {product}");
            }
        }
    }

    #[test]
    fn columns_become_orthonormal_and_dependent_ones_are_left_out() {
        let mut basis = Vec::new();
        extend_orthonormal(&mut basis, columns(5, 33));
        assert_eq!(basis.len(), 5);
        let mut more = columns(9, 33);
        more[7] = vec![0.0; 33];
        more[8] = more[6].iter().zip(&more[2]).map(|(a, b)| a * 1e-7 + b * 1e5).collect();
        extend_orthonormal(&mut basis, more);
        assert_eq!(basis.len(), 7);
        assert_orthonormal(&basis);
        extend_orthonormal(&mut basis, columns(60, 33));
        assert_eq!(basis.len(), 33);
        assert_orthonormal(&basis);
    }

    #[test]
    fn eigenvectors_are_orthonormal_and_scaled_by_the_matrix() {
        let matrix = gram(&columns(12, 40));
        let pairs = eigen(matrix.clone());
        for (value, vector) in &pairs {
            for (row, expected) in matrix.iter().zip(vector) {
                assert!((dot(row, vector) - value * expected).abs() < 1e-12 * pairs[0].0);
            }
        }
        assert!(pairs.is_sorted_by(|a, b| a.0 >= b.0));
        assert_orthonormal(&pairs.into_iter().map(|pair| pair.1).collect::<Vec<_>>());
    }

    #[test]
    fn eigenvalues_of_a_matrix_of_low_rank_are_zero_but_for_a_few() {
        // Twelve columns in three dimensions.
        let pairs = eigen(gram(&columns(12, 3)));
        assert!(pairs[2].0 > 0.1 && pairs[3..].iter().all(|pair| pair.0 < 1e-12), "{pairs:?}");
        assert_eq!(eigen(vec![vec![0.0; 2]; 2]).iter().map(|pair| pair.0).sum::<f64>(), 0.0);
    }
}
