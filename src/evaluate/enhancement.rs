//! Read-depth enhancement (Hao et al. 2024, Fig. 2): cells are downsampled, and the model predicts their expression at
//! the original depth.
//!
//! Each cell with more than 1,000 counts over the model's genes is downsampled gene by gene: x → Binomial(x, rate). The
//! model gets the downsampled counts with S = log10 of their total and T = log10 of the original total, and predicts
//! ln(1 + x/total·10⁴) of the original cell. The prediction is compared with the original at the genes that the
//! original cell expresses. There are two baselines: the downsampled cell, normalised in the same way, and the mean of
//! the other original cells, which knows nothing of the cell. The paper defines MRE but
//! does not say whether the values of all cells are pooled; here every score is computed per cell, and the mean over
//! cells is reported.

use cellql_schemas::expr::Profile;
use cellql_schemas::recipe::{Depth, Recipe};
use cellql_schemas::vocabulary::Placement;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::cells::{LabelledCell, log_normalised};
use crate::error::{Error, Result};
use cellql_analysis::recovery::{mean_absolute_error, mean_relative_error, pearson};
use cellql_model::{Model, Sample};
use cellql_store::progress::OnProgress;
use cellql_training::downsampled;

/// Cells with this many counts or fewer are left out.
const MIN_COUNTS: f64 = 1000.0;

/// How well original cells are recovered: means over cells, at the genes that the original cell expresses.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RecoveryScores {
    /// Mean absolute error of ln(1 + x) values.
    pub mae: f64,
    /// Mean of squared error divided by true value: the MRE of the paper.
    pub mre: f64,
    /// Pearson correlation, over the cells that have one.
    pub pearson: f64,
    /// Pearson correlation over every gene of the vocabulary.
    pub pearson_all: f64,
}

/// Scores at one downsampling rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateScores {
    /// Probability with which each count is kept.
    pub rate: f64,
    /// Number of cells.
    pub cells: usize,
    /// Scores of the model's predictions.
    pub model: RecoveryScores,
    /// Scores of the downsampled cells themselves.
    pub downsampled: RecoveryScores,
    /// Scores of the mean of the other cells; `None` for a single cell.
    pub mean_of_others: Option<RecoveryScores>,
}

/// Evaluates a model at several downsampling rates. `on_progress` is called with cells done, over all rates.
///
/// # Errors
/// A rate that is not between 0 and 1, no cell with enough counts, values that are not counts, or too little memory.
pub fn enhancement(
    model: &Model,
    placement: &Placement,
    cells: &[LabelledCell],
    rates: &[f64],
    seed: u64,
    on_progress: &OnProgress,
) -> Result<Vec<RateScores>> {
    if let Some(rate) = rates.iter().find(|rate| !(**rate > 0.0 && **rate < 1.0)) {
        return Err(Error::Request(format!("--rates {rate}: a rate must be between 0 and 1")));
    }
    let originals: Vec<OriginalCell> =
        cells.iter().filter_map(|cell| OriginalCell::of(cell, model, placement)).collect();
    if originals.is_empty() {
        return Err(Error::Request(format!(
            "no cell has more than {MIN_COUNTS} counts over the model's genes; select other cells"
        )));
    }
    let sum = sum_of(&originals);
    let total = (originals.len() * rates.len()) as u64;
    let mut done = 0;
    let mut results = Vec::new();
    for rate in rates {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let [mut predicted, mut downsampled, mut mean] = [const { ScoreSums::NONE }; 3];
        for original in &originals {
            if let Some(kept) = original.downsample(*rate, &mut rng)? {
                predicted.add(&original.log, &original.predict(model, placement, &kept)?);
                downsampled.add(&original.log, &kept.log);
                if originals.len() > 1 {
                    mean.add(&original.log, &mean_of_others(&sum, originals.len(), original));
                }
            }
            done += 1;
            on_progress(done, Some(total));
        }
        if predicted.cells == 0 {
            return Err(Error::Request(format!(
                "--rates {rate}: no cell keeps the two counts that a depth needs; give a higher rate"
            )));
        }
        results.push(RateScores {
            rate: *rate,
            cells: predicted.cells,
            model: predicted.means(),
            downsampled: downsampled.means(),
            mean_of_others: (mean.cells > 0).then(|| mean.means()),
        });
    }
    Ok(results)
}

