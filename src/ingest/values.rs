//! What a file's values are: counts, counts that were normalised and can be had back, or neither.
//!
//! Counts are had back as the scFoundation paper does it: after undoing log(1 + x), the smallest non-zero value of a cell
//! is one count. That is believed only where every value of every kept cell then is a whole number within
//! [`TOLERANCE`] plus what the values' own precision allows, never more than [`MOST_TOLERANCE`], and where most cells have
//! enough values for this to be no accident. TPM and the like, divided by a length per gene, fail it.

use cellql_schemas::cells::ValueKind;

/// How far a recovered count may lie from a whole number, beside the rounding of the file.
const TOLERANCE: f64 = 0.01;
/// The most that rounding may add up to: beyond, the whole number is not certain.
const MOST_TOLERANCE: f64 = 0.25;
/// The largest count that f32 holds exactly.
const MOST_COUNT: f64 = 16_777_216.0;
/// Values of at least two counts that a cell needs to tell something.
const TELLING_VALUES: usize = 8;
/// A cell without a gene of one count has its smallest value at two, three or four.
const MOST_IN_SMALLEST: u32 = 4;

/// How values are read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Reading {
    /// Whole numbers, taken as they are.
    Counts,
    /// Normalised counts, turned back.
    Recovered(Undo, Precision),
    /// As they are.
    AsGiven,
}

/// What was done to counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undo {
    /// Multiplied by a number per cell.
    Scale,
    /// That, and then log(1 + x) to this base.
    Log(Base),
}

/// Base of a logarithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    E,
    Two,
    Ten,
}

/// How exactly values are written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Precision {
    /// Half of the last decimal, where values are rounded to decimals; else 0.
    half_step: f64,
}

impl Reading {
    pub(super) fn kind(self) -> ValueKind {
        match self {
            Reading::Counts => ValueKind::Counts,
            Reading::Recovered(..) => ValueKind::Recovered,
            Reading::AsGiven => ValueKind::Normalised,
        }
    }

    /// A sentence for the user; nothing where there is nothing to tell.
    pub(super) fn note(self) -> Option<String> {
        let Reading::Recovered(undo, precision) = self else { return None };
        let undone = match undo {
            Undo::Scale => "a factor per cell".to_owned(),
            Undo::Log(base) => format!("log{}(1 + x) and a factor per cell", base.name()),
        };
        let rounding = match precision.half_step > 0.0 {
            true => format!(" plus the file's rounding to {} decimals", (-(precision.half_step * 2.0).log10()).round()),
            false => String::new(),
        };
        Some(format!(
            "counts were recovered by undoing {undone}; the smallest value of a cell is one count, and every value is \
             whole within {TOLERANCE}{rounding}"
        ))
    }
}

impl Base {
    fn name(self) -> &'static str {
        match self {
            Base::E => "",
            Base::Two => "2",
            Base::Ten => "10",
        }
    }

    fn ln(self) -> f64 {
        match self {
            Base::E => 1.0,
            Base::Two => std::f64::consts::LN_2,
            Base::Ten => std::f64::consts::LN_10,
        }
    }
}

/// What one cell says about a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its values contradict it.
    Against,
    /// They fit, but would fit by accident too.
    Silent,
    /// They fit.
    For,
}

/// The reading that the first cells of a file suggest when they are no counts.
pub(super) fn suggest<'a>(cells: impl Iterator<Item = &'a [f32]> + Clone) -> Reading {
    let precision = Precision::of(cells.clone().flatten().copied());
    let undone = [Undo::Log(Base::E), Undo::Log(Base::Two), Undo::Log(Base::Ten), Undo::Scale];
    let fits = |undo: &Undo| {
        let verdicts: Vec<Verdict> = cells.clone().map(|c| recover(&mut c.to_vec(), *undo, precision)).collect();
        verdicts.contains(&Verdict::For) && !verdicts.contains(&Verdict::Against)
    };
    undone.into_iter().find(fits).map_or(Reading::AsGiven, |undo| Reading::Recovered(undo, precision))
}

impl Precision {
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

    fn error_of(self, value: f64) -> f64 {
        self.half_step + value.abs() * f64::from(f32::EPSILON)
    }
}

