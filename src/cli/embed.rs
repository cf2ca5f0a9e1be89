//! `cellql embed`, and the recipe of embeddings that it shares with `cellql index build`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cellql_schemas::recipe::{Depth, Dtype, Input, Pool, Recipe};
use clap::Args;

use super::console::Console;
use super::shared_args::{CELLS, DeviceArgs, EXECUTION, bytes, one_of, open_to_write};
use crate::error::{Error, Result};
use crate::jobs::{EmbedOptions, EmbedReport, Groups, MemoryBudget, Shard, embed_cells, embed_genes};
use crate::model_registry::ModelEntry;
use crate::query::StoreEngine;
use cellql_model::{Device, Model};
use cellql_store::Store;

/// Heading of options that say how a cell becomes a vector.
const RECIPE: &str = "Recipe";

#[derive(Debug, Args)]
pub(super) struct EmbedArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Embed genes instead of cells: average their embeddings over the cells of each group
    #[arg(long, help_heading = GENES)]
    genes: bool,
    /// Column of `cells` whose values are the groups [default: all cells are one group]
    #[arg(long, value_name = "COLUMN", requires = "genes", help_heading = GENES)]
    group_by: Option<String>,
    /// Maximum number of cells of a group to average over, taken at equal distances [default: all cells]
    #[arg(long, value_name = "N", requires = "genes", help_heading = GENES)]
    cells_per_group: Option<u64>,
}

/// Heading of options for embeddings of genes.
const GENES: &str = "Gene embeddings";

/// Which cells are embedded by which recipe, and how the work runs.
#[derive(Debug, Args)]
pub(super) struct RecipeArgs {
    /// Store: a directory
    pub(super) store: String,
    /// Name of the model [default: the only one besides the shipped models, else human_pca]
    #[arg(long, help_heading = RECIPE)]
    pub(super) model: Option<String>,
    /// How token embeddings become one vector: all (4 x the encoder's width) or max (the width)
    #[arg(long, value_parser = one_of::<Pool>(Pool::ALL.map(Pool::name)), default_value = "all", help_heading = RECIPE)]
    pub(super) pool: Pool,
    /// Total counts that the model shall assume (token T): t4 (10^4 counts), f2 (2 x the cell's own counts), a0.5
    /// (log10 of the cell's own counts + 0.5)
    #[arg(long, default_value = "t4", help_heading = RECIPE)]
    pub(super) depth: Depth,
    /// Embed only data sets whose values are of this kind (column `input` of `cellql dataset list`)
    #[arg(long, value_parser = one_of::<Input>(Input::ALL.map(Input::name)), default_value = "counts",
          help_heading = RECIPE)]
    pub(super) input: Input,
    /// Column of `cells` with each cell's total count, for --input log+total
    #[arg(long, value_name = "COLUMN", help_heading = RECIPE)]
    pub(super) total: Option<String>,
    /// Number format of matrix products
    #[arg(long, value_parser = one_of::<Dtype>(Dtype::ALL.map(Dtype::name)), default_value = "f32",
          help_heading = RECIPE)]
    pub(super) precision: Dtype,
    /// Embed only cells that satisfy this SQL condition [default: all cells]
    #[arg(long = "where", value_name = "CONDITION", help_heading = CELLS)]
    pub(super) condition: Option<String>,
    /// Embed one part of the cells, for several processes or machines: 2/8 is the second of eight parts
    #[arg(long, value_name = "I/N", default_value_t, help_heading = CELLS)]
    pub(super) shard: Shard,
    #[command(flatten)]
    pub(super) device: DeviceArgs,
    /// Memory for a batch of cells, in addition to the weights: 512MB, 2GB [default: batches of 8192 tokens]
    #[arg(long, value_name = "BYTES", value_parser = bytes, help_heading = EXECUTION)]
    pub(super) memory: Option<u64>,
    /// Publish finished vectors at this interval; a killed run loses at most so much work
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, help_heading = EXECUTION)]
    pub(super) publish_every: f64,
}

pub(super) async fn run(args: EmbedArgs, console: &Console) -> Result<()> {
    let store = open_to_write(&args.recipe.store, console).await?;
    if !args.genes {
        embed_missing(&store, &args.recipe, console).await?;
        return Ok(());
    }
    let engine = Arc::new(StoreEngine::open(store).await?.on(args.recipe.device.device)?);
    let model = engine.transformer_entry(args.recipe.model.as_deref(), "gene embeddings")?;
    let recipe = recipe(model, &args.recipe, console)?;
    let groups = Groups { by: args.group_by, at_most: args.cells_per_group };
    let (total, memory) = (args.recipe.total.as_deref(), MemoryBudget { bytes: args.recipe.memory });
    let progress = console.on_progress("embedding genes", "cells");
    let start = Instant::now();
    let (_, report) = embed_genes(&engine, &recipe, total, &groups, memory, progress).await?;
    let cells: u64 = report.added.iter().map(|(_, cells)| cells).sum();
    console.say(&format!(
        "gene_embeddings '{}': {} groups of {cells} cells added in {:.1} s, {} groups were already there",
        report.recipe,
        report.added.len(),
        start.elapsed().as_secs_f64(),
        report.already
    ));
    for (group, cells) in &report.added {
        console.say(&format!("  {group}: {cells} cells"));
    }
    if report.without_vector > 0 {
        console.say(&format!("  {} cells have no embedding and are left out", report.without_vector));
    }
    Ok(())
}

/// Embeds the cells that have no vector of this recipe yet.
pub(super) async fn embed_missing(store: &Store, args: &RecipeArgs, console: &Console) -> Result<(Store, EmbedReport)> {
    let engine = Arc::new(StoreEngine::open(store.clone()).await?.on(args.device.device)?);
    let recipe = recipe(engine.entry(args.model.as_deref())?, args, console)?;
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
    let progress = console.on_progress("embedding cells", "cells");
    let (store, report) = embed_cells(&engine, &recipe, &options, progress).await?;
    console.say(&format!(
        "embeddings '{}': {} cells added in {:.1} s, {} were already there",
        report.recipe,
        report.added,
        start.elapsed().as_secs_f64(),
        report.already
    ));
    if report.unsuitable > 0 {
        console.say(&format!(
            "  {} cells left out: the input of their data sets is not '{}' (see cellql dataset list)",
            report.unsuitable,
            args.input.name()
        ));
    }
    for (why, cells) in &report.without_vector {
        console.say(&format!("  {cells} cells have no vector: {why}"));
    }
    Ok((store, report))
}

/// The recipe of the options, with a model of the store.
fn recipe(model: &ModelEntry, args: &RecipeArgs, console: &Console) -> Result<Recipe> {
    let recipe = Recipe {
        model: model.name.clone(),
        pool: args.pool,
        depth: args.depth,
        input: args.input,
        precision: args.precision,
    };
    model.check_recipe(&recipe)?;
    if !model.trained {
        console.untrained(&model.name);
    }
    if recipe.precision != Dtype::F32 && args.device.device == Device::Cpu {
        let precision = recipe.precision.name();
        console
            .say(&format!("precision {precision}: matrix products run on {}", Model::instructions(recipe.precision)));
    }
    Ok(recipe)
}
