//! A run of pretraining: optimiser steps with checkpoints and metrics, until all steps are done, the run is stopped, or
//! the loss shows that it failed.
//!
//! A checkpoint holds everything that the next step needs: weights, moments of the optimiser, and the place of the next
//! cell. Masks are drawn from the seed, the step and the number of the cell in the step. So a run that is killed and
//! started again repeats the same steps; on one thread the weights are bit for bit the same.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::batches::{CellBatches, Positions};
use super::examples::{ExampleMaker, Validation};
use super::loader::{CellReading, read_cells};
use super::measured::MeasuredGenes;
use super::split::{Split, SplitCounts, split};
use super::step_gradients::StepGradients;
use super::targets::Targets;
use crate::error::{Error, Result};
use cellql_model::Weights;
use cellql_store::Store;
use cellql_training::checkpoint::{self, Progress, write_whole};
use cellql_training::learner::{AllReduce, Learner};
use cellql_training::optimiser::{Moments, norm};
use cellql_training::{
    Cell, Example, FlatWeights, GenePanel, LoaderPosition, Loss, LossParts, Mixing, Settings, StepMetrics,
};

/// File of metrics: one JSON object per step and line.
pub const METRICS: &str = "metrics.jsonl";
/// File of the batch whose loss stopped a run.
pub const BAD_BATCH: &str = "bad-batch.json";
/// File that is locked by the process that trains.
const LOCK: &str = "lock";
/// Steps over which the running mean of the loss is taken, with which a spike is compared.
const LOSS_WINDOW: f64 = 50.0;
/// Steps before a spike of the loss can stop a run.
const MIN_SPIKE_STEP: u64 = 20;

/// A run of pretraining, and what it needs.
pub struct Run<'a> {
    /// The store whose cells are read, at the version of the run.
    pub store: &'a Store,
    /// Settings of the run.
    pub settings: &'a Settings,
    /// Folder of its checkpoint and metrics.
    pub folder: &'a Path,
    /// SHA-256 of the model with the initial weights.
    pub start: &'a str,
    /// The linear model whose embeddings are predicted, where the objectives ask for it.
    pub targets: Option<Arc<Targets>>,
    /// Computes losses and gradients.
    pub learner: &'a dyn Learner,
    /// Sums gradients over processes.
    pub all_reduce: &'a dyn AllReduce,
    /// Time between two checkpoints.
    pub checkpoint_every: Duration,
    /// Set by another thread to stop the run after the current step.
    pub stop: &'a AtomicBool,
    /// Called after every step.
    pub on_step: &'a (dyn Fn(&StepMetrics) + Sync),
}

/// Result of [`Run::train`].
#[derive(Debug, Clone)]
pub struct RunResult {
    /// The weights after the last step.
    pub weights: Weights,
    /// The progress after the last step.
    pub progress: Progress,
    /// Numbers of cells of the run.
    pub cells: SplitCounts,
}

impl RunResult {
    /// Whether all steps are done.
    pub fn is_done(&self) -> bool {
        self.progress.step >= self.progress.settings.steps
    }
}

/// What changes from step to step.
struct TrainingState {
    parameters: FlatWeights,
    moments: Moments,
    progress: Progress,
}

