//! A run of pretraining: step after step, with what is seen of it, until it is done, stopped, or wrong.
//!
//! Everything a step needs is in the checkpoint before it: weights, moments, and the place of the next cell. Masks come
//! from the seed, the step and the cell's number in it. So a run that is killed anywhere and started again goes through
//! the same steps, on one thread to the same bits.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cellql_schemas::vocabulary::Placement;
use rayon::prelude::*;

use super::loader::{Loader, read_cells};
use super::measured::MeasuredGenes;
use super::split::{Split, split};
use crate::error::{Error, Result};
use cellql_model::Weights;
use cellql_store::Store;
use cellql_training::checkpoint::{self, Progress, write_whole};
use cellql_training::learner::{AllReduce, Learner};
use cellql_training::optimiser::{Moments, norm};
use cellql_training::{Cell, Example, LoaderPosition, Loss, Mixing, Parameters, Settings, StepMetrics, seeded};

/// File of what was measured, a JSON object a line.
pub const METRICS: &str = "metrics.jsonl";
/// The batch that stopped a run.
pub const BAD_BATCH: &str = "bad-batch.json";
/// Locked by the process that goes on with a run.
const LOCK: &str = "lock";
/// Losses that a sudden one is compared with: their mean forgets one part in so many a step.
const MEMORY: f64 = 50.0;
/// Steps before a sudden loss stops a run.
const CALM: u64 = 20;

/// What a run is made of.
pub struct Run<'a> {
    /// The store as it is read.
    pub store: &'a Store,
    /// How.
    pub settings: &'a Settings,
    /// Where its checkpoint and metrics are.
    pub folder: &'a Path,
    /// SHA-256 of the model it begins with.
    pub start: &'a str,
    /// Who computes.
    pub learner: &'a dyn Learner,
    /// With whom.
    pub all_reduce: &'a dyn AllReduce,
    /// Time between two checkpoints.
    pub checkpoint_every: Duration,
    /// Set from elsewhere to stop after the step that runs.
    pub stop: &'a AtomicBool,
    /// Told of every step.
    pub tell: &'a (dyn Fn(&StepMetrics) + Sync),
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The weights.
    pub weights: Weights,
    /// Where it stands; done if all steps are.
    pub progress: Progress,
    /// Cells to learn from, held out, and left out as duplicates.
    pub cells: (u64, u64, u64),
}

impl Ended {
    /// Whether every step was done.
    pub fn is_done(&self) -> bool {
        self.progress.step >= self.progress.settings.steps
    }
}

struct State {
    parameters: Parameters,
    moments: Moments,
    progress: Progress,
}

