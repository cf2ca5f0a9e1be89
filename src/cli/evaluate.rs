//! `cellql evaluate`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, StringArray, UInt64Array};
use arrow::record_batch::RecordBatch;
use cellql_schemas::vocabulary::Placement;
use clap::{Args, Subcommand};

use super::console::Console;
use super::evaluate_representation::{self, RepresentationArgs};
use super::output::{self, Format};
use super::shared_args::{CELLS, OUTPUT, check_picture};
use crate::error::{Error, Result};
use crate::evaluate::cells::{CellQuery, HeldOutStatus, LabelledCell, select_cells};
use crate::evaluate::clustering::{self, ClusteringScores, dense_counts, embeddings, evaluate, pca_scores};
use crate::evaluate::enhancement::{RateScores, RecoveryScores, enhancement};
use crate::model_registry::{self, ModelEntry};
use crate::pretrain::run::{METRICS, read_metrics};
use crate::query::Session;
use cellql_model::{Model, Provenance, encode, initialise};
use cellql_store::Store;
use cellql_training::Objectives;
use cellql_training::checkpoint;
use cellql_training::training_cost::{Line, picture, training_flops};

#[derive(Debug, Args)]
pub(super) struct EvaluateArgs {
    /// Store with the model and the cells: a directory
    store: String,
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Downsample cells and let the model restore their depth: MAE, MRE and Pearson, beside the downsampled cells
    Enhancement {
        #[command(flatten)]
        evaluated: EvaluatedArgs,
        /// Fractions of the counts to keep when downsampling, separated by commas
        #[arg(long, value_name = "FRACTION", value_delimiter = ',', default_values_t = [0.01, 0.05, 0.1, 0.2])]
        rates: Vec<f64>,
    },
    /// Cluster cells by their embeddings and compare with labels: NMI, ARI and silhouette, beside PCA and counts
    Clustering {
        #[command(flatten)]
        evaluated: EvaluatedArgs,
        /// Column of `cells` with the labels
        #[arg(long, value_name = "COLUMN", default_value = "cell_type")]
        label: String,
        /// Target depths to embed with, as multiples of each cell's own depth, separated by commas; of transformers
        #[arg(long, value_name = "FACTOR", value_delimiter = ',', default_values_t = [1.0, 2.0, 3.0, 4.0, 5.0])]
        folds: Vec<f64>,
    },
    /// Judge representations of cells by labels, beside PCA fitted to the cells: nearest neighbours, clusters,
    /// silhouettes, LISI
    Representation(RepresentationArgs),
    /// Report the held-out loss over training FLOPs of several runs of pretrain
    Scaling {
        /// Folders of runs, each named like its model
        #[arg(required = true, value_name = "FOLDER")]
        runs: Vec<PathBuf>,
        /// Draw the losses to this SVG file
        #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
        picture: Option<PathBuf>,
        /// Format of the result
        #[arg(long, value_enum, default_value_t = Format::Table, help_heading = OUTPUT)]
        format: Format,
    },
}

#[derive(Debug, Args)]
struct EvaluatedArgs {
    /// Name of the model [default: the only one besides the shipped models, else human_pca, or human_3m
    /// for enhancement]
    #[arg(long)]
    model: Option<String>,
    /// Evaluate only cells that satisfy this SQL condition
    #[arg(long = "where", value_name = "CONDITION", help_heading = CELLS)]
    condition: Option<String>,
    /// Also evaluate cells that the model was trained on [default: only held-out cells]
    #[arg(long, help_heading = CELLS)]
    all_cells: bool,
    /// Maximum number of cells, taken at equal distances over the table [default: all cells]
    #[arg(long, value_name = "N", help_heading = CELLS)]
    cells: Option<usize>,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Format of the result
    #[arg(long, value_enum, default_value_t = Format::Table, help_heading = OUTPUT)]
    format: Format,
}

/// Table that holds a result while it is written.
const RESULT: &str = "evaluation";

pub(super) async fn run(args: EvaluateArgs, console: &Console) -> Result<()> {
    let store = Store::open(&args.store).await?;
    match args.task {
        Task::Enhancement { evaluated, rates } => evaluate_enhancement(&store, &evaluated, &rates, console).await,
        Task::Clustering { evaluated, label, folds } => {
            evaluate_clustering(&store, &evaluated, label, &folds, console).await
        }
        Task::Representation(args) => evaluate_representation::run(&store, args, console).await,
        Task::Scaling { runs, picture, format } => report_scaling(&store, &runs, picture.as_deref(), format).await,
    }
}

