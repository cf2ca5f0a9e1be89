//! The authors' numbers, from a file of counts through ingest, import and SQL.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Float64Type;
use cellql::ingest::IngestOptions;
use cellql::jobs::{EmbedOptions, Groups, MemoryBudget, embed_cells, embed_genes};
use cellql::query::{Session, StoreEngine};
use cellql_model::{
    CheckpointKey, Model, ModelError, Sample, decode, encode, read_checkpoint, read_safetensors, write_checkpoint,
};
use cellql_schemas::expr::Profiles;
use cellql_schemas::recipe::{Dtype, Input, Recipe};
use cellql_schemas::vocabulary::Vocabulary;
use cellql_store::progress::silent;
use safetensors::SafeTensors;

use crate::stores::{add_reference_model, any_cell, empty, fails, number, reference, rows, take_in, vectors, worst};

/// Arrays of cell embeddings, and the calls that give them.
const CALLS: &[(&str, &str)] = &[
    ("cell.all.a0.5.F", "embed(expr, model => 'cell', depth => 'a0.5')"),
    ("cell.all.f1.F", "embed(expr, model => 'cell', depth => 'f1')"),
    ("cell.all.f2.5.F", "embed(expr, depth => 'f2.5', pool => 'all', model => 'cell')"),
    ("cell.all.t4.F", "embed(expr, model => 'cell')"),
    ("cell.all.t4.T", "embed(log_normalise(expr), model => 'cell', input => 'log')"),
    (
        "cell.all.f1.A",
        "embed(log_normalise(expr), model => 'cell', depth => 'f1', input => 'log+total', total => total_counts)",
    ),
    (
        "cell.all.bulk.F",
        "embed(expr, model => 'cell', input => 'bulk', total => (SELECT median(total_counts) FROM cells))",
    ),
    ("cell.max.bulk.T", "embed(log_normalise(expr), model => 'cell', pool => 'max', input => 'bulk-log')"),
    ("cell.max.f1.F", "embed(expr, 'cell', 'max', 'f1')"),
    ("rde.all.t4.5.F", "embed(expr, model => 'rde', depth => 't4.5')"),
];

