//! The pretraining task of scFoundation: read-depth-aware masked regression (RDA).
//!
//! A cell's counts are downsampled with some probability and log-normalised, and some genes are masked; the model
//! predicts the values of the full cell at the masked genes. Where the paper refers to its supplement, the constants in
//! [`ReadDepthAware`] are our reading: the Beta distribution, the probability of downsampling, and the random value
//! (one of the cell's own inputs).
//!
//! ```
//! use cellql_training::{ReadDepthAware, seeded};
//!
//! let task = ReadDepthAware { masked: 1.0, hidden: 1.0, random: 0.0, ..ReadDepthAware::default() };
//! // Counts at positions 0 and 3 of a vocabulary of five genes.
//! let example = task.example(&[(0, 6.0), (3, 4.0)], 5, None, &mut seeded(&[b"example"]))?.unwrap();
//! assert!(example.hidden.contains(&0) && example.hidden.contains(&3), "every expressed gene is masked");
//! assert_eq!(example.target_depth, 1.0, "log10 of ten counts");
//! # Ok::<(), cellql_training::TrainingError>(())
//! ```

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_distr::{Beta, Distribution};
use serde::{Deserialize, Serialize};

use crate::downsampling::downsampled;
use crate::error::{Result, TrainingError};

/// The largest count. Sums of counts up to it are exact in 64 bits.
const MOST: f32 = 1e9;

/// Read-depth-aware masked regression (RDA): constants of the task. The JSON keys of settings files say `thinned_from`,
/// `thinned` and `kept`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReadDepthAware {
    /// Cells with a smaller total count are not downsampled.
    #[serde(rename = "thinned_from")]
    pub downsampled_from: f64,
    /// Probability that another cell is downsampled.
    #[serde(rename = "thinned")]
    pub downsampled: f64,
    /// α and β of the Beta distribution of the fraction of counts that downsampling keeps.
    #[serde(rename = "kept")]
    pub kept_fraction: (f64, f64),
    /// Counts per cell after normalisation.
    pub scale: f64,
    /// Fraction of the expressed genes that is masked.
    pub masked: f64,
    /// Fraction of the other genes that is masked.
    pub masked_zeros: f64,
    /// Fraction of the masked genes that the model sees as the mask token.
    pub hidden: f64,
    /// Fraction of the masked genes that the model sees with a random value. The rest keeps its own value.
    pub random: f64,
}

impl Default for ReadDepthAware {
    /// As the authors' published configuration and the paper have it.
    fn default() -> Self {
        Self {
            downsampled_from: 1000.0,
            downsampled: 0.5,
            kept_fraction: (2.0, 2.0),
            scale: 1e4,
            masked: 0.3,
            masked_zeros: 0.03,
            hidden: 0.8,
            random: 0.1,
        }
    }
}

/// A training example made of one cell. Positions are those of the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// `[genes]`: ln(1 + x) of the input. At hidden positions, the value that the mask token replaces.
    pub input: Vec<f32>,
    /// `[genes]`: ln(1 + x) of the full cell.
    pub target: Vec<f32>,
    /// Positions of the loss, ascending.
    pub masked: Vec<u32>,
    /// Those masked positions that the encoder does not read and the decoder reads as the mask token. Ascending.
    pub hidden: Vec<u32>,
    /// log10 of the total of the full cell: T, the depth to be predicted.
    pub target_depth: f32,
    /// log10 of the total after downsampling: S, the depth of the input.
    pub source_depth: f32,
}

impl Example {
    /// Positions that enter the encoder: above zero and not hidden.
    pub fn seen(&self) -> impl Iterator<Item = u32> {
        let hidden = &self.hidden;
        let all = self.input.iter().enumerate().filter(|(_, value)| **value > 0.0).map(|(at, _)| at as u32);
        all.filter(|at| hidden.binary_search(at).is_err())
    }

    /// Tokens of the encoder, positions and values: the seen genes, then T and S.
    pub fn tokens(&self) -> (Vec<u32>, Vec<f32>) {
        let genes = self.input.len() as u32;
        let mut positions: Vec<u32> = self.seen().collect();
        let mut values: Vec<f32> = positions.iter().map(|at| self.input[*at as usize]).collect();
        positions.extend([genes, genes + 1]);
        values.extend([self.target_depth, self.source_depth]);
        (positions, values)
    }
}

