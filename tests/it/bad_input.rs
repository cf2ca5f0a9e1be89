//! Any file is either ingested completely or refused with an error that names it; no file makes the program panic.

use std::path::Path;

use cellql::error::Error;
use cellql::ingest::IngestOptions;
use cellql::query::Session;
use cellql_store::Store;
use cellql_store::progress::silent;
use hdf5_pure::{AttrValue, FileBuilder};
use rand::{Rng, SeedableRng};

use crate::stores::{any_cell, demo_file, demo_store, empty, fails, take_in};

/// Ingests a file that must be refused with an error about it that names these objects, and checks that the store is
/// unchanged.
async fn refused(store: &Store, file: &Path, options: IngestOptions, names: &[&str]) {
    let error = take_in(store, file, options).await.expect_err(&file.display().to_string());
    let text = error.to_string();
    assert!(
        matches!(&error, Error::Input { file: named, object, .. } if named == file && !object.is_empty()),
        "{text}"
    );
    for name in names {
        assert!(text.contains(name), "'{name}' not in: {text}");
    }
    let now = Store::open(store.uri()).await.unwrap();
    assert_eq!(now.version(), store.version(), "{text}");
    let session = Session::open(now).await.unwrap();
    assert_eq!(session.count("cells").await.unwrap(), 0);
    assert_eq!(session.count("datasets").await.unwrap(), 0);
}

