//! `cellql pretrain`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cellql_schemas::vocabulary::Vocabulary;

use super::model::read_vocabulary;
use super::output;
use super::talk::Talk;
use super::training_args::PretrainArgs;
use crate::error::{Error, Result};
use crate::pretrain::run::{METRICS, read_metrics};
use crate::pretrain::split::numbering;
use crate::pretrain::{Loader, Run, RunResult, SplitCounts, split};
use crate::registry::{self, ModelEntry};
use cellql_model::{Provenance, Weights, decode, encode, initialise};
use cellql_store::Store;
use cellql_training::checkpoint;
use cellql_training::{Alone, Learner, Measured, Mixing, Numbers, OnDevices, OnKernels, Place, Settings, curves};

/// The picture of a run.
const CURVES: &str = "curves.svg";

pub(super) async fn run(args: PretrainArgs, talk: &Talk) -> Result<()> {
    let settings = settings(&args)?;
    let store = super::open_to_write(&args.store, talk).await?;
    match &args.name {
        Some(name) if !args.dry_run => train(&args, name, &settings, store, talk).await,
        _ => read_only(&args, &settings, &store).await,
    }
}

/// Settings of the file, if any, and what the command line says besides.
fn settings(args: &PretrainArgs) -> Result<Settings> {
    let mut settings = match &args.config {
        None => Settings::default(),
        Some(path) => {
            let wrong = |e: &dyn std::fmt::Display| Error::input(path, "settings", e);
            let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
            serde_json::from_str(&text).map_err(|e| wrong(&e))?
        }
    };
    fn put<T: Clone>(given: &Option<T>, to: &mut T) {
        if let Some(given) = given {
            given.clone_into(to);
        }
    }
    put(&args.steps, &mut settings.steps);
    put(&args.batch, &mut settings.batch);
    put(&args.accumulate, &mut settings.accumulate);
    put(&args.seed, &mut settings.seed);
    put(&args.learning_rate, &mut settings.adam.learning_rate);
    put(&args.warm_up, &mut settings.adam.warm_up);
    put(&args.schedule, &mut settings.adam.schedule);
    put(&args.weight_decay, &mut settings.adam.weight_decay);
    put(&args.clip, &mut settings.adam.clip);
    put(&args.hold_out, &mut settings.hold_out.share);
    put(&args.validate_every, &mut settings.validate_every);
    settings.condition = args.condition.clone().or(settings.condition);
    settings.hold_out.condition = args.hold_out_where.clone().or(settings.hold_out.condition);
    if let Some(precision) = &args.precision {
        settings.precision = match precision.as_str() {
            "f32" => Numbers::F32,
            "bf16" => Numbers::Bf16,
            _ => return Err(Error::Request(format!("unknown precision '{precision}': training takes f32 or bf16"))),
        };
    }
    settings.check()?;
    Ok(settings)
}

/// The model of `--from`.
async fn from_model(args: &PretrainArgs, store: &Store) -> Result<Option<ModelEntry>> {
    match &args.from {
        None => Ok(None),
        Some(name) => Ok(Some(registry::find(&registry::list(store).await?, Some(name))?.clone())),
    }
}

/// The initial weights: those of the model of `--from`, or random ones.
async fn start(args: &PretrainArgs, settings: &Settings, store: &Store, from: Option<&ModelEntry>) -> Result<Weights> {
    if let Some(entry) = from {
        return Ok(decode(&entry.name, &registry::bytes(store, entry).await?)?);
    }
    let vocabulary = match &args.genes {
        None => Vocabulary::default_human(),
        Some(path) => read_vocabulary(path)?,
    };
    Ok(initialise(&args.size.config(vocabulary.len())?, vocabulary, settings.seed)?)
}

fn folder(args: &PretrainArgs, name: &str, store: &Store) -> Result<PathBuf> {
    let inside = || store.local_path(&format!("runs/{name}"));
    let folder = args.run.clone().or_else(inside).ok_or_else(|| {
        Error::Request("the store is not on this machine; say with --run FOLDER where the run's files are kept".into())
    })?;
    let failed = |e| Error::input(&folder, "folder of the run", format!("cannot be created: {e}; give another --run"));
    std::fs::create_dir_all(&folder).map_err(failed)?;
    Ok(folder)
}

fn learner(args: &PretrainArgs, settings: &Settings) -> Result<Box<dyn Learner>> {
    let opened = args.device.iter().map(|device| device.open()).collect::<Result<Vec<_>, _>>()?;
    let others: Vec<_> = opened.iter().flatten().cloned().collect();
    match (others.len(), opened.len()) {
        (0, 1) => Ok(Box::new(OnKernels::new(settings.precision, args.recompute))),
        (1.., _) if args.recompute => Err(Error::Request("--recompute is for the CPU; leave it out on devices".into())),
        (devices, all) if devices == all => Ok(Box::new(OnDevices::new(others, settings.precision)?)),
        _ => Err(Error::Request("--device: cpu uses every core already; give it alone, or devices of CUDA".into())),
    }
}