/// Sum of the log-normalised counts of cells, `[genes of the vocabulary]`.
fn sum_of(cells: &[OriginalCell]) -> Vec<f64> {
    let mut sum = vec![0f64; cells.first().map_or(0, |cell| cell.log.len())];
    for cell in cells {
        sum.iter_mut().zip(&cell.log).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    sum
}

/// The mean over all of `count` cells but one.
fn mean_of_others(sum: &[f64], count: usize, cell: &OriginalCell) -> Vec<f32> {
    let others = (count - 1) as f64;
    sum.iter().zip(&cell.log).map(|(sum, own)| ((sum - f64::from(*own)) / others) as f32).collect()
}

/// A cell before downsampling, over the genes of the vocabulary.
struct OriginalCell {
    /// Gene id, position in the vocabulary and count of each expressed gene.
    genes: Vec<(u32, u32, u64)>,
    /// Sum of the counts.
    total: f64,
    /// Log-normalised counts, `[genes of the vocabulary]`.
    log: Vec<f32>,
}

/// A cell after downsampling.
struct DownsampledCell {
    /// Ids of the expressed genes, ascending.
    gene_ids: Vec<u32>,
    /// Their counts.
    values: Vec<f32>,
    /// Sum of the counts.
    total: f64,
    /// Log-normalised counts, `[genes of the vocabulary]`.
    log: Vec<f32>,
}

impl OriginalCell {
    fn of(cell: &LabelledCell, model: &Model, placement: &Placement) -> Option<Self> {
        let genes: Vec<(u32, u32, u64)> = cell
            .gene_ids
            .iter()
            .zip(&cell.values)
            .filter_map(|(gene, value)| Some((*gene, placement.position(*gene)?, *value as u64)))
            .collect();
        let total = genes.iter().map(|(_, _, count)| *count).sum::<u64>() as f64;
        let log = log_normalised_genes(&genes, total, model.vocabulary().len());
        (total > MIN_COUNTS).then_some(Self { genes, total, log })
    }

    /// Keeps each count with a probability. `None` if fewer than two counts are kept, which have no depth.
    fn downsample(&self, rate: f64, rng: &mut ChaCha8Rng) -> Result<Option<DownsampledCell>> {
        let mut kept = Vec::new();
        for (gene, position, count) in &self.genes {
            let count = downsampled(*count, rate, rng)?;
            if count > 0 {
                kept.push((*gene, *position, count));
            }
        }
        let total = kept.iter().map(|(_, _, count)| *count).sum::<u64>() as f64;
        let log = log_normalised_genes(&kept, total, self.log.len());
        let (gene_ids, values) = kept.into_iter().map(|(gene, _, count)| (gene, count as f32)).unzip();
        Ok((total >= 2.0).then_some(DownsampledCell { gene_ids, values, total, log }))
    }

    /// The model's prediction at the original depth, `[genes of the vocabulary]`.
    fn predict(&self, model: &Model, placement: &Placement, kept: &DownsampledCell) -> Result<Vec<f32>> {
        // T is the original depth: the depth S of the downsampled cell plus the difference.
        let depth = Depth::Add(self.total.log10() - kept.total.log10());
        let recipe = Recipe { depth, ..Recipe::of_model(model.name()) };
        let profile = Profile { gene_ids: &kept.gene_ids, values: &kept.values };
        let sample = Sample { profile, total: None };
        Ok(model.enhance(&recipe, std::iter::once(Some(sample)), placement, usize::MAX)?.vectors)
    }
}

/// Log-normalised counts, `[genes of the vocabulary]`, of genes given by id, position and count.
fn log_normalised_genes(genes: &[(u32, u32, u64)], total: f64, vocabulary: usize) -> Vec<f32> {
    let mut log = vec![0f32; vocabulary];
    for (_, position, count) in genes {
        log[*position as usize] = log_normalised(*count as f64, total);
    }
    log
}

/// Sums of scores over cells.
struct ScoreSums {
    cells: usize,
    mae: f64,
    mre: f64,
    /// Sum, and number of cells that have a correlation.
    pearson: (f64, usize),
    pearson_all: (f64, usize),
}

impl ScoreSums {
    const NONE: Self = Self { cells: 0, mae: 0.0, mre: 0.0, pearson: (0.0, 0), pearson_all: (0.0, 0) };

    fn add(&mut self, truth: &[f32], predicted: &[f32]) {
        let expressed: Vec<usize> = (0..truth.len()).filter(|i| truth[*i] > 0.0).collect();
        let at = |values: &[f32]| -> Vec<f32> { expressed.iter().map(|i| values[*i]).collect() };
        let (true_there, predicted_there) = (at(truth), at(predicted));
        self.cells += 1;
        self.mae += mean_absolute_error(&predicted_there, &true_there).unwrap_or_default();
        self.mre += mean_relative_error(&predicted_there, &true_there).unwrap_or_default();
        let both = [
            (&mut self.pearson, pearson(&predicted_there, &true_there)),
            (&mut self.pearson_all, pearson(predicted, truth)),
        ];
        for (sum, found) in both {
            if let Some(found) = found {
                *sum = (sum.0 + found, sum.1 + 1);
            }
        }
    }

    fn means(&self) -> RecoveryScores {
        let (mean, cells) = (|sum: (f64, usize)| sum.0 / sum.1.max(1) as f64, self.cells.max(1) as f64);
        RecoveryScores {
            mae: self.mae / cells,
            mre: self.mre / cells,
            pearson: mean(self.pearson),
            pearson_all: mean(self.pearson_all),
        }
    }
}
