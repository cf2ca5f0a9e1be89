//! `cellql embed` and `cellql index`.

use std::sync::Arc;
use std::time::Instant;

use cellql_schemas::recipe::Recipe;

use super::args::{IndexVerb, RecipeArgs};
use super::output;
use super::talk::Talk;
use crate::error::{Error, Result};
use crate::index::{GraphOptions, build};
use crate::jobs::{EmbedReport, embed_cells};
use crate::query::{Session, StoreEngine};
use crate::store::Store;

pub(super) async fn run(verb: IndexVerb, talk: &Talk) -> Result<()> {
    match verb {
        IndexVerb::Build { recipe, on: _, name } => {
            let store = super::open_to_write(&recipe.store, talk).await?;
            build_over(&store, &recipe, name, talk).await?;
            Ok(())
        }
        IndexVerb::List { store, format } => {
            let session = Session::open(Store::open(&store).await?).await?;
            output::write(session.sql("SELECT * FROM indexes ORDER BY name").await?, format).await
        }
    }
}

pub(super) async fn embed(args: RecipeArgs, talk: &Talk) -> Result<()> {
    fill(&super::open_to_write(&args.store, talk).await?, &args, talk).await?;
    Ok(())
}

/// Embeds what is missing, then builds the index.
pub(super) async fn build_over(store: &Store, args: &RecipeArgs, name: Option<String>, talk: &Talk) -> Result<Store> {
    let (store, report) = fill(store, args, talk).await?;
    let name = name.unwrap_or_else(|| report.recipe.clone());
    let start = Instant::now();
    let (store, manifest) = build(&store, &name, &report.recipe, GraphOptions::default()).await?;
    talk.say(&format!(
        "index '{name}': {} vectors of {} numbers in {:.1} s",
        manifest.n_vectors,
        manifest.dim,
        start.elapsed().as_secs_f64()
    ));
    Ok(store)
}

async fn fill(store: &Store, args: &RecipeArgs, talk: &Talk) -> Result<(Store, EmbedReport)> {
    let engine = Arc::new(StoreEngine::open(store.clone()).await?);
    let model = engine.entry(args.model.as_deref())?.clone();
    let wrong = |e: cellql_schemas::recipe::RecipeError| Error::Request(e.to_string());
    let recipe = Recipe {
        model: model.name.clone(),
        pool: args.pool.parse().map_err(wrong)?,
        depth: args.depth.parse().map_err(wrong)?,
        input: args.input.parse().map_err(wrong)?,
    };
    if !model.trained {
        let name = &model.name;
        talk.say(&format!(
            "note: model '{name}' has untrained weights; its embeddings are a random projection of expression"
        ));
    }
    let start = Instant::now();
    let (store, report) = embed_cells(&engine, &recipe, talk.progress("embedding cells", "cells")).await?;
    talk.say(&format!(
        "embeddings '{}': {} cells added in {:.1} s, {} were there",
        report.recipe,
        report.added,
        start.elapsed().as_secs_f64(),
        report.already
    ));
    if report.unsuitable > 0 {
        talk.say(&format!(
            "  {} cells left out: their values are not what input '{}' means",
            report.unsuitable, args.input
        ));
    }
    for (why, cells) in &report.without_vector {
        talk.say(&format!("  {cells} cells have no vector: {why}"));
    }
    Ok((store, report))
}
