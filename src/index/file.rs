//! The files of an index in the store, and the rows of `indexes`.
//!
//! A folder of its own for every build: `manifest.json`, the graph's two files, and `cell_ids` (u64, little-endian, by
//! position). The manifest states the format, what the index rests on, and a checksum of each file; the row in
//! `indexes` holds the checksum of the manifest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, StringArray, UInt64Array};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::UInt64Type;
use arrow::record_batch::RecordBatch;
use cellql_schemas::indexes as table;
use chrono::Utc;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::graph::{FILES, Graph, GraphOptions};
use super::vectors::Vectors;
use crate::error::{Error, Result};
use crate::store::Store;

const FORMAT: u32 = 1;
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
    /// `little` or `big`: hnsw_rs writes as the machine does.
    endian: String,
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

fn endian() -> String {
    if cfg!(target_endian = "little") { "little".to_owned() } else { "big".to_owned() }
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
    let doing = || format!("building index {name}");
    let folder = TempDir::new().map_err(Error::store(doing()))?;
    let target = folder.path().to_owned();
    tokio::task::spawn_blocking(move || Graph::build(&vectors, options).write(&target).map(|()| vectors.cell_ids))
        .await
        .map_err(Error::store(doing()))?
        .and_then(|ids| write_cell_ids(folder.path(), &ids))?;

    let mut files = BTreeMap::new();
    for file in FILES.into_iter().chain([CELL_IDS]) {
        let bytes = std::fs::read(folder.path().join(file)).map_err(Error::store(doing()))?;
        files.insert(file.to_owned(), blake3::hash(&bytes).to_hex().to_string());
    }
    let manifest = Manifest {
        format: FORMAT,
        name: name.to_owned(),
        recipe: recipe.to_owned(),
        table_version: version,
        dim,
        n_vectors,
        endian: endian(),
        options,
        files,
    };
    let store = publish(store, &manifest, folder.path()).await?;
    Ok((store, manifest))
}

fn write_cell_ids(folder: &Path, ids: &[u64]) -> Result<()> {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    std::fs::write(folder.join(CELL_IDS), bytes).map_err(Error::store("writing the index"))
}

async fn publish(store: &Store, manifest: &Manifest, folder: &Path) -> Result<Store> {
    let doing = || format!("storing index {}", manifest.name);
    let json = serde_json::to_vec_pretty(manifest).map_err(Error::store(doing()))?;
    let checksum = blake3::hash(&json).to_hex().to_string();
    let path = format!("indexes/{}", &checksum[..16]);
    let mut transaction = store.begin(&format!("index build {}", manifest.name)).await?;
    for file in manifest.files.keys() {
        let bytes = std::fs::read(folder.join(file)).map_err(Error::store(doing()))?;
        transaction.put_file(&format!("{path}/{file}"), &bytes).await?;
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
    if manifest.format != FORMAT || manifest.endian != endian() {
        return Err(damaged(MANIFEST, "is of another format or machine"));
    }
    let scratch = TempDir::new().map_err(Error::store("opening an index"))?;
    let mut folder: Option<PathBuf> = None;
    let mut cell_ids = Vec::new();
    for (file, checksum) in &manifest.files {
        let path = format!("{}/{file}", entry.path);
        let bytes = store.read_file(&path).await.map_err(|_| damaged(file, "is missing"))?;
        if blake3::hash(&bytes).to_hex().as_str() != checksum {
            return Err(damaged(file, "is not what was written"));
        }
        if file == CELL_IDS {
            cell_ids = bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
            continue;
        }
        match store.local_path(&entry.path) {
            Some(local) => folder = Some(local),
            None => {
                std::fs::write(scratch.path().join(file), &bytes).map_err(Error::store("opening an index"))?;
                folder = Some(scratch.path().to_owned());
            }
        }
    }
    let folder = folder.ok_or_else(|| damaged(MANIFEST, "names no graph"))?;
    tokio::task::spawn_blocking(move || Graph::read(&folder, cell_ids))
        .await
        .map_err(|_| damaged(FILES[0], "cannot be loaded"))?
}
