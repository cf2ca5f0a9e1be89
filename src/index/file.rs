//! The files of an index in the store, and the rows of `indexes`.
//!
//! A folder of its own for every build: `manifest.json` and the files of [`super::graph`]. The manifest states the format,
//! what the index rests on, and checksums of every block of each file; the row in `indexes` holds the checksum of the
//! manifest.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, StringArray, UInt64Array};
use arrow::datatypes::UInt64Type;
use arrow::record_batch::RecordBatch;
use cellql_schemas::indexes as table;
use chrono::Utc;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::graph::{GRAPH, Graph, GraphOptions, IDS, VECTORS};
use super::vectors::Vectors;
use super::{Kind, Metric};
use crate::error::{Error, Result};
use cellql_model::FileBytes;
use cellql_store::progress::OnProgress;
use cellql_store::{Store, Transaction};

const FORMAT: u32 = 2;
const MANIFEST: &str = "manifest.json";
/// Bytes under one checksum: large files are checked by all threads.
const BLOCK: usize = 16 << 20;

/// What a graph is and rests on.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    name: String,
    recipe: String,
    table_version: u64,
    dim: usize,
    n_vectors: usize,
    options: GraphOptions,
    /// BLAKE3 of each block of each file.
    files: BTreeMap<String, Vec<String>>,
}

/// A row of `indexes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name of the index.
    pub name: String,
    /// Embedding table it rests on.
    pub recipe: String,
    /// Version of that table.
    pub table_version: u64,
    /// What it is.
    pub kind: Kind,
    /// Vectors in it.
    pub n_vectors: u64,
    /// Folder in the store; empty where the index is part of its table.
    pub path: String,
    /// BLAKE3 of its manifest; empty likewise.
    pub checksum: String,
}

/// An index that was built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// What it is.
    pub kind: Kind,
    /// Vectors in it.
    pub n_vectors: usize,
    /// Numbers per vector.
    pub dim: usize,
}

fn checksums(bytes: &[u8]) -> Vec<String> {
    bytes.par_chunks(BLOCK).map(|block| blake3::hash(block).to_hex().to_string()).collect()
}

/// Builds a graph over an embedding table and puts it in the place of any index of the same name.
///
/// # Errors
/// The table does not exist or holds no vector, or the files cannot be written.
pub(super) async fn build(
    store: &Store,
    name: &str,
    recipe: &str,
    options: GraphOptions,
    on_progress: OnProgress,
) -> Result<(Store, Built)> {
    let source = cellql_store::embedding_table(recipe);
    let version = store.table(&source).await?.version().version;
    let vectors = Vectors::read(store, &source, Metric::Cosine).await?;
    if vectors.is_empty() {
        return Err(Error::Request(format!("the embedding table '{recipe}' holds no vector to index")));
    }
    let (dim, n_vectors) = (vectors.dim, vectors.len());
    let built = tokio::task::spawn_blocking(move || {
        let files = Graph::build(&vectors, options, |done| on_progress(done, Some(n_vectors as u64)))?;
        Ok::<_, Error>(files.map(|(name, bytes)| (name, checksums(&bytes), bytes)))
    });
    let built = built.await.map_err(Error::internal(format!("building index {name}")))??;
    let manifest = Manifest {
        format: FORMAT,
        name: name.to_owned(),
        recipe: recipe.to_owned(),
        table_version: version,
        dim,
        n_vectors,
        options,
        files: built.iter().map(|(file, sums, _)| ((*file).to_owned(), sums.clone())).collect(),
    };
    let files = built.iter().map(|(file, _, bytes)| (*file, bytes.as_slice())).collect::<Vec<_>>();
    let store = publish(store, &manifest, &files).await?;
    Ok((store, Built { kind: Kind::Graph, n_vectors, dim }))
}

async fn publish(store: &Store, manifest: &Manifest, files: &[(&str, &[u8])]) -> Result<Store> {
    let doing = || format!("storing index {}", manifest.name);
    let json = serde_json::to_vec_pretty(manifest).map_err(Error::internal(doing()))?;
    let checksum = blake3::hash(&json).to_hex().to_string();
    let path = format!("indexes/{}", &checksum[..16]);
    let mut transaction = store.begin(&format!("index build {}", manifest.name)).await?;
    for (file, bytes) in files {
        transaction.put_file(&format!("{path}/{file}"), bytes).await?;
    }
    transaction.put_file(&format!("{path}/{MANIFEST}"), &json).await?;
    let row = Entry {
        name: manifest.name.clone(),
        recipe: manifest.recipe.clone(),
        table_version: manifest.table_version,
        kind: Kind::Graph,
        n_vectors: manifest.n_vectors as u64,
        path,
        checksum,
    };
    record(&mut transaction, &row).await?;
    Ok(transaction.publish().await?)
}

