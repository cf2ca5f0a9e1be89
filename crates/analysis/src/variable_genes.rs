//! Choice of columns (genes) that vary more than others of their mean: normalised dispersions of Satija et al. 2015
//! (Nat. Biotechnol. 33:495), as in scanpy's `highly_variable_genes` with flavor `seurat`.

/// Number of bins of the means.
const BINS: usize = 20;

/// Mean and sample variance of each column over the rows of a group.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ColumnMoments {
    /// `[columns]`.
    pub mean: Vec<f64>,
    /// `[columns]`, divisor n - 1.
    pub variance: Vec<f64>,
}

/// The normalised dispersion of each column whose index is in `columns`, in their order; NaN for columns that do not
/// vary.
///
/// The dispersion is ln(variance / mean). It is centred and scaled within 20 bins of ln(1 + mean); the only column of a
/// bin has 1.
fn normalised_dispersions(moments: &ColumnMoments, columns: &[usize]) -> Vec<f64> {
    let mean = |c: usize| if moments.mean[c] == 0.0 { 1e-12 } else { moments.mean[c] };
    let dispersion = |c: &usize| match moments.variance[*c] / mean(*c) {
        0.0 => f64::NAN,
        d => d.ln(),
    };
    let dispersions: Vec<f64> = columns.iter().map(dispersion).collect();
    let means: Vec<f64> = columns.iter().map(|c| mean(*c).ln_1p()).collect();
    let bins = bins(&means);
    let mut of_bin: Vec<Vec<f64>> = vec![Vec::new(); BINS];
    for (bin, dispersion) in bins.iter().zip(&dispersions).filter(|(_, d)| !d.is_nan()) {
        of_bin[*bin].push(*dispersion);
    }
    let scale = |values: &Vec<f64>| {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        match values.len() {
            0 => (f64::NAN, f64::NAN),
            1 => (0.0, mean),
            n => (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt()),
        }
    };
    let scales: Vec<(f64, f64)> = of_bin.iter().map(scale).collect();
    bins.iter().zip(&dispersions).map(|(bin, d)| (d - scales[*bin].0) / scales[*bin].1).collect()
}

/// The bin of each value: twenty of equal width from the smallest to the largest, closed on the right.
fn bins(values: &[f64]) -> Vec<usize> {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let edge = |i: usize| low + (high - low) * i as f64 / BINS as f64;
    let edges: Vec<f64> = (1..BINS).map(edge).collect();
    values.iter().map(|value| edges.partition_point(|edge| edge < value)).collect()
}

/// The `count` columns that are most variable, ascending. Of several groups of rows, columns that are among the `count`
/// most variable ones of more groups come first, then those with a larger mean of normalised dispersions. A group does
/// not count for a column that is zero in all its rows.
///
/// # Panics
/// If groups have different numbers of columns.
pub fn most_variable(groups: &[ColumnMoments], count: usize) -> Vec<u32> {
    let dim = groups.first().map_or(0, |group| group.mean.len());
    // Groups in which a column is chosen; sum and number of its normalised dispersions.
    let mut scores: Vec<(u32, f64, u32)> = vec![(0, 0.0, 0); dim];
    for group in groups {
        let present = |c: &usize| groups.len() == 1 || group.mean[*c] != 0.0;
        let columns: Vec<usize> = (0..dim).filter(present).collect();
        let found = normalised_dispersions(group, &columns);
        let mut ranked: Vec<f64> = found.iter().copied().filter(|d| !d.is_nan()).collect();
        ranked.sort_by(|a, b| b.total_cmp(a));
        let least = ranked.get(count.saturating_sub(1)).copied().unwrap_or(f64::NEG_INFINITY);
        let mut all = vec![0.0; dim];
        columns.iter().zip(&found).for_each(|(c, d)| all[*c] = *d);
        for (c, score) in scores.iter_mut().enumerate().filter(|(c, _)| !all[*c].is_nan()) {
            score.0 += u32::from(all[c] >= least && group.mean[c] != 0.0);
            score.1 += all[c];
            score.2 += 1;
        }
    }
    let mean = |c: &u32| {
        let (_, sum, groups) = scores[*c as usize];
        sum / f64::from(groups)
    };
    let mut order: Vec<u32> = (0..dim as u32).filter(|c| scores[*c as usize].2 > 0).collect();
    order.sort_by(|a, b| {
        let chosen = |c: &u32| scores[*c as usize].0;
        chosen(b).cmp(&chosen(a)).then(mean(b).total_cmp(&mean(a))).then(a.cmp(b))
    });
    order.retain(|c| groups.iter().any(|group| group.mean[*c as usize] != 0.0));
    order.truncate(count);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of a group: counts by a rule that Python states the same way.
    fn moments(group: u64) -> ColumnMoments {
        let (rows, columns) = (40u64, 120u64);
        let value = |i: u64, j: u64| {
            (if (i * 7 + j * j + group * 3).is_multiple_of(2 + j % 5) { (i * j + group) % 17 } else { 0 }) as f64
        };
        let mut out = ColumnMoments::default();
        for j in 0..columns {
            let values: Vec<f64> = (0..rows).map(|i| value(i, j)).collect();
            let mean = values.iter().sum::<f64>() / rows as f64;
            out.mean.push(mean);
            out.variance.push(values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (rows - 1) as f64);
        }
        out
    }

    #[test]
    fn columns_that_never_vary_are_not_chosen() {
        let group = ColumnMoments { mean: vec![0.0, 1.0, 2.0, 3.0], variance: vec![0.0, 5.0, 0.0, 9.0] };
        assert_eq!(most_variable(std::slice::from_ref(&group), 10), [1, 3]);
        assert_eq!(most_variable(&[group.clone(), group], 1).len(), 1);
        assert!(most_variable(&[], 3).is_empty());
    }

    /// scanpy 1.11.5: `i, j = np.ogrid[:40, :120]`, for each group g `X = np.where((i*7 + j*j + g*3) % (2 + j%5) == 0,
    /// (i*j + g) % 17, 0)`, `a = AnnData(np.log1p(X))` of all rows, `sc.pp.highly_variable_genes(a, n_top_genes=15,
    /// batch_key="g")`, and the same of group 0 alone without `batch_key`.
    #[test]
    fn columns_are_those_of_scanpy() {
        let groups = [moments(0), moments(1), moments(2)];
        assert_eq!(most_variable(&groups, 15), [4, 9, 11, 24, 39, 47, 50, 51, 54, 74, 79, 84, 87, 92, 96]);
        assert_eq!(most_variable(&groups[..1], 15), [4, 11, 24, 30, 38, 39, 47, 49, 50, 54, 72, 80, 84, 91, 110]);
    }
}