/// Turns a cell's values back into counts, where they fit.
pub(super) fn recover(values: &mut [f32], undo: Undo, precision: Precision) -> Verdict {
    let undone: Vec<(f64, f64)> = values
        .iter()
        .map(|&v| {
            let (v, error) = (f64::from(v), precision.error_of(f64::from(v)));
            match undo {
                Undo::Scale => (v, error),
                Undo::Log(base) => {
                    let x = (v * base.ln()).exp_m1();
                    (x, error * base.ln() * (x + 1.0))
                }
            }
        })
        .collect();
    // Genes of equal counts have the same rounding error: together they tell no more than one.
    let mut distinct = undone.clone();
    distinct.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    distinct.dedup_by(|a, b| a.0 == b.0);
    let Some(&smallest) = distinct.first() else {
        return Verdict::Silent;
    };
    if !undone.iter().all(|(x, _)| x.is_finite()) || smallest.0 <= 0.0 {
        return Verdict::Against;
    }
    for in_smallest in 1..=MOST_IN_SMALLEST {
        let unit = (smallest.0 / f64::from(in_smallest), smallest.1 / f64::from(in_smallest));
        let unit = refine(unit, &distinct);
        if let Some(telling) = whole(unit, &undone, values) {
            return if telling >= TELLING_VALUES { Verdict::For } else { Verdict::Silent };
        }
    }
    Verdict::Against
}

/// One count, more exactly: every value whose number of counts is certain helps.
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

/// Writes the counts, where every value is a whole number of units; and how many values tell something.
fn whole((unit, error): (f64, f64), undone: &[(f64, f64)], values: &mut [f32]) -> Option<usize> {
    let mut telling = 0;
    let mut counts = Vec::with_capacity(undone.len());
    for (x, dx) in undone {
        let exact = x / unit;
        let count = exact.round();
        // Three times the error that is left in the unit: it is a standard deviation.
        let tolerance = TOLERANCE + dx / unit + 3.0 * count * error / unit;
        if tolerance > MOST_TOLERANCE || (exact - count).abs() > tolerance || !(1.0..=MOST_COUNT).contains(&count) {
            return None;
        }
        telling += usize::from(count >= 2.0 && tolerance < 0.1);
        counts.push(count as f32);
    }
    values.copy_from_slice(&counts);
    Some(telling)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    fn counts(rng: &mut impl Rng) -> Vec<f32> {
        (0..400).map(|_| 1.0 + (rng.random::<f32>().powi(-1).min(150.0) - 1.0).floor()).collect()
    }

    fn normalised(counts: &[f32], base: Option<Base>, decimals: Option<i32>) -> Vec<f32> {
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
    fn normalised_counts_are_had_back_whatever_was_done() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for (base, decimals) in [
            (Some(Base::E), None),
            (Some(Base::Two), None),
            (Some(Base::Ten), None),
            (None, None),
            (Some(Base::E), Some(3)),
        ] {
            let cells: Vec<Vec<f32>> = (0..20).map(|_| counts(&mut rng)).collect();
            let given: Vec<Vec<f32>> = cells.iter().map(|c| normalised(c, base, decimals)).collect();
            let reading = suggest(given.iter().map(Vec::as_slice));
            let Reading::Recovered(undo, precision) = reading else { panic!("{base:?} {decimals:?}") };
            assert_eq!(undo, base.map_or(Undo::Scale, Undo::Log));
            for (cell, mut values) in cells.into_iter().zip(given) {
                assert_eq!(recover(&mut values, undo, precision), Verdict::For);
                assert_eq!(values, cell);
            }
        }
    }

    #[test]
    fn a_cell_without_a_gene_of_one_count_is_had_back_too() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        let cell: Vec<f32> = counts(&mut rng).into_iter().map(|c| c + 1.0).collect();
        let mut values = normalised(&cell, Some(Base::E), None);
        let precision = Precision { half_step: 0.0 };
        assert_eq!(recover(&mut values, Undo::Log(Base::E), precision), Verdict::For);
        assert_eq!(values, cell);
    }

    #[test]
    fn counts_divided_by_gene_lengths_are_never_taken_for_counts() {
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
            assert_eq!(suggest(cells.iter().map(Vec::as_slice)), Reading::AsGiven);
        }
    }
}