impl Run<'_> {
    /// Trains from initial weights, or continues from the checkpoint of the folder.
    ///
    /// # Errors
    /// Settings that are invalid or differ from the checkpoint's, no cells, a store or folder that cannot be read or
    /// written, or a loss that is NaN or a spike.
    pub async fn train(&self, weights: &Weights) -> Result<RunResult> {
        self.settings.check()?;
        let _lock = self.lock()?;
        let split = self.split().await?;
        let mut state = self.state(weights, &split.digest)?;
        let placement = self.store.genes().await?.place(&weights.vocabulary);
        let measured = MeasuredGenes::of(self.store, &placement, weights.vocabulary.len()).await?;
        let reading = CellReading::new(placement, self.targets.clone());
        let validation = read_cells(self.store, &split.validation, &reading).await?;
        let validation = self.examples(&state.parameters).validation(&validation, &measured)?;
        let cells = split.counts();
        if state.progress.step < self.settings.steps {
            let Progress { position, positions_by_dataset, .. } = &state.progress;
            let from = Positions { mixed: *position, of_datasets: positions_by_dataset.clone() };
            let mut loader = self.loader(&split, &reading, &from).await?;
            tokio::task::block_in_place(|| self.steps(&mut state, &mut loader, &measured, &validation))?;
        }
        Ok(RunResult { weights: state.parameters.to_weights()?, progress: state.progress, cells })
    }

    /// The cells to train on and those held out.
    ///
    /// # Errors
    /// As [`split`].
    pub async fn split(&self) -> Result<Split> {
        let Settings { condition, hold_out, validate_cells, .. } = self.settings;
        split(self.store, condition.as_deref(), hold_out, *validate_cells).await
    }

    async fn loader(&self, split: &Split, reading: &CellReading, from: &Positions) -> Result<CellBatches> {
        let Settings { block, blocks, seed, batches, .. } = *self.settings;
        let (rank, ranks) = (self.all_reduce.rank(), self.all_reduce.ranks());
        let mixing = Mixing { block, blocks, seed, rank, ranks };
        CellBatches::start(self.store, split, reading, batches, mixing, from).await
    }

    /// Locks the folder for this process. The system releases the lock when the process ends.
    fn lock(&self) -> Result<File> {
        let path = self.folder.join(LOCK);
        let failed = |e: std::io::Error| Error::input(&path, "lock of the run", format!("cannot be opened: {e}"));
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        file.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => {
                let folder = self.folder.display();
                Error::Request(format!("{folder}: another process trains in this folder; wait for it, or stop it"))
            }
            TryLockError::Error(e) => failed(e),
        })?;
        Ok(file)
    }

    /// The state of the folder's checkpoint, or that before the first step.
    fn state(&self, weights: &Weights, cells_read: &str) -> Result<TrainingState> {
        let mut parameters = FlatWeights::of(weights)?;
        let store_version = self.store.version().version;
        let fresh = Progress {
            settings: self.settings.clone(),
            start: self.start.to_owned(),
            store_version,
            cells_read: cells_read.to_owned(),
            step: 0,
            target: self.targets.as_ref().map(|targets| targets.sha256().to_owned()),
            position: LoaderPosition::default(),
            positions_by_dataset: BTreeMap::new(),
            epoch: 0,
            cells: 0,
            mean_loss: 0.0,
            validation_loss: None,
            mean_tokens: 0.0,
            seconds: 0.0,
        };
        let Some((mut progress, values, moments)) = checkpoint::load(self.folder)? else {
            let moments = Moments::new(parameters.values.len());
            return Ok(TrainingState { parameters, moments, progress: fresh });
        };
        let other = if progress.settings != as_resumed(&fresh.settings, progress.settings.spike)? {
            "settings"
        } else if progress.start != fresh.start || values.len() != parameters.values.len() {
            "initial weights"
        } else if progress.target != fresh.target {
            "target model"
        } else if progress.store_version != store_version || !["", cells_read].contains(&&*progress.cells_read) {
            "cells"
        } else {
            // The threshold of spikes may be changed; otherwise a run that a spike stopped could never continue.
            progress.settings.spike = self.settings.spike;
            parameters.values = values;
            return Ok(TrainingState { parameters, moments, progress });
        };
        Err(Error::Request(format!(
            "{} holds a run with other {other}; give the same to continue it, or another folder with --run",
            self.folder.display()
        )))
    }

    /// Fails if a weight or the validation loss is NaN or infinite, so that no such checkpoint is written.
    fn check_weights(&self, state: &TrainingState) -> Result<()> {
        let is_finite = state.progress.validation_loss.is_none_or(f64::is_finite);
        if is_finite && state.parameters.values.iter().all(|w| w.is_finite()) {
            return Ok(());
        }
        Err(Error::Request(format!(
            "step {}: weights or validation loss are NaN or infinite, so training stopped. Start again with a lower \
             --learning-rate and another --run than {}",
            state.progress.step,
            self.folder.display()
        )))
    }

    fn steps(
        &self,
        state: &mut TrainingState,
        loader: &mut CellBatches,
        measured_genes: &MeasuredGenes,
        validation: &Validation,
    ) -> Result<()> {
        let mut metrics = Metrics::open(&self.folder.join(METRICS), state.progress.step)?;
        let mut saved = Instant::now();
        while state.progress.step < self.settings.steps && !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let mut measured = self.step(state, loader, measured_genes)?;
            let seconds = began.elapsed().as_secs_f64();
            state.progress.seconds += seconds;
            let (step, last) = (state.progress.step, state.progress.step == self.settings.steps);
            if step.is_multiple_of(self.settings.validate_every) || last {
                self.validate(state, validation, &mut measured)?;
            }
            measured.cells_per_second = self.cells_of_step() as f64 / seconds;
            measured.seconds = state.progress.seconds;
            metrics.write(&measured)?;
            (self.on_step)(&measured);
            if saved.elapsed() >= self.checkpoint_every && !last {
                self.save(state)?;
                saved = Instant::now();
            }
        }
        self.save(state)
    }

    fn save(&self, state: &TrainingState) -> Result<()> {
        self.check_weights(state)?;
        // Every rank holds the same weights.
        match self.all_reduce.rank() {
            0 => Ok(checkpoint::save(self.folder, &state.progress, &state.parameters.values, &state.moments)?),
            _ => Ok(()),
        }
    }

    fn cells_of_step(&self) -> usize {
        self.settings.batch * self.settings.accumulate * self.all_reduce.ranks()
    }

    /// Computes the loss of held-out cells, if there are any.
    fn validate(&self, state: &mut TrainingState, held_out: &Validation, measured: &mut StepMetrics) -> Result<()> {
        let objectives = &self.settings.objectives;
        let mut loss = Loss::default();
        if !held_out.examples.is_empty() {
            loss = loss.and(self.learner.loss(&state.parameters, &held_out.examples)?);
        }
        if !held_out.views.is_empty() {
            loss = loss.and(self.learner.loss_of_views(&state.parameters, &held_out.views, objectives)?);
        }
        if loss != Loss::default() {
            measured.validation_parts = LossParts::of(&loss, objectives);
            measured.validation_loss = Some(loss.total(objectives));
            state.progress.validation_loss = measured.validation_loss;
        }
        Ok(())
    }

    /// The loss of examples, over a part of the vocabulary if there is one. Adds the gradient to `flat`.
    fn learn(
        &self,
        state: &TrainingState,
        panel: Option<&GenePanel>,
        examples: &[Example],
        flat: &mut [f32],
    ) -> Result<Loss> {
        let Some(panel) = panel else { return Ok(self.learner.learn(&state.parameters, examples, flat)?) };
        let parameters = panel.weights(&state.parameters)?;
        let examples: Vec<Example> = examples.iter().map(|example| panel.restrict(example)).collect();
        let mut gradient = vec![0.0; parameters.values.len()];
        let loss = self.learner.learn(&parameters, &examples, &mut gradient)?;
        panel.add_gradient(&state.parameters, &gradient, flat)?;
        Ok(loss)
    }

    /// One optimiser step.
    fn step(
        &self,
        state: &mut TrainingState,
        loader: &mut CellBatches,
        measured: &MeasuredGenes,
    ) -> Result<StepMetrics> {
        let (settings, step) = (self.settings, state.progress.step);
        let (mut loss, mut batches, mut tokens) = (Loss::default(), Vec::new(), 0);
        let mut gradients = StepGradients::new(state.parameters.values.len(), settings);
        let maker = self.examples(&state.parameters);
        for part in 0..settings.accumulate {
            let cells = loader.next(settings.batch, (step, part))?;
            if settings.objectives.read_depth > 0.0 {
                let learned = settings.objectives.read_depth_cells.unwrap_or(cells.len()).min(cells.len());
                let examples = maker.of_batch(&cells[..learned], (step, part), measured)?;
                tokens += examples.iter().map(|example| example.seen().count() + 2).sum::<usize>();
                let panel = maker.panel((step, part));
                loss = loss.and(self.learn(state, panel.as_ref(), &examples, &mut gradients.read_depth)?);
            }
            if settings.objectives.use_views() {
                let views = maker.views(&cells, (step, part))?;
                tokens += views.iter().flat_map(|cell| &cell.views).map(|view| view.len()).sum::<usize>();
                let (objectives, flat) = (&settings.objectives, &mut gradients.views);
                // A data set may have no cell with two counts at the model's genes.
                if !views.is_empty() {
                    loss = loss.and(self.learner.learn_views(&state.parameters, &views, objectives, flat)?);
                }
            }
            batches.push(cells);
        }
        let (gradient, loss, scale) = gradients.sum(self.all_reduce, loss, settings)?;
        let (total, gradient_norm) = (loss.total(&settings.objectives), norm(&gradient) * scale);
        self.check(state, total, gradient_norm, &batches)?;
        let rate = settings.adam.rate(step, settings.steps);
        let clipped = scale * (settings.adam.clip / gradient_norm).min(1.0);
        let weights = &mut state.parameters.values;
        state.moments.step(&settings.adam, step, rate, &gradient, clipped, weights);
        let progress = &mut state.progress;
        progress.step += 1;
        let Positions { mixed, of_datasets } = loader.positions();
        (progress.position, progress.positions_by_dataset) = (mixed, of_datasets);
        let here = (settings.batch * settings.accumulate) as f64;
        progress.mean_tokens += (tokens as f64 / here - progress.mean_tokens) / progress.step as f64;
        progress.cells += self.cells_of_step() as u64;
        progress.epoch = loader.epoch(progress.cells);
        let memory = (progress.step as f64).min(LOSS_WINDOW);
        progress.mean_loss += (total - progress.mean_loss) / memory;
        Ok(StepMetrics {
            step: progress.step,
            cells: progress.cells,
            epoch: progress.epoch,
            loss: total,
            parts: LossParts::of(&loss, &settings.objectives),
            validation_parts: None,
            validation_loss: None,
            learning_rate: rate,
            gradient_norm,
            cells_per_second: 0.0,
            seconds: 0.0,
        })
    }

    /// Fails on a loss that is NaN, infinite or a spike, and writes the batch to [`BAD_BATCH`]. The weights are those
    /// before the step.
    fn check(&self, state: &TrainingState, loss: f64, gradient_norm: f64, batches: &[Vec<Cell>]) -> Result<()> {
        let Progress { step, mean_loss, .. } = state.progress;
        let why = if !loss.is_finite() || !gradient_norm.is_finite() {
            format!("the loss is {loss}, the gradient norm {gradient_norm}")
        } else if step >= MIN_SPIKE_STEP && loss > self.settings.spike * mean_loss {
            format!(
                "the loss {loss:.4} is more than {} times the mean of earlier steps, {mean_loss:.4}",
                self.settings.spike
            )
        } else {
            return Ok(());
        };
        let are_finite = self.check_weights(state).is_ok();
        let weights =
            if are_finite { "the weights before it are in" } else { "the weights of an earlier step may be in" };
        if are_finite {
            self.save(state)?;
        }
        let rows: Vec<Vec<u64>> = batches.iter().map(|cells| cells.iter().map(|cell| cell.row).collect()).collect();
        let counts: Vec<_> = batches.iter().flatten().map(|cell| &cell.counts).collect();
        let (seed, folder) = (self.settings.seed, self.folder.display());
        let bad = serde_json::json!({ "step": step, "seed": seed, "why": why, "rows": rows, "counts": counts });
        write_whole(&self.folder.join(BAD_BATCH), bad.to_string().as_bytes())?;
        Err(Error::Request(format!(
            "step {step}: {why}; training stopped. The batch is in {folder}/{BAD_BATCH}, {weights} {folder}/{}. \
             To continue anyway, give a --config with a higher \"spike\"; to start again, a lower --learning-rate and \
             another --run",
            checkpoint::FILE
        )))
    }

    fn examples(&self, parameters: &FlatWeights) -> ExampleMaker<'_> {
        let (rank, ranks) = (self.all_reduce.rank(), self.all_reduce.ranks());
        ExampleMaker { settings: self.settings, genes: parameters.config().n_genes(), rank, ranks }
    }
}

