//! `cellql model fit`.

use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::console::Console;
use super::model::print_added;
use super::output;
use super::shared_args::{CELLS, open_to_write};
use crate::error::{Error, Result};
use crate::fit::{FitSettings, FittedPca, FittedWhitening, GeneSelection, fit_pca, fit_whitening};
use crate::model_registry::{self, ModelEntry};
use cellql_model::{FileBytes, encode_linear, with_output_map};
use cellql_store::Store;
use cellql_training::HoldOut;

#[derive(Debug, Args)]
pub(super) struct FitArgs {
    /// Store with the cells; the model is added to it
    store: String,
    /// What to fit: pca (a linear model of log-normalised counts), whiten (an output map for the model of --of)
    #[arg(long, value_enum)]
    kind: FitKind,
    /// Name of the new model
    #[arg(long)]
    name: String,
    /// Number of components, the dimensions of an embedding [default: 64 for pca, 30 for whiten]
    #[arg(long, value_name = "N")]
    components: Option<usize>,
    /// Model whose embeddings are whitened, for --kind whiten; the new model is this one with an output map
    #[arg(long, value_name = "MODEL", required_if_eq("kind", "whiten"))]
    of: Option<String>,
    /// Genes to read, for --kind pca: hvg:N (the N most variable ones) or min-cells:F (expressed in at least this share
    /// of the cells, from 0 to 1)
    #[arg(long, value_name = "SELECTION", default_value_t, value_parser = GeneSelection::from_str)]
    genes: GeneSelection,
    /// Divide each component by its standard deviation to this power, for --kind pca: 0 leaves principal components as
    /// they are, 1 whitens
    #[arg(long, value_name = "POWER", default_value_t = 0.0)]
    whitening: f64,
    /// Groups of cells that are centred by themselves and have the same weight: dataset, none (one group), or a column
    /// of `cells`
    #[arg(long, value_name = "COLUMN", default_value = "dataset")]
    balance: String,
    /// Seed of the random start
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Fit only to cells that satisfy this SQL condition [default: all cells with counts]
    #[arg(long = "where", value_name = "CONDITION", help_heading = CELLS)]
    condition: Option<String>,
    /// Fraction of the cells to hold out, chosen by the hash of their content
    #[arg(long, value_name = "FRACTION", default_value_t = 0.0, help_heading = CELLS)]
    hold_out: f64,
    /// Also hold out cells that satisfy this SQL condition
    #[arg(long, value_name = "CONDITION", help_heading = CELLS)]
    hold_out_where: Option<String>,
    /// Maximum number of cells, taken at equal distances over the table [default: all for pca, 20000 for whiten]
    #[arg(long, value_name = "N", help_heading = CELLS)]
    cells: Option<u64>,
}

/// What is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FitKind {
    Pca,
    Whiten,
}

/// Components of a whitening by default.
const WHITENED: usize = 30;
/// Cells whose embeddings a whitening is fitted to by default.
const WHITENING_CELLS: u64 = 20_000;

pub(super) async fn run(args: FitArgs, console: &Console) -> Result<()> {
    let store = open_to_write(&args.store, console).await?;
    model_registry::check_name(&args.name)?;
    let entries = model_registry::list(&store).await?;
    if entries.iter().any(|entry| entry.name == args.name) {
        let uri = store.uri();
        return Err(Error::Request(format!("{uri} already has a model '{}'; choose another name", args.name)));
    }
    let settings = settings(&args)?;
    match args.kind {
        FitKind::Pca => pca(&store, &args.name, &settings, console).await,
        FitKind::Whiten => {
            let of = model_registry::find(&entries, args.of.as_deref())?.clone();
            whiten(&store, &args.name, &of, &settings, console).await
        }
    }
}

fn settings(args: &FitArgs) -> Result<FitSettings> {
    let defaults = FitSettings::default();
    let is_pca = args.kind == FitKind::Pca;
    let other = match is_pca {
        true if args.of.is_some() => Some("--of is for --kind whiten"),
        false if args.genes != defaults.genes => Some("--genes is for --kind pca"),
        false if args.whitening != defaults.whitening => Some("--whitening is for --kind pca"),
        _ => None,
    };
    if let Some(other) = other {
        return Err(Error::Request(format!("{other}; leave it out")));
    }
    Ok(FitSettings {
        components: args.components.unwrap_or(if is_pca { defaults.components } else { WHITENED }),
        genes: args.genes,
        whitening: args.whitening,
        balance: args.balance.clone(),
        condition: args.condition.clone(),
        hold_out: HoldOut { share: args.hold_out, condition: args.hold_out_where.clone() },
        cells: args.cells.or((!is_pca).then_some(WHITENING_CELLS)),
        seed: args.seed,
    })
}

async fn pca(store: &Store, name: &str, settings: &FitSettings, console: &Console) -> Result<()> {
    let progress = console.on_progress("fitting principal components", "cells read");
    let found = fit_pca(store, settings, progress).await?;
    let FittedPca { weights, provenance, cells, groups, explained, seconds } = found;
    let bytes = FileBytes::from(encode_linear(&weights)?.0);
    let (_, entry) = model_registry::add_file(store, name, bytes, &provenance).await?;
    print_added(&entry, console);
    output::text(&format!(
        "cells      {} fitted to, {} held out, {} left out as duplicates\n\
         groups     {groups} by {}, centred by themselves and weighted alike\n\
         genes      {} ({})\n\
         variance   {:.1} % of it along {} components\n\
         time       {seconds:.1} s",
        cells.train.min(settings.cells.unwrap_or(u64::MAX)),
        cells.held_out,
        cells.duplicates,
        settings.balance,
        entry.n_genes,
        settings.genes,
        100.0 * explained,
        entry.dim,
    ))
}

async fn whiten(store: &Store, name: &str, of: &ModelEntry, settings: &FitSettings, console: &Console) -> Result<()> {
    let progress = console.on_progress("embedding cells", "cells");
    let found = fit_whitening(store, of, settings, progress).await?;
    let FittedWhitening { map, provenance, cells, embedded, explained, seconds } = found;
    let bytes = model_registry::bytes(store, of).await?;
    let bytes = FileBytes::from(with_output_map(&of.name, &bytes, &map)?.0);
    let (_, entry) = model_registry::add_file(store, name, bytes, &provenance).await?;
    print_added(&entry, console);
    output::text(&format!(
        "model      {} with an output map from {} dimensions to {}\n\
         cells      {embedded} fitted to, {} held out\n\
         variance   {:.1} % of it along {} components\n\
         time       {seconds:.1} s",
        of.name,
        map.inputs(),
        map.outputs(),
        cells.held_out,
        100.0 * explained,
        map.outputs(),
    ))
}
