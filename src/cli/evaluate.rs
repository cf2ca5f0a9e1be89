//! `cellql evaluate`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, StringArray, UInt64Array};
use arrow::record_batch::RecordBatch;
use cellql_schemas::vocabulary::Placement;

use super::output::{self, Format};
use super::talk::Talk;
use super::training_args::{EvaluateArgs, JudgedArgs, Judgement};
use crate::error::{Error, Result};
use crate::evaluate::cells::{CellQuery, HeldOutStatus, LabelledCell, select_cells};
use crate::evaluate::clustering::{self, ClusteringScores, dense_counts, embeddings, evaluate, pca_scores};
use crate::evaluate::enhancement::{RateScores, RecoveryScores, enhancement};
use crate::pretrain::run::{METRICS, read_metrics};
use crate::query::Session;
use crate::registry::{self, ModelEntry};
use cellql_model::{Model, Provenance, encode, initialise};
use cellql_store::Store;
use cellql_training::checkpoint;
use cellql_training::scaling::{Line, picture, training_flops};

/// Table that holds a result while it is written.
const RESULT: &str = "evaluation";

pub(super) async fn run(args: EvaluateArgs, talk: &Talk) -> Result<()> {
    let store = Store::open(&args.store).await?;
    match args.what {
        Judgement::Enhancement { judged, rates } => deepen(&store, &judged, &rates, talk).await,
        Judgement::Clustering { judged, label, folds } => cluster(&store, &judged, label, &folds, talk).await,
        Judgement::Scaling { runs, picture, format } => scale(&store, &runs, picture.as_deref(), format).await,
    }
}

/// A model, where its genes stand in the store, and the cells to judge it by.
struct Judged {
    entry: ModelEntry,
    model: Model,
    placement: Placement,
    cells: Vec<LabelledCell>,
}

async fn judged(store: &Store, args: &JudgedArgs, label: Option<String>, talk: &Talk) -> Result<Judged> {
    let entries = registry::list(store).await?;
    let entry = registry::find(&entries, args.model.as_deref())?.clone();
    let model = registry::load(store, &entry).await?;
    let placement = store.genes().await?.place(model.vocabulary());
    let query =
        CellQuery { condition: args.condition.clone(), with_trained: args.all_cells, label, at_most: args.cells };
    let (cells, known) = select_cells(store, &entries, &entry, &query).await?;
    let which = match known {
        HeldOutStatus::HeldOut => " that it did not learn from",
        HeldOutStatus::AllCells => ", whether it learned from them or not",
        HeldOutStatus::NotRecorded => "; which cells it learned from is not recorded",
    };
    talk.say(&format!("model '{}', {} cells{which}", entry.name, cells.len()));
    Ok(Judged { entry, model, placement, cells })
}

async fn write(store: &Store, columns: Vec<(&str, ArrayRef)>, format: Format) -> Result<()> {
    let rows = RecordBatch::try_from_iter(columns).map_err(Error::internal("writing the result"))?;
    let session = Session::open(store.clone()).await?;
    session.put(RESULT, rows)?;
    output::write(session.sql(&format!("SELECT * FROM {RESULT}")).await?, format).await
}

fn numbers(values: impl Iterator<Item = f64>) -> ArrayRef {
    Arc::new(values.map(|value| (value * 1e4).round() / 1e4).collect::<Float64Array>())
}

async fn deepen(store: &Store, args: &JudgedArgs, rates: &[f64], talk: &Talk) -> Result<()> {
    let Judged { model, placement, cells, .. } = judged(store, args, None, talk).await?;
    let progress = talk.progress("enhancing cells", "cells");
    let found = tokio::task::block_in_place(|| enhancement(&model, &placement, &cells, rates, args.seed, &progress))?;
    let both = || found.iter().flat_map(|at| [(at, "model", at.model), (at, "thinned cells", at.downsampled)]);
    let of = |get: fn(&RecoveryScores) -> f64| numbers(both().map(|(_, _, recovery)| get(&recovery)));
    let of_rate = |get: fn(&RateScores) -> f64| numbers(both().map(|(at, ..)| get(at)));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("kept", of_rate(|at| at.rate)),
        ("cells", Arc::new(both().map(|(at, ..)| at.cells as u64).collect::<UInt64Array>())),
        ("of", Arc::new(both().map(|(_, name, _)| Some(name)).collect::<StringArray>())),
        ("mae", of(|r| r.mae)),
        ("mre", of(|r| r.mre)),
        ("pearson", of(|r| r.pearson)),
        ("pearson_all_genes", of(|r| r.pearson_all)),
    ];
    write(store, columns, args.format).await
}

async fn cluster(store: &Store, args: &JudgedArgs, label: String, folds: &[f64], talk: &Talk) -> Result<()> {
    if let Some(fold) = folds.iter().find(|fold| !(fold.is_finite() && **fold > 0.0)) {
        return Err(Error::Request(format!("fold {fold}: it must be a number above 0")));
    }
    let Judged { entry, model, placement, cells } = judged(store, args, Some(label), talk).await?;
    let labels = clustering::labels(&cells)?;
    let progress = talk.progress("representations", "representations");
    let total = folds.len() as u64 + 3;
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
        for fold in folds {
            let (vectors, dim) = by(&model, *fold)?;
            add(&format!("{}, depth × {fold}", entry.name), &vectors, dim)?;
        }
        let drawn = initialise(model.config(), model.vocabulary().clone(), args.seed)?;
        let (vectors, dim) = by(&Model::load("untrained", encode(&drawn)?.0)?, 1.0)?;
        add("the same sizes untrained, depth × 1", &vectors, dim)?;
        let (scores, dim) = pca_scores(&cells, args.seed);
        add("principal components of log-normalised counts", &scores, dim)?;
        let (dense, dim) = dense_counts(&cells);
        add("counts", &dense, dim)
    })?;
    let whole = |get: fn(&ClusteringScores) -> usize| -> ArrayRef {
        Arc::new(found.iter().map(|c| get(c) as u64).collect::<UInt64Array>())
    };
    let of = |get: fn(&ClusteringScores) -> f64| numbers(found.iter().map(get));
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

/// Losses of held-out cells over operations, of runs whose models are in the store under the runs' names.
async fn scale(store: &Store, runs: &[PathBuf], out: Option<&Path>, format: Format) -> Result<()> {
    let entries = registry::list(store).await?;
    let mut lines = Vec::new();
    for run in runs {
        let name = run.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let entry = registry::find(&entries, Some(&name))?;
        let model = registry::load(store, entry).await?;
        let progress =
            checkpoint::progress(run)?.ok_or_else(|| Error::input(run, "folder", "it holds no run of pretrain"))?;
        let of_model = match entry.provenance() {
            Ok(Provenance::Trained { start, steps, .. }) => start == progress.start && steps == progress.step,
            _ => false,
        };
        if !of_model {
            let problem = format!("its run is not the one that made the model '{name}'");
            return Err(Error::input(run, "folder", problem));
        }
        let points = read_metrics(&run.join(METRICS))?.into_iter().filter_map(|measured| {
            let flops = training_flops(model.config(), progress.mean_tokens, measured.cells as f64);
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
        ("held_out_loss", numbers(all().map(|(_, point)| point.1))),
    ];
    write(store, columns, format).await
}
