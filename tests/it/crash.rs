//! kill -9 while a file is taken in: the last version stays readable and a rerun finishes.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use cellql::jobs::{EmbedOptions, embed_cells};
use cellql::query::{Session, StoreEngine};
use cellql_model::CheckpointKey;
use cellql_schemas::recipe::Recipe;
use cellql_store::progress::OnProgress;
use cellql_store::{OnWait, Store, StoreError};
use rand::{Rng, SeedableRng};

use crate::stores::{
    add_reference_model, any_cell, copy_folder, demo_cells, demo_file, empty, ids, number, reference, rows, take_in,
    vectors,
};

async fn cells(uri: &str) -> f64 {
    let session = Session::open(Store::open(uri).await.unwrap()).await.unwrap();
    number(&rows(&session, "SELECT count(*) FROM cells JOIN datasets USING (dataset_id)").await)
}

fn files(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let count = |path: &Path| if path.is_dir() { files(path) } else { 1 };
    entries.flatten().map(|e| count(&e.path())).sum()
}

/// Kills the process as soon as it has made so many files. False if it ended before.
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
        // The process under test needs the core that a busy loop would take.
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Runs a command and kills it after a while; false where it was done before, and well.
pub fn is_killed_after(command: &mut Command, time: Duration) -> bool {
    let mut child = command.spawn().unwrap();
    std::thread::sleep(time);
    if let Some(status) = child.try_wait().unwrap() {
        assert!(status.success());
        return false;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    true
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
        empty(folder.path()).await;
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
    assert!(matches!(&refused, StoreError::Busy { store } if *store == uri), "{refused}");
    drop(held);
    store.begin("the third").await.unwrap();
}

/// A store of many small cells with the reference model, in a folder.
async fn store_to_embed(path: &Path) -> u64 {
    let store = Store::init(path.to_str().unwrap()).await.unwrap();
    let (store, _) = take_in(&store, &demo_file(), any_cell()).await.unwrap();
    let genes = std::fs::read_to_string(reference("gene_index.tsv")).unwrap();
    let genes: Vec<&str> = genes.lines().skip(1).filter_map(|line| line.split('\t').next()).take(50).collect();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(4);
    let mut table = format!("cell,{}\n", genes.join(","));
    for cell in 0..5 * 320 {
        let counts: Vec<String> = genes.iter().map(|_| random.random_range(0..9).to_string()).collect();
        table.push_str(&format!("made{cell},{}\n", counts.join(",")));
    }
    let file = path.with_extension("csv");
    std::fs::write(&file, table).unwrap();
    let (store, _) = take_in(&store, &file, any_cell()).await.unwrap();
    add_reference_model(&store, CheckpointKey::Cell).await;
    6 * 320
}

/// Every row of the embedding table: cell, vector, genes seen.
async fn embedded(uri: &str) -> Vec<(u64, Option<Vec<f32>>)> {
    let session = Session::open(Store::open(uri).await.unwrap()).await.unwrap();
    vectors(&rows(&session, "SELECT cell_id, vector FROM embeddings ORDER BY cell_id").await)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedding_killed_twenty_times_is_an_undisturbed_one_row_for_row() {
    let folder = tempfile::tempdir().unwrap();
    let (model, path) = (folder.path().join("model"), folder.path().join("store"));
    let uri = path.to_str().unwrap();
    let n = store_to_embed(&model).await;
    copy_folder(&model, &path);
    // Steps are published one by one, so that a kill meets every part of the work.
    let job = ["embed", uri, "--publish-every", "0"];
    let start = Instant::now();
    assert!(cellql(&job).status().unwrap().success());
    let usual = start.elapsed();
    let undisturbed = embedded(uri).await;
    assert_eq!(undisturbed.len() as u64, n);
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(9);
    let (mut kills, mut cut_off) = (0, 0);
    while kills < 20 {
        copy_folder(&model, &path);
        loop {
            if !is_killed_after(&mut cellql(&job), usual.mul_f64(random.random_range(0.05..0.9))) {
                break;
            }
            kills += 1;
            let session = Session::open(Store::open(uri).await.unwrap()).await.unwrap();
            let state =
                rows(&session, "SELECT count(*) FROM jobs WHERE state = 'running' AND cells_done < cells").await;
            cut_off += number(&state) as u32;
            if kills == 20 {
                assert!(cellql(&job).status().unwrap().success());
                break;
            }
        }
        assert!(embedded(uri).await == undisturbed, "after {kills} kills");
        let session = Session::open(Store::open(uri).await.unwrap()).await.unwrap();
        let done = format!("SELECT count(*) FROM jobs WHERE state = 'done' AND cells = {n} AND cells_done = {n}");
        assert_eq!(number(&rows(&session, &done).await), 1.0);
    }
    assert!(cut_off > 0, "no kill came in the middle of the work");
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_at_once_embed_every_cell_once_and_later_cells_are_added() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let uri = path.to_str().unwrap();
    let n = store_to_embed(&path).await;
    let start = |shard| cellql(&["embed", uri, "--shard", shard, "--publish-every", "0"]).spawn().unwrap();
    for mut part in ["1/2", "2/2"].map(start) {
        assert!(part.wait().unwrap().success());
    }
    let found = embedded(uri).await;
    assert!(found.iter().map(|(cell, _)| *cell).eq(0..n), "{} rows", found.len());
    // Each shard did a part: 1,920 cells lie in runs of 1,024.
    let session = Session::open(Store::open(uri).await.unwrap()).await.unwrap();
    let cells = rows(&session, "SELECT cells FROM jobs WHERE state = 'done' ORDER BY shard").await;
    assert_eq!(ids(&cells), [1024, 896]);

    let store = Store::open(uri).await.unwrap();
    let version = store.version().version;
    assert!(cellql(&["embed", uri]).status().unwrap().success());
    assert!(cellql(&["embed", uri]).status().unwrap().success());
    // The whole is a job of its own, recorded once; nothing else is written, however often it runs.
    assert_eq!(Store::open(uri).await.unwrap().version().version, version + 1);
    let file = some_cells(folder.path(), "later");
    assert!(cellql(&["ingest", uri, "--min-genes", "0", &file]).status().unwrap().success());
    assert!(cellql(&["embed", uri, "--where", "barcode = 'later7'"]).status().unwrap().success());
    assert_eq!(embedded(uri).await.len() as u64, n + 1);
    assert!(cellql(&["embed", uri]).status().unwrap().success());
    let all = embedded(uri).await;
    assert!(all.iter().map(|(cell, _)| *cell).eq(0..n + 40), "{} rows", all.len());
    assert!(all[..n as usize] == found);
}

fn cellql(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellql"));
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// A small file of cells.
fn some_cells(folder: &Path, name: &str) -> String {
    let path = folder.join(format!("{name}.csv"));
    let lines: String = (0..40).map(|i| format!("{name}{i},{},{},1\n", i + 1, 40 - i)).collect();
    std::fs::write(&path, format!("cell,INS,GCG,SST\n{lines}")).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_at_once_come_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let uri = path.to_str().unwrap();
    Store::init(uri).await.unwrap();
    let files: Vec<String> = ["a", "b", "c", "d"].iter().map(|n| some_cells(folder.path(), n)).collect();
    let start = |file: &String| cellql(&["ingest", uri, "--min-genes", "0", file]).spawn().unwrap();
    let writers: Vec<Child> = files.iter().map(start).collect();
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    let store = Store::open(uri).await.unwrap();
    // One version for each, every one resting on the one before.
    assert_eq!(store.version().version, 5);
    let counts: Vec<u64> = store.versions().await.unwrap().iter().map(|v| v.next_cell_id).collect();
    assert_eq!(counts, [0, 40, 80, 120, 160]);
    let session = Session::open(store).await.unwrap();
    let whole = "SELECT count(*) FROM (SELECT dataset_id FROM cells GROUP BY dataset_id HAVING count(*) = 40)";
    assert_eq!(number(&rows(&session, whole).await), 4.0);
    assert_eq!(number(&rows(&session, "SELECT count(DISTINCT cell_id) FROM cells").await), 160.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_removal_or_compaction_leaves_all_or_nothing_and_a_rerun_completes_it() {
    let folder = tempfile::tempdir().unwrap();
    let (model, path) = (folder.path().join("model"), folder.path().join("store"));
    let uri = path.to_str().unwrap();
    let mut store = Store::init(model.to_str().unwrap()).await.unwrap();
    for name in ["a", "b", "c"] {
        let input = cellql::ingest::InputFile::local(some_cells(folder.path(), name));
        store = cellql::ingest::ingest(&store, &input, &crate::stores::any_cell(), cellql_store::progress::silent())
            .await
            .unwrap()
            .0;
    }
    for (verb, left) in [(&["dataset", "remove", uri, "b"][..], 80.0), (&["compact", uri, "--keep", "1"][..], 120.0)] {
        let mut kills = 0;
        for step in 1.. {
            copy_folder(&model, &path);
            // Compaction deletes before it writes, so it is killed by the clock and not by the number of files.
            if !is_killed_after(&mut cellql(verb), Duration::from_millis(8 * step)) {
                break;
            }
            kills += 1;
            let now = cells(uri).await;
            assert!(now == 120.0 || now == left, "{verb:?}: {now} cells after {step} steps");
            if now == 120.0 {
                assert!(cellql(verb).status().unwrap().success(), "{verb:?} after {step} steps");
            }
            assert_eq!(cells(uri).await, left, "{verb:?} after {step} steps");
        }
        assert!(kills > 2, "{verb:?} was never killed");
    }
}

/// An engine on a store that waits for other writers.
async fn engine(uri: &str) -> Arc<StoreEngine> {
    let store = Store::open(uri).await.unwrap().patient(OnWait(Arc::new(|| {})));
    Arc::new(StoreEngine::open(store).await.unwrap())
}

/// Two runs of one recipe at once. Both compute the first 64 cells before either publishes them. The first publishes
/// them; then the second computes and publishes all others, while the first waits with 64 of the same cells computed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_runs_of_one_recipe_at_once_embed_every_cell_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = add_reference_model(&demo_cells(folder.path()).await, CheckpointKey::Cell).await;
    let uri = store.uri().to_owned();
    let [both_computed, first_published, second_finished] = [(); 3].map(|()| Arc::new(Barrier::new(2)));
    // Called after each step of 64 cells: waits at a barrier after the first step, and at others after the second.
    let waits = |barriers: Vec<Vec<Arc<Barrier>>>| -> OnProgress {
        let step = AtomicUsize::new(0);
        Arc::new(move |_, _| {
            let barriers = barriers.get(step.fetch_add(1, Ordering::Relaxed));
            tokio::task::block_in_place(|| {
                for barrier in barriers.into_iter().flatten() {
                    barrier.wait();
                }
            });
        })
    };
    let first = waits(vec![vec![both_computed.clone()], vec![first_published.clone(), second_finished.clone()]]);
    let second = waits(vec![vec![both_computed], vec![first_published]]);
    let run = |engine: Arc<StoreEngine>, publish_every, on_progress| {
        let options = EmbedOptions { publish_every, ..EmbedOptions::default() };
        tokio::spawn(async move { embed_cells(&engine, &Recipe::of_model("cell"), &options, on_progress).await })
    };
    // The first publishes after each step, the second only at its end.
    let (engines, hour) = ((engine(&uri).await, engine(&uri).await), Duration::from_secs(3600));
    let (first, second) = (run(engines.0, Duration::ZERO, first), run(engines.1, hour, second));
    let (_, second) = second.await.unwrap().unwrap();
    tokio::task::block_in_place(|| second_finished.wait());
    let (store, first) = first.await.unwrap().unwrap();

    assert_eq!((first.added, first.already), (64, 256));
    assert_eq!((second.added, second.already), (256, 64));
    assert!(embedded(&uri).await.iter().map(|(cell, _)| *cell).eq(0..320));
    let session = Session::open(store).await.unwrap();
    let done = "SELECT count(*) FROM jobs WHERE state = 'done' AND cells = 320 AND cells_done = 320";
    assert_eq!(number(&rows(&session, done).await), 1.0);
}
