//! Whitening: the linear map after which vectors have mean 0, variance 1 and no correlation, on their leading principal
//! components.

use rayon::prelude::*;

use crate::dense::{dot, eigen};

/// A whitening map: `matrix · (v − mean)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Whitening {
    /// Number of components: as requested, or the number of directions in which the vectors vary.
    pub count: usize,
    /// `[dim]`: the mean of the groups' means.
    pub mean: Vec<f32>,
    /// `[count, dim]`: eigenvectors of the covariance, divided by the square roots of their eigenvalues. The largest
    /// value of a row by magnitude is positive.
    pub matrix: Vec<f32>,
    /// Share of the variance along the components.
    pub explained: f64,
}

/// The whitening map of `vectors`, `[n, dim]`, to `count` components. Each group is centred by itself, and groups of
/// two vectors or more have the same weight: covariances (divisor n - 1) of the groups are averaged.
///
/// # Panics
/// If there is not one group per vector.
pub fn whitening(vectors: &[f32], dim: usize, groups: &[u32], count: usize) -> Whitening {
    assert_eq!(vectors.len(), groups.len() * dim, "there is a vector for each group");
    let number = groups.iter().max().map_or(0, |most| *most as usize + 1);
    let (mut sizes, mut means) = (vec![0usize; number], vec![vec![0f64; dim]; number]);
    for (vector, group) in vectors.chunks_exact(dim).zip(groups) {
        sizes[*group as usize] += 1;
        means[*group as usize].iter_mut().zip(vector).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    for (mean, size) in means.iter_mut().zip(&sizes) {
        mean.iter_mut().for_each(|sum| *sum /= (*size).max(1) as f64);
    }
    let counted = sizes.iter().filter(|size| **size > 1).count() as f64;
    let mut mean = vec![0f64; dim];
    for (of_group, _) in means.iter().zip(&sizes).filter(|(_, size)| **size > 1) {
        mean.iter_mut().zip(of_group).for_each(|(sum, value)| *sum += value / counted);
    }
    // Columns, centred and weighted, so that their products are the covariance.
    let column = |d: usize| -> Vec<f64> {
        let value = |(vector, group): (&[f32], &u32)| {
            let size = sizes[*group as usize];
            let weight = if size > 1 { 1.0 / (counted * (size - 1) as f64) } else { 0.0 };
            (f64::from(vector[d]) - means[*group as usize][d]) * weight.sqrt()
        };
        vectors.chunks_exact(dim).zip(groups).map(value).collect()
    };
    let columns: Vec<Vec<f64>> = (0..dim).into_par_iter().map(column).collect();
    let covariance: Vec<Vec<f64>> = columns.par_iter().map(|a| columns.iter().map(|b| dot(a, b)).collect()).collect();
    let total: f64 = (0..dim).map(|d| covariance[d][d]).sum();
    let pairs = eigen(covariance);
    let least = 1e-10 * pairs.first().map_or(0.0, |pair| pair.0);
    let found: Vec<_> = pairs.into_iter().take(count).take_while(|(value, _)| *value > least).collect();
    let row = |(value, vector): &(f64, Vec<f64>)| {
        let largest = vector.iter().fold(0.0, |most: f64, v| if v.abs() > most.abs() { *v } else { most });
        let scale = largest.signum() / value.sqrt();
        vector.iter().map(|v| (v * scale) as f32).collect::<Vec<f32>>()
    };
    Whitening {
        count: found.len(),
        mean: mean.into_iter().map(|value| value as f32).collect(),
        matrix: found.iter().flat_map(row).collect(),
        explained: found.iter().map(|pair| pair.0).sum::<f64>() / total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whitened_vectors_have_unit_variance_and_no_correlation_in_each_direction() {
        let (n, dim) = (300, 6);
        let value = |i: usize, d: usize| ((i * i * 31 + i * d * 17 + d * d) % 101) as f32 / 10.0;
        // The sixth dimension is the sum of two others.
        let vector = |i: usize| {
            let mut vector: Vec<f32> = (0..dim).map(|d| value(i, d) * (d + 1) as f32 + 50.0 * (i % 2) as f32).collect();
            vector[5] = vector[0] + vector[1];
            vector
        };
        let vectors: Vec<f32> = (0..n).flat_map(vector).collect();
        let groups: Vec<u32> = (0..n as u32).map(|i| i % 2).collect();
        let found = whitening(&vectors, dim, &groups, 6);
        assert_eq!((found.count, found.matrix.len()), (5, 30));
        assert!((found.explained - 1.0).abs() < 1e-9);
        let map = |vector: &[f32]| -> Vec<f64> {
            let centred: Vec<f64> = vector.iter().zip(&found.mean).map(|(v, m)| f64::from(v - m)).collect();
            found.matrix.chunks(dim).map(|row| row.iter().zip(&centred).map(|(r, c)| f64::from(*r) * c).sum()).collect()
        };
        let mapped: Vec<Vec<f64>> = vectors.chunks(dim).map(map).collect();
        for (a, b) in (0..5).flat_map(|a| (0..5).map(move |b| (a, b))) {
            let mut covariance = 0.0;
            for group in 0..2 {
                let of_group: Vec<&Vec<f64>> = mapped.iter().skip(group).step_by(2).collect();
                let mean = |d: usize| of_group.iter().map(|v| v[d]).sum::<f64>() / 150.0;
                let (ma, mb) = (mean(a), mean(b));
                covariance += of_group.iter().map(|v| (v[a] - ma) * (v[b] - mb)).sum::<f64>() / (2.0 * 149.0);
            }
            assert!((covariance - f64::from(a == b)).abs() < 1e-3, "{a} {b} {covariance}");
        }
    }

    #[test]
    fn vectors_that_do_not_vary_have_no_directions() {
        let found = whitening(&[1.0, 2.0, 1.0, 2.0], 2, &[0, 0], 2);
        assert_eq!((found.count, found.mean), (0, vec![1.0, 2.0]));
    }
}
