//! Stores and data that tests share, and short functions to query them.
//!
//! What is expensive to make (an empty store, the demo's cells, their embeddings) is made once per process and copied.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use cellql::ingest::{IngestOptions, IngestReport, InputFile, ingest};
use cellql::jobs::{EmbedOptions, embed_cells};
use cellql::model_registry;
use cellql::query::{Session, StoreEngine};
use cellql_model::{CheckpointKey, Provenance, read_checkpoint};
use cellql_schemas::recipe::Recipe;
use cellql_schemas::vocabulary::Vocabulary;
use cellql_store::Store;
use cellql_store::progress::silent;
use tempfile::TempDir;
use tokio::sync::OnceCell;

pub fn root() -> PathBuf {
    // Where the tests run, not where they were compiled: checkouts may share what cargo built.
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

pub fn demo_file() -> PathBuf {
    root().join("demo/baron_pancreas.h5ad")
}

pub fn reference(file: &str) -> PathBuf {
    root().join("tests/tiny-reference").join(file)
}

/// Writes a line to stderr, also from tests that pass, whose prints libtest captures.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Records that the current test lacks something, in the file `skipped-tests` beside the program, which `make test`
/// prints at its end.
///
/// # Panics
/// In continuous integration (`CI=true`), where every test must run.
#[track_caller]
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let caller = std::panic::Location::caller();
    // With a single test thread, libtest runs tests on the main thread.
    let test = thread.name().filter(|name| *name != "main").map_or_else(|| caller.to_string(), str::to_owned);
    let line = format!("skipped: {test}: {why}");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{line}");
    let program = PathBuf::from(env!("CARGO_BIN_EXE_cellql"));
    let mut list =
        std::fs::OpenOptions::new().create(true).append(true).open(program.with_file_name("skipped-tests")).unwrap();
    list.write_all(format!("{line}\n").as_bytes()).unwrap();
    say(&line);
}

fn test_data_folder() -> PathBuf {
    let cache = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/cellql-test-data");
    std::env::var_os("CELLQL_TEST_DATA").map_or_else(cache, PathBuf::from)
}

/// A real data file that `scripts/fetch-test-data.sh` downloads. If it is missing, the test is recorded as skipped.
#[track_caller]
pub fn test_data(file: &str) -> Option<PathBuf> {
    let path = test_data_folder().join(file);
    if !path.is_file() {
        skip(&format!("{} does not exist; run scripts/fetch-test-data.sh", path.display()));
        return None;
    }
    Some(path)
}

/// The Python with anndata and scanpy that `scripts/test-python.sh` installs. If it is missing, the test is recorded as
/// skipped.
#[track_caller]
pub fn python() -> Option<PathBuf> {
    let python = test_data_folder().join("python/bin/python");
    if !python.exists() {
        skip(&format!("{} does not exist; run scripts/test-python.sh", python.display()));
        return None;
    }
    Some(python)
}

