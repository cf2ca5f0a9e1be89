//! kill -9 while a file is taken in: the last version stays readable and a rerun finishes.

use std::process::{Command, Stdio};
use std::time::Duration;

use cellql::query::Session;
use cellql::store::Store;

use crate::stores::{demo_file, number, rows};

async fn cells(uri: &str) -> f64 {
    let session = Session::open(Store::open(uri).await.unwrap()).await.unwrap();
    number(&rows(&session, "SELECT count(*) FROM cells JOIN datasets USING (dataset_id)").await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_ingest_leaves_all_or_nothing_and_a_rerun_completes_it() {
    let folder = tempfile::tempdir().unwrap();
    let uri = folder.path().join("store").to_str().unwrap().to_owned();
    let cellql = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellql"));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    for after in [40, 120, 200, 280, 360, 440, 520, 700] {
        let _ = std::fs::remove_dir_all(&uri);
        Store::init(&uri).await.unwrap();
        let mut child = cellql().args(["ingest", &uri]).arg(demo_file()).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(after)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let left = cells(&uri).await;
        assert!(left == 0.0 || left == 320.0, "{left} cells after {after} ms");
        let rerun = cellql().args(["ingest", &uri]).arg(demo_file()).status().unwrap();
        assert!(rerun.success());
        assert_eq!(cells(&uri).await, 320.0);
        let store = Store::open(&uri).await.unwrap();
        let session = Session::open(store).await.unwrap();
        assert_eq!(number(&rows(&session, "SELECT count(DISTINCT cell_id) FROM cells").await), 320.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_writer_waits_its_turn() {
    let folder = tempfile::tempdir().unwrap();
    let uri = folder.path().join("store").to_str().unwrap().to_owned();
    let store = Store::init(&uri).await.unwrap();
    let held = store.begin("the first").await.unwrap();
    let refused = store.begin("the second").await.unwrap_err();
    assert!(refused.to_string().contains("another cellql process is writing"), "{refused}");
    drop(held);
    store.begin("the third").await.unwrap();
}
