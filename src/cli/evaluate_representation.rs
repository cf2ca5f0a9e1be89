//! `cellql evaluate … representation`.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, StringArray, UInt64Array};
use cellql_schemas::embeddings;
use cellql_schemas::recipe::Recipe;
use clap::{Args, ValueEnum};

use super::console::Console;
use super::evaluate::{held_out_words, write};
use super::output::Format;
use super::shared_args::{CELLS, OUTPUT, check_picture};
use crate::error::{Error, Result};
use crate::evaluate::bar_chart::bar_chart;
use crate::evaluate::cells::{CellQuery, LabelledCell, check_held_out, select_cells};
use crate::evaluate::clustering;
use crate::evaluate::representation::{
    Judge, NeighbourMetric, Representation, RepresentationScores, baselines, batches,
};
use crate::model_registry::ModelEntry;
use crate::query::StoreEngine;
use cellql_model::{DEFAULT_TOKEN_BUDGET, Sample};
use cellql_store::{Store, embedding_table};

/// Cells that are compared by default: baselines compare every pair of them gene by gene.
const DEFAULT_CELLS: usize = 4000;

#[derive(Debug, Args)]
pub(super) struct RepresentationArgs {
    /// Column of `cells` with the labels
    #[arg(long, value_name = "COLUMN", default_value = "cell_type")]
    label: String,
    /// Column of `cells` with batches, such as donors: adds scores across batches and of their mixing
    #[arg(long, value_name = "COLUMN")]
    batch: Option<String>,
    /// Models, or names of stored embeddings, separated by commas [default: all models of the store whose held-out
    /// cells are known]
    #[arg(long, value_name = "RECIPE", value_delimiter = ',')]
    of: Vec<String>,
    /// Number of nearest neighbours that vote for a cell's label
    #[arg(long, value_name = "N", default_value_t = 15)]
    neighbours: usize,
    /// Distance by which neighbours are nearest
    #[arg(long, value_enum, default_value_t = MetricArg::Cosine)]
    metric: MetricArg,
    /// Leave out the representations that are fitted to these cells: counts, variable genes and their PCA
    #[arg(long)]
    no_baselines: bool,
    /// Evaluate only cells that satisfy this SQL condition
    #[arg(long = "where", value_name = "CONDITION", help_heading = CELLS)]
    condition: Option<String>,
    /// Also evaluate cells that models were trained on [default: only cells that all models held out]
    #[arg(long, help_heading = CELLS)]
    all_cells: bool,
    /// Maximum number of cells, taken at equal distances over the table
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CELLS, help_heading = CELLS)]
    cells: usize,
    /// Seed of clustering and principal components
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Draw the scores to this SVG file
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    picture: Option<PathBuf>,
    /// Format of the result
    #[arg(long, value_enum, default_value_t = Format::Table, help_heading = OUTPUT)]
    format: Format,
}

/// Distance by which neighbours are nearest.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum MetricArg {
    Cosine,
    Euclidean,
}

pub(super) async fn run(store: &Store, args: RepresentationArgs, console: &Console) -> Result<()> {
    if args.neighbours == 0 {
        return Err(Error::Request("--neighbours 0: one neighbour at least must vote".into()));
    }
    args.picture.iter().try_for_each(|path| check_picture(path))?;
    let engine = StoreEngine::open(store.clone()).await?;
    let mut recipes = Vec::new();
    for name in &args.of {
        recipes.push((name.clone(), recipe(&engine, name).await?));
    }
    for model in engine.models().iter().filter(|_| args.of.is_empty()) {
        match check_held_out(engine.models(), model) {
            Err(why) if !args.all_cells => console.say(&format!("left out: {why}")),
            _ => recipes.push((model.name.clone(), Recipe::of_model(&model.name))),
        }
    }
    let models: Result<Vec<&ModelEntry>> = recipes.iter().map(|(_, r)| engine.entry(Some(&r.model))).collect();
    let query = CellQuery {
        condition: args.condition.clone(),
        with_trained: args.all_cells,
        label: Some(args.label.clone()),
        batch: args.batch.clone(),
        at_most: Some(args.cells),
    };
    let (cells, known) = select_cells(store, engine.models(), &models?, &query).await?;
    console.say(&format!("{} cells{}", cells.len(), held_out_words(known)));
    if args.neighbours >= cells.len() {
        let (neighbours, others) = (args.neighbours, cells.len().saturating_sub(1));
        return Err(Error::Request(format!("--neighbours {neighbours}: a cell has {others} others here; give fewer")));
    }
    let metric = match args.metric {
        MetricArg::Cosine => NeighbourMetric::Cosine,
        MetricArg::Euclidean => NeighbourMetric::Euclidean,
    };
    let (labels, batches) = (clustering::labels(&cells)?, batches(&cells)?);
    let judge = Judge { labels, batches, neighbours: args.neighbours, metric, seed: args.seed };
    let progress = console.on_progress("judging", "representations");
    let total = (recipes.len() + if args.no_baselines { 0 } else { 3 }) as u64;
    let scores = tokio::task::block_in_place(|| -> Result<Vec<RepresentationScores>> {
        let mut scores = Vec::new();
        let mut judged = |representation: &Representation| -> Result<()> {
            scores.push(judge.scores(representation)?);
            progress(scores.len() as u64, Some(total));
            Ok(())
        };
        for (name, recipe) in &recipes {
            judged(&embedded(&engine, name, recipe, &cells)?)?;
        }
        if !args.no_baselines {
            baselines(&cells, args.seed).iter().try_for_each(&mut judged)?;
        }
        Ok(scores)
    })?;
    drop(progress);
    if let Some(out) = &args.picture {
        let failed = |e| Error::input(out, "picture", format!("cannot be written: {e}; give another --picture"));
        let title = format!("{} cells by {}", cells.len(), args.label);
        std::fs::write(out, picture(&title, &scores)).map_err(failed)?;
    }
    write(store, columns(&scores), args.format).await
}

