//! Principal components of sparse rows that are read in passes and never held together: for matrices larger than
//! memory.
//!
//! Rows belong to groups. Each group is centred by itself, and all groups have the same weight, whatever their sizes.
//! With one group the result is the principal component analysis of the rows. The covariance matrix C of the columns is
//! never made; one pass over the rows multiplies it with a block of columns. The blocks Q, CQ, C(CQ), … are
//! orthonormalised against each other, and the components are computed in their span (block Lanczos with full
//! orthogonalisation; the method of [`crate::pca`] with a pass for each block).

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::dense::{dot, eigen, extend_orthonormal};
use crate::pca::SparseRows;

/// Number of passes: blocks of columns that are kept.
pub const PASSES: usize = 10;
/// Columns of a block beyond half of the requested components.
const SPARE: usize = 8;
/// Columns that one thread multiplies at a time. Each column's sums are made in the order of the rows, so results do
/// not depend on the number of threads.
const PANEL: usize = 8;

/// Rows that are read together, and the group of each.
#[derive(Debug, Clone, Copy)]
pub struct RowBatch<'a> {
    /// The rows.
    pub rows: SparseRows<'a>,
    /// `[rows]`: group of each, below the number of groups.
    pub groups: &'a [u32],
}

/// Rows that can be read any number of times, in the same order.
pub trait RowSource {
    /// Why they cannot be read.
    type Error;

    /// Visits all rows once.
    ///
    /// # Errors
    /// The rows cannot be read.
    fn pass(&mut self, visit: &mut dyn FnMut(RowBatch<'_>)) -> Result<(), Self::Error>;
}

/// Moments of the rows of a group.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupMoments {
    /// Number of rows.
    pub rows: u64,
    /// `[dim]`: mean of each column.
    pub mean: Vec<f64>,
    /// Sum of the squares of all values, not centred.
    pub squares: f64,
}

impl GroupMoments {
    /// Weight of a row: groups of two rows or more have the same weight together. Sample variances (divisor n - 1) of
    /// the groups are averaged.
    fn weight(&self, groups: usize) -> f64 {
        if self.rows < 2 { 0.0 } else { 1.0 / (groups as f64 * (self.rows - 1) as f64) }
    }
}

/// The leading principal components of rows in groups.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupedComponents {
    /// Number of components: as requested, or the rank of the centred rows if that is lower.
    pub count: usize,
    /// `[count, dim]`: orthonormal rows. The sign of a component is such that its largest loading by magnitude is
    /// positive.
    pub loadings: Vec<f64>,
    /// `[count]`: variance of the rows along each component, descending: the mean of the groups' sample variances.
    pub variances: Vec<f64>,
    /// The mean over groups of the sum of all columns' variances.
    pub total_variance: f64,
    /// `[dim]`: the mean of the groups' means.
    pub mean: Vec<f64>,
}