/// Arrays `[cells, numbers]`; more axes are one.
fn expected(name: &str) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(reference("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    let dim = tensor.shape()[1..].iter().product();
    let (chunks, _) = tensor.data().as_chunks::<4>();
    let values: Vec<f32> = chunks.iter().map(|b| f32::from_le_bytes(*b)).collect();
    values.chunks(dim).map(<[f32]>::to_vec).collect()
}

async fn session(folder: &std::path::Path) -> Session {
    let store = empty(folder).await;
    let (store, report) = take_in(&store, &reference("counts.csv"), any_cell()).await.unwrap();
    assert_eq!((report.cells_kept, report.genes.features), (6, 300));
    let mut store = store;
    for key in [CheckpointKey::Cell, CheckpointKey::Rde, CheckpointKey::Gene] {
        store = add_reference_model(&store, key).await;
    }
    Session::open(store).await.unwrap()
}

fn recipe(model: &str, depth: &str, input: Input) -> Recipe {
    Recipe { depth: depth.parse().unwrap(), input, ..Recipe::of_model(model) }
}

#[test]
fn no_array_of_the_reference_is_left_out() {
    let bytes = std::fs::read(reference("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let by_decoder = ["gene.f1.F", "gene.f1.A", "enhance.t4.F", "enhance.f5.F"];
    for name in tensors.names() {
        assert!(CALLS.iter().any(|(n, _)| *n == name) || by_decoder.contains(&name), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cell_embedding_is_reproduced() {
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
async fn every_prediction_and_gene_embedding_is_reproduced() {
    let folder = tempfile::tempdir().unwrap();
    let session = session(folder.path()).await;
    let positions: Vec<u32> = (0..300).collect();
    let cases = [
        ("enhance.t4.F", "expr", recipe("gene", "t4", Input::Counts)),
        ("enhance.f5.F", "expr", recipe("gene", "f5", Input::Counts)),
        ("gene.f1.F", "expr", recipe("gene", "f1", Input::Counts)),
        ("gene.f1.A", "log_normalise(expr)", recipe("gene", "f1", Input::LogTotal)),
    ];
    for (name, expr, recipe) in cases {
        let found = rows(&session, &format!("SELECT {expr}, total_counts FROM cells ORDER BY cell_id")).await;
        let batch = arrow::compute::concat_batches(&found[0].schema(), &found).unwrap();
        let profiles = Profiles::new(batch.column(0)).unwrap();
        let totals = batch.column(1).as_primitive::<Float64Type>().values();
        let samples = || profiles.iter().zip(totals).map(|(p, t)| p.map(|profile| Sample { profile, total: Some(*t) }));
        let engine = session.engine();
        let found = match name.starts_with("enhance") {
            true => engine.enhanced(&recipe, samples(), 1000),
            false => engine.contexts(&recipe, &positions, samples(), 1000),
        };
        let (found, expected) = (found.unwrap(), expected(name));
        assert_eq!(found.valid, [true; 6]);
        for (found, exact) in found.vectors.chunks(expected[0].len()).zip(&expected) {
            let difference = worst(found, exact);
            assert!(difference < 1e-4, "{name}: {difference}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn predictions_and_gene_embeddings_come_by_gene_in_sql() {
    let folder = tempfile::tempdir().unwrap();
    let session = session(folder.path()).await;
    let genes = std::fs::read_to_string(reference("gene_index.tsv")).unwrap();
    let names = Vocabulary::from_tsv(&genes).unwrap().names().to_vec();
    for position in [0, 150, 299] {
        let gene = &names[position];
        let query = format!("SELECT cell_id, embed_gene(expr, '{gene}', model => 'gene', depth => 'f1') FROM cells");
        for (cell, vector) in vectors(&rows(&session, &format!("{query} ORDER BY cell_id")).await) {
            let exact = &expected("gene.f1.F")[cell as usize][position * 40..(position + 1) * 40];
            assert!(worst(&vector.unwrap(), exact) < 1e-4, "{gene}");
        }
        let query = format!("SELECT expression(enhance(expr, model => 'gene', depth => 'f5'), '{gene}') FROM cells");
        let found = rows(&session, &format!("{query} ORDER BY cell_id")).await;
        let found: Vec<f32> = found
            .iter()
            .flat_map(|b| b.column(0).as_primitive::<arrow::datatypes::Float32Type>().values().to_vec())
            .collect();
        let exact: Vec<f32> = expected("enhance.f5.F").iter().map(|cell| cell[position]).collect();
        assert!(worst(&found, &exact) < 1e-4, "{gene}: {found:?} {exact:?}");
    }
    let error = fails(&session, "SELECT embed_gene(expr, 'NOTAGENE', model => 'gene') FROM cells").await;
    assert!(error.contains("NOTAGENE"), "{error}");
    let error = fails(&session, "SELECT embed(expr, model => 'cell', input => 'bulk') FROM cells").await;
    assert!(error.contains("total =>") && error.contains("median"), "{error}");
    let error = fails(&session, "SELECT embed(expr, model => 'cell', total => total_counts) FROM cells").await;
    assert!(error.contains("takes no total"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_set_said_to_be_bulk_is_embedded_against_its_median() {
    let folder = tempfile::tempdir().unwrap();
    let store = empty(folder.path()).await;
    let bulk = IngestOptions { values: Some(Input::Bulk), ..any_cell() };
    let (store, _) = take_in(&store, &reference("counts.csv"), bulk).await.unwrap();
    let store = add_reference_model(&store, CheckpointKey::Cell).await;
    let engine = Arc::new(StoreEngine::open(store).await.unwrap());
    let asked = recipe("cell", "t4", Input::Counts);
    let (_, report) = embed_cells(&engine, &asked, &EmbedOptions::default(), silent()).await.unwrap();
    assert_eq!((report.added, report.unsuitable), (0, 6));
    let asked = recipe("cell", "t4", Input::Bulk);
    let (store, report) = embed_cells(&engine, &asked, &EmbedOptions::default(), silent()).await.unwrap();
    assert_eq!((report.added, report.unsuitable), (6, 0));
    let session = Session::open(store).await.unwrap();
    let found = vectors(&rows(&session, "SELECT cell_id, vector FROM embeddings ORDER BY cell_id").await);
    for ((_, vector), exact) in found.iter().zip(&expected("cell.all.bulk.F")) {
        assert!(worst(vector.as_ref().unwrap(), exact) < 1e-4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gene_embeddings_are_the_means_of_their_groups() {
    let folder = tempfile::tempdir().unwrap();
    let session = session(folder.path()).await;
    let engine = session.engine();
    let asked = recipe("gene", "f1", Input::Counts);
    let groups = Groups::default();
    let (store, report) = embed_genes(engine, &asked, None, &groups, MemoryBudget::default(), silent()).await.unwrap();
    assert_eq!(report.added, [("all".to_owned(), 6)]);
    let session = Session::open(store.clone()).await.unwrap();
    let genes = std::fs::read_to_string(reference("gene_index.tsv")).unwrap();
    let names = Vocabulary::from_tsv(&genes).unwrap().names().to_vec();
    let exact = expected("gene.f1.F");
    for position in [0usize, 7, 299] {
        let query = format!(
            "SELECT v.cells, v.vector FROM gene_embeddings v JOIN genes g ON v.gene_id = g.gene_id \
             WHERE array_has(g.source_names, '{}')",
            names[position]
        );
        let found = rows(&session, &query).await;
        let found: Vec<f32> = found[0]
            .column(1)
            .as_fixed_size_list()
            .value(0)
            .as_primitive::<arrow::datatypes::Float32Type>()
            .values()
            .to_vec();
        let mean: Vec<f32> =
            (position * 40..(position + 1) * 40).map(|i| exact.iter().map(|cell| cell[i]).sum::<f32>() / 6.0).collect();
        assert!(worst(&found, &mean) < 1e-4, "{}", names[position]);
    }
    let state = "SELECT cells + cells_done FROM jobs WHERE kind = 'embed genes' AND state = 'done'";
    assert_eq!(number(&rows(&session, state).await), 12.0);
    let engine = Arc::new(StoreEngine::open(store).await.unwrap());
    let (_, again) = embed_genes(&engine, &asked, None, &groups, MemoryBudget::default(), silent()).await.unwrap();
    assert_eq!((again.added.len(), again.already), (0, 1));
}

/// Cosine of the angle between two vectors.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[tokio::test(flavor = "multi_thread")]
async fn reduced_precision_stays_close_to_the_authors_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let session = session(folder.path()).await;
    for precision in ["bf16", "int8"] {
        let call = format!("embed(expr, model => 'cell', precision => '{precision}')");
        let found = vectors(&rows(&session, &format!("SELECT cell_id, {call} FROM cells ORDER BY cell_id")).await);
        for ((_, vector), exact) in found.iter().zip(&expected("cell.all.t4.F")) {
            let (vector, close) = (vector.as_ref().unwrap(), cosine(vector.as_ref().unwrap(), exact));
            // Close, and not by being computed in f32 after all.
            assert!(close > 0.999 && worst(vector, exact) > 1e-5, "{precision}: {close}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_do_not_depend_on_batch_order_or_threads() {
    let folder = tempfile::tempdir().unwrap();
    let session = session(folder.path()).await;
    let found = rows(&session, "SELECT expr FROM cells ORDER BY cell_id").await;
    let batch = arrow::compute::concat_batches(&found[0].schema(), &found).unwrap();
    let profiles = Profiles::new(batch.column(0)).unwrap();
    let engine = session.engine();
    let pool = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    for precision in Dtype::ALL {
        let run = |rows: &[usize], threads: usize, budget: usize| {
            let of = |model: &str| Recipe { precision, ..Recipe::of_model(model) };
            let samples = || rows.iter().map(|row| profiles.get(*row).map(|profile| Sample { profile, total: None }));
            pool(threads).install(|| {
                let cells = engine.embed_cells(&of("cell"), samples(), budget).unwrap().vectors;
                let genes = engine.enhanced(&of("gene"), samples(), budget).unwrap().vectors;
                let per = |all: &[f32]| -> Vec<Vec<f32>> {
                    all.chunks(all.len() / rows.len()).map(<[f32]>::to_vec).collect()
                };
                per(&cells).into_iter().zip(per(&genes)).collect::<Vec<_>>()
            })
        };
        let together = run(&[0, 1, 2, 3, 4, 5], 2, 8192);
        let backwards = run(&[5, 4, 3, 2, 1, 0], 5, 300);
        for (row, (cell, genes)) in together.iter().enumerate() {
            let alone = &run(&[row], 1, 8192)[0];
            for other in [alone, &backwards[5 - row]] {
                assert!(worst(cell, &other.0) < 1e-5 && worst(genes, &other.1) < 1e-5, "{precision:?}, cell {row}");
            }
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
    let checkpoint = cellql_model::read_checkpoint(&reference("models.ckpt"), CheckpointKey::Cell, vocabulary());
    let (bytes, sha256) = encode(&plain.unwrap()).unwrap();
    assert_eq!(sha256, encode(&checkpoint.unwrap()).unwrap().1);
    assert_eq!(encode(&decode("again", &bytes).unwrap()).unwrap().1, sha256);
    assert_eq!(Model::load("m", bytes).unwrap().vocabulary().len(), 300);
}

#[test]
fn a_written_checkpoint_is_read_back_as_the_same_model() {
    let genes = std::fs::read_to_string(reference("gene_index.tsv")).unwrap();
    let vocabulary = || Vocabulary::from_tsv(&genes).unwrap();
    let read = |path: &std::path::Path| read_checkpoint(path, CheckpointKey::Gene, vocabulary());
    let weights = read(&reference("models.ckpt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("again.ckpt");
    write_checkpoint(&weights, CheckpointKey::Gene, std::fs::File::create(&path).unwrap()).unwrap();
    assert_eq!(encode(&read(&path).unwrap()).unwrap().1, encode(&weights).unwrap().1);
    assert!(read_checkpoint(&path, CheckpointKey::Cell, vocabulary()).unwrap_err().to_string().contains("gene"));
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
        let error = cellql_model::read_checkpoint(&path, CheckpointKey::Cell, vocabulary()).unwrap_err();
        assert!(matches!(&error, ModelError::Input { file, .. } if file == &path), "{error}");
    }
    // Bytes of the pickle changed one at a time: an error or the same model, never a panic.
    for at in (40..2000).step_by(37) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        std::fs::write(&path, &bytes).unwrap();
        if let Err(error) = cellql_model::read_checkpoint(&path, CheckpointKey::Cell, vocabulary()) {
            assert!(matches!(&error, ModelError::Input { .. } | ModelError::Config(_)), "byte {at}: {error}");
        }
    }
}
