//! How the values of a file are interpreted: as counts, as normalised counts to be recovered, or as they are.
//!
//! The numeric part of recovering counts is in [`cellql_formats::counts`].

use cellql_formats::counts::{self, Normalisation, Rounding, TOLERANCE, are_whole};
use cellql_schemas::cells::ValueKind;

/// The largest value that a logarithm of normalised counts has: log2(1 + 10⁶) is 19.93.
const MAX_LOG: f32 = 20.0;

/// How the values of a file are interpreted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Interpretation {
    /// Whole numbers, stored as they are.
    Counts,
    /// Normalised counts; the counts are recovered and stored.
    Recovered(Normalisation, Rounding),
    /// Logarithms of normalised counts, stored as they are.
    Log,
    /// Normalised counts that are no logarithms, stored as they are.
    Linear,
    /// Values of an export of cellql, of a kind that was found when they were first ingested.
    Restored(ValueKind),
}

impl Interpretation {
    /// The interpretation that the first cells of a file suggest if they are not counts.
    pub(super) fn detect<'a>(cells: impl Iterator<Item = &'a [f32]> + Clone) -> Self {
        match counts::detect(cells.clone()) {
            Some((normalisation, rounding)) => Self::Recovered(normalisation, rounding),
            None => Self::as_given(cells),
        }
    }

    /// The interpretation that the first cells of a file suggest if their values are kept.
    pub(super) fn as_given<'a>(mut cells: impl Iterator<Item = &'a [f32]>) -> Self {
        if cells.any(|values| values.iter().any(|value| *value > MAX_LOG)) { Self::Linear } else { Self::Log }
    }

    /// True for values of a cell that this interpretation rules out: counts that are not whole, and logarithms that are
    /// too large.
    pub(super) fn is_contradicted_by(self, values: &[f32]) -> bool {
        match self {
            Self::Counts | Self::Restored(ValueKind::Counts | ValueKind::Recovered) => !are_whole(values),
            Self::Log | Self::Restored(ValueKind::Normalised) => !values.iter().all(|value| *value <= MAX_LOG),
            Self::Recovered(..) | Self::Linear | Self::Restored(ValueKind::Linear) => false,
        }
    }

    /// The value of the column `value_kind`.
    pub(super) fn kind(self) -> ValueKind {
        match self {
            Self::Counts => ValueKind::Counts,
            Self::Recovered(..) => ValueKind::Recovered,
            Self::Log => ValueKind::Normalised,
            Self::Linear => ValueKind::Linear,
            Self::Restored(kind) => kind,
        }
    }

    /// A note for the report if the values are not what files usually hold.
    pub(super) fn note(self) -> Option<String> {
        if self == Self::Linear {
            let note = "values are normalised, but no logarithms, which none beyond 20 can be; models read them as \
                        ln(1 + x / total · 10,000) (input linear)";
            return Some(note.to_owned());
        }
        let Self::Recovered(normalisation, rounding) = self else { return None };
        let undone = match normalisation {
            Normalisation::Scale => "a factor per cell".to_owned(),
            Normalisation::Log(base) => format!("log{}(1 + x) and a factor per cell", base.suffix()),
        };
        let rounding = rounding
            .decimals()
            .map_or_else(String::new, |decimals| format!(" plus the file's rounding to {decimals} decimals"));
        Some(format!(
            "counts were recovered by undoing {undone}; the smallest value of a cell is one count, and every value is \
             whole within {TOLERANCE}{rounding}"
        ))
    }
}

/// What whole numbers of many cells say about whether they are counts, and not normalised values that were rounded.
///
/// Counts of a cell grow with its number of expressed genes: the rank correlation of total and number is .86 to .99 in
/// data sets of 10x, inDrop and Smart-seq2. Normalisation takes that away: it is -.25 to .05 in rounded TPM, FPKM and
/// counts per 10,000 of the same cells. And nearly every cell has a gene of one count, unless counts were multiplied.
#[derive(Debug, Clone, Default)]
pub(super) struct CountStatistics {
    /// Total and number of expressed genes of each cell.
    cells: Vec<(f64, u32)>,
    /// Cells whose smallest value is above 1.
    above_one: usize,
}

/// Cells that are looked at.
const MAX_CELLS: usize = 20_000;
/// Fewer cells say nothing.
const MIN_CELLS: usize = 20;
/// Counts have a larger rank correlation of total and number of genes.
const MIN_CORRELATION: f64 = 0.2;

