//! kill -9 while a file is taken in: the last version stays readable and a rerun finishes.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use cellql::query::Session;
use cellql::store::Store;

use crate::stores::{demo_file, number, rows};

async fn cells(uri: &str) -> f64 {
    let session = Session::open(Store::open(uri).await.unwrap()).await.unwrap();
    number(&rows(&session, "SELECT count(*) FROM cells JOIN datasets USING (dataset_id)").await)
}

fn files(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let count = |path: &Path| if path.is_dir() { files(path) } else { 1 };
    entries.flatten().map(|e| count(&e.path())).sum()
}

/// Kills the process as soon as it has made so many files; false where it ended before.
fn killed_after(child: &mut Child, folder: &Path, wanted: usize) -> bool {
    let before = files(folder);
    loop {
        if files(folder) >= before + wanted {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_ingest_leaves_all_or_nothing_and_a_rerun_completes_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let uri = path.to_str().unwrap().to_owned();
    let ingest = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellql"));
        command.args(["ingest", &uri]).arg(demo_file()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let mut kills = 0;
    for step in 1.. {
        let _ = std::fs::remove_dir_all(&path);
        Store::init(&uri).await.unwrap();
        let mut child = ingest().spawn().unwrap();
        if !killed_after(&mut child, &path, step) {
            break;
        }
        kills += 1;
        let left = cells(&uri).await;
        assert!(left == 0.0 || left == 320.0, "{left} cells after {step} files");
        assert!(ingest().status().unwrap().success());
        assert_eq!(cells(&uri).await, 320.0, "after {step} files");
        let session = Session::open(Store::open(&uri).await.unwrap()).await.unwrap();
        assert_eq!(number(&rows(&session, "SELECT count(DISTINCT cell_id) FROM cells").await), 320.0);
    }
    assert!(kills >= 5, "an ingest makes many files, {kills} kills");
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
