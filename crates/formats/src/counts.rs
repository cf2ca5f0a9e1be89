//! Recovers counts from the normalised values of a cell.
//!
//! The method is that of the scFoundation paper: after undoing log(1 + x), the smallest non-zero value of a cell is one
//! count. The result is accepted only if every value of the cell is then a whole number within [`TOLERANCE`] plus the
//! rounding of the values, at most 0.25, and if enough values are informative. TPM and other values that were divided
//! by a length per gene are not recovered.

/// Largest distance of a recovered count from a whole number, apart from the rounding of the values themselves.
pub const TOLERANCE: f64 = 0.01;
/// Largest distance that rounding may add up to: beyond it, the whole number is not certain.
const MAX_TOLERANCE: f64 = 0.25;
/// The largest count that f32 holds exactly.
const MAX_COUNT: f64 = 16_777_216.0;
/// Number of values of at least two counts that a cell needs to be evidence.
const INFORMATIVE_VALUES: usize = 8;
/// Largest count that the smallest value of a cell may stand for: not every cell has a gene of one count.
const MAX_SMALLEST_COUNT: u32 = 4;

/// What was done to the counts of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalisation {
    /// Each cell was multiplied by a number.
    Scale,
    /// Each cell was multiplied by a number, and log(1 + x) to this base was taken.
    Log(LogBase),
}

/// Base of a logarithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogBase {
    /// Euler's number.
    E,
    /// 2.
    Two,
    /// 10.
    Ten,
}

/// How the values of a file are rounded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rounding {
    /// Half of the last decimal if values are rounded to decimals; otherwise 0.
    half_step: f64,
}

/// What the values of one cell say about a normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CountEvidence {
    /// The values contradict it.
    Contradicts,
    /// The values fit, but too few are informative.
    Inconclusive,
    /// The values fit, and a coincidence is unlikely.
    Supports,
}

impl LogBase {
    /// The base as it follows `log` in text: empty for the natural logarithm.
    pub fn suffix(self) -> &'static str {
        match self {
            LogBase::E => "",
            LogBase::Two => "2",
            LogBase::Ten => "10",
        }
    }

    fn ln(self) -> f64 {
        match self {
            LogBase::E => 1.0,
            LogBase::Two => std::f64::consts::LN_2,
            LogBase::Ten => std::f64::consts::LN_10,
        }
    }
}

/// The normalisation from which the counts of these cells can be recovered, and the rounding of their values. `None` if
/// none fits every cell or no cell supports it. Each slice holds the non-zero values of one cell.
pub fn detect<'a>(cells: impl Iterator<Item = &'a [f32]> + Clone) -> Option<(Normalisation, Rounding)> {
    let rounding = Rounding::of(cells.clone().flatten().copied());
    let candidates = [LogBase::E, LogBase::Two, LogBase::Ten].map(Normalisation::Log).into_iter();
    let fits = |normalisation: &Normalisation| {
        let evidence: Vec<CountEvidence> =
            cells.clone().map(|cell| recover(&mut cell.to_vec(), *normalisation, rounding)).collect();
        evidence.contains(&CountEvidence::Supports) && !evidence.contains(&CountEvidence::Contradicts)
    };
    candidates.chain([Normalisation::Scale]).find(fits).map(|normalisation| (normalisation, rounding))
}

/// True if no value has a fraction. The values are finite and not negative.
pub fn are_whole(values: &[f32]) -> bool {
    // Values of 2^24 and more have no fraction in f32; `fract` would call a function for each value.
    values.iter().all(|value| *value >= 16_777_216.0 || (*value as i32) as f32 == *value)
}

impl Rounding {
    /// The number of decimals, from 1 to 5, that the first 10,000 values are rounded to, if any.
    fn of(values: impl Iterator<Item = f32> + Clone) -> Self {
        for decimals in 1..=5 {
            let power = 10f64.powi(decimals);
            // Half a unit of f32 at this size is what a rounded decimal may be off.
            let rounded = |v: f32| {
                let scaled = f64::from(v) * power;
                (scaled - scaled.round()).abs() <= scaled.abs() * f64::from(f32::EPSILON) + 1e-9
            };
            let mut count = 0;
            if values.clone().take(10_000).all(|v| {
                count += 1;
                rounded(v)
            }) && count > 0
            {
                return Self { half_step: 0.5 / power };
            }
        }
        Self { half_step: 0.0 }
    }

    /// Number of decimals that the values are rounded to; `None` if they are not rounded.
    pub fn decimals(self) -> Option<u32> {
        (self.half_step > 0.0).then(|| (-(self.half_step * 2.0).log10()).round() as u32)
    }

    /// Largest difference between a value and the exact number it was rounded from.
    fn error_of(self, value: f64) -> f64 {
        self.half_step + value.abs() * f64::from(f32::EPSILON)
    }
}

/// Replaces the non-zero values of a cell by the counts they were computed from, if every value fits a whole count.
/// Otherwise the values are unchanged.
pub fn recover(values: &mut [f32], normalisation: Normalisation, rounding: Rounding) -> CountEvidence {
    let undone: Vec<(f64, f64)> = values
        .iter()
        .map(|&v| {
            let (v, error) = (f64::from(v), rounding.error_of(f64::from(v)));
            match normalisation {
                Normalisation::Scale => (v, error),
                Normalisation::Log(base) => {
                    let x = (v * base.ln()).exp_m1();
                    (x, error * base.ln() * (x + 1.0))
                }
            }
        })
        .collect();
    // Genes of equal counts have the same rounding error, so together they are evidence of one value.
    let mut distinct = undone.clone();
    distinct.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    distinct.dedup_by(|a, b| a.0 == b.0);
    let Some(&smallest) = distinct.first() else {
        return CountEvidence::Inconclusive;
    };
    if !undone.iter().all(|(x, _)| x.is_finite()) || smallest.0 <= 0.0 {
        return CountEvidence::Contradicts;
    }
    for smallest_count in 1..=MAX_SMALLEST_COUNT {
        let unit = (smallest.0 / f64::from(smallest_count), smallest.1 / f64::from(smallest_count));
        let unit = refine(unit, &distinct);
        if let Some(informative) = to_counts(unit, &undone, values) {
            return if informative >= INFORMATIVE_VALUES {
                CountEvidence::Supports
            } else {
                CountEvidence::Inconclusive
            };
        }
    }
    CountEvidence::Contradicts
}