impl CountStatistics {
    /// Adds a cell by its values.
    pub(super) fn add(&mut self, values: &[f32], total: f64) {
        if self.cells.len() < MAX_CELLS && !values.is_empty() {
            self.cells.push((total, values.len() as u32));
            self.above_one += usize::from(values.iter().all(|value| *value > 1.0));
        }
    }

    /// Why the values are no counts; `None` if they may be.
    pub(super) fn contradiction(&self) -> Option<String> {
        let (least, most) = self.cells.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), (total, _)| {
            (least.min(*total), most.max(*total))
        });
        let is_million = |total: f64| (total - 1e6).abs() < 1e4;
        if self.cells.len() >= 3 && is_million(least) && is_million(most) {
            return Some("they add up to a million in every cell, as rounded TPM do".to_owned());
        }
        if self.cells.len() < MIN_CELLS {
            return None;
        }
        if self.above_one * 2 > self.cells.len() {
            return Some("most cells have no gene of one count".to_owned());
        }
        // Counts that were downsampled to one total have no correlation.
        if least == most {
            return None;
        }
        let correlation = rank_correlation(&self.cells);
        (correlation < MIN_CORRELATION).then(|| {
            format!(
                "the totals of the cells do not grow with their numbers of genes, as those of counts do (rank \
                 correlation {correlation:.2})"
            )
        })
    }
}

/// Spearman's rank correlation of the two numbers; 0 where one of them is the same everywhere.
fn rank_correlation(pairs: &[(f64, u32)]) -> f64 {
    let (a, b) = (ranks(pairs.iter().map(|pair| pair.0)), ranks(pairs.iter().map(|pair| f64::from(pair.1))));
    let mean = (pairs.len() as f64 + 1.0) / 2.0;
    let sum = |of: &dyn Fn(usize) -> f64| (0..pairs.len()).map(of).sum::<f64>();
    let product = sum(&|i| (a[i] - mean) * (b[i] - mean));
    let scale = (sum(&|i| (a[i] - mean).powi(2)) * sum(&|i| (b[i] - mean).powi(2))).sqrt();
    if scale > 0.0 { product / scale } else { 0.0 }
}

/// The rank of each value, from 1; equal values share the mean of their ranks.
fn ranks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut order: Vec<(f64, usize)> = values.zip(0..).collect();
    order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let mut ranks = vec![0.0; order.len()];
    let mut start = 0;
    for group in order.chunk_by(|a, b| a.0 == b.0) {
        let rank = start as f64 + (group.len() as f64 + 1.0) / 2.0;
        group.iter().for_each(|(_, i)| ranks[*i] = rank);
        start += group.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn ranks_of_equal_values_are_their_mean() {
        assert_eq!(ranks([3.0, 1.0, 3.0, 2.0].into_iter()), [3.5, 1.0, 3.5, 2.0]);
        let ascending: Vec<(f64, u32)> = (0..10).map(|i| (f64::from(i * i), i)).collect();
        assert!((rank_correlation(&ascending) - 1.0).abs() < 1e-12);
        assert_eq!(rank_correlation(&[(1.0, 5), (2.0, 5)]), 0.0);
    }

    /// Cells of 300 genes with means that fall by a power law, as deep as `depth` draws.
    fn cells(mut depth: impl FnMut(&mut rand_chacha::ChaCha8Rng) -> f64) -> Vec<Vec<f64>> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        (0..200)
            .map(|_| {
                let depth = depth(&mut rng);
                (1..=300).map(|gene| (depth / f64::from(gene) * rng.random_range(0.0..2.0)).floor()).collect()
            })
            .collect()
    }

    fn contradiction(cells: &[Vec<f64>], change: impl Fn(f64, f64) -> f64) -> Option<String> {
        let mut statistics = CountStatistics::default();
        for cell in cells {
            let total: f64 = cell.iter().sum();
            let values: Vec<f32> = cell.iter().map(|v| change(*v, total).round() as f32).filter(|v| *v > 0.0).collect();
            statistics.add(&values, values.iter().map(|v| f64::from(*v)).sum());
        }
        statistics.contradiction()
    }

    #[test]
    fn counts_pass_and_rounded_normalised_values_do_not() {
        let deep = cells(|rng| rng.random_range(100.0..400.0));
        assert_eq!(contradiction(&deep, |count, _| count), None);
        for total in [1e4, 1e5, 1e6] {
            assert!(contradiction(&deep, |count, sum| count / sum * total).is_some(), "{total}");
        }
        // Counts that were multiplied.
        assert!(contradiction(&deep, |count, _| count * 3.0).is_some());
        // A few cells say nothing.
        assert_eq!(contradiction(&deep[..10], |count, sum| count / sum * 1e4), None);
    }
}
