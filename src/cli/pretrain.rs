//! `cellql pretrain`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cellql_schemas::vocabulary::Vocabulary;
use clap::{Args, ValueEnum};

use super::console::Console;
use super::model::read_vocabulary;
use super::model_size::ModelSize;
use super::output;
use super::shared_args::{CELLS, EXECUTION, one_of, open_to_write};
use crate::error::{Error, Result};
use crate::model_registry::{self, ModelEntry};
use crate::pretrain::run::{METRICS, read_metrics};
use crate::pretrain::{CellReading, Loader, Run, RunResult, SplitCounts, Targets, split};
use cellql_model::{Device, Provenance, Weights, decode, encode, initialise};
use cellql_schemas::recipe::Dtype;
use cellql_store::{HASH_VERSION, Store};
use cellql_training::checkpoint;
use cellql_training::{
    Learner, LoaderPosition, Mixing, OnDevices, OnKernels, Schedule, Settings, SingleProcess, StepMetrics, add_heads,
    curves, set_gene_embeddings,
};

/// File of a run with the curves of its losses.
const CURVES: &str = "curves.svg";

/// Heading of options about the model.
const MODEL: &str = "Model";
/// Heading of options about the optimiser.
const OPTIMISATION: &str = "Optimisation";
/// Heading of options of a dry run.
const DRY_RUN: &str = "Dry run";

#[derive(Debug, Args)]
pub(super) struct PretrainArgs {
    /// Store with the cells to train on; the trained model is added to it
    store: String,
    /// Name of the new model
    #[arg(long, required_unless_present = "dry_run", help_heading = MODEL)]
    name: Option<String>,
    /// Size of the model: 3M, 10M, 100M, or a JSON file such as {"encoder": {"depth": 2}}
    #[arg(long, conflicts_with = "from", default_value = "3M", help_heading = MODEL)]
    size: ModelSize,
    /// Genes of the model in order: a text file with lines gene_name<TAB>index [default: protein-coding and
    /// mitochondrial genes of HGNC]
    #[arg(long, value_name = "FILE", conflicts_with = "from", help_heading = MODEL)]
    genes: Option<PathBuf>,
    /// Start from the weights of this model of the store [default: random weights]
    #[arg(long, value_name = "MODEL", help_heading = MODEL)]
    from: Option<String>,
    /// Settings of the run as a JSON file; options given on the command line take precedence
    #[arg(long, value_name = "FILE", help_heading = OPTIMISATION)]
    config: Option<PathBuf>,
    /// Number of optimiser steps [default: 1000]
    #[arg(long, value_name = "N", help_heading = OPTIMISATION)]
    steps: Option<u64>,
    /// Number of cells in a batch [default: 32]
    #[arg(long, value_name = "N", help_heading = OPTIMISATION)]
    batch: Option<usize>,
    /// Number of batches whose gradients are added up for one optimiser step [default: 1]
    #[arg(long, value_name = "N", help_heading = OPTIMISATION)]
    accumulate: Option<usize>,
    /// Peak learning rate of Adam, reached after the warm-up [default: 0.0001]
    #[arg(long, value_name = "RATE", help_heading = OPTIMISATION)]
    learning_rate: Option<f64>,
    /// Number of steps over which the learning rate rises linearly from 0; set it for shorter runs [default: 9766]
    #[arg(long, value_name = "STEPS", help_heading = OPTIMISATION)]
    warm_up: Option<u64>,
    /// Learning rate after the warm-up [default: constant]
    #[arg(long, value_parser = one_of::<Schedule>(["constant", "cosine"]), help_heading = OPTIMISATION)]
    schedule: Option<Schedule>,
    /// Decoupled weight decay, as in AdamW [default: 0]
    #[arg(long, value_name = "FACTOR", help_heading = OPTIMISATION)]
    weight_decay: Option<f64>,
    /// Clip the global gradient norm to this value [default: 1]
    #[arg(long, value_name = "NORM", help_heading = OPTIMISATION)]
    clip: Option<f64>,
    /// Number format of matrix products; weights and moments are always f32 [default: f32]
    #[arg(long, value_enum, help_heading = OPTIMISATION)]
    precision: Option<TrainingPrecision>,
    /// Seed of weights, order of cells and masks [default: 0]
    #[arg(long, help_heading = OPTIMISATION)]
    seed: Option<u64>,
    /// Train only on cells that satisfy this SQL condition [default: all cells that are not held out]
    #[arg(long = "where", value_name = "CONDITION", help_heading = CELLS)]
    condition: Option<String>,
    /// Fraction of the cells to hold out, chosen by the hash of their content [default: 0.1]
    #[arg(long, value_name = "FRACTION", help_heading = CELLS)]
    hold_out: Option<f64>,
    /// Also hold out cells that satisfy this SQL condition
    #[arg(long, value_name = "CONDITION", help_heading = CELLS)]
    hold_out_where: Option<String>,
    /// Number of steps between two evaluations of the loss on held-out cells [default: 100]
    #[arg(long, value_name = "STEPS", help_heading = CELLS)]
    validate_every: Option<u64>,
    /// Device: cpu, or in a build with CUDA one or several, separated by commas, which share each batch: cuda:0,cuda:1
    #[arg(long, default_value = "cpu", value_delimiter = ',', help_heading = EXECUTION)]
    device: Vec<Device>,
    /// Recompute activations in the backward pass instead of storing them: less memory, 10 to 20 % more time; CPU only
    #[arg(long, help_heading = EXECUTION)]
    recompute: bool,
    /// Folder of the run, with checkpoint, metrics.jsonl and curves.svg [default: runs/NAME inside the store]
    #[arg(long, value_name = "FOLDER", help_heading = EXECUTION)]
    run: Option<PathBuf>,
    /// Write a checkpoint at this interval; a killed run loses at most so much work
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, help_heading = EXECUTION)]
    checkpoint_every: f64,
    /// Read cells as training would, without training, and print throughput and how well data sets are mixed
    #[arg(long, help_heading = DRY_RUN)]
    dry_run: bool,
    /// Number of cells to read in a dry run [default: all cells, once]
    #[arg(long, value_name = "N", requires = "dry_run", help_heading = DRY_RUN)]
    cells: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TrainingPrecision {
    F32,
    Bf16,
}

