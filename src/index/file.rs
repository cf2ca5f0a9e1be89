//! The files of an index in the store, and the rows of `indexes`.
//!
//! A folder of its own for every build: `manifest.json`, `graph` (links and 8-bit codes), `vectors` (f32, of unit length) and
//! `cell_ids` (u64), both by position; all little-endian. The manifest states the format, what the index rests on, and a checksum of each file; the row in
//! `indexes` holds the checksum of the manifest.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, StringArray, UInt64Array};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::UInt64Type;
use arrow::record_batch::RecordBatch;
use cellql_schemas::indexes as table;
use chrono::Utc;
use serde::{Deserialize, Serialize};

use super::graph::{Graph, GraphOptions};
use super::vectors::Vectors;
use crate::error::{Error, Result};
use crate::store::Store;

const FORMAT: u32 = 2;
const GRAPH: &str = "graph";
const VECTORS: &str = "vectors";
const CELL_IDS: &str = "cell_ids";
const MANIFEST: &str = "manifest.json";

/// What an index is and rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// Name of the index.
    pub name: String,
    /// Embedding table.
    pub recipe: String,
    /// Version of that table.
    pub table_version: u64,
    /// Numbers per vector.
    pub dim: usize,
    /// Vectors in the graph.
    pub n_vectors: usize,
    options: GraphOptions,
    /// BLAKE3 of each file.
    files: BTreeMap<String, String>,
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
    /// Vectors in it.
    pub n_vectors: u64,
    /// Folder in the store.
    pub path: String,
    /// BLAKE3 of its manifest.
    pub checksum: String,
}

/// Builds an index over an embedding table and puts it in the place of any of the same name.
///
/// # Errors
/// The table does not exist or holds no vector, or the files cannot be written.
pub async fn build(store: &Store, name: &str, recipe: &str, options: GraphOptions) -> Result<(Store, Manifest)> {
    let source = crate::store::embedding_table(recipe);
    let version = store.table(&source).await?.version().version;
    let vectors = Vectors::read(store, &source).await?;
    if vectors.is_empty() {
        return Err(Error::Request(format!("the embedding table '{recipe}' holds no vector to index")));
    }
    let (dim, n_vectors) = (vectors.dim, vectors.len());
    let built = tokio::task::spawn_blocking(move || {
        let graph = Graph::build(vectors, options);
        (graph.bytes(), graph)
    });
    let (links, graph) = built.await.map_err(Error::store(format!("building index {name}")))?;
    let vectors = graph.vectors();
    let files = [
        (GRAPH, Cow::Owned(links)),
        (VECTORS, little_endian(&vectors.units, f32::to_le_bytes)),
        (CELL_IDS, little_endian(&vectors.cell_ids, u64::to_le_bytes)),
    ];
    let checksums = files.iter().map(|(file, bytes)| {
        let checksum = blake3::hash(bytes).to_hex().to_string();
        ((*file).to_owned(), checksum)
    });
    let manifest = Manifest {
        format: FORMAT,
        name: name.to_owned(),
        recipe: recipe.to_owned(),
        table_version: version,
        dim,
        n_vectors,
        options,
        files: checksums.collect(),
    };
    let store = publish(store, &manifest, &files).await?;
    Ok((store, manifest))
}

/// Numbers as a file holds them; on most machines that is how memory does.
fn little_endian<T: bytemuck::NoUninit, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(values.iter().flat_map(|value| bytes(*value)).collect())
    }
}

async fn publish(store: &Store, manifest: &Manifest, files: &[(&str, Cow<'_, [u8]>)]) -> Result<Store> {
    let doing = || format!("storing index {}", manifest.name);
    let json = serde_json::to_vec_pretty(manifest).map_err(Error::store(doing()))?;
    let checksum = blake3::hash(&json).to_hex().to_string();
    let path = format!("indexes/{}", &checksum[..16]);
    let mut transaction = store.begin(&format!("index build {}", manifest.name)).await?;
    for (file, bytes) in files {
        transaction.put_file(&format!("{path}/{file}"), bytes).await?;
    }
    transaction.put_file(&format!("{path}/{MANIFEST}"), &json).await?;
    let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from_iter_values([value])) };
    let number = |value: u64| -> ArrayRef { Arc::new(UInt64Array::from(vec![value])) };
    let columns = vec![
        text(&manifest.name),
        text(&manifest.recipe),
        number(manifest.table_version),
        text("hnsw"),
        text("cosine"),
        number(manifest.n_vectors as u64),
        text(&path),
        text(&checksum),
        text(&Utc::now().to_rfc3339()),
    ];
    let row = RecordBatch::try_new(Arc::new(table::schema()), columns).map_err(Error::store(doing()))?;
    let rows = without(transaction.store(), &manifest.name).await?.into_iter().chain([row]);
    let rows: Vec<RecordBatch> = rows.collect();
    let all = concat_batches(&Arc::new(table::schema()), &rows).map_err(Error::store(doing()))?;
    transaction.replace(table::TABLE, all).await?;
    transaction.publish().await
}

/// Rows of `indexes` but those of a name.
async fn without(store: &Store, name: &str) -> Result<Vec<RecordBatch>> {
    let rows = store.read(table::TABLE, &[], None).await?;
    rows.iter()
        .map(|batch| {
            let names = batch.column_by_name(table::NAME).map(|c| c.as_string::<i32>());
            let keep = names.into_iter().flatten().map(|n| Some(n != Some(name))).collect();
            filter_record_batch(batch, &keep).map_err(Error::store("reading table indexes"))
        })
        .collect()
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
        entries.extend((0..batch.num_rows()).map(|i| Entry {
            name: names.value(i).to_owned(),
            recipe: recipes.value(i).to_owned(),
            table_version: versions.value(i),
            n_vectors: counts.value(i),
            path: paths.value(i).to_owned(),
            checksum: sums.value(i).to_owned(),
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
    for (file, checksum) in &manifest.files {
        let bytes = store.read_file(&format!("{}/{file}", entry.path)).await;
        let bytes = bytes.map_err(|_| damaged(file, "is missing"))?;
        if blake3::hash(&bytes).to_hex().as_str() != checksum {
            return Err(damaged(file, "is not what was written"));
        }
        files.insert(file.clone(), bytes);
    }
    let file = |name: &str| files.get(name).ok_or_else(|| damaged(MANIFEST, &format!("names no {name}")));
    let (graph, units, cell_ids) = (file(GRAPH)?.clone(), file(VECTORS)?, file(CELL_IDS)?);
    let vectors = Vectors {
        dim: manifest.dim,
        cell_ids: cell_ids.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect(),
        units: units.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    };
    tokio::task::spawn_blocking(move || Graph::read(&graph, vectors))
        .await
        .map_err(|e| e.to_string())
        .and_then(|read| read)
        .map_err(|why| damaged(GRAPH, &format!("cannot be loaded: {why}")))
}