impl ReadDepthAware {
    /// Checks the constants.
    ///
    /// # Errors
    /// [`TrainingError::Setting`] naming the first invalid one.
    pub fn check(&self) -> Result<()> {
        let parts = [
            ("thinned", self.downsampled),
            ("masked", self.masked),
            ("masked_zeros", self.masked_zeros),
            ("hidden", self.hidden),
            ("random", self.random),
            ("hidden + random", self.hidden + self.random),
        ];
        let wrong = |name: &str, value: f64, is: &str| TrainingError::setting(&format!("task: {name} ="), value, is);
        if let Some((name, value)) = parts.into_iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
            return Err(wrong(name, value, "a part, 0 to 1"));
        }
        let above = [("kept (α)", self.kept_fraction.0), ("kept (β)", self.kept_fraction.1), ("scale", self.scale)];
        if let Some((name, value)) = above.into_iter().find(|(_, value)| !(*value > 0.0 && value.is_finite())) {
            return Err(wrong(name, value, "above 0"));
        }
        Ok(())
    }

    /// Makes an example of a cell, from counts at ascending positions of a vocabulary of `genes` genes. `None` for a
    /// cell of fewer than two counts, whose depth would not be above zero. Zeros are masked only at `measured`
    /// positions (`None`: all), because the values at the others are unknown.
    ///
    /// # Errors
    /// Values that are no counts, or constants that [`ReadDepthAware::check`] refuses.
    pub fn example(
        &self,
        counts: &[(u32, f32)],
        genes: usize,
        measured: Option<&[bool]>,
        rng: &mut impl Rng,
    ) -> Result<Option<Example>> {
        let Some((full, total)) = whole_counts(counts, genes)? else { return Ok(None) };
        let input = self.downsample(&full, total, rng)?;
        let left: u64 = input.iter().sum();
        let target = self.log_normalised(&full, total);
        let input = self.log_normalised(&input, left);
        let depths = ((total as f64).log10() as f32, (left as f64).log10() as f32);
        Ok(Some(self.mask(input, target, depths, measured, rng)))
    }

    /// The expressed genes of a cell as RDA draws its input, before masking: positions with ln(1 + x), then T and S.
    /// `None` for a cell of fewer than two counts.
    ///
    /// # Errors
    /// As [`ReadDepthAware::example`].
    pub(crate) fn input(&self, counts: &[(u32, f32)], genes: usize, rng: &mut impl Rng) -> Result<Option<Input>> {
        let Some((full, total)) = whole_counts(counts, genes)? else { return Ok(None) };
        let input = self.downsample(&full, total, rng)?;
        let left: u64 = input.iter().sum();
        let scale = self.scale / left as f64;
        let expressed = (0u32..).zip(&input).filter(|(_, count)| **count > 0);
        let values = expressed.map(|(at, count)| (at, (*count as f64 * scale).ln_1p() as f32)).collect();
        Ok(Some((values, (total as f64).log10() as f32, (left as f64).log10() as f32)))
    }

    /// x → Binomial(x, b) gene by gene, b ~ Beta, or x as it is.
    fn downsample(&self, full: &[u64], total: u64, rng: &mut impl Rng) -> Result<Vec<u64>> {
        if (total as f64) < self.downsampled_from || !rng.random_bool(self.downsampled) {
            return Ok(full.to_vec());
        }
        let wrong = |e: &dyn std::fmt::Display| {
            TrainingError::setting(
                "task: kept =",
                format!("{:?}", self.kept_fraction),
                format!("parameters of a beta distribution: {e}"),
            )
        };
        let part = Beta::new(self.kept_fraction.0, self.kept_fraction.1).map_err(|e| wrong(&e))?;
        loop {
            let part = part.sample(rng);
            let kept = full.iter().map(|count| downsampled(*count, part, rng)).collect::<Result<Vec<u64>>>()?;
            // Fewer counts have no depth above zero. That happens about once in a million draws.
            if kept.iter().sum::<u64>() >= 2 {
                return Ok(kept);
            }
        }
    }

    fn log_normalised(&self, counts: &[u64], total: u64) -> Vec<f32> {
        let scale = self.scale / total as f64;
        counts.iter().map(|&count| (count as f64 * scale).ln_1p() as f32).collect()
    }

    fn mask(
        &self,
        mut input: Vec<f32>,
        target: Vec<f32>,
        (depth, source): (f32, f32),
        measured: Option<&[bool]>,
        rng: &mut impl Rng,
    ) -> Example {
        let own: Vec<f32> = input.iter().copied().filter(|value| *value > 0.0).collect();
        let (mut masked, mut hidden) = (Vec::new(), Vec::new());
        for (at, value) in input.iter_mut().enumerate() {
            let is_masked = rng.random_bool(if *value > 0.0 { self.masked } else { self.masked_zeros });
            if !is_masked || measured.is_some_and(|measured| !measured[at]) {
                continue;
            }
            masked.push(at as u32);
            let what = rng.random::<f64>();
            if what < self.hidden {
                hidden.push(at as u32);
            } else if what < self.hidden + self.random {
                *value = own.choose(rng).copied().unwrap_or_default();
            }
        }
        Example { input, target, masked, hidden, target_depth: depth, source_depth: source }
    }
}