impl Run<'_> {
    /// Trains from weights, or goes on where the folder's checkpoint is.
    ///
    /// # Errors
    /// Settings that make no sense or differ from the checkpoint's, no cells, a store or folder that cannot be read or
    /// written, or a loss that is no number or far above those before it.
    pub async fn go(&self, weights: &Weights) -> Result<Ended> {
        self.settings.check()?;
        let _lock = self.lock()?;
        let split = self.split().await?;
        let mut state = self.state(weights, &split.digest)?;
        let placement = self.store.genes().await?.place(&weights.vocabulary);
        let measured = MeasuredGenes::of(self.store, &placement, weights.vocabulary.len()).await?;
        let watched = read_cells(self.store, &split.watched, &placement).await?;
        let watched = self.examples_watched(&watched, &measured, &state)?;
        let cells = (split.train.len(), split.held.len(), split.duplicates);
        if state.progress.step < self.settings.steps {
            let mut loader = self.loader(&split, placement, state.progress.position).await?;
            tokio::task::block_in_place(|| self.steps(&mut state, &mut loader, &measured, &watched))?;
        }
        Ok(Ended { weights: state.parameters.to_weights()?, progress: state.progress, cells })
    }

    /// Which cells.
    ///
    /// # Errors
    /// As [`split`].
    pub async fn split(&self) -> Result<Split> {
        let Settings { condition, hold_out, validate_cells, .. } = self.settings;
        split(self.store, condition.as_deref(), hold_out, *validate_cells).await
    }

    async fn loader(&self, split: &Split, placement: Placement, from: LoaderPosition) -> Result<Loader> {
        let Settings { block, blocks, seed, .. } = *self.settings;
        let (rank, ranks) = (self.all_reduce.rank(), self.all_reduce.ranks());
        let from = if from == LoaderPosition::default() { LoaderPosition { chunk: rank as u64, ..from } } else { from };
        Loader::start(self.store, split, placement, Mixing { block, blocks, seed, rank, ranks }, from).await
    }

    /// Held while the run goes on, and let go by the system whatever ends the process.
    fn lock(&self) -> Result<File> {
        let path = self.folder.join(LOCK);
        let doing = || Error::internal(format!("opening {}", path.display()));
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(doing())?;
        file.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => {
                let folder = self.folder.display();
                Error::Request(format!("{folder}: another process goes on with this run; wait for it, or stop it"))
            }
            TryLockError::Error(e) => doing()(e),
        })?;
        Ok(file)
    }

    /// The folder's checkpoint, or a run that begins.
    fn state(&self, weights: &Weights, cells_read: &str) -> Result<State> {
        let mut parameters = Parameters::of(weights)?;
        let store_version = self.store.version().version;
        let fresh = Progress {
            settings: self.settings.clone(),
            start: self.start.to_owned(),
            store_version,
            cells_read: cells_read.to_owned(),
            step: 0,
            position: LoaderPosition::default(),
            cells: 0,
            mean_loss: 0.0,
            validation_loss: None,
            mean_tokens: 0.0,
            seconds: 0.0,
        };
        let Some((mut progress, values, moments)) = checkpoint::load(self.folder)? else {
            let moments = Moments::new(parameters.values.len());
            return Ok(State { parameters, moments, progress: fresh });
        };
        let other = if progress.settings != as_resumed(&fresh.settings, progress.settings.spike)? {
            "settings"
        } else if progress.start != fresh.start || values.len() != parameters.values.len() {
            "weights to begin with"
        } else if progress.store_version != store_version || !["", cells_read].contains(&&*progress.cells_read) {
            "cells"
        } else {
            // When to stop may be changed: a run that stopped could not go on otherwise.
            progress.settings.spike = self.settings.spike;
            parameters.values = values;
            return Ok(State { parameters, moments, progress });
        };
        Err(Error::Request(format!(
            "{} holds a run with other {other}; give the same to go on with it, or another --run",
            self.folder.display()
        )))
    }

    /// Weights that are no numbers are of no use, and a checkpoint of them least.
    fn check_weights(&self, state: &State) -> Result<()> {
        let lost = |loss: &Option<f64>| loss.is_some_and(|loss| !loss.is_finite());
        if state.parameters.values.iter().all(|w| w.is_finite()) && !lost(&state.progress.validation_loss) {
            return Ok(());
        }
        Err(Error::Request(format!(
            "step {}: the weights are no numbers any more; stopped. Begin anew with a lower --learning-rate, in another \
             --run than {}",
            state.progress.step,
            self.folder.display()
        )))
    }

    fn steps(
        &self,
        state: &mut State,
        loader: &mut Loader,
        measured_genes: &MeasuredGenes,
        watched: &[Example],
    ) -> Result<()> {
        let mut metrics = Metrics::open(&self.folder.join(METRICS), state.progress.step)?;
        let mut saved = Instant::now();
        while state.progress.step < self.settings.steps && !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let mut measured = self.step(state, loader, measured_genes)?;
            let seconds = began.elapsed().as_secs_f64();
            state.progress.seconds += seconds;
            let (step, last) = (state.progress.step, state.progress.step == self.settings.steps);
            if (step.is_multiple_of(self.settings.validate_every) || last) && !watched.is_empty() {
                let loss = self.learner.loss(&state.parameters, watched)?.mean();
                (measured.validation_loss, state.progress.validation_loss) = (Some(loss), Some(loss));
            }
            measured.cells_per_second = self.cells_of_step() as f64 / seconds;
            measured.seconds = state.progress.seconds;
            metrics.write(&measured)?;
            (self.tell)(&measured);
            if saved.elapsed() >= self.checkpoint_every && !last {
                self.save(state)?;
                saved = Instant::now();
            }
        }
        self.save(state)
    }

    fn save(&self, state: &State) -> Result<()> {
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

    /// One step of all weights.
    fn step(&self, state: &mut State, loader: &mut Loader, measured: &MeasuredGenes) -> Result<StepMetrics> {
        let (settings, step) = (self.settings, state.progress.step);
        let mut gradient = vec![0f32; state.parameters.values.len()];
        let (mut loss, mut batches, mut tokens) = (Loss::default(), Vec::new(), 0);
        for part in 0..settings.accumulate {
            let cells = loader.next(settings.batch)?;
            let examples = self.examples(&cells, (step, part), measured, &state.parameters)?;
            tokens += examples.iter().map(|example| example.seen().count() + 2).sum::<usize>();
            loss = loss.and(self.learner.learn(&state.parameters, &examples, &mut gradient)?);
            batches.push(cells);
        }
        let loss = self.all_reduce.sum(&mut gradient, loss)?;
        let scale = 1.0 / loss.masked.max(1) as f64;
        let length = norm(&gradient) * scale;
        self.check(state, loss.mean(), length, &batches)?;
        let rate = settings.adam.rate(step, settings.steps);
        let clipped = scale * (settings.adam.clip / length).min(1.0);
        let weights = &mut state.parameters.values;
        state.moments.step(&settings.adam, step, rate, &gradient, clipped, weights);
        let progress = &mut state.progress;
        progress.step += 1;
        progress.position = loader.place();
        let here = (settings.batch * settings.accumulate) as f64;
        progress.mean_tokens += (tokens as f64 / here - progress.mean_tokens) / progress.step as f64;
        progress.cells += self.cells_of_step() as u64;
        let memory = (progress.step as f64).min(MEMORY);
        progress.mean_loss += (loss.mean() - progress.mean_loss) / memory;
        Ok(StepMetrics {
            step: progress.step,
            cells: progress.cells,
            epoch: progress.position.epoch,
            loss: loss.mean(),
            validation_loss: None,
            learning_rate: rate,
            gradient_norm: length,
            cells_per_second: 0.0,
            seconds: 0.0,
        })
    }

    /// Refuses a loss that is no number or jumps, and keeps the batch that gave it. The weights are those before it.
    fn check(&self, state: &State, loss: f64, length: f64, batches: &[Vec<Cell>]) -> Result<()> {
        let Progress { step, mean_loss, .. } = state.progress;
        let why = if !loss.is_finite() || !length.is_finite() {
            format!("the loss is {loss}, its gradient {length} long")
        } else if step >= CALM && loss > self.settings.spike * mean_loss {
            format!("the loss {loss:.4} is more than {} times the mean before it, {mean_loss:.4}", self.settings.spike)
        } else {
            return Ok(());
        };
        let are_numbers = self.check_weights(state).is_ok();
        let weights = if are_numbers { "the weights before it are in" } else { "older weights may be in" };
        if are_numbers {
            self.save(state)?;
        }
        let rows: Vec<Vec<u64>> = batches.iter().map(|cells| cells.iter().map(|cell| cell.row).collect()).collect();
        let counts: Vec<_> = batches.iter().flatten().map(|cell| &cell.counts).collect();
        let (seed, folder) = (self.settings.seed, self.folder.display());
        let bad = serde_json::json!({ "step": step, "seed": seed, "why": why, "rows": rows, "counts": counts });
        write_whole(&self.folder.join(BAD_BATCH), bad.to_string().as_bytes())?;
        Err(Error::Request(format!(
            "step {step}: {why}; stopped. The batch is in {folder}/{BAD_BATCH}, {weights} {folder}/{}. \
             To go on nevertheless, give a --config with a higher \"spike\"; to begin anew, a lower --learning-rate and \
             another --run",
            checkpoint::FILE
        )))
    }

    /// Examples of a batch; cells of fewer than two counts give none.
    fn examples(
        &self,
        cells: &[Cell],
        (step, part): (u64, usize),
        measured: &MeasuredGenes,
        parameters: &Parameters,
    ) -> Result<Vec<Example>> {
        let genes = parameters.config().n_genes();
        let example = |(i, cell): (usize, &Cell)| {
            let number = (part * self.settings.batch + i) * self.all_reduce.ranks() + self.all_reduce.rank();
            let mut rng = seeded(&[&self.settings.seed.to_le_bytes(), &step.to_le_bytes(), &number.to_le_bytes()]);
            let measured = measured.of_dataset(cell.dataset_id);
            self.settings.task.example(&cell.counts, genes, measured, &mut rng).transpose()
        };
        Ok(cells.par_iter().enumerate().filter_map(example).collect::<Result<_, _>>()?)
    }

    /// Examples of held-out cells: of one content always the same, in every run.
    fn examples_watched(&self, cells: &[Cell], measured: &MeasuredGenes, state: &State) -> Result<Vec<Example>> {
        let genes = state.parameters.config().n_genes();
        let example = |cell: &Cell| {
            let counts: Vec<u8> =
                cell.counts.iter().flat_map(|(p, v)| [p.to_le_bytes(), v.to_le_bytes()].concat()).collect();
            let (mut rng, measured) = (seeded(&[b"held out", &counts]), measured.of_dataset(cell.dataset_id));
            self.settings.task.example(&cell.counts, genes, measured, &mut rng).transpose()
        };
        Ok(cells.par_iter().filter_map(example).collect::<Result<_, _>>()?)
    }
}

/// Settings as a checkpoint gives them back: numbers that pass through JSON may lose their last digit.
fn as_resumed(settings: &Settings, spike: f64) -> Result<Settings> {
    let doing = || Error::internal("comparing a run's settings");
    let text = serde_json::to_string(settings).map_err(doing())?;
    Ok(Settings { spike, ..serde_json::from_str(&text).map_err(doing())? })
}

/// Lines of what was measured, each written at once.
struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Goes on after a step: lines of later ones are from a run that was cut off, and come again.
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

/// What a run has measured so far; a last line that was cut off is left out.
///
/// # Errors
/// The file cannot be read.
pub fn read_metrics(path: &Path) -> Result<Vec<StepMetrics>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::internal(format!("reading {}", path.display()))(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_rounds_are_the_same_settings() {
        let mut settings = Settings::default();
        for rate in [1e-3, 1e-4 * 13f64.sqrt(), 0.00015000000000000001, 0.1 + 0.2] {
            settings.adam.learning_rate = rate;
            let kept: Settings = serde_json::from_str(&serde_json::to_string(&settings).unwrap()).unwrap();
            assert_eq!(kept, as_resumed(&settings, settings.spike).unwrap());
        }
    }
}