/// Settings as they are read from a checkpoint: floats may lose their last digit in JSON.
fn as_resumed(settings: &Settings, spike: f64) -> Result<Settings> {
    let doing = || Error::internal("comparing a run's settings");
    let text = serde_json::to_string(settings).map_err(doing())?;
    Ok(Settings { spike, ..serde_json::from_str(&text).map_err(doing())? })
}

/// The file of metrics. Each line is written immediately.
struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file to append metrics after a step. Lines of later steps, written before a run was killed, are
    /// removed.
    fn open(path: &Path, step: u64) -> Result<Self> {
        let kept: String = read_metrics(path)?
            .iter()
            .filter(|measured| measured.step <= step)
            .filter_map(|measured| serde_json::to_string(measured).ok())
            .map(|line| line + "\n")
            .collect();
        write_whole(path, kept.as_bytes())?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(Error::internal(format!("writing {}", path.display())))?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn write(&mut self, measured: &StepMetrics) -> Result<()> {
        let doing = format!("writing {}", self.path.display());
        let line = serde_json::to_string(measured).map_err(Error::internal(&doing))? + "\n";
        self.file.write_all(line.as_bytes()).map_err(Error::internal(&doing))
    }
}

/// The metrics of a run, one per step. Lines that are not complete are left out. Empty if there is no file.
///
/// # Errors
/// [`Error::Input`] if the file cannot be read.
pub fn read_metrics(path: &Path) -> Result<Vec<StepMetrics>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::input(path, "metrics of a run", format!("cannot be read: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_json_rounds_are_equal() {
        let mut settings = Settings::default();
        for rate in [1e-3, 1e-4 * 13f64.sqrt(), 0.00015000000000000001, 0.1 + 0.2] {
            settings.adam.learning_rate = rate;
            let kept: Settings = serde_json::from_str(&serde_json::to_string(&settings).unwrap()).unwrap();
            assert_eq!(kept, as_resumed(&settings, settings.spike).unwrap());
        }
    }
}