/// The first `count` principal components of rows of `dim` columns, each group centred by itself and weighted alike.
/// Groups of one row do not vary and are left out, also of the mean. The result is determined by the seed.
///
/// # Errors
/// The rows cannot be read.
///
/// # Panics
/// If a row names a column or group that there is not.
pub fn grouped_components<S: RowSource>(
    source: &mut S,
    dim: usize,
    groups: &[GroupMoments],
    count: usize,
    seed: u64,
) -> Result<GroupedComponents, S::Error> {
    let count = count.min(dim);
    let counted = groups.iter().filter(|group| group.rows > 1).count();
    let weights: Vec<f64> = groups.iter().map(|group| group.weight(counted)).collect();
    let mut mean = vec![0.0; dim];
    for group in groups.iter().filter(|group| group.rows > 1) {
        mean.iter_mut().zip(&group.mean).for_each(|(sum, value)| *sum += value / counted as f64);
    }
    let variance = |group: &GroupMoments, weight: &f64| {
        weight * (group.squares - group.rows as f64 * dot(&group.mean, &group.mean))
    };
    let total_variance = groups.iter().zip(&weights).map(|(group, weight)| variance(group, weight)).sum();
    let (basis, images) = krylov(source, dim, groups, &weights, count, seed)?;
    let projected: Vec<Vec<f64>> = basis.par_iter().map(|a| images.iter().map(|b| dot(a, b)).collect()).collect();
    // Symmetric but for rounding.
    let m = basis.len();
    let symmetric = (0..m).map(|i| (0..m).map(|j| f64::midpoint(projected[i][j], projected[j][i])).collect()).collect();
    let pairs = eigen(symmetric);
    let least = 1e-12 * pairs.first().map_or(0.0, |pair| pair.0);
    let found: Vec<_> = pairs.into_iter().take(count).take_while(|(value, _)| *value > least).collect();
    let loading = |(_, weights): &(f64, Vec<f64>)| {
        let mut column = vec![0.0; dim];
        for (basis, weight) in basis.iter().zip(weights) {
            column.iter_mut().zip(basis).for_each(|(sum, value)| *sum += weight * value);
        }
        let largest = column.iter().fold(0.0, |most: f64, value| if value.abs() > most.abs() { *value } else { most });
        column.iter_mut().for_each(|value| *value *= largest.signum());
        column
    };
    let loadings: Vec<Vec<f64>> = found.par_iter().map(loading).collect();
    Ok(GroupedComponents {
        count: found.len(),
        loadings: loadings.concat(),
        variances: found.iter().map(|pair| pair.0).collect(),
        total_variance,
        mean,
    })
}

/// Orthonormal columns that nearly span the leading eigenvectors of C, and C times each.
#[allow(clippy::type_complexity, reason = "two lists of columns")]
fn krylov<S: RowSource>(
    source: &mut S,
    dim: usize,
    groups: &[GroupMoments],
    weights: &[f64],
    count: usize,
    seed: u64,
) -> Result<(Vec<Vec<f64>>, Vec<Vec<f64>>), S::Error> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut column = || (0..dim).map(|_| random.random_range(-1.0..1.0)).collect();
    let mut next: Vec<Vec<f64>> = (0..count / 2 + SPARE).map(|_| column()).collect();
    let (mut basis, mut images) = (Vec::new(), Vec::new());
    for _ in 0..PASSES {
        let before = basis.len();
        extend_orthonormal(&mut basis, next);
        // No new direction: the span is complete.
        if basis.len() == before {
            break;
        }
        next = covariance_times(source, dim, groups, weights, &basis[before..])?;
        images.extend(next.iter().cloned());
    }
    Ok((basis, images))
}

/// C times columns of `dim` values, in one pass over the rows.
fn covariance_times<S: RowSource>(
    source: &mut S,
    dim: usize,
    groups: &[GroupMoments],
    weights: &[f64],
    columns: &[Vec<f64>],
) -> Result<Vec<Vec<f64>>, S::Error> {
    let mut panels: Vec<Panel> = columns.par_chunks(PANEL).map(|columns| Panel::new(columns, dim, groups)).collect();
    source.pass(&mut |batch| panels.par_iter_mut().for_each(|panel| panel.add(batch, weights)))?;
    let column = |c: usize| panels[c / PANEL].product.iter().map(|row| row[c % PANEL]).collect();
    Ok((0..columns.len()).map(column).collect())
}

/// Up to [`PANEL`] columns, and what C makes of them so far.
struct Panel {
    /// `[dim]`: the columns, row by row.
    columns: Vec<[f64; PANEL]>,
    /// `[groups]`: the mean of each group times the columns.
    shifts: Vec<[f64; PANEL]>,
    /// `[dim]`: the product.
    product: Vec<[f64; PANEL]>,
}

impl Panel {
    fn new(columns: &[Vec<f64>], dim: usize, groups: &[GroupMoments]) -> Self {
        let mut rows = vec![[0.0; PANEL]; dim];
        for (c, column) in columns.iter().enumerate() {
            rows.iter_mut().zip(column).for_each(|(row, value)| row[c] = *value);
        }
        let shift = |group: &GroupMoments| {
            let mut shift = [0.0; PANEL];
            columns.iter().zip(&mut shift).for_each(|(column, shift)| *shift = dot(column, &group.mean));
            shift
        };
        Self { shifts: groups.iter().map(shift).collect(), product: vec![[0.0; PANEL]; dim], columns: rows }
    }

