//! The authors' numbers, from a file of counts through ingest, import and SQL.

use cellql::model::{CheckpointKey, Model, decode, encode, read_safetensors};
use cellql::query::Session;
use cellql_schemas::vocabulary::Vocabulary;
use safetensors::SafeTensors;

use crate::stores::{add_reference_model, any_cell, empty, fails, reference, rows, take_in, vectors, worst};

/// Arrays this covers: single cells, as counts and log-normalised.
const CALLS: &[(&str, &str)] = &[
    ("cell.all.a0.5.F", "embed(expr, model => 'cell', depth => 'a0.5')"),
    ("cell.all.f1.F", "embed(expr, model => 'cell', depth => 'f1')"),
    ("cell.all.f2.5.F", "embed(expr, depth => 'f2.5', pool => 'all', model => 'cell')"),
    ("cell.all.t4.F", "embed(expr, model => 'cell')"),
    ("cell.all.t4.T", "embed(log_normalise(expr), model => 'cell', input => 'log')"),
    ("cell.max.f1.F", "embed(expr, 'cell', 'max', 'f1')"),
    ("rde.all.t4.5.F", "embed(expr, model => 'rde', depth => 't4.5')"),
];

fn expected(name: &str) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(reference("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    let dim = tensor.shape()[1];
    let (chunks, _) = tensor.data().as_chunks::<4>();
    let values: Vec<f32> = chunks.iter().map(|b| f32::from_le_bytes(*b)).collect();
    values.chunks(dim).map(<[f32]>::to_vec).collect()
}

async fn session(folder: &std::path::Path) -> Session {
    let store = empty(folder).await;
    let (store, report) = take_in(&store, &reference("counts.csv"), any_cell()).await.unwrap();
    assert_eq!((report.cells_kept, report.genes.features), (6, 300));
    let store = add_reference_model(&store, CheckpointKey::Cell).await;
    let store = add_reference_model(&store, CheckpointKey::Rde).await;
    Session::open(store).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_single_cell_array_is_reproduced() {
    let folder = tempfile::tempdir().unwrap();
    let session = session(folder.path()).await;
    for (name, call) in CALLS {
        let found = vectors(&rows(&session, &format!("SELECT cell_id, {call} FROM cells ORDER BY cell_id")).await);
        let expected = expected(name);
        assert_eq!(found.len(), expected.len());
        for ((cell, vector), exact) in found.iter().zip(&expected) {
            let difference = worst(vector.as_ref().unwrap(), exact);
            assert!(difference < 1e-4, "{name}, cell {cell}: {difference}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_that_are_none_are_refused_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let session = session(folder.path()).await;
    let error = fails(&session, "SELECT embed(log_normalise(expr), model => 'cell') FROM cells").await;
    assert!(error.contains("is no count") && error.contains("input => 'log'"), "{error}");
}

#[test]
fn safetensors_and_checkpoint_hold_the_same_model() {
    let genes = std::fs::read_to_string(reference("gene_index.tsv")).unwrap();
    let vocabulary = || Vocabulary::from_tsv(&genes).unwrap();
    let plain = read_safetensors(&reference("cell.weights.safetensors"), &reference("cell.config.json"), vocabulary());
    let checkpoint = cellql::model::read_checkpoint(&reference("models.ckpt"), CheckpointKey::Cell, vocabulary());
    let (bytes, sha256) = encode(&plain.unwrap()).unwrap();
    assert_eq!(sha256, encode(&checkpoint.unwrap()).unwrap().1);
    assert_eq!(encode(&decode("again", &bytes).unwrap()).unwrap().1, sha256);
    assert_eq!(Model::load("m", &bytes).unwrap().vocabulary().len(), 300);
}

#[test]
fn damaged_checkpoints_are_refused_by_name() {
    let genes = std::fs::read_to_string(reference("gene_index.tsv")).unwrap();
    let vocabulary = || Vocabulary::from_tsv(&genes).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(reference("models.ckpt")).unwrap();
    let path = folder.path().join("bad.ckpt");
    let (_, archive) = (whole.len(), whole.clone());
    for cut in [0, 10, whole.len() / 2, whole.len() - 30] {
        std::fs::write(&path, &archive[..cut]).unwrap();
        let error = cellql::model::read_checkpoint(&path, CheckpointKey::Cell, vocabulary()).unwrap_err();
        assert!(error.to_string().contains("bad.ckpt") && error.exit_code() == 1, "{error}");
    }
    // Bytes of the pickle changed one at a time: an error or the same model, never a panic.
    for at in (40..2000).step_by(37) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        std::fs::write(&path, &bytes).unwrap();
        if let Err(error) = cellql::model::read_checkpoint(&path, CheckpointKey::Cell, vocabulary()) {
            assert_eq!(error.exit_code(), 1, "byte {at}: {error}");
        }
    }
}
