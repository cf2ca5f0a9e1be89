//! Files that change or are deleted under a store, and what failed writers leave behind.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use cellql::error::ErrorKind;
use cellql::export::{FileFormat, export};
use cellql::query::{Session, StoreEngine};
use cellql_model::CheckpointKey;
use cellql_store::progress::silent;
use cellql_store::{Store, Verified, embedding_table};
use rand::{Rng, SeedableRng};

use crate::stores::{add_reference_model, any_cell, copy_folder, demo_cells, embed_all, empty, number, rows, take_in};

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.path().is_dir() {
            true => all.extend(files(&entry.path())),
            false => {
                all.insert(entry.path());
            }
        }
    }
    all
}

async fn verified(store: &Store) -> Verified {
    store.verify(&silent(), &silent()).await.unwrap()
}

/// The demo's cells with a model and its embeddings.
async fn embedded(folder: &Path) -> Store {
    let store = add_reference_model(&demo_cells(folder).await, CheckpointKey::Cell).await;
    embed_all(&store, "cell").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_flips_in_any_file_is_found_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = embedded(folder.path()).await;
    let whole = verified(&store).await;
    assert!(whole.is_whole() && whole.unrecorded == 0 && whole.cells == 320, "{whole:?}");
    let uri = PathBuf::from(store.uri());
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(16);
    let data: Vec<PathBuf> = files(&uri).into_iter().filter(|f| f.to_string_lossy().contains("/data/")).collect();
    assert!(data.len() >= 4, "{data:?}");
    for file in &data {
        let original = std::fs::read(file).unwrap();
        let mut changed = original.clone();
        let at = random.random_range(0..changed.len());
        changed[at] ^= 1 << random.random_range(0..8);
        std::fs::write(file, &changed).unwrap();
        let found = verified(&Store::open(store.uri()).await.unwrap()).await;
        let name = file.strip_prefix(&uri).unwrap().to_string_lossy().into_owned();
        assert!(found.damaged_files.iter().any(|d| d.path == name), "{name} at {at}: {found:?}");
        if name.starts_with("cells.lance") {
            // Compaction does not copy damage into new files.
            let error = Store::open(store.uri()).await.unwrap().compact(None).await.unwrap_err();
            assert!(error.to_string().contains(&name), "{error}");
        }
        std::fs::write(file, &original).unwrap();
    }
    let model = files(&uri.join("models")).into_iter().next().unwrap();
    let kept = std::fs::read(&model).unwrap();
    std::fs::write(&model, &kept[1..]).unwrap();
    let program = Command::new(env!("CARGO_BIN_EXE_cellql")).args(["verify", store.uri()]).output().unwrap();
    assert_eq!(program.status.code(), Some(3));
    let (out, err) = (String::from_utf8(program.stdout).unwrap(), String::from_utf8(program.stderr).unwrap());
    let name = model.strip_prefix(&uri).unwrap().to_string_lossy().into_owned();
    assert!(out.contains(&name) && err.contains("dataset remove"), "{out}{err}");
    std::fs::remove_file(&model).unwrap();
    std::fs::write(&model, &kept).unwrap();
    assert!(verified(&store).await.is_whole());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_is_found_and_stores_without_checksums_are_checked_by_their_cells() {
    let folder = tempfile::tempdir().unwrap();
    let store = demo_cells(folder.path()).await;
    let uri = PathBuf::from(store.uri());
    let is_cells = |f: &PathBuf| f.to_string_lossy().contains("cells.lance/data/");
    let data = files(&uri).into_iter().find(is_cells).unwrap();
    std::fs::rename(&data, folder.path().join("moved")).unwrap();
    let found = verified(&store).await;
    assert!(found.damaged_files.iter().any(|d| d.problem.contains("missing")), "{found:?}");
    std::fs::rename(folder.path().join("moved"), &data).unwrap();

    std::fs::remove_dir_all(uri.join("_checksums")).unwrap();
    let found = verified(&store).await;
    assert!(found.is_whole() && found.files == 0 && found.unrecorded > 0 && found.cells == 320, "{found:?}");
    // Without checksums of files, cells still have theirs.
    let original = std::fs::read(&data).unwrap();
    let mut changed = original.clone();
    let middle = changed.len() / 2;
    changed[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0x55);
    std::fs::write(&data, changed).unwrap();
    let reopened = Store::open(store.uri()).await.unwrap();
    let found = verified(&reopened).await;
    assert!(!found.is_whole(), "{found:?}");
    if found.damaged_cells > 0 {
        let session = Session::open(reopened).await.unwrap();
        let out = folder.path().join("out.parquet");
        let error = export(&session, &out, FileFormat::Parquet, None, silent()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        assert!(!out.exists() && !folder.path().join("out.parquet.partial").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_store_is_whole_and_has_one_list_of_checksums() {
    let folder = tempfile::tempdir().unwrap();
    let store = embedded(folder.path()).await;
    let (store, done) = store.compact(Some(1)).await.unwrap();
    assert!(done.versions_forgotten >= 3, "{done:?}");
    let whole = verified(&store).await;
    assert!(whole.is_whole() && whole.unrecorded == 0 && whole.files > 0, "{whole:?}");
    assert_eq!(files(&PathBuf::from(store.uri()).join("_checksums")).len(), 1);
    assert_eq!(files(&PathBuf::from(store.uri()).join("_versions")).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_that_fails_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = demo_cells(folder.path()).await;
    let uri = PathBuf::from(store.uri());
    let before = files(&uri);
    // Many cells, so that data files are written, and a value that no cell can have at the end.
    let mut text = String::from("cell,INS,GCG,SST\n");
    (0..30_000).for_each(|cell| text.push_str(&format!("c{cell},1,2,{}\n", cell % 7)));
    text.push_str("last,1,-5,1\n");
    let file = folder.path().join("wrong.csv");
    std::fs::write(&file, text).unwrap();
    let error = take_in(&store, &file, any_cell()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input, "{error}");
    let left: Vec<PathBuf> = files(&uri).difference(&before).cloned().collect();
    assert!(left.iter().all(|f| f.ends_with("_lock")), "{left:?}");
    assert!(verified(&Store::open(store.uri()).await.unwrap()).await.is_whole());
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_deletes_tables_and_files_that_no_version_names() {
    let folder = tempfile::tempdir().unwrap();
    let store = embedded(folder.path()).await;
    let uri = PathBuf::from(store.uri());
    // As a killed process leaves them: a table that was never published, and data that no table has.
    copy_folder(&uri.join("genes.lance"), &uri.join("embeddings/orphan.lance"));
    std::fs::write(uri.join("cells.lance/data/orphan.lance"), vec![7; 1 << 20]).unwrap();
    let (store, done) = store.compact(Some(1)).await.unwrap();
    assert!(done.bytes_freed > 1 << 20, "{done:?}");
    assert!(!uri.join("embeddings/orphan.lance").exists() && !uri.join("cells.lance/data/orphan.lance").exists());
    assert!(verified(&store).await.is_whole());
    let session = Session::open(store).await.unwrap();
    assert_eq!(number(&rows(&session, "SELECT count(*) FROM embeddings").await), 320.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_with_two_rows_of_a_cell_is_refused_and_mended() {
    let folder = tempfile::tempdir().unwrap();
    let store = embedded(folder.path()).await;
    let table = embedding_table("cell");
    let twice = |store: Store| {
        let table = table.clone();
        async move {
            let batches = store.read(&table, &[], None).await.unwrap();
            let schema = batches[0].schema();
            let mut transaction = store.begin("writing rows twice").await.unwrap();
            let again = futures::stream::iter(batches.into_iter().map(Ok));
            let again = datafusion::physical_plan::stream::RecordBatchStreamAdapter::new(schema, again);
            transaction.append(&table, Box::pin(again)).await.unwrap();
            transaction.publish().await.unwrap()
        }
    };
    let broken = twice(store).await;
    let error = Session::open(broken.clone()).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert!(error.to_string().contains("640 rows for 320 cells") && error.to_string().contains("compact"), "{error}");
    let count = "SELECT count(*) * 1000 + count(DISTINCT cell_id) FROM embeddings";
    // Compaction mends it, and so does the next job that embeds.
    let (compacted, _) = broken.compact(None).await.unwrap();
    let session = Session::open(compacted.clone()).await.unwrap();
    assert_eq!(number(&rows(&session, count).await), 320_320.0);
    let broken = twice(compacted).await;
    let engine = StoreEngine::open(broken).await.unwrap();
    let mended = embed_all(engine.store(), "cell").await;
    let session = Session::open(mended).await.unwrap();
    assert_eq!(number(&rows(&session, count).await), 320_320.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_on_a_deleted_version_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = demo_cells(folder.path()).await;
    let old = store.version().version;
    let session = Session::open(store.clone()).await.unwrap();
    let file = folder.path().join("more.csv");
    std::fs::write(&file, "cell,INS,GCG\nx,1,2\n").unwrap();
    let (store, _) = take_in(&store, &file, any_cell()).await.unwrap();
    store.compact(Some(1)).await.unwrap();
    let query = "SELECT sum(expression(expr, 'INS')) FROM cells";
    let error = match session.sql(query).await {
        Ok(frame) => frame.collect().await.unwrap_err().into(),
        Err(error) => error,
    };
    let error = session.explained(error).await;
    assert_eq!(error.kind(), ErrorKind::Request, "{error}");
    assert!(error.to_string().contains(&format!("version {old} ")), "{error}");
    let session = session.reopened().await.unwrap();
    assert_eq!(number(&rows(&session, "SELECT count(*) FROM cells").await), 321.0);
}

#[test]
fn errors_of_the_storage_show_their_cause_and_no_source_files() {
    let full = || std::io::Error::new(std::io::ErrorKind::StorageFull, "no space left");
    let lance = || lance::Error::from(full());
    assert!(lance().to_string().contains(".rs:"), "else this test is of no use: {}", lance());
    let store = cellql_store::StoreError::storage("writing table cells")(lance());
    let ours = cellql::error::Error::internal("writing table cells")(lance());
    for text in [store.to_string(), ours.to_string()] {
        assert_eq!(text, "writing table cells: no space left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_change_answers_cannot_be_set() {
    let folder = tempfile::tempdir().unwrap();
    let session = Session::open(empty(folder.path()).await).await.unwrap();
    for statement in [
        "SET datafusion.execution.batch_size = 0",
        "SET datafusion.optimizer.max_passes = 0",
        "SET datafusion.runtime.memory_limit = '1K'",
        "SET datafusion.execution.target_partitions = 0",
        "RESET datafusion.optimizer.max_passes",
    ] {
        let error = session.sql(statement).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Request, "{statement}: {error}");
    }
    session.sql("SET datafusion.execution.target_partitions = 2").await.unwrap();
    session.sql("SET TIME ZONE = '+01:00'").await.unwrap();
}
