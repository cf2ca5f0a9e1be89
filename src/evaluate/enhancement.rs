//! Read-depth enhancement (Hao et al. 2024, Fig. 2): cells are thinned, the model is told their original depth and asked for
//! what it would have seen there.
//!
//! Of each cell with more than 1,000 counts over the model's genes, x → Binomial(x, rate) gene by gene. The model gets the
//! thinned counts with S = log10 of what is left and T = log10 of the original total, and predicts ln(1 + x/total·10⁴) of the
//! original cell. Compared are prediction and original at the genes the original cell expresses; beside it stands the
//! thinned cell itself, normalised the same way. The paper gives MRE's formula and neither says whether values of all cells
//! are pooled; here each measure is taken per cell, and the mean over cells is given.

use cellql_schemas::expr::Profile;
use cellql_schemas::recipe::{Depth, Recipe};
use cellql_schemas::vocabulary::Placement;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Binomial, Distribution};

use super::cells::{Cell, log_normalised};
use crate::error::{Error, Result};
use cellql_analysis::recovery::{mean_absolute_error, mean_relative_error, pearson};
use cellql_model::{Model, Sample};
use cellql_store::progress::OnProgress;

/// Counts a cell must have more than.
const COUNTS: f64 = 1000.0;

/// Means over cells of three measures, at genes that the original cell expresses.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Recovery {
    /// Mean absolute error of ln(1 + x) values.
    pub mae: f64,
    /// Mean of squared error over true value: the paper's MRE.
    pub mre: f64,
    /// Pearson correlation, of the cells where there is one.
    pub pearson: f64,
    /// Pearson correlation over every gene of the vocabulary.
    pub pearson_all: f64,
}

/// What was measured at a rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AtRate {
    /// Part of the counts that was kept.
    pub rate: f64,
    /// Cells.
    pub cells: usize,
    /// The model's prediction.
    pub model: Recovery,
    /// The thinned cells themselves.
    pub thinned: Recovery,
}

/// Judges a model at several rates.
///
/// # Errors
/// A rate that is none, no cell with enough counts, values that are no counts, or memory that does not suffice.
pub fn enhancement(
    model: &Model,
    placement: &Placement,
    cells: &[Cell],
    rates: &[f64],
    seed: u64,
    on_progress: &OnProgress,
) -> Result<Vec<AtRate>> {
    if let Some(rate) = rates.iter().find(|rate| !(**rate > 0.0 && **rate < 1.0)) {
        return Err(Error::Request(format!("rate {rate}: it must lie between 0 and 1")));
    }
    let originals: Vec<Original> = cells.iter().filter_map(|cell| Original::of(cell, model, placement)).collect();
    if originals.is_empty() {
        return Err(Error::Request(format!("no cell has more than {COUNTS} counts over the model's genes")));
    }
    let total = (originals.len() * rates.len()) as u64;
    let mut done = 0;
    let mut results = Vec::new();
    for rate in rates {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut predicted, mut thinned) = (Sums::default(), Sums::default());
        for original in &originals {
            if let Some(left) = original.thinned(*rate, &mut rng)? {
                predicted.add(&original.log, &original.ask(model, placement, &left)?);
                thinned.add(&original.log, &left.log);
            }
            done += 1;
            on_progress(done, Some(total));
        }
        if predicted.cells == 0 {
            return Err(Error::Request(format!(
                "rate {rate}: no cell keeps two counts, of which a depth could be told"
            )));
        }
        let (model, thinned) = (predicted.means(), thinned.means());
        results.push(AtRate { rate: *rate, cells: predicted.cells, model, thinned });
    }
    Ok(results)
}

/// A cell over the model's genes.
struct Original {
    /// Genes of the store at which the model reads, their positions, and counts.
    genes: Vec<(u32, u32, u64)>,
    total: f64,
    /// `[genes of the vocabulary]`.
    log: Vec<f32>,
}

/// What is left of it.
struct Thinned {
    gene_ids: Vec<u32>,
    values: Vec<f32>,
    total: f64,
    log: Vec<f32>,
}

impl Original {
    fn of(cell: &Cell, model: &Model, placement: &Placement) -> Option<Self> {
        let genes: Vec<(u32, u32, u64)> = cell
            .gene_ids
            .iter()
            .zip(&cell.values)
            .filter_map(|(gene, value)| Some((*gene, placement.position(*gene)?, *value as u64)))
            .collect();
        let total = genes.iter().map(|(_, _, count)| *count).sum::<u64>() as f64;
        let log = normalised(&genes, total, model.vocabulary().len());
        (total > COUNTS).then_some(Self { genes, total, log })
    }

    /// Binomially thinned; `None` where fewer than two counts are left, of which no depth can be told.
    fn thinned(&self, rate: f64, rng: &mut ChaCha8Rng) -> Result<Option<Thinned>> {
        let mut left = Vec::new();
        for (gene, position, count) in &self.genes {
            let drawn = Binomial::new(*count, rate).map_err(|e| Error::Request(format!("rate {rate}: {e}")))?;
            let kept = drawn.sample(rng);
            if kept > 0 {
                left.push((*gene, *position, kept));
            }
        }
        let total = left.iter().map(|(_, _, count)| *count).sum::<u64>() as f64;
        let log = normalised(&left, total, self.log.len());
        let (gene_ids, values) = left.into_iter().map(|(gene, _, count)| (gene, count as f32)).unzip();
        Ok((total >= 2.0).then_some(Thinned { gene_ids, values, total, log }))
    }

    /// The model's prediction at the original depth.
    fn ask(&self, model: &Model, placement: &Placement, left: &Thinned) -> Result<Vec<f32>> {
        // T is the original depth exactly: S and what is missing to it.
        let depth = Depth::Add(self.total.log10() - left.total.log10());
        let recipe = Recipe { depth, ..Recipe::of_model(model.name()) };
        let profile = Profile { gene_ids: &left.gene_ids, values: &left.values };
        let sample = Sample { profile, total: None };
        Ok(model.enhance(&recipe, std::iter::once(Some(sample)), placement, usize::MAX)?.vectors)
    }
}

fn normalised(genes: &[(u32, u32, u64)], total: f64, vocabulary: usize) -> Vec<f32> {
    let mut log = vec![0f32; vocabulary];
    for (_, position, count) in genes {
        log[*position as usize] = log_normalised(*count as f64, total);
    }
    log
}

/// Measures summed over cells.
#[derive(Default)]
struct Sums {
    cells: usize,
    mae: f64,
    mre: f64,
    /// With the cells that have one.
    pearson: (f64, usize),
    pearson_all: (f64, usize),
}

impl Sums {
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

    fn means(&self) -> Recovery {
        let (mean, cells) = (|sum: (f64, usize)| sum.0 / sum.1.max(1) as f64, self.cells.max(1) as f64);
        Recovery {
            mae: self.mae / cells,
            mre: self.mre / cells,
            pearson: mean(self.pearson),
            pearson_all: mean(self.pearson_all),
        }
    }
}
