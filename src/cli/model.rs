//! `cellql model`.

use std::fs::File;
use std::io::Read;

use cellql_schemas::vocabulary::Vocabulary;

use super::args::{ImportArgs, ModelVerb};
use super::output;
use super::talk::Talk;
use crate::error::{Error, Result};
use crate::ingest::file_sha256;
use crate::model::registry::{self, Entry};
use crate::model::{Config, Provenance, Size, Weights, decode, initialise, read_checkpoint, read_safetensors};
use crate::query::Session;
use crate::store::Store;

/// What a user of other people's weights must know.
const LICENCE_NOTE: &str = "imported weights keep their own licence; scFoundation's released weights are for \
                            non-commercial research only";

pub(super) async fn run(verb: ModelVerb, talk: &Talk) -> Result<()> {
    match verb {
        ModelVerb::Import(args) => import(args, talk).await,
        ModelVerb::Init { store, size, seed, name } => {
            let store = super::open_to_write(&store, talk).await?;
            init(&store, size, seed, &name, talk).await?;
            Ok(())
        }
        ModelVerb::List { store, format } => {
            let session = Session::open(Store::open(&store).await?).await?;
            output::write(session.sql("SELECT * FROM models ORDER BY name").await?, format).await
        }
    }
}

/// Adds an untrained model over the default vocabulary.
pub(super) async fn init(store: &Store, size: Size, seed: u64, name: &str, talk: &Talk) -> Result<Store> {
    let vocabulary = Vocabulary::default_human();
    let config = Config::of_size(size, vocabulary.len());
    let weights = initialise(&config, vocabulary, seed)?;
    let (store, entry) = registry::add(store, name, &weights, &Provenance::Untrained { seed }).await?;
    tell(&entry, talk);
    Ok(store)
}

fn tell(entry: &Entry, talk: &Talk) {
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
    let text = std::fs::read_to_string(path).map_err(|e| Error::input(path, "file", format!("cannot be read: {e}")))?;
    Vocabulary::from_tsv(&text).map_err(|e| Error::input(path, "genes", e))
}