/// A model, the positions of the store's genes in its vocabulary, and the cells to evaluate it on.
struct Evaluated {
    entry: ModelEntry,
    model: Model,
    placement: Placement,
    cells: Vec<LabelledCell>,
}

/// Loads a model and cells; without labels for enhancement, which needs a transformer.
async fn load(store: &Store, args: &EvaluatedArgs, label: Option<String>, console: &Console) -> Result<Evaluated> {
    let entries = model_registry::list(store).await?;
    let name = args.model.as_deref();
    let entry = match &label {
        None => model_registry::find_transformer(&entries, name, "enhanced expression")?.clone(),
        Some(_) => model_registry::find(&entries, name)?.clone(),
    };
    let model = model_registry::load(store, &entry).await?;
    let placement = store.genes().await?.place(model.vocabulary());
    let (condition, with_trained) = (args.condition.clone(), args.all_cells);
    let query = CellQuery { condition, with_trained, label, batch: None, at_most: args.cells };
    let (cells, known) = select_cells(store, &entries, &[&entry], &query).await?;
    let which = held_out_words(known);
    console.say(&format!("model '{}', {} cells{which}", entry.name, cells.len()));
    Ok(Evaluated { entry, model, placement, cells })
}

/// Says after a number of cells whether models were trained on them.
pub(super) fn held_out_words(status: HeldOutStatus) -> &'static str {
    match status {
        HeldOutStatus::HeldOut => " that no model was trained on",
        HeldOutStatus::AllCells => ", which may include cells that a model was trained on",
        HeldOutStatus::NotRecorded => "; which cells the models were trained on is not recorded",
    }
}

/// Writes a result.
pub(super) async fn write(store: &Store, columns: Vec<(&str, ArrayRef)>, format: Format) -> Result<()> {
    let rows = RecordBatch::try_from_iter(columns).map_err(Error::internal("writing the result"))?;
    let session = Session::open(store.clone()).await?;
    session.put(RESULT, rows)?;
    output::write(session.sql(&format!("SELECT * FROM {RESULT}")).await?, format).await
}

/// A column of figures, rounded to four decimals.
fn figures(values: impl Iterator<Item = f64>) -> ArrayRef {
    Arc::new(values.map(|value| (value * 1e4).round() / 1e4).collect::<Float64Array>())
}

async fn evaluate_enhancement(store: &Store, args: &EvaluatedArgs, rates: &[f64], console: &Console) -> Result<()> {
    let Evaluated { model, placement, cells, .. } = load(store, args, None, console).await?;
    let progress = console.on_progress("enhancing cells", "cells");
    let found = tokio::task::block_in_place(|| enhancement(&model, &placement, &cells, rates, args.seed, &progress))?;
    let all = || {
        found.iter().flat_map(|at| {
            let mean = at.mean_of_others.map(|mean| ("mean of other cells", mean));
            let given = [("model", at.model), ("downsampled cells", at.downsampled)];
            given.into_iter().chain(mean).map(move |(name, scores)| (at, name, scores))
        })
    };
    let of = |get: fn(&RecoveryScores) -> f64| figures(all().map(|(_, _, recovery)| get(&recovery)));
    let of_rate = |get: fn(&RateScores) -> f64| figures(all().map(|(at, ..)| get(at)));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("kept", of_rate(|at| at.rate)),
        ("cells", Arc::new(all().map(|(at, ..)| at.cells as u64).collect::<UInt64Array>())),
        ("of", Arc::new(all().map(|(_, name, _)| Some(name)).collect::<StringArray>())),
        ("mae", of(|r| r.mae)),
        ("mre", of(|r| r.mre)),
        ("pearson", of(|r| r.pearson)),
        ("pearson_all_genes", of(|r| r.pearson_all)),
    ];
    write(store, columns, args.format).await
}