impl From<TrainingPrecision> for Dtype {
    fn from(precision: TrainingPrecision) -> Self {
        match precision {
            TrainingPrecision::F32 => Dtype::F32,
            TrainingPrecision::Bf16 => Dtype::Bf16,
        }
    }
}

pub(super) async fn run(args: PretrainArgs, console: &Console) -> Result<()> {
    let settings = settings(&args)?;
    let store = open_to_write(&args.store, console).await?;
    match &args.name {
        Some(name) if !args.dry_run => train(&args, name, &settings, store, console).await,
        _ => dry_run(&args, &settings, &store).await,
    }
}

/// The settings of the file, if there is one, overridden by the options of the command line.
fn settings(args: &PretrainArgs) -> Result<Settings> {
    let mut settings = match &args.config {
        None => Settings::default(),
        Some(path) => {
            let wrong = |e: &dyn std::fmt::Display| Error::input(path, "settings", e);
            let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
            serde_json::from_str(&text).map_err(|e| wrong(&e))?
        }
    };
    fn put<T: Copy>(given: Option<T>, to: &mut T) {
        *to = given.unwrap_or(*to);
    }
    put(args.steps, &mut settings.steps);
    put(args.batch, &mut settings.batch);
    put(args.accumulate, &mut settings.accumulate);
    put(args.seed, &mut settings.seed);
    put(args.learning_rate, &mut settings.adam.learning_rate);
    put(args.warm_up, &mut settings.adam.warm_up);
    put(args.schedule, &mut settings.adam.schedule);
    put(args.weight_decay, &mut settings.adam.weight_decay);
    put(args.clip, &mut settings.adam.clip);
    put(args.hold_out, &mut settings.hold_out.share);
    put(args.validate_every, &mut settings.validate_every);
    settings.condition = args.condition.clone().or(settings.condition);
    settings.hold_out.condition = args.hold_out_where.clone().or(settings.hold_out.condition);
    if let Some(precision) = args.precision {
        settings.precision = precision.into();
    }
    settings.check()?;
    Ok(settings)
}