async fn train(args: &PretrainArgs, name: &str, settings: &Settings, store: Store, talk: &Talk) -> Result<()> {
    registry::check_name(name)?;
    let folder = folder(args, name, &store)?;
    let from = from_model(args, &store).await?;
    if let Some(entry) = &from {
        warn_of_other_cells(entry, settings, talk);
    }
    let weights = start(args, settings, &store, from.as_ref()).await?;
    let (_, sha256) = encode(&weights)?;
    // A run that goes on reads the cells it was begun with.
    let begun = checkpoint::progress(&folder)?;
    if registry::list(&store).await?.iter().any(|model| model.name == name) {
        let why = if begun.is_some_and(|p| p.step >= p.settings.steps) { ": this run is done" } else { "" };
        return Err(Error::Request(format!("the store already has a model '{name}'{why}; choose another name")));
    }
    let read = match &begun {
        None => store.clone(),
        Some(progress) => {
            talk.say(&format!("going on after step {} of {}", progress.step, settings.steps));
            Store::open_at(&args.store, progress.store_version).await.map_err(|e| {
                let folder = folder.display();
                Error::Request(format!("{e}. The run in {folder} reads that one; remove the folder to begin anew"))
            })?
        }
    };
    let (stop, tell) = (stop_on_interrupt(talk), teller(talk, settings.steps));
    let learner = learner(args, settings)?;
    let run = Run {
        store: &read,
        settings,
        folder: &folder,
        start: &sha256,
        learner: learner.as_ref(),
        exchange: &Alone,
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
            Err(e) => talk.say(&format!("no picture of the losses: {e}")),
        }
    }
    if !ended.is_done() {
        talk.say(&format!("stopped after step {}; the same command goes on", ended.progress.step));
        return Ok(());
    }
    let provenance = provenance(&ended, &measured, from.map(|entry| entry.sha256), numbering(&read).await?)?;
    let (_, entry) = registry::add(&store, name, &ended.weights, &provenance).await?;
    report(&ended, &measured, &entry, &folder)
}

/// Held-out losses say nothing of cells that the model a run begins with has seen.
fn warn_of_other_cells(from: &ModelEntry, settings: &Settings, talk: &Talk) {
    let why = match from.provenance() {
        Ok(Provenance::Untrained { .. }) => return,
        Ok(Provenance::Trained { settings: its, .. }) => match serde_json::from_value::<Settings>(its) {
            Ok(its) if its.hold_out == settings.hold_out => return,
            _ => "held out other cells than this run does",
        },
        _ => "does not say what it learned from",
    };
    talk.say(&format!("'{}' {why}: it may have seen those whose loss is watched here", from.name));
}

/// Set by the first interrupt; the second ends the program.
fn stop_on_interrupt(talk: &Talk) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let (set, talk) = (Arc::clone(&stop), talk.clone());
    tokio::spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            if set.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            talk.say("stopping after this step");
        }
    });
    stop
}

fn teller(talk: &Talk, steps: u64) -> Box<dyn Fn(&Measured) + Send + Sync> {
    let progress = talk.progress_with_text("training", "steps");
    Box::new(move |measured| {
        let validation = measured.validation_loss.map_or_else(String::new, |loss| format!(", held out {loss:.4}"));
        let text = format!("loss {:.4}{validation}, {:.1} cells/s", measured.loss, measured.cells_per_second);
        progress(measured.step, steps, &text);
    })
}

fn provenance(
    ended: &RunResult,
    measured: &[Measured],
    from: Option<String>,
    numbering: Vec<(usize, String)>,
) -> Result<Provenance> {
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
        numbering,
    })
}

fn report(ended: &RunResult, measured: &[Measured], entry: &ModelEntry, folder: &Path) -> Result<()> {
    let SplitCounts { train, held_out: held, duplicates: twice } = ended.cells;
    let first = measured.iter().find_map(|m| m.validation_loss);
    let held_out = ended.progress.validation_loss;
    let losses = match (first, held_out) {
        (Some(first), Some(last)) => format!("{first:.4} at first, {last:.4} in the end"),
        _ => "not looked at".to_owned(),
    };
    output::text(&format!(
        "model            {}, {:.2} million weights, sha256 {}\n\
         cells            {train} to learn from, {held} held out, {twice} left out as duplicates\n\
         steps            {} of {} cells in {:.0} s of work, {} times through the cells\n\
         held-out loss    {losses}\n\
         curves, metrics  {}",
        entry.name,
        entry.parameters as f64 / 1e6,
        &entry.sha256[..12],
        ended.progress.step,
        ended.progress.settings.batch * ended.progress.settings.accumulate,
        ended.progress.seconds,
        ended.progress.place.epoch,
        folder.display(),
    ))
}

/// Reads cells as training would, and says how fast and how well mixed.
async fn read_only(args: &PretrainArgs, settings: &Settings, store: &Store) -> Result<()> {
    let from = from_model(args, store).await?;
    let weights = start(args, settings, store, from.as_ref()).await?;
    let placement = store.genes().await?.place(&weights.vocabulary);
    let began = Instant::now();
    let cells = split(store, settings.condition.as_deref(), &settings.hold_out, 0).await?;
    let count = args.cells.unwrap_or(cells.train.len());
    let mixing = Mixing { block: settings.block, blocks: settings.blocks, seed: settings.seed, ..Mixing::default() };
    let mut loader = Loader::start(store, &cells, placement, mixing, Place::default()).await?;
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

/// Entropy of labels.
fn bits(labels: impl Iterator<Item = u32>) -> f64 {
    let mut counts = std::collections::HashMap::new();
    labels.for_each(|label| *counts.entry(label).or_insert(0u32) += 1);
    let total = f64::from(counts.values().sum::<u32>());
    counts.values().map(|count| f64::from(*count) / total).map(|share| -share * share.log2()).sum()
}