/// The recipe of a name: of stored embeddings, or the default one of a model.
async fn recipe(engine: &StoreEngine, name: &str) -> Result<Recipe> {
    let table = embedding_table(name);
    if !engine.store().tables().any(|t| t == table) {
        return Ok(Recipe::of_model(&engine.entry(Some(name))?.name));
    }
    let schema = arrow::datatypes::Schema::from(engine.store().table(&table).await?.schema());
    let json = schema.metadata().get(embeddings::RECIPE_METADATA).map(String::as_str).unwrap_or_default();
    serde_json::from_str(json).map_err(|e| {
        let problem = format!("the recipe in its metadata cannot be parsed: {e}; embed the cells again");
        Error::damaged(format!("table {table} of {}", engine.store().uri()), problem)
    })
}

/// Embeddings of cells by a recipe. Cells without one are zeros.
fn embedded(engine: &StoreEngine, name: &str, recipe: &Recipe, cells: &[LabelledCell]) -> Result<Representation> {
    let entry = engine.entry(Some(&recipe.model))?;
    entry.check_recipe(recipe)?;
    let dim = entry.embedding_dim(recipe.pool);
    let samples = cells.iter().map(|cell| Some(Sample { profile: cell.profile(), total: None }));
    let found = engine.embed_cells(recipe, samples, DEFAULT_TOKEN_BUDGET)?;
    Ok(Representation { name: name.to_owned(), vectors: found.vectors, dim })
}

/// Names of the scores, and how to get them.
type Score = (&'static str, fn(&RepresentationScores) -> Option<f64>);
const SCORES: [Score; 11] = [
    ("overall", |s| Some(s.overall())),
    ("knn_acc", |s| Some(s.knn_accuracy)),
    ("knn_f1", |s| Some(s.knn_macro_f1)),
    ("nmi", |s| Some(s.nmi)),
    ("ari", |s| Some(s.ari)),
    ("silhouette", |s| Some(s.silhouette)),
    ("clisi", |s| s.clisi),
    ("across_acc", |s| Some(s.across_batches?.0)),
    ("across_f1", |s| Some(s.across_batches?.1)),
    ("batch_silhouette", |s| s.batches?.silhouette),
    ("ilisi", |s| s.batches?.ilisi),
];

/// The scores that are defined for at least one representation.
fn defined(scores: &[RepresentationScores]) -> impl Iterator<Item = (&'static str, Vec<Option<f64>>)> + '_ {
    let of = |(name, get): Score| (name, scores.iter().map(get).collect::<Vec<_>>());
    SCORES.into_iter().map(of).filter(|(_, values)| values.iter().any(Option::is_some))
}

fn columns(scores: &[RepresentationScores]) -> Vec<(&'static str, ArrayRef)> {
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("representation", Arc::new(StringArray::from_iter_values(scores.iter().map(|s| &s.name)))),
        ("dim", Arc::new(scores.iter().map(|s| s.dim as u64).collect::<UInt64Array>())),
    ];
    for (name, values) in defined(scores) {
        let rounded: Float64Array = values.into_iter().map(|v| v.map(|v| (v * 1e3).round() / 1e3)).collect();
        columns.push((name, Arc::new(rounded)));
    }
    columns
}

fn picture(title: &str, scores: &[RepresentationScores]) -> String {
    let names: Vec<String> = scores.iter().map(|s| s.name.clone()).collect();
    bar_chart(title, &names, &defined(scores).collect::<Vec<_>>())
}
