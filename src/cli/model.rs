//! `cellql model`.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use cellql_schemas::recipe::Precision;
use cellql_schemas::vocabulary::Vocabulary;
use comfy_table::{ContentArrangement, Table, presets};

use super::args::{ImportArgs, ModelVerb};
use super::output;
use super::sizes::Sizes;
use super::talk::Talk;
use crate::error::{Error, Result};
use crate::ingest::file_sha256;
use crate::query::Session;
use crate::registry::{self, ModelEntry};
use cellql_model::{CheckpointKey, Model, ModelError, Provenance, Weights, decode, encode, initialise};
use cellql_model::{read_checkpoint, read_safetensors, write_checkpoint};
use cellql_store::Store;

/// What a user of other people's weights must know.
const LICENCE_NOTE: &str = "imported weights keep their own licence; scFoundation's released weights are for \
                            non-commercial research only";

pub(super) async fn run(verb: ModelVerb, talk: &Talk) -> Result<()> {
    match verb {
        ModelVerb::Import(args) => import(args, talk).await,
        ModelVerb::Init { store, size, seed, name } => {
            let store = super::open_to_write(&store, talk).await?;
            init(&store, &size, seed, &name, talk).await?;
            Ok(())
        }
        ModelVerb::Show { store, name } => show(&store, name.as_deref()).await,
        ModelVerb::Add { store } => add_shipped(&super::open_to_write(&store, talk).await?, talk).await.map(drop),
        ModelVerb::Export { store, out, name, key, half } => {
            export(&store, &out, name.as_deref(), key.into(), half, talk).await
        }
        ModelVerb::List { store, format } => {
            let session = Session::open(Store::open(&store).await?).await?;
            output::write(session.sql("SELECT * FROM models ORDER BY name").await?, format).await
        }
    }
}

/// A store, and its model of a name.
async fn find(uri: &str, name: Option<&str>) -> Result<(Store, ModelEntry)> {
    let store = Store::open(uri).await?;
    let entry = registry::find(&registry::list(&store).await?, name)?.clone();
    Ok((store, entry))
}

/// Prints what a model is.
async fn show(uri: &str, name: Option<&str>) -> Result<()> {
    let (store, entry) = find(uri, name).await?;
    let model = registry::load(&store, &entry).await?;
    let (encoder, decoder) = (&model.config().encoder, &model.config().decoder);
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    let mut row = |what: &str, value: String| {
        table.add_row([what.to_owned(), value]);
    };
    row("model", entry.name.clone());
    row("trained on", trained_on(&entry));
    row("weights", format!("{:.2} million", entry.parameters as f64 / 1e6));
    row("encoder", format!("{} layers of width {}, {} heads", encoder.depth, encoder.hidden_dim, encoder.heads));
    row(
        "decoder",
        format!(
            "{} layers of width {}, {} heads of {}, {} random features",
            decoder.depth,
            decoder.hidden_dim,
            decoder.heads,
            decoder.dim_head,
            model.config().nb_features()
        ),
    );
    row("value bins", model.config().bin_num.to_string());
    row("cell embedding", format!("{} numbers (pool all), {} (pool max)", entry.dim, entry.dim / 4));
    row("gene embedding", format!("{} numbers", decoder.hidden_dim));
    row("vocabulary", format!("{} genes, sha256 {}", entry.n_genes, entry.vocabulary_sha256));
    row("sha256", entry.sha256.clone());
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        row(&format!("{} here", precision.name()), Model::instructions(precision).to_owned());
    }
    if let Ok(Provenance::Imported { note, .. }) = entry.provenance() {
        row("licence", note);
    }
    output::text(&table.to_string())
}

/// Where a model's weights come from, in words.
fn trained_on(entry: &ModelEntry) -> String {
    match entry.provenance() {
        Ok(Provenance::Untrained { seed }) => format!("nothing: weights were drawn at random from seed {seed}"),
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
        Ok(Provenance::Imported { file, sha256, key, .. }) => {
            let key = key.map_or_else(String::new, |key| format!(", key '{key}'"));
            format!("not recorded; imported from {file}{key}, sha256 {sha256}")
        }
        Err(_) => "not recorded".to_owned(),
    }
}