async fn evaluate_clustering(
    store: &Store,
    args: &EvaluatedArgs,
    label: String,
    folds: &[f64],
    console: &Console,
) -> Result<()> {
    if let Some(fold) = folds.iter().find(|fold| !(fold.is_finite() && **fold > 0.0)) {
        return Err(Error::Request(format!("--folds {fold}: it must be a number above 0")));
    }
    let Evaluated { entry, model, placement, cells } = load(store, args, Some(label), console).await?;
    let labels = clustering::labels(&cells)?;
    let progress = console.on_progress("clustering", "representations");
    let total = if entry.is_linear() { 3 } else { folds.len() as u64 + 3 };
    let mut found: Vec<ClusteringScores> = Vec::new();
    tokio::task::block_in_place(|| -> Result<()> {
        let mut add = |name: &str, vectors: &[f32], dim: usize| -> Result<()> {
            found.push(evaluate(name, vectors, dim, &labels, args.seed)?);
            progress(found.len() as u64, Some(total));
            Ok(())
        };
        let by = |model: &Model, fold: f64| -> Result<(Vec<f32>, usize)> {
            let vectors = embeddings(model, &placement, &cells, fold)?;
            let dim = vectors.len() / cells.len();
            Ok((vectors, dim))
        };
        if entry.is_linear() {
            let (vectors, dim) = by(&model, 1.0)?;
            add(&entry.name, &vectors, dim)?;
        } else {
            for fold in folds {
                let (vectors, dim) = by(&model, *fold)?;
                add(&format!("{}, depth × {fold}", entry.name), &vectors, dim)?;
            }
        }
        if let Some(config) = model.config() {
            let untrained = initialise(config, model.vocabulary().clone(), args.seed)?;
            let (vectors, dim) = by(&Model::load("untrained", encode(&untrained)?.0)?, 1.0)?;
            add("untrained model of this size, depth × 1", &vectors, dim)?;
        }
        let (scores, dim) = pca_scores(&cells, args.seed);
        add("principal components of log-normalised counts", &scores, dim)?;
        let (dense, dim) = dense_counts(&cells);
        add("counts", &dense, dim)
    })?;
    let whole = |get: fn(&ClusteringScores) -> usize| -> ArrayRef {
        Arc::new(found.iter().map(|c| get(c) as u64).collect::<UInt64Array>())
    };
    let of = |get: fn(&ClusteringScores) -> f64| figures(found.iter().map(get));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("representation", Arc::new(StringArray::from_iter_values(found.iter().map(|c| &c.representation)))),
        ("numbers", whole(|c| c.dim)),
        ("clusters", whole(|c| c.clusters)),
        ("resolution", of(|c| c.resolution)),
        ("nmi", of(|c| c.nmi)),
        ("ari", of(|c| c.ari)),
        ("silhouette", of(|c| c.silhouette)),
    ];
    write(store, columns, args.format).await
}

/// Writes the held-out loss over training FLOPs of runs. The model of each run is in the store under the run's name.
async fn report_scaling(store: &Store, runs: &[PathBuf], out: Option<&Path>, format: Format) -> Result<()> {
    out.map_or(Ok(()), check_picture)?;
    let entries = model_registry::list(store).await?;
    let mut lines = Vec::new();
    for run in runs {
        let name = run.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let entry = model_registry::find(&entries, Some(&name))?;
        let model = model_registry::load(store, entry).await?;
        let Some(config) = model.config() else {
            return Err(Error::input(run, "folder", format!("the model '{name}' of the store is linear")));
        };
        let progress = checkpoint::progress(run)?
            .ok_or_else(|| Error::input(run, "folder", "it is not the folder of a run of pretrain"))?;
        let of_model = match entry.provenance() {
            Ok(Provenance::Trained { start, steps, .. }) => start == progress.start && steps == progress.step,
            _ => false,
        };
        if !of_model {
            let problem = format!("the model '{name}' of the store was trained by another run");
            return Err(Error::input(run, "folder", problem));
        }
        if progress.settings.objectives != Objectives::default() {
            let problem = "its objectives are not the default ones, for which alone operations are known";
            return Err(Error::input(run, "folder", problem));
        }
        let points = read_metrics(&run.join(METRICS))?.into_iter().filter_map(|measured| {
            let flops = training_flops(config, progress.mean_tokens, measured.cells as f64);
            Some((flops, measured.validation_loss?))
        });
        lines.push(Line { name, points: points.collect() });
    }
    if let Some(out) = out {
        let failed = |e| Error::input(out, "picture", format!("cannot be written: {e}; give another --picture"));
        std::fs::write(out, picture(&lines)?).map_err(failed)?;
    }
    let all = || lines.iter().flat_map(|line| line.points.iter().map(move |point| (&line.name, point)));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("run", Arc::new(all().map(|(name, _)| Some(name.as_str())).collect::<StringArray>())),
        ("flops", Arc::new(all().map(|(_, point)| point.0).collect::<Float64Array>())),
        ("held_out_loss", figures(all().map(|(_, point)| point.1))),
    ];
    write(store, columns, format).await
}
