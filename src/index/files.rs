//! The files of an HNSW index in the store.
//!
//! Each build writes a folder of its own: `manifest.json` and the files of [`super::hnsw`]. The manifest states the
//! format, the table that was indexed and the checksum of every block of each file. The row in `indexes` has the
//! checksum of the manifest, so every byte is checked before it is used.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::entries::{BuiltIndex, IndexEntry, record};
use super::hnsw::{GRAPH, HnswIndex, HnswOptions, IDS, VECTORS};
use super::kind::IndexKind;
use super::metric::Metric;
use super::vectors::Vectors;
use crate::error::{Error, Result};
use cellql_model::FileBytes;
use cellql_store::Store;
use cellql_store::progress::OnProgress;

/// Version of the files' format. Indexes of other versions are to be built again.
const FORMAT: u32 = 3;
const MANIFEST: &str = "manifest.json";
/// Bytes per checksum. Large files have many, so that all threads check them.
const BLOCK: usize = 16 << 20;

/// What `manifest.json` says of an index.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    name: String,
    recipe: String,
    table_version: u64,
    dim: usize,
    n_vectors: usize,
    options: HnswOptions,
    /// BLAKE3 of each block of each file, in hexadecimal.
    files: BTreeMap<String, Vec<String>>,
}

/// BLAKE3 of each block, in hexadecimal.
fn checksums(bytes: &[u8]) -> Vec<String> {
    bytes.par_chunks(BLOCK).map(|block| blake3::hash(block).to_hex().to_string()).collect()
}

/// Builds an HNSW index over an embedding table and replaces any index of the same name.
///
/// # Errors
/// The table does not exist or holds no vector, or the files cannot be written.
pub(super) async fn build(
    store: &Store,
    name: &str,
    recipe: &str,
    options: HnswOptions,
    on_progress: OnProgress,
) -> Result<(Store, BuiltIndex)> {
    let source = cellql_store::embedding_table(recipe);
    let version = store.table(&source).await?.version().version;
    let mut vectors = Vectors::read(store, &source, Metric::Cosine).await?;
    // The graph sorts hits of equal distance by position.
    vectors.sort_by_id();
    if vectors.is_empty() {
        return Err(Error::Request(format!("the embedding table '{recipe}' holds no vector to index")));
    }
    let (dim, n_vectors) = (vectors.dim, vectors.len());
    let built = tokio::task::spawn_blocking(move || {
        let files = HnswIndex::build(&vectors, options, |done| on_progress(done, Some(n_vectors as u64)))?;
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
    Ok((store, BuiltIndex { kind: IndexKind::Hnsw, n_vectors, dim }))
}

/// Writes the files and the row of `indexes` in one transaction.
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
    let row = IndexEntry {
        name: manifest.name.clone(),
        recipe: manifest.recipe.clone(),
        table_version: manifest.table_version,
        kind: IndexKind::Hnsw,
        n_vectors: manifest.n_vectors as u64,
        path,
        checksum,
    };
    record(&mut transaction, &row).await?;
    Ok(transaction.publish().await?)
}

/// Checks every byte of an index and opens it.
///
/// # Errors
/// [`Error::Request`] naming the index and the file that is missing or damaged.
pub(super) async fn open(store: &Store, entry: &IndexEntry) -> Result<HnswIndex> {
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
        return Err(damaged(MANIFEST, "has a format that this version of cellql does not read"));
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
    HnswIndex::open(&graph, &ids, vectors).map_err(|error| damaged(GRAPH, &format!("cannot be opened: {error}")))
}
