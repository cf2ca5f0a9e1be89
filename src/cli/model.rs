//! `cellql model`.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, StringArray, UInt32Array};
use arrow::record_batch::RecordBatch;
use cellql_schemas::recipe::{Dtype, Pool};
use cellql_schemas::vocabulary::Vocabulary;
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use datafusion::dataframe::DataFrame;

use super::console::Console;
use super::model_fit::{self, FitArgs};
use super::model_size::ModelSize;
use super::output::{self, Format, FormatArgs, TEXT_WIDTH};
use super::shared_args::open_to_write;
use crate::error::{Error, Result};
use crate::ingest::file_sha256;
use crate::model_registry::{self, ModelEntry};
use crate::query::Session;
use crate::shipped_models;
use cellql_model::{CheckpointKey, Config, FileBytes, Model, Provenance, decode, encode, halved, initialise};
use cellql_model::{read_checkpoint, read_safetensors, write_checkpoint};
use cellql_store::Store;

#[derive(Debug, Subcommand)]
pub(super) enum ModelVerb {
    /// List the models of a store
    List {
        /// Store: a directory
        store: String,
        #[command(flatten)]
        output: FormatArgs,
    },
    /// Show the dimensions, vocabulary, origin and licence of a model
    Show {
        /// Store: a directory
        store: String,
        /// Name of the model [default: the only one besides the shipped models, else human_pca]
        name: Option<String>,
    },
    /// Add the models that come with the program, made from public human cells: human_pca (linear), human_3m
    Add {
        /// Store: a directory
        store: String,
    },
    /// Import a checkpoint: the authors' models.ckpt, cellql's own .safetensors, or other .safetensors with --config
    Import(ImportArgs),
    /// Create a model with untrained weights
    Init {
        /// Store: a directory
        store: String,
        /// Name of the model in the store
        #[arg(long)]
        name: String,
        /// Size of the model: 3M, 10M, 100M, or a JSON file such as {"encoder": {"depth": 2}}
        #[arg(long)]
        size: ModelSize,
        /// Seed of the random weights
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Fit principal components to the cells of a store, or an output map to a model's embeddings
    Fit(FitArgs),
    /// Write a model to .safetensors, with configuration and vocabulary, or to .ckpt in the authors' format
    Export {
        /// Store: a directory
        store: String,
        /// File to write: .safetensors or .ckpt
        #[arg(value_name = "FILE")]
        out: PathBuf,
        /// Name of the model [default: the only one besides the shipped models, else human_pca]
        #[arg(long)]
        name: Option<String>,
        /// Entry of a .ckpt that takes the model
        #[arg(long, value_enum, default_value_t = Key::Cell)]
        key: Key,
        /// Write 16-bit weights: half the size, three significant digits; .safetensors only
        #[arg(long)]
        half: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// Store: a directory
    store: String,
    /// Checkpoint: .ckpt or .safetensors
    file: PathBuf,
    /// Name of the model in the store
    #[arg(long)]
    name: String,
    /// Genes of the model in order: a text file with lines gene_name<TAB>index
    #[arg(long, value_name = "FILE")]
    genes: Option<PathBuf>,
    /// Configuration of a .safetensors file that has none: a JSON file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Entry of a .ckpt to import
    #[arg(long, value_enum, default_value_t = Key::Cell)]
    key: Key,
}

/// Entry of a models.ckpt.
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

/// Licence of imported weights.
const LICENCE_NOTE: &str = "imported weights keep their own licence; scFoundation's released weights are for \
                            non-commercial research only";

pub(super) async fn run(verb: ModelVerb, console: &Console) -> Result<()> {
    match verb {
        ModelVerb::Import(args) => import(args, console).await,
        ModelVerb::Init { store, size, seed, name } => {
            let store = open_to_write(&store, console).await?;
            init(&store, &size, seed, &name, console).await?;
            Ok(())
        }
        ModelVerb::Fit(args) => model_fit::run(args, console).await,
        ModelVerb::Show { store, name } => show(&store, name.as_deref()).await,
        ModelVerb::Add { store } => add_shipped(&open_to_write(&store, console).await?, console).await.map(drop),
        ModelVerb::Export { store, out, name, key, half } => {
            export(&store, &out, name.as_deref(), key.into(), half, console).await
        }
        ModelVerb::List { store, output: FormatArgs { format } } => {
            let store = Store::open(&store).await?;
            let session = Session::open(store.clone()).await?;
            let frame = match format {
                Format::Table => summary(&session, &model_registry::list(&store).await?).await?,
                _ => session.sql("SELECT * FROM models ORDER BY name").await?,
            };
            output::write(frame, format).await
        }
    }
}

/// What a person asks about models: a row per model.
pub(super) async fn summary(session: &Session, models: &[ModelEntry]) -> Result<DataFrame> {
    let text = |of: &dyn Fn(&ModelEntry) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(models.iter().map(of)))
    };
    let number =
        |of: fn(&ModelEntry) -> u32| -> ArrayRef { Arc::new(UInt32Array::from_iter_values(models.iter().map(of))) };
    let trained: ArrayRef = Arc::new(BooleanArray::from_iter(models.iter().map(|m| Some(m.trained))));
    let columns = [
        ("name", text(&|m| m.name.clone())),
        ("kind", text(&|m| m.kind().to_owned())),
        ("weights", text(&|m| format!("{:.1}M", m.parameters as f64 / 1e6))),
        ("genes", number(|m| m.n_genes)),
        ("dim", number(|m| m.dim)),
        ("trained", trained),
        ("source", text(&|m| source(m))),
    ];
    let rows = RecordBatch::try_from_iter(columns).map_err(Error::internal("listing the models"))?;
    let name = "model_summary";
    session.put(name, rows)?;
    let created = "replace(substr(m.created_at, 1, 16), 'T', ' ') AS created";
    session.sql(&format!("SELECT s.*, {created} FROM {name} s JOIN models m USING (name) ORDER BY s.name")).await
}

