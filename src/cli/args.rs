//! Verbs and flags. Help texts, usage errors and defaults all come from here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::output::Format;
use super::sizes::Sizes;
use super::training_args::{EvaluateArgs, PretrainArgs};
use crate::index::Metric;
use crate::jobs::Shard;
use cellql_model::{CheckpointKey, Device};

/// A store for single-cell transcriptomes with a foundation model and SQL inside
#[derive(Debug, Parser)]
#[command(name = "cellql", version, max_term_width = 110)]
pub(super) struct Cli {
    /// Say only what went wrong
    #[arg(long, short, global = true)]
    pub(super) quiet: bool,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make an empty store, with the model that comes with the program
    Init {
        /// Directory or object-store URI
        store: String,
        /// Leave the model out
        #[arg(long)]
        no_model: bool,
    },
    /// Take files of cells into a store
    Ingest(IngestArgs),
    /// Write cells to .h5ad, Parquet or Lance
    Export(ExportArgs),
    /// List and remove data sets
    Dataset {
        #[command(subcommand)]
        verb: DatasetVerb,
    },
    /// List the versions of a store
    Versions {
        /// Store to look into
        store: String,
        /// How results are written
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Gather small files into large ones and, with --keep, forget old versions
    Compact {
        /// Store to work on
        store: String,
        /// Versions to keep (default: all)
        #[arg(long)]
        keep: Option<usize>,
    },
    /// Say what a store holds
    Info {
        #[command(flatten)]
        store: ReadArgs,
    },
    /// Run SQL over a store; without -c and -f, on a terminal, a shell
    Sql(SqlArgs),
    /// Add and list models
    Model {
        #[command(subcommand)]
        verb: ModelVerb,
    },
    /// Embed the cells of a store, or with --genes its genes, into a table
    Embed(EmbedArgs),
    /// Build and list nearest-neighbour indexes
    Index {
        #[command(subcommand)]
        verb: IndexVerb,
    },
    /// Find the cells nearest to a cell or to those of a file, or the genes nearest to a gene
    Search(SearchArgs),
    /// Train a model on the cells of a store
    Pretrain(Box<PretrainArgs>),
    /// Judge a model: what it recovers, whether it keeps cell types together, what its loss cost
    Evaluate(EvaluateArgs),
    /// Make a store of real cells with a model and an index, and show what can be asked
    Demo {
        /// Directory for the new store
        store: String,
    },
}

/// A store that is only read.
#[derive(Debug, Args)]
pub(super) struct ReadArgs {
    /// Store to look into
    pub(super) store: String,
    /// Version of the store (default: the newest)
    #[arg(long, value_name = "N")]
    pub(super) at_version: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(super) enum DatasetVerb {
    /// List the data sets of a store
    List {
        #[command(flatten)]
        store: ReadArgs,
        /// How results are written
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Remove a data set with its cells and their embeddings
    Remove {
        /// Store to work on
        store: String,
        /// Name or id of the data set
        dataset: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    pub(super) store: ReadArgs,
    /// File to write: .h5ad, .parquet or .lance
    pub(super) out: PathBuf,
    /// SQL condition on the cells (default: all)
    #[arg(long = "where", value_name = "CONDITION")]
    pub(super) condition: Option<String>,
    /// Format (default: by the file's ending)
    #[arg(long, value_enum)]
    pub(super) to: Option<ExportFormat>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ExportFormat {
    H5ad,
    Parquet,
    Lance,
}

#[derive(Debug, Args)]
pub(super) struct IngestArgs {
    /// Store to add to
    pub(super) store: String,
    /// Files, directories or object-store URIs: .h5ad, 10x .h5, matrix.mtx, .loom, .csv/.tsv, .npz, Parquet, Lance
    #[arg(required = true)]
    pub(super) files: Vec<String>,
    /// Name of the data set (default: the file's name)
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Keep cells that express more genes than this
    #[arg(long, default_value_t = 200)]
    pub(super) min_genes: u32,
    /// Take a file even where most of its names are no human genes
    #[arg(long)]
    pub(super) allow_unresolved: bool,
    /// Leave out cells that another data set of the store holds already
    #[arg(long)]
    pub(super) skip_duplicates: bool,
    /// What the values are: counts, log, log+total, bulk or bulk-log (default: counts where they are or can be had back,
    /// else log)
    #[arg(long)]
    pub(super) input: Option<String>,
    /// Read this layer (default: raw counts where they are)
    #[arg(long, conflicts_with = "raw")]
    pub(super) layer: Option<String>,
    /// Read raw.X
    #[arg(long)]
    pub(super) raw: bool,
    /// Genome of a 10x file that has several (default: the human one)
    #[arg(long)]
    pub(super) genome: Option<String>,
    /// Names of the genes, one a line, for .npz or a .mtx without them
    #[arg(long)]
    pub(super) genes: Option<PathBuf>,
    /// Names of the cells, one a line, likewise
    #[arg(long)]
    pub(super) barcodes: Option<PathBuf>,
    /// Write the whole report as JSON to this file
    #[arg(long)]
    pub(super) report: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct SqlArgs {
    #[command(flatten)]
    pub(super) store: ReadArgs,
    /// Statements, separated by ';'
    #[arg(short, long, conflicts_with = "file")]
    pub(super) command: Option<String>,
    /// File of statements; '-' reads them from standard input, as does nothing where that is no terminal
    #[arg(short, long)]
    pub(super) file: Option<PathBuf>,
    /// Value of $NAME in the statements; numbers, true, false and null are such, everything else is a string
    #[arg(long = "param", short, value_name = "NAME=VALUE", value_parser = pair)]
    pub(super) parameters: Vec<(String, String)>,
    /// Say on stderr how many rows each statement gave in what time (in the shell: \timing)
    #[arg(long)]
    pub(super) timing: bool,
    /// How results are written
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(super) format: Format,
    /// What runs models: cpu, or cuda, cuda:1 in a build with CUDA
    #[arg(long, default_value = "cpu")]
    pub(super) device: Device,
}

#[derive(Debug, Subcommand)]
pub(super) enum ModelVerb {
    /// Bring in a checkpoint: the authors' models.ckpt, cellql's own .safetensors, or other .safetensors with --config
    Import(ImportArgs),
    /// Add the model that comes with the program: 3M sizes, trained on public human cells
    Add {
        /// Store to add to
        store: String,
    },
    /// Make a model with untrained weights
    Init {
        /// Store to add to
        store: String,
        /// Size: 3M, 10M, 100M, or a JSON file like {"encoder": {"hidden_dim": 64}, "decoder": {"hidden_dim": 64}}
        #[arg(long)]
        size: Sizes,
        /// Seed of the weights
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Name of the model in the store
        #[arg(long)]
        name: String,
    },
    /// Say what a model is: sizes, vocabulary, origin, licence
    Show {
        /// Store to look into
        store: String,
        /// Name of the model (default: the only one)
        name: Option<String>,
    },
    /// Write a model to .safetensors, with configuration and vocabulary inside, or to .ckpt as the authors have it
    Export {
        /// Store to look into
        store: String,
        /// File to write
        out: PathBuf,
        /// Name of the model (default: the only one)
        #[arg(long)]
        name: Option<String>,
        /// Key of the model in a .ckpt
        #[arg(long, value_enum, default_value_t = Key::Cell)]
        key: Key,
        /// Numbers of 16 bits: half the size, three digits (.safetensors only)
        #[arg(long)]
        half: bool,
    },
    /// List the models of a store
    List {
        /// Store to look into
        store: String,
        /// How results are written
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
}

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// Store to add to
    pub(super) store: String,
    /// The checkpoint
    pub(super) file: PathBuf,
    /// The model's genes in order: gene_name<TAB>index
    #[arg(long)]
    pub(super) genes: Option<PathBuf>,
    /// Configuration as JSON, for .safetensors without one
    #[arg(long)]
    pub(super) config: Option<PathBuf>,
    /// Which model of a models.ckpt
    #[arg(long, value_enum, default_value_t = Key::Cell)]
    pub(super) key: Key,
    /// Name of the model in the store
    #[arg(long)]
    pub(super) name: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Key {
    Cell,
    Rde,
    Gene,
}

impl From<Key> for CheckpointKey {
    fn from(key: Key) -> Self {
        match key {
            Key::Cell => CheckpointKey::Cell,
            Key::Rde => CheckpointKey::Rde,
            Key::Gene => CheckpointKey::Gene,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct RecipeArgs {
    /// Store to work on
    pub(super) store: String,
    /// Model (default: the only one)
    #[arg(long)]
    pub(super) model: Option<String>,
    /// Pooling: all or max
    #[arg(long, default_value = "all")]
    pub(super) pool: String,
    /// Target depth: t4, f2, a0.5
    #[arg(long, default_value = "t4")]
    pub(super) depth: String,
    /// What the values are: counts, log, log+total, bulk or bulk-log; data sets of another input are left out
    #[arg(long, default_value = "counts")]
    pub(super) input: String,
    /// Numbers the model computes with: f32, bf16 or int8
    #[arg(long, default_value = "f32")]
    pub(super) precision: String,
    /// Column of cells with each cell's total count, for input log+total
    #[arg(long)]
    pub(super) total: Option<String>,
    /// Embed only cells that satisfy this SQL condition
    #[arg(long = "where", value_name = "CONDITION")]
    pub(super) condition: Option<String>,
    /// Do one part of the cells, for several processes or machines: 2/8 is the second of eight
    #[arg(long, default_value_t)]
    pub(super) shard: Shard,
    /// Seconds of work after which what is done is published: so much a killed run loses at most
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    pub(super) publish_every: f64,
    /// Memory for a batch of cells, beside the weights: 512MB, 2GB
    #[arg(long, value_parser = bytes)]
    pub(super) memory: Option<u64>,
    /// What runs the model: cpu, or cuda, cuda:1 in a build with CUDA
    #[arg(long, default_value = "cpu")]
    pub(super) device: Device,
}

#[derive(Debug, Args)]
pub(super) struct EmbedArgs {
    #[command(flatten)]
    pub(super) recipe: RecipeArgs,
    /// Average the context embeddings of genes over groups of cells instead
    #[arg(long)]
    pub(super) genes: bool,
    /// Column of cells whose values are the groups (default: all cells are one group)
    #[arg(long, requires = "genes")]
    pub(super) group_by: Option<String>,
    /// Cells of each group to average over, spread evenly over it (default: all)
    #[arg(long, requires = "genes")]
    pub(super) cells_per_group: Option<u64>,
}

/// Reads `name=value`.
fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("'{text}' is no parameter: write name=value"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Reads `512MB`, `2GB`, `1000000`.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" => 1_000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        _ => return Err(format!("'{text}' is no amount of memory: write 512MB or 2GB")),
    };
    let number: f64 = digits.parse().map_err(|_| format!("'{text}' is no amount of memory: write 512MB or 2GB"))?;
    Ok((number * f64::from(unit)) as u64)
}

#[derive(Debug, Subcommand)]
pub(super) enum IndexVerb {
    /// Embed what is not embedded yet and build an index over it
    Build {
        #[command(flatten)]
        recipe: Box<RecipeArgs>,
        /// What to index
        #[arg(long, value_enum, default_value_t = Target::Cells)]
        on: Target,
        /// Name of the index (default: the recipe's)
        #[arg(long)]
        name: Option<String>,
        /// What it is (default: hnsw where it takes no more than half of this machine's memory, else ivf)
        #[arg(long, value_enum)]
        kind: Option<IndexKindArg>,
    },
    /// List the indexes of a store
    List {
        /// Store to look into
        store: String,
        /// How results are written
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Target {
    Cells,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum IndexKindArg {
    /// A graph, searched in memory
    Hnsw,
    /// Lance's partitions, searched on disk
    Ivf,
}

#[derive(Debug, Args)]
pub(super) struct SearchArgs {
    #[command(flatten)]
    pub(super) store: ReadArgs,
    /// Cell to start from: its cell_id
    #[arg(long, required_unless_present_any = ["gene", "query"], conflicts_with_all = ["gene", "query"])]
    pub(super) cell: Option<u64>,
    /// Gene to start from, by any of its names: finds genes with like embeddings
    #[arg(long, conflicts_with = "query")]
    pub(super) gene: Option<String>,
    /// Group of cells whose gene embeddings are searched (default: the only one)
    #[arg(long, requires = "gene")]
    pub(super) group: Option<String>,
    /// File of cells to start from: each is embedded and its neighbours are found
    #[arg(long, value_name = "FILE")]
    pub(super) query: Option<String>,
    /// For each cell of the file, the value of this column that most neighbours have, with its share of the votes
    #[arg(long, value_name = "COLUMN", requires = "query")]
    pub(super) vote: Option<String>,
    /// What near means: cosine, l2, inner_product or correlation
    #[arg(long, default_value = "cosine")]
    pub(super) metric: Metric,
    /// What runs models: cpu, or cuda, cuda:1 in a build with CUDA
    #[arg(long, default_value = "cpu")]
    pub(super) device: Device,
    /// Number of neighbours
    #[arg(short, default_value_t = 10)]
    pub(super) k: usize,
    /// SQL condition the neighbours satisfy
    #[arg(long = "where")]
    pub(super) filter: Option<String>,
    /// Embedding table (default: the only one)
    #[arg(long)]
    pub(super) recipe: Option<String>,
    /// Columns to show beside cell_id and _distance (default: barcode and every obs column)
    #[arg(long, value_delimiter = ',')]
    pub(super) columns: Vec<String>,
    /// How results are written
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(super) format: Format,
}