/// The model of `--from`.
async fn from_model(args: &PretrainArgs, store: &Store) -> Result<Option<ModelEntry>> {
    match &args.from {
        None => Ok(None),
        Some(name) => Ok(Some(model_registry::find(&model_registry::list(store).await?, Some(name))?.clone())),
    }
}

/// The initial weights: those of the model of `--from`, or random ones.
async fn initial_weights(
    args: &PretrainArgs,
    settings: &Settings,
    store: &Store,
    from: Option<&ModelEntry>,
) -> Result<Weights> {
    if let Some(entry) = from {
        return Ok(decode(&entry.name, &model_registry::bytes(store, entry).await?)?);
    }
    let vocabulary = match &args.genes {
        None => Vocabulary::default_human(),
        Some(path) => read_vocabulary(path)?,
    };
    Ok(initialise(&args.size.config(vocabulary.len())?, vocabulary, settings.seed)?)
}

/// The linear model whose embeddings the objectives predict.
async fn targets(settings: &Settings, store: &Store) -> Result<Option<Arc<Targets>>> {
    let objectives = &settings.objectives;
    match objectives.target.as_deref().filter(|_| objectives.components > 0.0 || objectives.genes_from_target) {
        None => Ok(None),
        Some(name) => {
            let entry = model_registry::find(&model_registry::list(store).await?, Some(name))?.clone();
            Ok(Some(Arc::new(Targets::of(store, &entry).await?)))
        }
    }
}

fn folder(args: &PretrainArgs, name: &str, store: &Store) -> Result<PathBuf> {
    let inside = || store.local_path(&format!("runs/{name}"));
    let folder = args.run.clone().or_else(inside).ok_or_else(|| {
        Error::Request("the store is not on this machine; give a folder for the files of the run with --run".into())
    })?;
    let failed = |e| Error::input(&folder, "folder of the run", format!("cannot be created: {e}; give another --run"));
    std::fs::create_dir_all(&folder).map_err(failed)?;
    Ok(folder)
}

fn learner(args: &PretrainArgs, settings: &Settings) -> Result<Box<dyn Learner>> {
    let opened = args.device.iter().map(|device| device.open()).collect::<Result<Vec<_>, _>>()?;
    let others: Vec<_> = opened.iter().flatten().cloned().collect();
    match (others.len(), opened.len()) {
        (0, 1) => Ok(Box::new(OnKernels::new(settings.precision, args.recompute)?)),
        (1.., _) if args.recompute => {
            Err(Error::Request("--recompute works only on the CPU; leave it out with --device cuda".into()))
        }
        (devices, all) if devices == all => Ok(Box::new(OnDevices::new(others, settings.precision)?)),
        _ => Err(Error::Request("--device: give either cpu alone, which uses all cores, or CUDA devices".into())),
    }
}