/// Where the weights of a model come from, in a few words.
fn source(entry: &ModelEntry) -> String {
    match entry.provenance() {
        Ok(Provenance::Untrained { seed }) => format!("random weights, seed {seed}"),
        Ok(Provenance::Trained { cells, steps, .. }) => format!("{steps} steps on {} cells", cells.0),
        Ok(Provenance::Fitted { cells, .. }) => format!("fitted to {} cells", cells.0),
        Ok(Provenance::Imported { file, .. }) => format!("imported from {file}"),
        Err(_) => "not recorded".to_owned(),
    }
}

/// Opens a store and finds a model in it.
async fn find(uri: &str, name: Option<&str>) -> Result<(Store, ModelEntry)> {
    let store = Store::open(uri).await?;
    let entry = model_registry::find(&model_registry::list(&store).await?, name)?.clone();
    Ok((store, entry))
}

/// Prints the dimensions and the origin of a model.
async fn show(uri: &str, name: Option<&str>) -> Result<()> {
    let (store, entry) = find(uri, name).await?;
    let model = model_registry::load(&store, &entry).await?;
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if !output::is_terminal() {
        table.set_width(TEXT_WIDTH);
    }
    let mut row = |what: &str, value: String| {
        table.add_row([what.to_owned(), value]);
    };
    row("model", entry.name.clone());
    row("trained on", trained_on(&entry));
    row("weights", format!("{:.2} million", entry.parameters as f64 / 1e6));
    match model.config() {
        Some(config) => show_transformer(config, &entry, &mut row),
        None => {
            row("cell embedding", format!("{} dimensions, principal components of log-normalised counts", entry.dim))
        }
    }
    if let Some(map) = model.output_map() {
        row("output map", format!("from {} dimensions to {}", map.inputs(), map.outputs()));
    }
    row("vocabulary", format!("{} genes, sha256 {}", entry.n_genes, entry.vocabulary_sha256));
    row("sha256", entry.sha256.clone());
    for precision in Dtype::ALL.into_iter().filter(|_| !entry.is_linear()) {
        row(&format!("{} here", precision.name()), Model::instructions(precision).to_owned());
    }
    if let Ok(Provenance::Imported { note, .. }) = entry.provenance() {
        row("licence", note);
    }
    output::text(&table.to_string())
}