/// Estimates the value of one count from every value whose number of counts is certain. Takes and returns the value and
/// its error.
fn refine((unit, error): (f64, f64), distinct: &[(f64, f64)]) -> (f64, f64) {
    let (mut unit, mut relative) = (unit, error / unit);
    for _ in 0..3 {
        let (mut weighted, mut weights) = (0.0, 0.0);
        for (x, dx) in distinct {
            let count = (x / unit).round();
            if count >= 1.0 && count * relative + dx / unit < 0.2 {
                let weight = 1.0 / (dx * dx).max(1e-30);
                weighted += weight * count * x;
                weights += weight * count * count;
            }
        }
        if weights == 0.0 {
            break;
        }
        unit = weighted / weights;
        relative = (1.0 / weights).sqrt() / unit;
    }
    (unit, relative * unit)
}

/// Writes the counts if every value is a whole number of units. Returns the number of informative values.
fn to_counts((unit, error): (f64, f64), undone: &[(f64, f64)], values: &mut [f32]) -> Option<usize> {
    let mut informative = 0;
    let mut counts = Vec::with_capacity(undone.len());
    for (x, dx) in undone {
        let exact = x / unit;
        let count = exact.round();
        // The error of the unit is a standard deviation; three of them are allowed.
        let tolerance = TOLERANCE + dx / unit + 3.0 * count * error / unit;
        if tolerance > MAX_TOLERANCE || (exact - count).abs() > tolerance || !(1.0..=MAX_COUNT).contains(&count) {
            return None;
        }
        informative += usize::from(count >= 2.0 && tolerance < 0.1);
        counts.push(count as f32);
    }
    values.copy_from_slice(&counts);
    Some(informative)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    fn counts(rng: &mut impl Rng) -> Vec<f32> {
        (0..400).map(|_| 1.0 + (rng.random::<f32>().powi(-1).min(150.0) - 1.0).floor()).collect()
    }

    fn normalised(counts: &[f32], base: Option<LogBase>, decimals: Option<i32>) -> Vec<f32> {
        let total: f32 = counts.iter().sum::<f32>() * 1.7;
        counts
            .iter()
            .map(|c| {
                let scaled = f64::from(*c) / f64::from(total) * 1e4;
                let value = base.map_or(scaled, |b| scaled.ln_1p() / b.ln());
                match decimals {
                    Some(d) => ((value * 10f64.powi(d)).round() / 10f64.powi(d)) as f32,
                    None => value as f32,
                }
            })
            .collect()
    }

    #[test]
    fn counts_are_recovered_from_every_normalisation() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for (base, decimals) in [
            (Some(LogBase::E), None),
            (Some(LogBase::Two), None),
            (Some(LogBase::Ten), None),
            (None, None),
            (Some(LogBase::E), Some(3)),
        ] {
            let cells: Vec<Vec<f32>> = (0..20).map(|_| counts(&mut rng)).collect();
            let given: Vec<Vec<f32>> = cells.iter().map(|c| normalised(c, base, decimals)).collect();
            let found = detect(given.iter().map(Vec::as_slice));
            let (normalisation, rounding) = found.unwrap_or_else(|| panic!("{base:?} {decimals:?}"));
            assert_eq!(normalisation, base.map_or(Normalisation::Scale, Normalisation::Log));
            assert_eq!(rounding.decimals(), decimals.map(|d| d as u32));
            for (cell, mut values) in cells.into_iter().zip(given) {
                assert_eq!(recover(&mut values, normalisation, rounding), CountEvidence::Supports);
                assert_eq!(values, cell);
            }
        }
    }

    #[test]
    fn counts_of_a_cell_without_a_gene_of_one_count_are_recovered() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        let cell: Vec<f32> = counts(&mut rng).into_iter().map(|c| c + 1.0).collect();
        let mut values = normalised(&cell, Some(LogBase::E), None);
        let exact = Rounding { half_step: 0.0 };
        assert_eq!(recover(&mut values, Normalisation::Log(LogBase::E), exact), CountEvidence::Supports);
        assert_eq!(values, cell);
    }

    #[test]
    fn counts_divided_by_gene_lengths_are_not_taken_for_counts() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let lengths: Vec<f32> = (0..400).map(|_| rng.random_range(300.0..9000.0)).collect();
        for log in [true, false] {
            let cells: Vec<Vec<f32>> = (0..20)
                .map(|_| {
                    let rates: Vec<f32> = counts(&mut rng).iter().zip(&lengths).map(|(c, l)| c / l).collect();
                    let total: f32 = rates.iter().sum();
                    let tpm = rates.iter().map(|r| r / total * 1e6);
                    tpm.map(|v| if log { v.ln_1p() } else { v }).collect()
                })
                .collect();
            assert_eq!(detect(cells.iter().map(Vec::as_slice)), None);
        }
    }

    #[test]
    fn values_are_whole_without_a_fraction() {
        assert!(are_whole(&[0.0, 1.0, 16_777_216.0, 3.0e30]));
        assert!(!are_whole(&[1.0, 0.5]) && !are_whole(&[4_194_303.5]));
    }
}