async fn train(args: &PretrainArgs, name: &str, settings: &Settings, store: Store, console: &Console) -> Result<()> {
    model_registry::check_name(name)?;
    let folder = folder(args, name, &store)?;
    let from = from_model(args, &store).await?;
    if let Some(from) = &from {
        warn_of_other_cells(from, settings, console);
    }
    let mut weights = initial_weights(args, settings, &store, from.as_ref()).await?;
    let targets = targets(settings, &store).await?;
    if let Some(targets) = targets.as_ref().filter(|_| settings.objectives.genes_from_target && from.is_none()) {
        let placement = store.genes().await?.place(&weights.vocabulary);
        set_gene_embeddings(&mut weights, &targets.loadings(&placement))?;
    }
    let components = targets.as_ref().map_or(0, |targets| targets.dim());
    add_heads(&mut weights, &settings.objectives, components, settings.seed)?;
    let (_, sha256) = encode(&weights)?;
    // A resumed run reads the version of the store that it started with.
    let begun = checkpoint::progress(&folder)?;
    if model_registry::list(&store).await?.iter().any(|model| model.name == name) {
        let why = if begun.is_some_and(|p| p.step >= p.settings.steps) { ": this run is done" } else { "" };
        return Err(Error::Request(format!("the store already has a model '{name}'{why}; choose another name")));
    }
    let read = match &begun {
        None => store.clone(),
        Some(progress) => {
            console.say(&format!("resuming after step {} of {}", progress.step, settings.steps));
            Store::open_at(&args.store, progress.store_version).await.map_err(|e| {
                let folder = folder.display();
                Error::Request(format!("{e}. The run in {folder} reads that version; remove the folder to start over"))
            })?
        }
    };
    let (stop, tell) = (stop_on_interrupt(console), show_progress(console, settings.steps));
    let learner = learner(args, settings)?;
    let run = Run {
        store: &read,
        settings,
        folder: &folder,
        start: &sha256,
        targets,
        learner: learner.as_ref(),
        all_reduce: &SingleProcess,
        checkpoint_every: Duration::try_from_secs_f64(args.checkpoint_every)
            .map_err(|e| Error::Request(format!("--checkpoint-every {}: {e}", args.checkpoint_every)))?,
        stop: &stop,
        on_step: &*tell,
    };
    let ended = run.train(&weights).await?;
    let measured = read_metrics(&folder.join(METRICS))?;
    if !measured.is_empty() {
        let path = folder.join(CURVES);
        match curves(&format!("{name}: {} steps of {} cells", settings.steps, settings.batch), &measured) {
            Ok(svg) => std::fs::write(&path, svg).map_err(Error::internal(format!("writing {}", path.display())))?,
            Err(e) => console.say(&format!("curves.svg is not drawn: {e}")),
        }
    }
    if !ended.is_done() {
        console.say(&format!("stopped after step {}; run the same command to resume", ended.progress.step));
        return Ok(());
    }
    let provenance = provenance(&ended, &measured, from.map(|entry| entry.sha256))?;
    let (_, entry) = model_registry::add(&store, name, &ended.weights, &provenance).await?;
    report(&ended, &measured, &entry, &folder)
}

/// Warns if the initial model may have been trained on the cells that this run holds out.
fn warn_of_other_cells(from: &ModelEntry, settings: &Settings, console: &Console) {
    let why = match from.provenance() {
        Ok(Provenance::Untrained { .. }) => return,
        Ok(Provenance::Trained { settings: its, .. }) => match serde_json::from_value::<Settings>(its) {
            Ok(its) if its.hold_out == settings.hold_out => return,
            _ => "held out other cells than this run",
        },
        _ => "does not record what it was trained on",
    };
    console
        .say(&format!("note: model '{}' {why}; it may have been trained on the held-out cells of this run", from.name));
}

/// A flag that the first Ctrl-C sets. The second Ctrl-C ends the program.
fn stop_on_interrupt(console: &Console) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let (set, console) = (Arc::clone(&stop), console.clone());
    tokio::spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            if set.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            console.say("stopping after this step; Ctrl-C again stops at once");
        }
    });
    stop
}

/// Shows the loss and the throughput of each step.
fn show_progress(console: &Console, steps: u64) -> Box<dyn Fn(&StepMetrics) + Send + Sync> {
    let progress = console.progress("training", "steps");
    Box::new(move |measured| {
        let validation = measured.validation_loss.map_or_else(String::new, |loss| format!(", held-out loss {loss:.4}"));
        let text = format!("loss {:.4}{validation}, {:.1} cells/s", measured.loss, measured.cells_per_second);
        progress.set(measured.step, Some(steps), &text);
    })
}

fn provenance(ended: &RunResult, measured: &[StepMetrics], from: Option<String>) -> Result<Provenance> {
    let progress = &ended.progress;
    let text = |loss: f64| format!("{loss:.6}");
    Ok(Provenance::Trained {
        store_version: progress.store_version,
        cells: (ended.cells.train, ended.cells.held_out),
        start: progress.start.clone(),
        settings: serde_json::to_value(&progress.settings).map_err(Error::internal("recording the run"))?,
        steps: progress.step,
        loss: (text(measured.last().map_or(f64::NAN, |m| m.loss)), progress.validation_loss.map(text)),
        seconds: progress.seconds as u64,
        program: format!("cellql {} {}", env!("CARGO_PKG_VERSION"), env!("CELLQL_COMMIT")),
        from,
        target: progress.target.clone(),
        cell_hash: HASH_VERSION,
    })
}

