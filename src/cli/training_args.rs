//! Flags of the verbs that train models and judge them.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::output::Format;
use super::sizes::Sizes;
use cellql_model::Device;
use cellql_training::Schedule;

#[derive(Debug, Args)]
pub(super) struct PretrainArgs {
    /// Store whose cells are learned from, and which takes the model
    pub(super) store: String,
    /// Name of the new model
    #[arg(long, required_unless_present = "dry_run")]
    pub(super) name: Option<String>,
    /// Size of the model: 3M, 10M, 100M, or a JSON file like {"encoder": {"hidden_dim": 64}, "decoder": {"hidden_dim": 64}}
    #[arg(long, conflicts_with = "from", default_value = "3M")]
    pub(super) size: Sizes,
    /// The model's genes in order, gene_name<TAB>index (default: protein-coding and mitochondrial ones of HGNC)
    #[arg(long, conflicts_with = "from")]
    pub(super) genes: Option<PathBuf>,
    /// Begin with the weights of this model of the store
    #[arg(long, value_name = "MODEL")]
    pub(super) from: Option<String>,
    /// Settings as JSON; what is given here besides overrules them
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Steps
    #[arg(long)]
    pub(super) steps: Option<u64>,
    /// Cells of a batch
    #[arg(long)]
    pub(super) batch: Option<usize>,
    /// Batches of a step, whose gradients are added up
    #[arg(long)]
    pub(super) accumulate: Option<usize>,
    /// Learning rate at its highest
    #[arg(long)]
    pub(super) learning_rate: Option<f64>,
    /// Steps over which it rises
    #[arg(long)]
    pub(super) warm_up: Option<u64>,
    /// What it does then: constant or cosine
    #[arg(long)]
    pub(super) schedule: Option<Schedule>,
    /// Decoupled weight decay
    #[arg(long)]
    pub(super) weight_decay: Option<f64>,
    /// Longest gradient
    #[arg(long)]
    pub(super) clip: Option<f64>,
    /// Numbers products are computed with: f32 or bf16
    #[arg(long)]
    pub(super) precision: Option<String>,
    /// Compute activations again on the way back instead of keeping them: less memory, a tenth to a fifth more time
    #[arg(long)]
    pub(super) recompute: bool,
    /// Seed of weights, orders and masks
    #[arg(long)]
    pub(super) seed: Option<u64>,
    /// SQL condition on the cells to learn from
    #[arg(long = "where", value_name = "CONDITION")]
    pub(super) condition: Option<String>,
    /// Share of the cells to hold out, by the hash of their content
    #[arg(long, value_name = "SHARE")]
    pub(super) hold_out: Option<f64>,
    /// SQL condition: cells to hold out besides
    #[arg(long, value_name = "CONDITION")]
    pub(super) hold_out_where: Option<String>,
    /// Steps between two looks at held-out cells
    #[arg(long, value_name = "STEPS")]
    pub(super) validate_every: Option<u64>,
    /// Folder of the run: checkpoint, metrics.jsonl, curves.svg (default: runs/NAME inside the store)
    #[arg(long, value_name = "FOLDER")]
    pub(super) run: Option<PathBuf>,
    /// Seconds of work between two checkpoints: so much a killed run loses at most
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub(super) checkpoint_every: f64,
    /// What computes: cpu, or in a build with CUDA one device or several, which share each batch: cuda:0,cuda:1
    #[arg(long, default_value = "cpu", value_delimiter = ',')]
    pub(super) device: Vec<Device>,
    /// Only read the cells, as training would, and say how fast that is and how well data sets are mixed
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Cells that a dry run reads (default: all, once)
    #[arg(long, requires = "dry_run")]
    pub(super) cells: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct EvaluateArgs {
    /// Store with the model and the cells
    pub(super) store: String,
    #[command(subcommand)]
    pub(super) what: Judgement,
}

#[derive(Debug, Subcommand)]
pub(super) enum Judgement {
    /// Thin cells and ask the model for what they were: MAE, MRE and Pearson beside the thinned cells themselves
    Enhancement {
        #[command(flatten)]
        judged: JudgedArgs,
        /// Parts of the counts to keep
        #[arg(long, value_delimiter = ',', default_values_t = [0.01, 0.05, 0.1, 0.2])]
        rates: Vec<f64>,
    },
    /// Cluster cells by their embeddings and compare with labels: NMI, ARI and silhouette, beside PCA and counts
    Clustering {
        #[command(flatten)]
        judged: JudgedArgs,
        /// Column of labels
        #[arg(long, default_value = "cell_type")]
        label: String,
        /// Depths to ask for, as multiples of each cell's own
        #[arg(long, value_delimiter = ',', default_values_t = [1.0, 2.0, 3.0, 4.0, 5.0])]
        folds: Vec<f64>,
    },
    /// Losses of held-out cells over operations, of several runs of pretrain
    Scaling {
        /// Folders of runs, called as their models are
        #[arg(required = true)]
        runs: Vec<PathBuf>,
        /// Draw them to this SVG file
        #[arg(long, value_name = "FILE")]
        picture: Option<PathBuf>,
        /// How results are written
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
}

#[derive(Debug, Args)]
pub(super) struct JudgedArgs {
    /// Model (default: the only one)
    #[arg(long)]
    pub(super) model: Option<String>,
    /// SQL condition on the cells
    #[arg(long = "where", value_name = "CONDITION")]
    pub(super) condition: Option<String>,
    /// Also cells that the model learned from
    #[arg(long)]
    pub(super) all_cells: bool,
    /// At most so many cells, spread evenly (default: all)
    #[arg(long)]
    pub(super) cells: Option<usize>,
    /// Seed of what is drawn
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// How results are written
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(super) format: Format,
}