/// Expressed genes with their values, T, and S.
type Input = (Vec<(u32, f32)>, f32, f32);

/// Counts of every gene, and their total; `None` for a total below two.
fn whole_counts(counts: &[(u32, f32)], genes: usize) -> Result<Option<(Vec<u64>, u64)>> {
    let mut full = vec![0u64; genes];
    for &(at, value) in counts {
        let place = full.get_mut(at as usize).filter(|_| (0.0..=MOST).contains(&value) && value.fract() == 0.0);
        let place = place.ok_or(TrainingError::NotCounts { value, position: at, genes })?;
        *place = value as u64;
    }
    let total: u64 = full.iter().sum();
    Ok((total >= 2).then_some((full, total)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    const GENES: usize = 2000;

    /// 400 expressed genes: 40 counts of gene 0, 1 to 5 of every fifth.
    fn cell() -> Vec<(u32, f32)> {
        (0..400).map(|i| (5 * i, if i == 0 { 40.0 } else { (i % 5 + 1) as f32 })).collect()
    }

    fn examples(task: &ReadDepthAware, counts: &[(u32, f32)], n: usize) -> Vec<Example> {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        (0..n).map(|_| task.example(counts, GENES, None, &mut rng).unwrap().unwrap()).collect()
    }

    fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
        let n = values.len() as f64;
        values.sum::<f64>() / n
    }

    #[test]
    fn counts_are_downsampled_by_a_binomial_whose_fraction_is_a_beta() {
        // No mask, so that the input can be turned back into counts.
        let task = ReadDepthAware { masked: 0.0, masked_zeros: 0.0, ..ReadDepthAware::default() };
        let total: f64 = cell().iter().map(|(_, v)| f64::from(*v)).sum();
        let all = examples(&task, &cell(), 8000);
        let (downsampled, whole): (Vec<_>, Vec<_>) = all.iter().partition(|e| e.source_depth < e.target_depth);
        let share = downsampled.len() as f64 / all.len() as f64;
        assert!((share - 0.5).abs() < 0.02, "half are downsampled: {share}");
        assert!(whole.iter().all(|e| e.input == e.target), "the others are as they were");
        let left = |e: &Example| 10f64.powf(f64::from(e.source_depth));
        // E b = 1/2, Var b = 1/20: of a total n, mean n/2 and variance n·E b(1 − b) + n²·Var b = n/5 + n²/20.
        let parts = mean(downsampled.iter().map(|e| left(e) / total));
        let spread = mean(downsampled.iter().map(|e| (left(e) / total - 0.5).powi(2)));
        assert!((parts - 0.5).abs() < 0.012, "{parts}");
        assert!((spread - (0.2 / total + 0.05)).abs() < 0.004, "{spread}");
        // Gene 0, with 40 counts: mean 20, variance 40/5 + 1600/20 = 88.
        let of_gene = |e: &Example| (f64::from(e.input[0]).exp_m1() * left(e) / 1e4).round();
        let (m, v) = (
            mean(downsampled.iter().map(|e| of_gene(e))),
            mean(downsampled.iter().map(|e| (of_gene(e) - 20.0).powi(2))),
        );
        assert!((m - 20.0).abs() < 0.6 && (v - 88.0).abs() < 6.0, "{m} {v}");
    }

    #[test]
    fn depths_and_targets_are_those_of_the_full_cell() {
        let total: f64 = cell().iter().map(|(_, v)| f64::from(*v)).sum();
        for example in examples(&ReadDepthAware::default(), &cell(), 50) {
            assert!((f64::from(example.target_depth) - total.log10()).abs() < 1e-6);
            for (at, count) in cell() {
                let exact = (f64::from(count) / total * 1e4).ln_1p();
                assert!((f64::from(example.target[at as usize]) - exact).abs() < 1e-5);
            }
            assert_eq!(example.target.iter().filter(|v| **v > 0.0).count(), 400);
        }
    }

    #[test]
    fn cells_of_little_depth_are_not_downsampled() {
        let shallow: Vec<(u32, f32)> = (0..333).map(|i| (i, 3.0)).collect();
        assert!(examples(&ReadDepthAware::default(), &shallow, 200).iter().all(|e| e.source_depth == e.target_depth));
    }

    #[test]
    fn a_part_is_masked_and_most_of_it_hidden() {
        let task = ReadDepthAware { downsampled: 0.0, ..ReadDepthAware::default() };
        let all = examples(&task, &cell(), 500);
        let (mut nonzero, mut zero, mut hidden, mut changed, mut same) = (0, 0, 0, 0, 0);
        for example in &all {
            let own: Vec<f32> = example.target.iter().copied().filter(|v| *v > 0.0).collect();
            for &at in &example.masked {
                let (now, before) = (example.input[at as usize], example.target[at as usize]);
                (if before > 0.0 { nonzero += 1 } else { zero += 1 });
                match example.hidden.binary_search(&at) {
                    Ok(_) => hidden += 1,
                    Err(_) if now == before => same += 1,
                    Err(_) => {
                        changed += 1;
                        assert!(own.contains(&now), "a random value is one of the cell's");
                    }
                }
            }
            let touched: Vec<u32> =
                (0..GENES as u32).filter(|at| example.input[*at as usize] != example.target[*at as usize]).collect();
            assert!(touched.iter().all(|at| example.masked.binary_search(at).is_ok()), "only masked genes change");
            let seen: Vec<u32> = example.seen().collect();
            assert!(seen.iter().all(|at| example.input[*at as usize] > 0.0 && !example.hidden.contains(at)));
        }
        let part = |n: i32, of: f64| f64::from(n) / of;
        let masked = f64::from(nonzero + zero);
        assert!((part(nonzero, 500.0 * 400.0) - 0.3).abs() < 0.005);
        assert!((part(zero, 500.0 * 1600.0) - 0.03).abs() < 0.002);
        assert!((part(hidden, masked) - 0.8).abs() < 0.01);
        // A random value may be the gene's own: of expressed genes one in five has each of the five values.
        assert!(part(changed, masked) > 0.075 && part(changed, masked) < 0.105, "{}", part(changed, masked));
        assert!((part(same, masked) - 0.1).abs() < 0.025);
    }

    #[test]
    fn genes_that_were_not_measured_are_never_masked() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let measured: Vec<bool> = (0..GENES).map(|at| at % 5 == 0 || at % 2 == 0).collect();
        let task = ReadDepthAware { masked_zeros: 0.5, ..ReadDepthAware::default() };
        let example = task.example(&cell(), GENES, Some(&measured), &mut rng).unwrap().unwrap();
        assert!(example.masked.iter().all(|at| measured[*at as usize]));
        let zeros = example.masked.iter().filter(|at| **at % 5 != 0).count();
        assert!((300..500).contains(&zeros), "half of 800 zeros: {zeros}");
    }

    #[test]
    fn what_is_no_cell_is_refused() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let task = ReadDepthAware::default();
        assert_eq!(task.example(&[(3, 1.0)], 10, None, &mut rng).unwrap(), None);
        for wrong in [(3, 1.5), (10, 1.0), (3, -1.0), (3, f32::NAN), (3, f32::INFINITY), (3, 1e30)] {
            assert!(task.example(&[wrong], 10, None, &mut rng).is_err(), "{wrong:?}");
        }
        assert!(ReadDepthAware { masked: 1.2, ..ReadDepthAware::default() }.check().is_err());
        assert!(ReadDepthAware { hidden: 0.8, random: 0.3, ..ReadDepthAware::default() }.check().is_err());
        assert!(ReadDepthAware { kept_fraction: (0.0, 2.0), ..ReadDepthAware::default() }.check().is_err());
        ReadDepthAware::default().check().unwrap();
    }

    #[test]
    fn keys_of_settings_files_are_those_of_earlier_runs() {
        let task = ReadDepthAware {
            downsampled_from: 7.0,
            downsampled: 0.25,
            kept_fraction: (3.0, 4.0),
            ..Default::default()
        };
        let json = serde_json::to_value(&task).unwrap();
        assert_eq!((&json["thinned_from"], &json["thinned"]), (&7.0.into(), &0.25.into()));
        assert_eq!(serde_json::from_value::<ReadDepthAware>(json).unwrap(), task);
    }

    #[test]
    fn a_seed_gives_the_same_examples() {
        assert_eq!(examples(&ReadDepthAware::default(), &cell(), 3), examples(&ReadDepthAware::default(), &cell(), 3));
    }
}