fn report(ended: &RunResult, measured: &[StepMetrics], entry: &ModelEntry, folder: &Path) -> Result<()> {
    let SplitCounts { train, held_out: held, duplicates: twice } = ended.cells;
    let first = measured.iter().find_map(|m| m.validation_loss);
    let held_out = ended.progress.validation_loss;
    let losses = match (first, held_out) {
        (Some(first), Some(last)) => format!("{first:.4} at the first evaluation, {last:.4} at the last"),
        _ => "not evaluated".to_owned(),
    };
    output::text(&format!(
        "model            {}, {:.2} million weights, sha256 {}\n\
         cells            {train} to train on, {held} held out, {twice} left out as duplicates\n\
         steps            {} of {} cells in {:.0} s, {} epochs\n\
         held-out loss    {losses}\n\
         curves, metrics  {}",
        entry.name,
        entry.parameters as f64 / 1e6,
        &entry.sha256[..12],
        ended.progress.step,
        ended.progress.settings.batch * ended.progress.settings.accumulate,
        ended.progress.seconds,
        ended.progress.epoch,
        folder.display(),
    ))
}

/// Reads cells as training would, and prints throughput and the mean entropy of data sets in a batch as JSON.
async fn dry_run(args: &PretrainArgs, settings: &Settings, store: &Store) -> Result<()> {
    let from = from_model(args, store).await?;
    let weights = initial_weights(args, settings, store, from.as_ref()).await?;
    let placement = store.genes().await?.place(&weights.vocabulary);
    let began = Instant::now();
    let cells = split(store, settings.condition.as_deref(), &settings.hold_out, 0).await?;
    let count = args.cells.unwrap_or(cells.train.len());
    let mixing = Mixing { block: settings.block, blocks: settings.blocks, seed: settings.seed, ..Mixing::default() };
    let mut loader =
        Loader::start(store, &cells, &CellReading::new(placement, None), mixing, LoaderPosition::default()).await?;
    let (mut first, mut entropy, mut batches, mut read) = (0.0, 0.0, 0u64, 0u64);
    tokio::task::block_in_place(|| -> Result<()> {
        while read < count {
            let batch = loader.next(settings.batch.min((count - read) as usize))?;
            if batches == 0 {
                first = began.elapsed().as_secs_f64();
            }
            read += batch.len() as u64;
            batches += 1;
            entropy += bits(batch.iter().map(|cell| cell.dataset_id));
        }
        Ok(())
    })?;
    let seconds = began.elapsed().as_secs_f64();
    let result = serde_json::json!({
        "cells": read,
        "batches": batches,
        "seconds": seconds,
        "first_batch_seconds": first,
        "cells_per_second": read as f64 / seconds.max(1e-9),
        "label_entropy": entropy / batches.max(1) as f64,
    });
    output::text(&result.to_string())
}

/// Entropy of labels, in bits.
fn bits(labels: impl Iterator<Item = u32>) -> f64 {
    let mut counts = std::collections::HashMap::new();
    labels.for_each(|label| *counts.entry(label).or_insert(0u32) += 1);
    let total = f64::from(counts.values().sum::<u32>());
    counts.values().map(|count| f64::from(*count) / total).map(|share| -share * share.log2()).sum()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::command::Cli;

    #[test]
    fn help_states_the_defaults_of_the_settings() {
        let settings = Settings::default();
        let defaults = [
            ("steps", settings.steps.to_string()),
            ("batch", settings.batch.to_string()),
            ("accumulate", settings.accumulate.to_string()),
            ("learning-rate", settings.adam.learning_rate.to_string()),
            ("warm-up", settings.adam.warm_up.to_string()),
            ("schedule", format!("{:?}", settings.adam.schedule).to_lowercase()),
            ("weight-decay", settings.adam.weight_decay.to_string()),
            ("clip", settings.adam.clip.to_string()),
            ("precision", format!("{:?}", settings.precision).to_lowercase()),
            ("seed", settings.seed.to_string()),
            ("hold-out", settings.hold_out.share.to_string()),
            ("validate-every", settings.validate_every.to_string()),
        ];
        let cli = Cli::command();
        let pretrain = cli.find_subcommand("pretrain").unwrap();
        for (name, default) in defaults {
            let option = pretrain.get_arguments().find(|a| a.get_long() == Some(name)).unwrap();
            let help = option.get_help().unwrap().to_string();
            assert!(help.ends_with(&format!("[default: {default}]")), "--{name}: {help}");
        }
    }
}
