//! Stores that tests share or make, and small ways to ask them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use cellql::ingest::{IngestOptions, IngestReport, Input, ingest};
use cellql::jobs::{EmbedOptions, embed_cells};
use cellql::query::{Session, StoreEngine};
use cellql::registry;
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

/// Written past the test harness, which swallows what passing tests print.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

pub async fn empty(folder: &Path) -> Store {
    Store::init(folder.join("store").to_str().unwrap()).await.unwrap()
}

pub async fn take_in(
    store: &Store,
    file: &Path,
    options: IngestOptions,
) -> cellql::error::Result<(Store, IngestReport)> {
    ingest(store, &Input::local(file), &options, silent()).await
}

pub fn any_cell() -> IngestOptions {
    IngestOptions { min_genes: 0, ..IngestOptions::default() }
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
    registry::add(store, key.name(), &weights, &provenance).await.unwrap().0
}

pub async fn embed_all(store: &Store, model: &str) -> Store {
    let engine = Arc::new(StoreEngine::open(store.clone()).await.unwrap());
    embed_cells(&engine, &Recipe::of_model(model), &EmbedOptions::default(), silent()).await.unwrap().0
}

/// The demo's 320 cells with the reference model `cell` (300 genes, 192 numbers) and its embeddings. Made once, only read.
pub async fn demo_store() -> Store {
    static STORE: OnceCell<(Store, TempDir)> = OnceCell::const_new();
    let made = STORE.get_or_init(|| async {
        let folder = tempfile::tempdir().unwrap();
        let store = empty(folder.path()).await;
        let (store, _) = take_in(&store, &demo_file(), IngestOptions::default()).await.unwrap();
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