    /// Adds the rows of a batch: w x yᵀ with y = (x − mean) · columns. The part of the mean in x adds up to zero over a
    /// group, because its y do.
    fn add(&mut self, batch: RowBatch<'_>, weights: &[f64]) {
        let rows = batch.rows;
        for (ends, group) in rows.offsets.windows(2).zip(batch.groups) {
            let (columns, values) = (&rows.columns[ends[0]..ends[1]], &rows.values[ends[0]..ends[1]]);
            let mut along = self.shifts[*group as usize].map(|shift| -shift);
            for (column, value) in columns.iter().zip(values) {
                let factors = &self.columns[*column as usize];
                for lane in 0..PANEL {
                    along[lane] += f64::from(*value) * factors[lane];
                }
            }
            let along = along.map(|along| along * weights[*group as usize]);
            for (column, value) in columns.iter().zip(values) {
                let sums = &mut self.product[*column as usize];
                for lane in 0..PANEL {
                    sums[lane] += f64::from(*value) * along[lane];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::pca::principal_components;

    /// Rows in memory, in batches of a size.
    struct Held {
        dim: usize,
        rows: Vec<Vec<(u32, f32)>>,
        groups: Vec<u32>,
        batch: usize,
    }

    impl RowSource for Held {
        type Error = Infallible;

        fn pass(&mut self, visit: &mut dyn FnMut(RowBatch<'_>)) -> Result<(), Infallible> {
            for (rows, groups) in self.rows.chunks(self.batch).zip(self.groups.chunks(self.batch)) {
                let mut offsets = vec![0];
                rows.iter().for_each(|row| offsets.push(offsets[offsets.len() - 1] + row.len()));
                let (columns, values): (Vec<u32>, Vec<f32>) = rows.iter().flatten().copied().unzip();
                let rows = SparseRows { dim: self.dim, offsets: &offsets, columns: &columns, values: &values };
                visit(RowBatch { rows, groups });
            }
            Ok(())
        }
    }

    impl Held {
        fn moments(&self) -> Vec<GroupMoments> {
            let groups = self.groups.iter().max().map_or(0, |most| *most as usize + 1);
            let mut all = vec![GroupMoments { rows: 0, mean: vec![0.0; self.dim], squares: 0.0 }; groups];
            for (row, group) in self.rows.iter().zip(&self.groups) {
                let group = &mut all[*group as usize];
                group.rows += 1;
                for (column, value) in row {
                    group.mean[*column as usize] += f64::from(*value);
                    group.squares += f64::from(*value).powi(2);
                }
            }
            for group in &mut all {
                let rows = group.rows.max(1) as f64;
                group.mean.iter_mut().for_each(|sum| *sum /= rows);
            }
            all
        }

        fn components(&mut self, count: usize) -> GroupedComponents {
            let (dim, moments) = (self.dim, self.moments());
            let Ok(found) = grouped_components(self, dim, &moments, count, 3);
            found
        }
    }

    fn random(n: usize, dim: usize, groups: u32) -> Held {
        let mut random = ChaCha8Rng::seed_from_u64(8);
        let mut row = |i: usize| -> Vec<(u32, f32)> {
            let of_row = |c: usize| 1.0 + ((i * 7 + c) % 6) as f32;
            let columns = (0..dim).filter(|_| random.random_bool(0.2)).collect::<Vec<_>>();
            columns.into_iter().map(|c| (c as u32, of_row(c) * random.random::<f32>())).collect()
        };
        Held {
            dim,
            rows: (0..n).map(&mut row).collect(),
            groups: (0..n as u32).map(|i| i * i % groups).collect(),
            batch: 37,
        }
    }

    #[test]
    fn one_group_has_the_components_of_plain_pca() {
        let mut held = random(500, 90, 1);
        let found = held.components(5);
        let mut offsets = vec![0];
        held.rows.iter().for_each(|row| offsets.push(offsets[offsets.len() - 1] + row.len()));
        let (columns, values): (Vec<u32>, Vec<f32>) = held.rows.iter().flatten().copied().unzip();
        let rows = SparseRows { dim: 90, offsets: &offsets, columns: &columns, values: &values };
        let expected = principal_components(rows, 5, 1);
        assert!((found.total_variance / expected.total_variance - 1.0).abs() < 1e-9);
        for (found, expected) in found.variances.iter().zip(&expected.variances) {
            assert!((found / expected - 1.0).abs() < 1e-9, "{found} {expected}");
        }
        for component in 0..5 {
            let loadings = &found.loadings[component * 90..][..90];
            let mean = dot(loadings, &found.mean);
            let score = |row: &Vec<(u32, f32)>| {
                row.iter().map(|(c, v)| f64::from(*v) * loadings[*c as usize]).sum::<f64>() - mean
            };
            let scores: Vec<f64> = held.rows.iter().map(score).collect();
            let expected = expected.scores.iter().skip(component).step_by(5).map(|s| f64::from(*s)).collect::<Vec<_>>();
            let cosine = dot(&scores, &expected) / (dot(&scores, &scores) * dot(&expected, &expected)).sqrt();
            assert!(cosine.abs() > 1.0 - 1e-9, "{component}: {cosine}");
        }
    }

    /// Against all eigenvalues of the covariance matrix, made dense.
    #[test]
    fn groups_are_centred_and_weighted_alike() {
        let mut held = random(400, 60, 7);
        // A group of its own, far away: it has no variance and no influence.
        held.rows.push((0..60).map(|c| (c, 1000.0)).collect());
        held.groups.push(7);
        let found = held.components(60);
        let moments = held.moments();
        let mut covariance = vec![vec![0.0; 60]; 60];
        for (row, group) in held.rows.iter().zip(&held.groups) {
            let group = &moments[*group as usize];
            let mut centred: Vec<f64> = group.mean.iter().map(|mean| -mean).collect();
            row.iter().for_each(|(c, v)| centred[*c as usize] += f64::from(*v));
            let weight = 1.0 / (4.0 * (group.rows as f64 - 1.0).max(1.0));
            for (i, a) in centred.iter().enumerate() {
                centred.iter().enumerate().for_each(|(j, b)| covariance[i][j] += weight * a * b);
            }
        }
        // i² mod 7 takes four values.
        assert_eq!(moments.iter().filter(|group| group.rows > 1).count(), 4);
        let expected = eigen(covariance);
        assert!((found.total_variance / expected.iter().map(|pair| pair.0).sum::<f64>() - 1.0).abs() < 1e-9);
        for (i, (value, vector)) in expected.iter().take(60).enumerate() {
            let loadings = &found.loadings[i * 60..][..60];
            assert!((found.variances[i] / value - 1.0).abs() < 1e-8 && dot(loadings, vector).abs() > 1.0 - 1e-6, "{i}");
        }
    }

    #[test]
    fn components_depend_neither_on_threads_nor_on_batches() {
        let with = |threads: usize, batch: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut held = Held { batch, ..random(200, 50, 3) };
            pool.install(|| held.components(6))
        };
        assert_eq!(with(1, 200), with(3, 11));
    }

    #[test]
    fn there_are_no_more_components_than_the_rank() {
        let rows = |n: u32| (0..n).map(|i| vec![(0, i as f32), (2, 3.0 * i as f32)]).collect::<Vec<_>>();
        for (n, count) in [(0, 0), (1, 0), (2, 1), (9, 1)] {
            let mut held = Held { dim: 4, rows: rows(n), groups: vec![0; n as usize], batch: 4 };
            let found = held.components(3);
            assert_eq!((found.count, found.loadings.len()), (count, 4 * count));
        }
    }
}
