//! Training from the tables: which cells, in which order, and that a run may die anywhere.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cellql::error::ErrorKind;
use cellql::model_registry;
use cellql::pretrain::loader::read_cells;
use cellql::pretrain::run::{BAD_BATCH, METRICS, read_metrics};
use cellql::pretrain::{CellReading, Loader, Split, split};
use cellql_model::Provenance;
use cellql_schemas::expr::Profiles;
use cellql_schemas::vocabulary::{Placement, Vocabulary};
use cellql_store::Store;
use cellql_training::{Cell, HoldOut, LoaderPosition, Mixing};
use rand::{Rng, SeedableRng};

use crate::crash::is_killed_after;
use crate::stores::{any_cell, demo_cells, demo_file, take_in, test_data};

/// A list of some genes that the demo's cells express, and the file of it.
fn genes(folder: &Path) -> (Vocabulary, PathBuf) {
    let names: Vec<String> = Vocabulary::default_human().names().iter().step_by(60).cloned().collect();
    let lines: String = names.iter().enumerate().map(|(i, name)| format!("{name}\t{i}\n")).collect();
    let path = folder.join("genes.tsv");
    std::fs::write(&path, format!("gene_name\tindex\n{lines}")).unwrap();
    (Vocabulary::new(names).unwrap(), path)
}

async fn placement(store: &Store) -> Placement {
    store.genes().await.unwrap().place(&Vocabulary::default_human())
}

async fn reading(store: &Store) -> CellReading {
    CellReading::new(placement(store).await, None)
}

async fn divided(store: &Store, share: f64, condition: Option<&str>) -> Split {
    let hold_out = HoldOut { share, condition: condition.map(str::to_owned) };
    split(store, None, &hold_out, 10).await.unwrap()
}

async fn loader(store: &Store, split: &Split, mixing: Mixing, from: LoaderPosition) -> Loader {
    Loader::start(store, split, &reading(store).await, mixing, from).await.unwrap()
}