/// Writes a model as cellql keeps it, or as the authors' checkpoints are with its genes beside it.
async fn export(uri: &str, out: &Path, name: Option<&str>, key: CheckpointKey, half: bool, talk: &Talk) -> Result<()> {
    let ending = out.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if !["safetensors", "ckpt"].contains(&ending) {
        let problem = "models are written as .safetensors or .ckpt; give the file one of these endings";
        return Err(Error::input(out, "file", problem));
    }
    let (store, entry) = find(uri, name).await?;
    let bytes = registry::bytes(&store, &entry).await?;
    if half && ending != "safetensors" {
        return Err(Error::input(out, "file", "--half is for .safetensors"));
    }
    if half {
        let bytes =
            encode(&decode(&entry.name, &bytes)?.halved().map_err(ModelError::compute(&entry.name, "halving it"))?)?.0;
        write_whole(out, |file| file.write_all(&bytes).map_err(Error::internal("writing the model")))?;
    } else if ending == "safetensors" {
        write_whole(out, |file| file.write_all(&bytes).map_err(Error::internal("writing the model")))?;
    } else {
        let weights = decode(&entry.name, &bytes)?;
        let genes = out.with_extension("genes.tsv");
        let lines = weights.vocabulary.names().iter().enumerate().map(|(i, name)| format!("{name}\t{i}\n"));
        let list = format!("gene_name\tindex\n{}", lines.collect::<String>());
        write_whole(&genes, |file| file.write_all(list.as_bytes()).map_err(Error::internal("writing the genes")))?;
        write_whole(out, |file| Ok(write_checkpoint(&weights, key, file).map(drop)?))?;
        talk.say(&format!("its genes are in {}", genes.display()));
    }
    talk.say(&format!("model '{}' written to {}", entry.name, out.display()));
    Ok(())
}

/// Writes a file that is there whole or not at all.
fn write_whole(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |e: std::io::Error| Error::input(path, "file", format!("cannot be written: {e}"));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    write(file.as_file_mut())?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// Adds the model that comes with the program.
pub(super) async fn add_shipped(store: &Store, talk: &Talk) -> Result<Store> {
    let (store, entry) = registry::add_shipped(store).await?;
    tell(&entry, talk);
    Ok(store)
}

/// Adds an untrained model over the default vocabulary.
async fn init(store: &Store, size: &Sizes, seed: u64, name: &str, talk: &Talk) -> Result<Store> {
    let vocabulary = Vocabulary::default_human();
    let config = size.config(vocabulary.len())?;
    let weights = initialise(&config, vocabulary, seed)?;
    let (store, entry) = registry::add(store, name, &weights, &Provenance::Untrained { seed }).await?;
    tell(&entry, talk);
    Ok(store)
}

fn tell(entry: &ModelEntry, talk: &Talk) {
    let state = if entry.trained { "" } else { ", UNTRAINED weights" };
    talk.say(&format!(
        "model '{}': {:.2} million weights{state}, {} genes, embeddings of {} numbers, sha256 {}",
        entry.name,
        entry.parameters as f64 / 1e6,
        entry.n_genes,
        entry.dim,
        &entry.sha256[..12]
    ));
}

async fn import(args: ImportArgs, talk: &Talk) -> Result<()> {
    let store = super::open_to_write(&args.store, talk).await?;
    let (weights, key) = read(&args)?;
    let sha256 = file_sha256(&args.file)?;
    let file = args.file.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let provenance = Provenance::Imported { file, sha256, key, note: LICENCE_NOTE.to_owned() };
    let (_, entry) = registry::add(&store, &args.name, &weights, &provenance).await?;
    tell(&entry, talk);
    talk.say(&format!("note: {LICENCE_NOTE}"));
    Ok(())
}

fn read(args: &ImportArgs) -> Result<(Weights, Option<String>)> {
    let mut head = [0u8; 2];
    let unreadable = |e: std::io::Error| Error::input(&args.file, "file", format!("cannot be read: {e}"));
    let is_zip = File::open(&args.file).and_then(|mut f| f.read_exact(&mut head)).map(|()| head == *b"PK");
    if is_zip.map_err(unreadable)? {
        let key = args.key.into();
        let weights = read_checkpoint(&args.file, key, vocabulary(args)?)?;
        return Ok((weights, Some(key.name().to_owned())));
    }
    let weights = match &args.config {
        Some(config) => read_safetensors(&args.file, config, vocabulary(args)?)?,
        None => {
            let bytes = std::fs::read(&args.file).map_err(unreadable)?;
            decode(&args.name, &bytes).map_err(|e| {
                let hint = "plain .safetensors need --config and --genes";
                Error::input(&args.file, "header", format!("{e}; {hint}"))
            })?
        }
    };
    Ok((weights, None))
}

fn vocabulary(args: &ImportArgs) -> Result<Vocabulary> {
    let Some(path) = &args.genes else {
        let problem = "does not name its genes; give their order with --genes gene_index.tsv";
        return Err(Error::input(&args.file, "genes", problem));
    };
    read_vocabulary(path)
}

/// A list of genes, `gene_name<TAB>index`.
pub(super) fn read_vocabulary(path: &Path) -> Result<Vocabulary> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::input(path, "file", format!("cannot be read: {e}")))?;
    Vocabulary::from_tsv(&text).map_err(|e| Error::input(path, "genes", e))
}