/// The rows of [`show`] about a transformer.
fn show_transformer(config: &Config, entry: &ModelEntry, row: &mut dyn FnMut(&str, String)) {
    let (encoder, decoder) = (&config.encoder, &config.decoder);
    row("encoder", format!("{} layers of width {}, {} heads", encoder.depth, encoder.hidden_dim, encoder.heads));
    row(
        "decoder",
        format!(
            "{} layers of width {}, {} heads of {}, {} random features",
            decoder.depth,
            decoder.hidden_dim,
            decoder.heads,
            decoder.dim_head,
            config.nb_features()
        ),
    );
    row("value bins", config.bin_num.to_string());
    let (all, max) = (entry.embedding_dim(Pool::All), entry.embedding_dim(Pool::Max));
    row("cell embedding", format!("{all} dimensions (pool all), {max} (pool max)"));
    row("gene embedding", format!("{} dimensions", decoder.hidden_dim));
}

/// What a model was trained on, in words.
fn trained_on(entry: &ModelEntry) -> String {
    match entry.provenance() {
        Ok(Provenance::Untrained { seed }) => format!("nothing: the weights are random, from seed {seed}"),
        Ok(Provenance::Trained { cells, steps, settings, loss, program, seconds, .. }) => {
            let batch = |name: &str| settings.get(name).and_then(serde_json::Value::as_u64).unwrap_or(1);
            let held_out = loss.1.map_or_else(String::new, |loss| format!(", loss of held-out cells {loss}"));
            format!(
                "{} cells of a store, {} held out: {steps} steps of {} cells in {seconds} s{held_out}; by {program}",
                cells.0,
                cells.1,
                batch("batch") * batch("accumulate")
            )
        }
        Ok(Provenance::Fitted { cells, method, settings, program, .. }) => {
            let text = |name: &str| settings.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
            let most = settings.get("cells").and_then(serde_json::Value::as_u64).unwrap_or(u64::MAX);
            let genes = if method == "pca" { format!(", genes: {}", text("genes")) } else { String::new() };
            let (fitted, balance) = (cells.0.min(most), text("balance"));
            format!("{fitted} cells of a store, {} held out: {method}, groups: {balance}{genes}; by {program}", cells.1)
        }
        Ok(Provenance::Imported { file, sha256, key, .. }) => {
            let key = key.map_or_else(String::new, |key| format!(", key '{key}'"));
            format!("not recorded; imported from {file}{key}, sha256 {sha256}")
        }
        Err(_) => "not recorded".to_owned(),
    }
}

/// Writes a model as cellql keeps it, or as the authors' checkpoints are with its genes beside it.
async fn export(
    uri: &str,
    out: &Path,
    name: Option<&str>,
    key: CheckpointKey,
    half: bool,
    console: &Console,
) -> Result<()> {
    let extension = out.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if !["safetensors", "ckpt"].contains(&extension) {
        let problem = "a model is written as .safetensors or .ckpt; give the file one of these extensions";
        return Err(Error::input(out, "file", problem));
    }
    let (store, entry) = find(uri, name).await?;
    let bytes = model_registry::bytes(&store, &entry).await?;
    if half && extension != "safetensors" {
        return Err(Error::input(out, "file", "--half works only for .safetensors"));
    }
    if half {
        let bytes = halved(&entry.name, &bytes)?.0;
        write_whole(out, |file| file.write_all(&bytes).map_err(Error::internal("writing the model")))?;
    } else if extension == "safetensors" {
        write_whole(out, |file| file.write_all(&bytes).map_err(Error::internal("writing the model")))?;
    } else {
        let weights = decode(&entry.name, &bytes)?;
        if entry.dim_max.is_some_and(|width| entry.dim != 4 * width) {
            console.say("its output map is left out: the authors' format has no place for it");
        }
        let genes = out.with_extension("genes.tsv");
        let lines = weights.vocabulary.names().iter().enumerate().map(|(i, name)| format!("{name}\t{i}\n"));
        let list = format!("gene_name\tindex\n{}", lines.collect::<String>());
        write_whole(&genes, |file| file.write_all(list.as_bytes()).map_err(Error::internal("writing the genes")))?;
        write_whole(out, |file| Ok(write_checkpoint(&weights, key, file).map(drop)?))?;
        console.say(&format!("its genes are written to {}", genes.display()));
    }
    console.say(&format!("model '{}' written to {}", entry.name, out.display()));
    Ok(())
}