/// Replaces a folder by a copy of another.
pub fn copy_folder(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, target) = (entry.as_ref().unwrap(), to.join(entry.as_ref().unwrap().file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

async fn copy_store(from: &Store, folder: &Path) -> Store {
    let to = folder.join("store");
    copy_folder(Path::new(from.uri()), &to);
    Store::open(to.to_str().unwrap()).await.unwrap()
}

/// A new empty store, in `folder/store`.
pub async fn empty(folder: &Path) -> Store {
    static STORE: OnceCell<(Store, TempDir)> = OnceCell::const_new();
    let made = STORE.get_or_init(|| async {
        let folder = tempfile::tempdir().unwrap();
        (Store::init(folder.path().join("store").to_str().unwrap()).await.unwrap(), folder)
    });
    copy_store(&made.await.0, folder).await
}

/// A new store with the demo's 320 cells and no model, in `folder/store`.
pub async fn demo_cells(folder: &Path) -> Store {
    static STORE: OnceCell<(Store, TempDir)> = OnceCell::const_new();
    let made = STORE.get_or_init(|| async {
        let folder = tempfile::tempdir().unwrap();
        let store = empty(folder.path()).await;
        (take_in(&store, &demo_file(), any_cell()).await.unwrap().0, folder)
    });
    copy_store(&made.await.0, folder).await
}

pub async fn take_in(
    store: &Store,
    file: &Path,
    options: IngestOptions,
) -> cellql::error::Result<(Store, IngestReport)> {
    ingest(store, &InputFile::local(file), &options, silent()).await
}

pub fn any_cell() -> IngestOptions {
    IngestOptions { min_genes: Some(0), ..IngestOptions::default() }
}

/// Adds a model of the reference checkpoint under its key's name.
pub async fn add_reference_model(store: &Store, key: CheckpointKey) -> Store {
    let genes = std::fs::read_to_string(reference("gene_index.tsv")).unwrap();
    let vocabulary = Vocabulary::from_tsv(&genes).unwrap();
    let weights = read_checkpoint(&reference("models.ckpt"), key, vocabulary).unwrap();
    let provenance = Provenance::Imported {
        file: "models.ckpt".into(),
        sha256: String::new(),
        key: Some(key.name().into()),
        note: String::new(),
    };
    model_registry::add(store, key.name(), &weights, &provenance).await.unwrap().0
}

pub async fn embed_all(store: &Store, model: &str) -> Store {
    let engine = Arc::new(StoreEngine::open(store.clone()).await.unwrap());
    embed_cells(&engine, &Recipe::of_model(model), &EmbedOptions::default(), silent()).await.unwrap().0
}

/// The demo's 320 cells with the reference model `cell` (300 genes, 192 dimensions) and its embeddings. It is shared:
/// tests must not write to it.
pub async fn demo_store() -> Store {
    static STORE: OnceCell<(Store, TempDir)> = OnceCell::const_new();
    let made = STORE.get_or_init(|| async {
        let folder = tempfile::tempdir().unwrap();
        let store = demo_cells(folder.path()).await;
        let store = add_reference_model(&store, CheckpointKey::Cell).await;
        (embed_all(&store, "cell").await, folder)
    });
    made.await.0.clone()
}

pub async fn rows(session: &Session, sql: &str) -> Vec<RecordBatch> {
    session
        .sql(sql)
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e}"))
        .collect()
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e}"))
}

pub async fn fails(session: &Session, sql: &str) -> String {
    match session.sql(sql).await {
        Err(error) => {
            assert_eq!(error.exit_code(), 1, "{sql}: {error}");
            error.to_string()
        }
        Ok(frame) => {
            let error = cellql::error::Error::from(frame.collect().await.expect_err(sql));
            assert_eq!(error.exit_code(), 1, "{sql}: {error}");
            error.to_string()
        }
    }
}

/// Vectors of the last column, with the ids of the first.
pub fn vectors(batches: &[RecordBatch]) -> Vec<(u64, Option<Vec<f32>>)> {
    let mut all = Vec::new();
    for batch in batches {
        let ids = batch.column(0).as_primitive::<UInt64Type>();
        let list = batch.column(batch.num_columns() - 1).as_fixed_size_list();
        for i in 0..batch.num_rows() {
            let vector = list.is_valid(i).then(|| list.value(i).as_primitive::<Float32Type>().values().to_vec());
            all.push((ids.value(i), vector));
        }
    }
    all
}

pub fn number(batches: &[RecordBatch]) -> f64 {
    let batch = batches.iter().find(|b| b.num_rows() > 0).expect("a row");
    let column = arrow::compute::cast(batch.column(0), &DataType::Float64).unwrap();
    column.as_primitive::<arrow::datatypes::Float64Type>().value(0)
}

pub fn ids(batches: &[RecordBatch]) -> Vec<u64> {
    batches.iter().flat_map(|b| b.column(0).as_primitive::<UInt64Type>().values().to_vec()).collect()
}

pub fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}
