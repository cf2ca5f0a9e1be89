//! The silhouette coefficient (Rousseeuw 1987, J. Comput. Appl. Math. 20:53): how much closer vectors are to their own
//! cluster than to the next one.
//!
//! Results equal those of scikit-learn. Every pair of vectors is compared, in O(n²·dim) time.

use crate::distance::for_each_row;

/// Mean of [`silhouette_samples`], in -1..=1: `silhouette_score` of scikit-learn.
///
/// `None` if it is not defined: fewer than two labels, or as many labels as vectors.
///
/// # Panics
/// If `vectors` is not `labels.len()` rows of `dim` values.
pub fn silhouette(vectors: &[f32], dim: usize, labels: &[u32]) -> Option<f64> {
    let samples = silhouette_samples(vectors, dim, labels)?;
    Some(samples.iter().sum::<f64>() / samples.len() as f64)
}

/// The silhouette of each of `vectors` (`[n, dim]`) by euclidean distance: `(b - a) / max(a, b)`, where a is its mean
/// distance to the other vectors of its cluster and b the smallest mean distance to the vectors of another cluster. It
/// is zero for a cluster of one vector.
///
/// `None` if it is not defined: fewer than two labels, or as many labels as vectors. A vector with a value
/// that is not finite makes its own silhouette NaN and may those of others.
///
/// # Panics
/// If `vectors` is not `labels.len()` rows of `dim` values.
pub fn silhouette_samples(vectors: &[f32], dim: usize, labels: &[u32]) -> Option<Vec<f64>> {
    assert_eq!(vectors.len(), labels.len() * dim, "there is a row for every label");
    let mut names = labels.to_vec();
    names.sort_unstable();
    names.dedup();
    if names.len() < 2 || names.len() == labels.len() {
        return None;
    }
    let clusters: Vec<usize> = labels.iter().map(|label| names.partition_point(|name| name < label)).collect();
    let mut sizes = vec![0usize; names.len()];
    clusters.iter().for_each(|&c| sizes[c] += 1);
    let sums = for_each_row(
        vectors,
        dim,
        || vec![0.0; names.len()],
        |sums, _, first, squared| {
            for (&cluster, squared) in clusters[first..].iter().zip(squared) {
                sums[cluster] += squared.sqrt();
            }
        },
    );
    Some(clusters.iter().zip(&sums).map(|(&own, sums)| sample(own, sums, &sizes)).collect())
}

/// The silhouette of a vector of cluster `own`, from its summed distances to the vectors of each cluster.
fn sample(own: usize, sums: &[f64], sizes: &[usize]) -> f64 {
    if sizes[own] == 1 {
        return 0.0;
    }
    let within = sums[own] / (sizes[own] - 1) as f64;
    let means = sums.iter().zip(sizes).map(|(sum, &size)| sum / size as f64);
    let others = means.enumerate().filter(|(cluster, _)| *cluster != own);
    let between = others.map(|(_, mean)| mean).fold(f64::INFINITY, f64::min);
    let larger = within.max(between);
    if larger == 0.0 { 0.0 } else { (between - within) / larger }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `X[i, j] = ((7 i + 3 j + i j) % 11) / 4 + 5 (i % 3)`, labels by `rule`.
    fn points(n: usize, dim: usize, rule: impl Fn(usize) -> u32) -> (Vec<f32>, Vec<u32>) {
        let value = |i: usize, j: usize| ((7 * i + 3 * j + i * j) % 11) as f32 / 4.0 + 5.0 * (i % 3) as f32;
        let vectors = (0..n * dim).map(|at| value(at / dim, at % dim)).collect();
        (vectors, (0..n).map(rule).collect())
    }

    /// scikit-learn 1.9.1: `i, j = np.ogrid[:n, :dim]; X = ((7*i + 3*j + i*j) % 11) / 4 + 5 * (i % 3)`, then
    /// `silhouette_score(X, y)` with y as beside each line.
    #[test]
    fn scores_are_those_of_scikit_learn() {
        // n, dim = 100, 9; y = np.arange(n) % 3
        let (x, y) = points(100, 9, |i| (i % 3) as u32);
        assert!((silhouette(&x, 9, &y).unwrap() - 0.7954944457576353).abs() < 1e-7);
        // n, dim = 70, 300; y = np.where(i[:, 0] == 5, 99, np.arange(n) % 5)
        let (x, y) = points(70, 300, |i| if i == 5 { 99 } else { (i % 5) as u32 });
        assert!((silhouette(&x, 300, &y).unwrap() - -0.3241147038245805).abs() < 1e-7);
        assert_eq!(silhouette_samples(&x, 300, &y).unwrap()[5], 0.0);
    }

    #[test]
    fn the_silhouette_is_undefined_for_one_label_or_all_different() {
        let (x, _) = points(4, 2, |_| 0);
        assert_eq!(silhouette(&x, 2, &[7; 4]), None);
        assert_eq!(silhouette(&x, 2, &[1, 2, 3, 4]), None);
        assert_eq!(silhouette(&[], 2, &[]), None);
        assert!(silhouette(&x, 2, &[1, 2, 3, 3]).is_some());
    }

    #[test]
    fn equal_vectors_have_a_silhouette_of_zero() {
        assert_eq!(silhouette(&[1.5; 12], 3, &[0, 0, 1, 1]), Some(0.0));
    }

    #[test]
    fn the_silhouette_does_not_change_far_from_the_origin() {
        let (x, y) = points(60, 8, |i| (i % 3) as u32);
        let far: Vec<f32> = x.iter().map(|v| v + 65536.0).collect();
        assert_eq!(silhouette(&x, 8, &y), silhouette(&far, 8, &y));
    }

    #[test]
    fn the_silhouette_does_not_depend_on_the_number_of_threads() {
        let (x, y) = points(200, 5, |i| (i % 4) as u32);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| silhouette_samples(&x, 5, &y))
        };
        assert_eq!(with(1), with(3));
    }
}