fn next(loader: &mut Loader, count: usize) -> Vec<Cell> {
    tokio::task::block_in_place(|| loader.next(count).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn cells_are_held_out_by_content_wherever_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let store = demo_cells(folder.path()).await;
    let before = divided(&store, 0.2, None).await;
    assert_eq!(before.train.len() + before.held_out.len(), 320);
    assert!((40..90).contains(&before.held_out.len()), "{}", before.held_out.len());
    assert!(before.train.is_disjoint(&before.held_out) && before.validation.len() == 10);

    // The same cells once more, by another name, and others: what was held out stays so, and is not learned from twice.
    // (A byte behind its end makes it another file.)
    let copy = folder.path().join("again.h5ad");
    std::fs::write(&copy, [std::fs::read(demo_file()).unwrap(), vec![0]].concat()).unwrap();
    let (store, _) = take_in(&store, &copy, any_cell()).await.unwrap();
    let after = divided(&store, 0.2, None).await;
    assert!(before.held_out.is_subset(&after.held_out) && before.train.is_subset(&after.train));
    assert_eq!((after.held_out.len(), after.duplicates), (2 * before.held_out.len(), before.train.len()));
    assert_eq!(after.train.len(), before.train.len());

    // A condition holds out more, and with those cells their copies.
    let one = divided(&store, 0.0, Some("cell_type = 'beta' AND dataset_id = 1")).await;
    let all = divided(&store, 0.0, Some("cell_type = 'beta'")).await;
    assert!(!one.held_out.is_empty() && one.held_out == all.held_out);
    // Also where they are not among those to learn from.
    let by = |condition: &str| HoldOut { share: 0.0, condition: Some(condition.to_owned()) };
    let apart = split(&store, Some("dataset_id = 0"), &by("dataset_id = 1"), 10).await.unwrap();
    assert_eq!((apart.train.len(), apart.held_out.len()), (0, 320));
    assert!(split(&store, None, &by("cell_type = 'none such'"), 10).await.is_err());
    // Where the first of some copies is not asked for, one of the others is learned from.
    std::fs::write(&copy, [std::fs::read(demo_file()).unwrap(), vec![0, 0]].concat()).unwrap();
    let (store, _) = take_in(&store, &copy, any_cell()).await.unwrap();
    let others = split(&store, Some("dataset_id > 0"), &HoldOut { share: 0.0, condition: None }, 10).await.unwrap();
    assert_eq!((others.train.len(), others.duplicates), (320, 320));
    assert_ne!(others.digest, apart.digest);
    let wrong = HoldOut { share: 0.0, condition: Some("no_such_column = 1".to_owned()) };
    assert!(split(&store, None, &wrong, 10).await.is_err());
    assert!(split(&store, None, &HoldOut { share: 1.5, condition: None }, 10).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_epoch_gives_every_cell_once_in_another_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = demo_cells(folder.path()).await;
    let split = divided(&store, 0.1, None).await;
    let cells = split.train.len() as usize;
    let mixing = Mixing { block: 7, blocks: 5, seed: 3, ..Mixing::default() };
    let mut all = loader(&store, &split, mixing, LoaderPosition::default()).await;
    let rows = |cells: &[Cell]| cells.iter().map(|cell| cell.row).collect::<Vec<u64>>();
    let (first, second) = (next(&mut all, cells), next(&mut all, cells));
    assert_eq!(rows(&first).into_iter().collect::<BTreeSet<u64>>(), split.train.iter().collect());
    assert_eq!(rows(&second).into_iter().collect::<BTreeSet<u64>>(), split.train.iter().collect());
    assert_ne!(rows(&first), rows(&second));
    assert_eq!(all.place().epoch, 1);
    // Neighbours on disk are no neighbours in the order.
    let near = rows(&first).windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 1).count();
    assert!(near < cells / 4, "{near} of {cells}");
    // What a cell holds is what the table holds.
    let again = read_cells(&store, &rows(&first)[..20], &reading(&store).await).await.unwrap();
    assert_eq!(again, first[..20]);
    let other = Mixing { seed: 4, ..mixing };
    assert_ne!(rows(&next(&mut loader(&store, &split, other, LoaderPosition::default()).await, cells)), rows(&first));
}

#[tokio::test(flavor = "multi_thread")]
async fn cells_are_those_of_the_table_also_among_removed_ones() {
    let folder = tempfile::tempdir().unwrap();
    let store = demo_cells(folder.path()).await;
    let copy = folder.path().join("again.h5ad");
    std::fs::write(&copy, [std::fs::read(demo_file()).unwrap(), vec![0]].concat()).unwrap();
    let (store, _) = take_in(&store, &copy, any_cell()).await.unwrap();
    // One file of both data sets, half of whose rows are then gone.
    let (store, _) = store.compact(None).await.unwrap();
    let (store, _) = cellql::ingest::remove(&store, "baron_pancreas").await.unwrap();
    let placement = placement(&store).await;
    let mut expected: Vec<Vec<(u32, u32)>> = Vec::new();
    for batch in store.read("cells", &["expr"], None).await.unwrap() {
        let profiles = Profiles::new(batch.column(0)).unwrap();
        for profile in (0..batch.num_rows()).filter_map(|i| profiles.get(i)) {
            let placed = profile.gene_ids.iter().zip(profile.values);
            let placed = placed.filter_map(|(gene, value)| Some((placement.position(*gene)?, value.to_bits())));
            let mut placed: Vec<(u32, u32)> = placed.collect();
            placed.sort_unstable();
            expected.push(placed);
        }
    }
    assert_eq!(expected.len(), 320);
    let split = divided(&store, 0.0, None).await;
    let mixing = Mixing { block: 7, blocks: 5, seed: 3, ..Mixing::default() };
    let cells = next(&mut loader(&store, &split, mixing, LoaderPosition::default()).await, 320);
    let mut read: Vec<Vec<(u32, u32)>> =
        cells.iter().map(|cell| cell.counts.iter().map(|(at, value)| (*at, value.to_bits())).collect()).collect();
    expected.sort_unstable();
    read.sort_unstable();
    assert!(read == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loader_goes_on_at_any_cell() {
    let folder = tempfile::tempdir().unwrap();
    let store = demo_cells(folder.path()).await;
    let split = divided(&store, 0.1, None).await;
    let mixing = Mixing { block: 7, blocks: 5, seed: 3, ..Mixing::default() };
    let mut whole = loader(&store, &split, mixing, LoaderPosition::default()).await;
    let order = next(&mut whole, 900);
    for stop in [1, 34, 35, 36, 200, 287, 288, 289, 600] {
        let mut first = loader(&store, &split, mixing, LoaderPosition::default()).await;
        next(&mut first, stop);
        let mut second = loader(&store, &split, mixing, first.place()).await;
        assert_eq!(next(&mut second, 40), order[stop..stop + 40], "after {stop} cells");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranks_share_the_cells() {
    let folder = tempfile::tempdir().unwrap();
    let store = demo_cells(folder.path()).await;
    let split = divided(&store, 0.0, None).await;
    let mut seen: Vec<u64> = Vec::new();
    for rank in 0..3 {
        let mixing = Mixing { block: 8, blocks: 4, seed: 3, rank, ranks: 3 };
        let from = LoaderPosition { chunk: rank as u64, ..LoaderPosition::default() };
        let mut loader = loader(&store, &split, mixing, from).await;
        // Ten chunks of 32 cells: ranks 0 to 2 have four, three and three.
        let cells = next(&mut loader, if rank == 0 { 128 } else { 96 });
        assert_eq!(loader.place().epoch, 0);
        seen.extend(cells.iter().map(|cell| cell.row));
    }
    assert_eq!(seen.len(), 320);
    assert_eq!(seen.into_iter().collect::<HashSet<u64>>().len(), 320);
    let refused =
        Loader::start(&store, &Split::default(), &reading(&store).await, Mixing::default(), LoaderPosition::default())
            .await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Request);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_other_sizes_learns_and_goes_on_under_another_name() {
    let folder = tempfile::tempdir().unwrap();
    demo_cells(folder.path()).await;
    let (store, (_, genes)) = (folder.path().join("store"), genes(folder.path()));
    let sizes = folder.path().join("sizes.json");
    let of = |text: &str| std::fs::write(&sizes, text).unwrap();
    let first = || pretrain(&store, &genes, "first", &["--steps", "2", "--size", sizes.to_str().unwrap()]);
    for wrong in ["{", r#"{"encoder": {"width": 8}}"#, r#"{"encoder": {"heads": 3}}"#] {
        of(wrong);
        assert_eq!(first().status().unwrap().code(), Some(1), "{wrong}");
    }
    // A name that no model can have is refused before the work, not after it.
    assert_eq!(pretrain(&store, &genes, "0.6M", &["--steps", "1"]).status().unwrap().code(), Some(1));
    assert!(!store.join("runs/0.6M").exists());
    of(r#"{"encoder": {"hidden_dim": 16, "heads": 2}, "decoder": {"hidden_dim": 16, "dim_head": 4}}"#);
    assert!(first().status().unwrap().success());
    let mut second = Command::new(env!("CARGO_BIN_EXE_cellql"));
    second.arg("pretrain").arg(&store).args(["--name", "second", "--from", "first", "--steps", "1", "--batch", "8"]);
    assert!(second.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    let (first, second) = (model(&store, "first").await, model(&store, "second").await);
    assert_eq!((first.dim, second.dim, first.parameters), (64, 64, second.parameters));
    assert_ne!(first.sha256, second.sha256);
}

/// `cellql pretrain` on one thread, a checkpoint after every step.
fn pretrain(store: &Path, genes: &Path, name: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellql"));
    command.arg("pretrain").arg(store).args(["--name", name, "--genes"]).arg(genes);
    command.args(["--batch", "8", "--warm-up", "5", "--learning-rate", "0.001", "--seed", "5"]);
    command.args(["--checkpoint-every", "0", "--validate-every", "10"]).args(more);
    command.env("RAYON_NUM_THREADS", "1").stdout(Stdio::null()).stderr(Stdio::null());
    command
}

async fn model(store: &Path, name: &str) -> model_registry::ModelEntry {
    let store = Store::open(store.to_str().unwrap()).await.unwrap();
    model_registry::find(&model_registry::list(&store).await.unwrap(), Some(name)).unwrap().clone()
}

/// Kills runs of the model `killed`, at a random time each, until one ends or its model is there. Returns how many were
/// killed, at least two.
async fn killed_until_done(store: &Path, command: impl Fn(u64) -> Command) -> u64 {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(8);
    let mut kills = 0;
    loop {
        // Longer from kill to kill: beside other tests a run may take seconds to begin.
        let time = Duration::from_millis(random.random_range(300..1500) + 30 * kills);
        if !is_killed_after(&mut command(kills), time) {
            break;
        }
        kills += 1;
        assert!(kills < 100, "a run gets on between kills");
        // The kill may have come after the model was added and before the process ended.
        let entries = model_registry::list(&Store::open(store.to_str().unwrap()).await.unwrap()).await.unwrap();
        if entries.iter().any(|entry| entry.name == "killed") {
            break;
        }
    }
    assert!(kills >= 2, "{kills} kills");
    kills
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_over_views_predicts_components_and_may_be_killed() {
    let Some(other) = test_data("wu2020_200_v0_11.h5ad") else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = demo_cells(folder.path()).await;
    // A second data set, so that batches are drawn.
    take_in(&store, &other, any_cell()).await.unwrap();
    let store = folder.path().join("store");
    let (_, genes) = genes(folder.path());
    let mut fit = Command::new(env!("CARGO_BIN_EXE_cellql"));
    fit.args(["-q", "model", "fit"]).arg(&store).args(["--kind", "pca", "--name", "linear", "--components", "8"]);
    assert!(fit.args(["--genes", "hvg:200"]).stdout(Stdio::null()).status().unwrap().success());
    let settings = folder.path().join("settings.json");
    let text = r#"{
        "objectives": { "read_depth": 0, "components": 1, "target": "linear", "contrast": 0.2, "view_genes": [20, 60] },
        "batches": { "of_one_dataset": true }, "block": 8, "blocks": 4
    }"#;
    std::fs::write(&settings, text).unwrap();
    let options = ["--config", settings.to_str().unwrap(), "--steps", "60"];
    assert!(pretrain(&store, &genes, "whole", &options).status().unwrap().success());
    let whole = model(&store, "whole").await;
    let linear = model(&store, "linear").await.sha256;
    let Provenance::Trained { target, .. } = whole.provenance().unwrap() else { panic!("{whole:?}") };
    assert_eq!(target, Some(linear));
    let kills = killed_until_done(&store, |_| pretrain(&store, &genes, "killed", &options)).await;
    assert_eq!(model(&store, "killed").await.sha256, whole.sha256, "after {kills} kills");
    // It learned to predict the components of cells it never saw: predicting their mean has a loss of 1.
    let measured = read_metrics(&store.join("runs/whole").join(METRICS)).unwrap();
    let held_out: Vec<f64> = measured.iter().filter_map(|m| Some(m.validation_parts?.components)).collect();
    assert!(held_out.len() == 6 && held_out[5] < 0.9 * held_out[0] && held_out[5] < 1.0, "{held_out:?}");
    assert!(measured.iter().all(|m| m.parts.is_some_and(|parts| parts.read_depth == 0.0)));
    assert!(std::fs::read_to_string(store.join("runs/whole/curves.svg")).unwrap().contains("weighted sum"));
    // RDA goes on from its weights, and beside it the head that was trained.
    let both = text.replace("\"read_depth\": 0,", "\"read_depth\": 1, \"read_depth_cells\": 2,");
    std::fs::write(&settings, both).unwrap();
    let mut next = Command::new(env!("CARGO_BIN_EXE_cellql"));
    next.arg("pretrain").arg(&store).args(["--name", "both", "--from", "whole", "--batch", "8", "--steps", "3"]);
    next.args(["--config", settings.to_str().unwrap(), "--validate-every", "1", "--warm-up", "0"]);
    assert!(next.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    let measured = read_metrics(&store.join("runs/both").join(METRICS)).unwrap();
    let first = measured[0].parts.unwrap();
    assert!(first.read_depth > 0.0 && first.components < 1.0 && measured[0].cells == 8, "{measured:?}");
    // A target that is no linear model is refused before the work.
    std::fs::write(&settings, text.replace("\"linear\"", "\"whole\"")).unwrap();
    let refused = pretrain(&store, &genes, "other", &options).stderr(Stdio::piped()).output().unwrap();
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("not a linear model") && refused.status.code() == Some(1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_anywhere_ends_with_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    demo_cells(folder.path()).await;
    let store = folder.path().join("store");
    let (_, genes) = genes(folder.path());
    let steps = ["--steps", "40", "--schedule", "cosine"];
    assert!(pretrain(&store, &genes, "whole", &steps).status().unwrap().success());
    let whole = model(&store, "whole").await;
    assert!(whole.trained);
    let Provenance::Trained { steps: 40, program, .. } = whole.provenance().unwrap() else { panic!("{whole:?}") };
    assert!(program.contains("commit"), "{program}");

    let kills = killed_until_done(&store, |kills| {
        // What a run keeps in memory may change as it goes on.
        let mut command = pretrain(&store, &genes, "killed", &steps);
        command.args((kills % 2 == 1).then_some("--recompute"));
        command
    })
    .await;
    assert_eq!(model(&store, "killed").await.sha256, whole.sha256, "after {kills} kills");
    let of = |name: &str| read_metrics(&store.join("runs").join(name).join(METRICS)).unwrap();
    let (whole, killed) = (of("whole"), of("killed"));
    assert_eq!(whole.len(), 40);
    for (a, b) in whole.iter().zip(&killed) {
        assert_eq!((a.step, a.cells, a.loss, a.gradient_norm), (b.step, b.cells, b.loss, b.gradient_norm));
    }
    // It learned: cells it never saw are predicted better than at first.
    let held_out: Vec<f64> = whole.iter().filter_map(|m| m.validation_loss).collect();
    assert!(held_out.len() == 4 && held_out[3] < 0.9 * held_out[0], "{held_out:?}");
    assert!(std::fs::read_to_string(store.join("runs/whole/curves.svg")).unwrap().contains("held-out cells"));
    // What its loss cost, as a table and a picture.
    let picture = folder.path().join("scaling.svg");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellql"));
    command.arg("evaluate").arg(&store).args(["scaling", "--format", "csv", "--picture"]).arg(&picture);
    let out = command.arg(store.join("runs/whole")).arg(store.join("runs/killed")).output().unwrap();
    let table = String::from_utf8(out.stdout).unwrap();
    assert_eq!(table.lines().count(), 9, "{table}{}", String::from_utf8_lossy(&out.stderr));
    assert!(std::fs::read_to_string(&picture).unwrap().contains("killed"));
    // Once more is refused, and says why.
    let again = pretrain(&store, &genes, "whole", &steps).stderr(Stdio::piped()).output().unwrap();
    assert!(String::from_utf8_lossy(&again.stderr).contains("this run is done") && again.status.code() == Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_that_jumps_stops_the_run_and_leaves_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    demo_cells(folder.path()).await;
    let store = folder.path().join("store");
    let (_, genes) = genes(folder.path());
    let settings = folder.path().join("settings.json");
    // Any loss above the mean before it is taken for a jump.
    std::fs::write(&settings, r#"{ "spike": 1.001, "steps": 400 }"#).unwrap();
    let with = ["--config", settings.to_str().unwrap()];
    let stopped = pretrain(&store, &genes, "wild", &with).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&stopped.stderr).into_owned();
    assert!(stopped.status.code() == Some(1) && said.contains("times the mean of earlier steps"), "{said}");
    let run = store.join("runs/wild");
    let batch: serde_json::Value = serde_json::from_slice(&std::fs::read(run.join(BAD_BATCH)).unwrap()).unwrap();
    let measured = read_metrics(&run.join(METRICS)).unwrap();
    assert_eq!(batch["step"], measured.last().unwrap().step);
    assert_eq!(batch["counts"].as_array().unwrap().len(), 8);
    // Two processes do not go on with one run.
    let held = std::fs::File::open(run.join("lock")).unwrap();
    held.lock().unwrap();
    let second = pretrain(&store, &genes, "wild", &with).stderr(Stdio::piped()).output().unwrap();
    assert!(String::from_utf8_lossy(&second.stderr).contains("another process trains in this folder"));
    drop(held);
    // A run that stopped may be told to be more patient, and nothing else.
    std::fs::write(&settings, r#"{ "spike": 1.01, "steps": 400 }"#).unwrap();
    let patient = pretrain(&store, &genes, "wild", &with).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&patient.stderr).into_owned();
    assert!(said.contains("resuming after step") && !said.contains("holds a run with other"), "{said}");
    // Weights that are no numbers make no model.
    let mut far = Command::new(env!("CARGO_BIN_EXE_cellql"));
    far.arg("pretrain").arg(&store).args(["--name", "lost", "--genes"]).arg(&genes);
    let lost =
        far.args(["--batch", "8", "--steps", "1", "--learning-rate", "1e300", "--warm-up", "0"]).output().unwrap();
    let said = String::from_utf8_lossy(&lost.stderr).into_owned();
    assert!(lost.status.code() == Some(1) && said.contains("NaN or infinite"), "{said}");
    // Other settings are another run.
    let other = pretrain(&store, &genes, "wild", &["--steps", "30"]).stderr(Stdio::piped()).output().unwrap();
    assert!(String::from_utf8_lossy(&other.stderr).contains("other settings"));
}

#[test]
fn settings_are_refused_by_name() {
    for (flags, code, said) in [
        (["--steps", "0"], 1, "steps 0"),
        (["--precision", "f64"], 2, "'f64' for '--precision"),
        (["--learning-rate", "0"], 1, "learning rate 0"),
        (["--batch", "100000000000000"], 1, "batch 100000000000000"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellql"));
        let out = command.args(["pretrain", "nowhere", "--name", "x"]).args(flags).output().unwrap();
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(code) && error.contains(said), "{error}");
    }
}
