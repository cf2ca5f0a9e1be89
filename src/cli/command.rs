//! The command line as a whole: the verbs, each of which has a file of its own here.

use clap::{Parser, Subcommand};

use super::compact::CompactArgs;
use super::dataset::DatasetVerb;
use super::demo::DemoArgs;
use super::embed::EmbedArgs;
use super::evaluate::EvaluateArgs;
use super::export::ExportArgs;
use super::index::IndexVerb;
use super::info::InfoArgs;
use super::ingest::IngestArgs;
use super::init::InitArgs;
use super::model::ModelVerb;
use super::pretrain::PretrainArgs;
use super::search::SearchArgs;
use super::sql::SqlArgs;
use super::verify::VerifyArgs;
use super::versions::VersionsArgs;

/// A store for single-cell transcriptomes, with a foundation model and SQL inside
#[derive(Debug, Parser)]
#[command(name = "cellql", version, max_term_width = 110)]
pub(super) struct Cli {
    /// Print nothing to stderr but errors
    #[arg(long, short, global = true)]
    pub(super) quiet: bool,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Create an empty store with the model that comes with the program
    Init(InitArgs),
    /// Add cells from files to a store
    Ingest(IngestArgs),
    /// Write cells to a .h5ad, Parquet or Lance file
    Export(ExportArgs),
    /// List or remove data sets
    Dataset {
        #[command(subcommand)]
        verb: DatasetVerb,
    },
    /// List the versions of a store
    Versions(VersionsArgs),
    /// Merge small data files into large ones and, with --keep, delete old versions
    Compact(CompactArgs),
    /// Check every file of a store against its checksum, and every cell against that of its expression
    Verify(VerifyArgs),
    /// Summarise a store: cells, data sets, models and indexes
    Info(InfoArgs),
    /// Run SQL statements on a store, or open a SQL shell
    Sql(SqlArgs),
    /// Add, list, show or export models
    Model {
        #[command(subcommand)]
        verb: ModelVerb,
    },
    /// Embed the cells of a store into a table, or with --genes its genes
    Embed(EmbedArgs),
    /// Build or list nearest-neighbour indexes
    Index {
        #[command(subcommand)]
        verb: IndexVerb,
    },
    /// Find the nearest neighbours of a cell, of a gene, or of every cell of a file
    Search(SearchArgs),
    /// Train a model on the cells of a store
    Pretrain(Box<PretrainArgs>),
    /// Evaluate a model: read-depth enhancement, clustering by cell type, or the loss over the training compute
    Evaluate(EvaluateArgs),
    /// Create a store of 320 pancreas cells with a model and an index, and run example queries
    Demo(DemoArgs),
}