fn matrix_file(path: &Path, values: &[f32], var: Option<&[&str]>) {
    let mut file = FileBuilder::new();
    let columns = values.len() as u64 / 2;
    file.create_dataset("X").with_f32_data(values).with_shape(&[2, columns]);
    let mut frame = |name: &str, index: &[&str]| {
        let mut group = file.create_group(name);
        group.set_attr("_index", AttrValue::String("_index".into()));
        group.set_attr("column-order", AttrValue::StringArray(vec![]));
        group.create_dataset("_index").with_vlen_strings(index);
        let group = group.finish();
        file.add_group(group);
    };
    frame("obs", &["AAA", "CCC"]);
    if let Some(var) = var {
        frame("var", var);
    }
    file.write(path.to_str().unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_store_has_nothing_to_index() {
    let folder = tempfile::tempdir().unwrap();
    let store = empty(folder.path()).await;
    let error = cellql::index::build(&store, "near", "human_3m", None, silent()).await.unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("nothing to index") && error.to_string().contains("cellql ingest"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_files_are_refused_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = empty(folder.path()).await;
    let at = |name: &str| folder.path().join(name);
    let whole = std::fs::read(demo_file()).unwrap();

    for share in [0.001, 0.1, 0.5, 0.9, 0.999] {
        let file = at("truncated.h5ad");
        std::fs::write(&file, &whole[..(whole.len() as f64 * share) as usize]).unwrap();
        refused(&store, &file, IngestOptions::default(), &[]).await;
    }
    std::fs::write(at("text.h5ad"), "barcode,INS\nA,1\n").unwrap();
    refused(&store, &at("text.h5ad"), any_cell(), &[]).await;
    std::fs::write(at("empty.h5ad"), "").unwrap();
    refused(&store, &at("empty.h5ad"), any_cell(), &[]).await;
    refused(&store, &at("missing.h5ad"), any_cell(), &[]).await;

    matrix_file(&at("nonames.h5ad"), &[1.0, 2.0, 3.0, 4.0], None);
    refused(&store, &at("nonames.h5ad"), any_cell(), &["var"]).await;
    matrix_file(&at("nan.h5ad"), &[1.0, f32::NAN, 3.0, 4.0], Some(&["INS", "GCG"]));
    refused(&store, &at("nan.h5ad"), any_cell(), &["NaN", "cell 'AAA'"]).await;
    matrix_file(&at("negative.h5ad"), &[1.0, 2.0, -3.5, 4.0], Some(&["INS", "GCG"]));
    refused(&store, &at("negative.h5ad"), any_cell(), &["-3.5", "cell 'CCC'"]).await;
    matrix_file(&at("narrow.h5ad"), &[1.0, 2.0, 3.0, 4.0], Some(&["INS"]));
    refused(&store, &at("narrow.h5ad"), any_cell(), &["X"]).await;

    let mouse = ["Ins1", "Gcg", "Sst", "Gad1"];
    matrix_file(&at("mouse.h5ad"), &[1.0; 8], Some(&mouse));
    refused(&store, &at("mouse.h5ad"), any_cell(), &["mouse", "0 of 4", "--allow-unresolved"]).await;
    let taken = IngestOptions { allow_unresolved: true, ..any_cell() };
    assert_eq!(take_in(&store, &at("mouse.h5ad"), taken).await.unwrap().1.cells_kept, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_text_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let store = empty(folder.path()).await;
    let cases: &[(&str, &[&str])] = &[
        ("b,INS,GCG\na,1,x\n", &["line 2", "GCG", "'x'"]),
        ("b,INS,GCG\na,1,2\nc,1\n", &["line 3"]),
        ("b,INS,GCG\na,NaN,2\n", &["NaN", "cell 'a'"]),
        ("b,INS,GCG\na,1,-2\n", &["-2", "cell 'a'"]),
        ("b\n", &[]),
        ("b,1,2\n", &[]),
        ("", &[]),
        ("b,INS,GCG\na,1,inf\n", &["inf", "cell 'a'"]),
        ("x\0y", &[]),
    ];
    for (text, words) in cases {
        let file = folder.path().join("bad.csv");
        std::fs::write(&file, text).unwrap();
        refused(&store, &file, any_cell(), words).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_damage_never_panics_nor_leaves_half_a_data_set() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let whole = std::fs::read(demo_file()).unwrap();
    let mut refusals = 0;
    let mut store = empty(folder.path()).await;
    for round in 0..24 {
        let mut bytes = whole.clone();
        for _ in 0..1 << (round % 8) {
            // Most of the structure lies in the first kilobytes.
            let bound = if rng.random_bool(0.5) { 8192 } else { bytes.len() };
            let at = rng.random_range(8..bound);
            bytes[at] = rng.random();
        }
        let file = folder.path().join("damaged.h5ad");
        std::fs::write(&file, &bytes).unwrap();
        match take_in(&store, &file, IngestOptions::default()).await {
            Err(error) => {
                refusals += 1;
                assert!(matches!(&error, Error::Input { file: named, .. } if *named == file), "{error}");
                assert_eq!(Store::open(store.uri()).await.unwrap().version(), store.version());
            }
            // Damage may lie where nothing is read: then all cells are there, in a store of their own.
            Ok((_, report)) => {
                assert!(report.cells_read == 320);
                std::fs::remove_dir_all(store.uri()).unwrap();
                store = Store::init(store.uri()).await.unwrap();
            }
        }
    }
    assert!(refusals > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_that_fails_on_a_value_is_a_wrong_request_and_names_the_value() {
    let session = Session::open(demo_store().await).await.unwrap();
    for sql in ["SELECT cell_id FROM cells WHERE cell_type = 2", "SELECT 1 FROM cells WHERE n_genes > donor_id"] {
        let error = session.sql(sql).await.unwrap().collect().await.map_err(cellql::error::Error::from).unwrap_err();
        assert_eq!(error.kind(), cellql::error::ErrorKind::Request, "{sql}: {error}");
        let text = error.to_string();
        assert!(text.contains("Cannot cast") && !text.contains(".rs:"), "{sql}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_names_in_sql_are_answered_at_plan_time_with_near_ones() {
    let session = Session::open(demo_store().await).await.unwrap();
    let cases: &[(&str, &[&str])] = &[
        ("SELECT embed(expr, model => 'sell') FROM cells", &["unknown model 'sell'", "'cell'"]),
        ("SELECT embed(expr, pool => 'maxx') FROM cells", &["unknown pool 'maxx'", "Did you mean 'max'"]),
        ("SELECT embed(expr, depth => 'x4') FROM cells", &["unknown depth 'x4'", "'t4'"]),
        ("SELECT embed(expr, deepth => 't4') FROM cells", &["no option 'deepth'", "Did you mean 'depth'"]),
        ("SELECT embed(expr, model => barcode) FROM cells", &["'model' must be a constant"]),
        ("SELECT embed(barcode) FROM cells", &["column expr of cells"]),
        ("SELECT expression(expr, 'INSS') FROM cells", &["unknown gene 'INSS'", "'INS'"]),
        ("SELECT expression(expr) FROM cells", &["expression(expr, gene)"]),
        ("SELECT * FROM vector_search('cell', 1)", &["cannot search 'cell'", "Did you mean 'cells'"]),
        ("SELECT * FROM vector_search('cells', 1, kk => 3)", &["no option 'kk'"]),
        ("SELECT * FROM vector_search('cells', 1, k => 0)", &["'k' must be a whole number above 0"]),
        ("SELECT * FROM vector_search('cells', 99999)", &["cell 99999 has no vector"]),
        ("SELECT * FROM vector_search('cells', [1.0, 2.0])", &["dimension 2", "192"]),
        ("SELECT * FROM vector_search('cells', 1, where => 'nothing = 3')", &["nothing = 3"]),
        ("SELECT * FROM vector_search('cells', 1, recipe => 'sell')", &["unknown recipe 'sell'", "'cell'"]),
        ("SELECT nothing FROM cells", &["nothing"]),
        ("SELEC 1", &["SELEC"]),
        ("DROP TABLE cells", &["only reads", "WITH"]),
        ("DELETE FROM cells", &["cellql ingest"]),
        ("SELECT * FROM cells TABLESAMPLE BERNOULLI (10)", &["TABLESAMPLE", "random()"]),
        ("SELECT avg(CD3D) FROM cells", &["expression(expr, 'CD3D')"]),
        ("SELECT * FROM vector_search('cells', 1, metric => 'cosin')", &["'cosine'"]),
        ("EXPLAIN SELECT * FROM vector_search('cells', 1, recipe => 'sell')", &["unknown recipe 'sell'"]),
        ("SELECT * FROM vector_search('genes', 'INSS')", &["no gene embeddings"]),
        ("SELECT count(*) FILTER (WHERE 5) FROM cells", &["FILTER", "not a condition", "Int64"]),
    ];
    for (sql, words) in cases {
        let error = fails(&session, sql).await;
        for word in *words {
            assert!(error.contains(word), "{sql}: '{word}' not in: {error}");
        }
    }
    assert_eq!(session.take_notices().cells_embedded, 0, "an error at plan time costs no model call");
}
