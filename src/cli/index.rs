//! `cellql embed` and `cellql index`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cellql_schemas::recipe::{Precision, Recipe};

use super::args::{EmbedArgs, IndexKind, IndexVerb, RecipeArgs};
use super::output;
use super::talk::Talk;
use crate::error::{Error, Result};
use crate::index::{Kind, build};
use crate::jobs::{EmbedOptions, EmbedReport, Groups, MemoryBudget, embed_cells, embed_genes};
use crate::query::{Session, StoreEngine};
use cellql_model::{Device, Model};
use cellql_store::Store;

pub(super) async fn run(verb: IndexVerb, talk: &Talk) -> Result<()> {
    match verb {
        IndexVerb::Build { recipe, on: _, name, kind } => {
            let store = super::open_to_write(&recipe.store, talk).await?;
            build_over(&store, &recipe, name, kind.map(Kind::from), talk).await?;
            Ok(())
        }
        IndexVerb::List { store, format } => {
            let session = Session::open(Store::open(&store).await?).await?;
            output::write(session.sql("SELECT * FROM indexes ORDER BY name").await?, format).await
        }
    }
}

pub(super) async fn embed(args: EmbedArgs, talk: &Talk) -> Result<()> {
    let store = super::open_to_write(&args.recipe.store, talk).await?;
    if !args.genes {
        fill(&store, &args.recipe, talk).await?;
        return Ok(());
    }
    let engine = Arc::new(StoreEngine::open(store).await?.on(args.recipe.device)?);
    let recipe = recipe(&engine, &args.recipe, talk)?;
    let groups = Groups { by: args.group_by, at_most: args.cells_per_group };
    let (total, memory) = (args.recipe.total.as_deref(), MemoryBudget { bytes: args.recipe.memory });
    let progress = talk.progress("embedding genes", "cells");
    let start = Instant::now();
    let (_, report) = embed_genes(&engine, &recipe, total, &groups, memory, progress).await?;
    let cells: u64 = report.added.iter().map(|(_, cells)| cells).sum();
    talk.say(&format!(
        "gene_embeddings '{}': {} groups of {cells} cells added in {:.1} s, {} groups were there",
        report.recipe,
        report.added.len(),
        start.elapsed().as_secs_f64(),
        report.already
    ));
    for (group, cells) in &report.added {
        talk.say(&format!("  {group}: {cells} cells"));
    }
    if report.without_vector > 0 {
        talk.say(&format!("  {} cells have no embedding and are in no average", report.without_vector));
    }
    Ok(())
}

/// Embeds what is missing, then builds the index.
pub(super) async fn build_over(
    store: &Store,
    args: &RecipeArgs,
    name: Option<String>,
    kind: Option<Kind>,
    talk: &Talk,
) -> Result<Store> {
    let (store, report) = fill(store, args, talk).await?;
    let name = name.unwrap_or_else(|| report.recipe.clone());
    let start = Instant::now();
    let progress = talk.progress("building the index", "vectors");
    let (store, built) = build(&store, &name, &report.recipe, kind, progress).await?;
    talk.say(&format!(
        "index '{name}': {} vectors of {} numbers in {:.1} s",
        built.n_vectors,
        built.dim,
        start.elapsed().as_secs_f64()
    ));
    Ok(store)
}

async fn fill(store: &Store, args: &RecipeArgs, talk: &Talk) -> Result<(Store, EmbedReport)> {
    let engine = Arc::new(StoreEngine::open(store.clone()).await?.on(args.device)?);
    let recipe = recipe(&engine, args, talk)?;
    let start = Instant::now();
    let publish_every = Duration::try_from_secs_f64(args.publish_every)
        .map_err(|e| Error::Request(format!("--publish-every {}: {e}", args.publish_every)))?;
    let options = EmbedOptions {
        total: args.total.clone(),
        condition: args.condition.clone(),
        shard: args.shard,
        memory: MemoryBudget { bytes: args.memory },
        publish_every,
    };
    let progress = talk.progress("embedding cells", "cells");
    let (store, report) = embed_cells(&engine, &recipe, &options, progress).await?;
    talk.say(&format!(
        "embeddings '{}': {} cells added in {:.1} s, {} were there",
        report.recipe,
        report.added,
        start.elapsed().as_secs_f64(),
        report.already
    ));
    if report.unsuitable > 0 {
        talk.say(&format!(
            "  {} cells left out: their data sets have another input than '{}' (see cellql dataset list)",
            report.unsuitable, args.input
        ));
    }
    for (why, cells) in &report.without_vector {
        talk.say(&format!("  {cells} cells have no vector: {why}"));
    }
    Ok((store, report))
}

/// The recipe that flags ask for.
fn recipe(engine: &StoreEngine, args: &RecipeArgs, talk: &Talk) -> Result<Recipe> {
    let model = engine.entry(args.model.as_deref())?.clone();
    let wrong = |e: cellql_schemas::recipe::RecipeError| Error::Request(e.to_string());
    let recipe = Recipe {
        model: model.name.clone(),
        pool: args.pool.parse().map_err(wrong)?,
        depth: args.depth.parse().map_err(wrong)?,
        input: args.input.parse().map_err(wrong)?,
        precision: args.precision.parse().map_err(wrong)?,
    };
    if !model.trained {
        let name = &model.name;
        talk.say(&format!(
            "note: model '{name}' has untrained weights; its embeddings are a random projection of expression"
        ));
    }
    if recipe.precision != Precision::F32 && args.device == Device::Cpu {
        let precision = recipe.precision.name();
        talk.say(&format!("precision {precision}: matrix products run on {}", Model::instructions(recipe.precision)));
    }
    Ok(recipe)
}

impl From<IndexKind> for Kind {
    fn from(kind: IndexKind) -> Self {
        match kind {
            IndexKind::Hnsw => Kind::Graph,
            IndexKind::Ivf => Kind::Ivf,
        }
    }
}