/// Puts a row of `indexes` in the place of any of the same name.
///
/// # Errors
/// The table cannot be written.
pub(super) async fn record(transaction: &mut Transaction, entry: &Entry) -> Result<()> {
    let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from_iter_values([value])) };
    let number = |value: u64| -> ArrayRef { Arc::new(UInt64Array::from(vec![value])) };
    let columns = vec![
        text(&entry.name),
        text(&entry.recipe),
        number(entry.table_version),
        text(entry.kind.name()),
        text(Metric::Cosine.name()),
        number(entry.n_vectors),
        text(&entry.path),
        text(&entry.checksum),
        text(&Utc::now().to_rfc3339()),
    ];
    let row = RecordBatch::try_new(Arc::new(table::schema()), columns);
    let row = row.map_err(Error::internal(format!("recording index {}", entry.name)))?;
    Ok(transaction.replace_row(table::TABLE, table::NAME, row).await?)
}

/// Every index of the store.
///
/// # Errors
/// The table cannot be read.
pub async fn list(store: &Store) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for batch in store.read(table::TABLE, &[], None).await? {
        let text = |name: &str| batch.column_by_name(name).and_then(|c| c.as_string_opt::<i32>());
        let number = |name: &str| batch.column_by_name(name).and_then(|c| c.as_primitive_opt::<UInt64Type>());
        let columns = (text(table::NAME), text(table::RECIPE), text(table::PATH), text(table::SHA256));
        let (Some(names), Some(recipes), Some(paths), Some(sums)) = columns else { continue };
        let (Some(versions), Some(counts)) = (number(table::TABLE_VERSION), number(table::N_VECTORS)) else { continue };
        let Some(kinds) = text(table::KIND) else { continue };
        // One of a kind that this program does not know is as none.
        entries.extend((0..batch.num_rows()).filter_map(|i| {
            Some(Entry {
                name: names.value(i).to_owned(),
                recipe: recipes.value(i).to_owned(),
                table_version: versions.value(i),
                kind: kinds.value(i).parse().ok()?,
                n_vectors: counts.value(i),
                path: paths.value(i).to_owned(),
                checksum: sums.value(i).to_owned(),
            })
        }));
    }
    Ok(entries)
}

/// Opens an index after checking every byte of it.
///
/// # Errors
/// [`Error::Request`] naming the index and the file that is missing or damaged.
pub(super) async fn open(store: &Store, entry: &Entry) -> Result<Graph> {
    let damaged = |file: &str, why: &str| {
        Error::Request(format!("index '{}' is damaged: {}/{file} {why}; build it again", entry.name, entry.path))
    };
    let json = store.read_file(&format!("{}/{MANIFEST}", entry.path)).await;
    let json = json.map_err(|_| damaged(MANIFEST, "is missing"))?;
    if blake3::hash(&json).to_hex().as_str() != entry.checksum {
        return Err(damaged(MANIFEST, "is not what was written"));
    }
    let manifest: Manifest = serde_json::from_slice(&json).map_err(|e| damaged(MANIFEST, &e.to_string()))?;
    if manifest.format != FORMAT {
        return Err(damaged(MANIFEST, "is of another format"));
    }
    let mut files = BTreeMap::new();
    for (file, sums) in &manifest.files {
        let path = format!("{}/{file}", entry.path);
        let bytes = match store.local_path(&path) {
            Some(local) => FileBytes::map(&local).map_err(Error::from),
            None => store.read_file(&path).await.map(FileBytes::Held).map_err(Error::from),
        };
        let bytes = bytes.map_err(|_| damaged(file, "is missing"))?;
        let to_check = bytes.clone();
        let found = tokio::task::spawn_blocking(move || checksums(&to_check)).await;
        if found.map_err(Error::internal("checking an index"))? != *sums {
            return Err(damaged(file, "is not what was written"));
        }
        files.insert(file.as_str(), bytes);
    }
    let mut take = |file: &str| files.remove(file).ok_or_else(|| damaged(file, "is not in the manifest"));
    let (graph, ids, vectors) = (take(GRAPH)?, take(IDS)?, take(VECTORS)?);
    Graph::open(&graph, &ids, vectors).map_err(|why| damaged(GRAPH, &why))
}