/// Writes a file atomically: it appears when all of it is written.
fn write_whole(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |e: std::io::Error| Error::input(path, "file", format!("cannot be written: {e}"));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    write(file.as_file_mut())?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// Adds the models that come with the program.
pub(super) async fn add_shipped(store: &Store, console: &Console) -> Result<Store> {
    let (store, added) = shipped_models::add(store).await?;
    added.iter().for_each(|entry| print_added(entry, console));
    if added.is_empty() {
        console.say("the store has the models that come with the program already");
    }
    Ok(store)
}

/// Adds an untrained model over the default vocabulary.
async fn init(store: &Store, size: &ModelSize, seed: u64, name: &str, console: &Console) -> Result<Store> {
    let vocabulary = Vocabulary::default_human();
    let config = size.config(vocabulary.len())?;
    let weights = initialise(&config, vocabulary, seed)?;
    let (store, entry) = model_registry::add(store, name, &weights, &Provenance::Untrained { seed }).await?;
    print_added(&entry, console);
    Ok(store)
}

/// Prints that a model was added.
pub(super) fn print_added(entry: &ModelEntry, console: &Console) {
    let state = if entry.trained { "" } else { " (untrained)" };
    console.say(&format!(
        "model '{}': {:.1} million weights{state}, {} genes, embeddings of dimension {}, sha256 {}",
        entry.name,
        entry.parameters as f64 / 1e6,
        entry.n_genes,
        entry.dim,
        &entry.sha256[..12]
    ));
}

async fn import(args: ImportArgs, console: &Console) -> Result<()> {
    let store = open_to_write(&args.store, console).await?;
    let (bytes, key) = read(&args)?;
    let sha256 = file_sha256(&args.file)?;
    let file = args.file.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let provenance = Provenance::Imported { file, sha256, key, note: LICENCE_NOTE.to_owned() };
    let (_, entry) = model_registry::add_file(&store, &args.name, bytes, &provenance).await?;
    print_added(&entry, console);
    console.say(&format!("note: {LICENCE_NOTE}"));
    Ok(())
}

/// The file of a model, as cellql keeps it, and the entry of a checkpoint that it was read from.
fn read(args: &ImportArgs) -> Result<(FileBytes, Option<String>)> {
    let mut head = [0u8; 2];
    let unreadable = |e: std::io::Error| Error::input(&args.file, "file", format!("cannot be read: {e}"));
    let is_zip = File::open(&args.file).and_then(|mut f| f.read_exact(&mut head)).map(|()| head == *b"PK");
    if is_zip.map_err(unreadable)? {
        let key = args.key.into();
        let weights = read_checkpoint(&args.file, key, vocabulary(args)?)?;
        return Ok((encode(&weights)?.0.into(), Some(key.name().to_owned())));
    }
    if let Some(config) = &args.config {
        return Ok((encode(&read_safetensors(&args.file, config, vocabulary(args)?)?)?.0.into(), None));
    }
    let bytes = std::fs::read(&args.file).map_err(unreadable)?;
    match Model::load(&args.name, bytes.clone()) {
        Ok(_) => Ok((bytes.into(), None)),
        Err(e) => {
            let hint = "plain .safetensors need --config and --genes";
            Err(Error::input(&args.file, "header", format!("{e}; {hint}")))
        }
    }
}

fn vocabulary(args: &ImportArgs) -> Result<Vocabulary> {
    let Some(path) = &args.genes else {
        let problem = "it does not name its genes; give their order with --genes gene_index.tsv";
        return Err(Error::input(&args.file, "genes", problem));
    };
    read_vocabulary(path)
}

/// Reads a list of genes with lines `gene_name<TAB>index`.
pub(super) fn read_vocabulary(path: &Path) -> Result<Vocabulary> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::input(path, "file", format!("cannot be read: {e}")))?;
    Vocabulary::from_tsv(&text).map_err(|e| Error::input(path, "genes", e))
}
