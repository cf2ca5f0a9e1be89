//! `cellql index`.

use std::time::Instant;

use clap::{Subcommand, ValueEnum};

use super::console::Console;
use super::embed::{RecipeArgs, embed_missing};
use super::output::{self, Format, FormatArgs};
use super::shared_args::open_to_write;
use crate::error::Result;
use crate::index::{IndexKind, build};
use crate::query::Session;
use cellql_store::Store;

#[derive(Debug, Subcommand)]
pub(super) enum IndexVerb {
    /// Embed the cells that are not embedded yet, and build an index over the embeddings
    Build {
        #[command(flatten)]
        recipe: Box<RecipeArgs>,
        /// Kept for scripts: cells are the only thing that is indexed
        #[arg(long, value_enum, default_value_t = Target::Cells, hide = true)]
        on: Target,
        /// Name of the index [default: the name of the recipe]
        #[arg(long, help_heading = INDEX)]
        name: Option<String>,
        /// Kind of the index [default: hnsw if it fits in half of this machine's memory, else ivf]
        #[arg(long, value_enum, help_heading = INDEX)]
        kind: Option<IndexKindArg>,
    },
    /// List the indexes of a store
    List {
        /// Store: a directory
        store: String,
        #[command(flatten)]
        output: FormatArgs,
    },
}

/// Heading of options about the index itself.
const INDEX: &str = "Index";

/// What an index is over.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Target {
    Cells,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum IndexKindArg {
    /// Graph that is searched in memory
    Hnsw,
    /// Partitions that are searched on disk
    Ivf,
}

/// What a person asks about indexes. Other formats than the table have all columns.
pub(super) const SUMMARY: &str = "SELECT name, recipe, kind, metric, n_vectors AS vectors, \
                                  replace(substr(created_at, 1, 16), 'T', ' ') AS created FROM indexes ORDER BY name";
const FULL: &str = "SELECT * FROM indexes ORDER BY name";

pub(super) async fn run(verb: IndexVerb, console: &Console) -> Result<()> {
    match verb {
        IndexVerb::Build { recipe, on: _, name, kind } => {
            let store = open_to_write(&recipe.store, console).await?;
            build_over(&store, &recipe, name, kind.map(IndexKind::from), console).await?;
            Ok(())
        }
        IndexVerb::List { store, output: FormatArgs { format } } => {
            let session = Session::open(Store::open(&store).await?).await?;
            let query = if format == Format::Table { SUMMARY } else { FULL };
            output::write(session.sql(query).await?, format).await
        }
    }
}

/// Embeds what is missing, then builds the index.
pub(super) async fn build_over(
    store: &Store,
    args: &RecipeArgs,
    name: Option<String>,
    kind: Option<IndexKind>,
    console: &Console,
) -> Result<Store> {
    let (store, report) = embed_missing(store, args, console).await?;
    let name = name.unwrap_or_else(|| report.recipe.clone());
    let start = Instant::now();
    let progress = console.on_progress("building the index", "vectors");
    let (store, built) = build(&store, &name, &report.recipe, kind, progress).await?;
    console.say(&format!(
        "index '{name}': {} vectors of dimension {} in {:.1} s",
        built.n_vectors,
        built.dim,
        start.elapsed().as_secs_f64()
    ));
    Ok(store)
}

impl From<IndexKindArg> for IndexKind {
    fn from(kind: IndexKindArg) -> Self {
        match kind {
            IndexKindArg::Hnsw => IndexKind::Hnsw,
            IndexKindArg::Ivf => IndexKind::Ivf,
        }
    }
}
