//! Linear models and output maps: fitted, compared with scikit-learn, and used like any other model.

use std::path::Path;
use std::process::Command;

use cellql::query::Session;
use cellql_store::Store;

use crate::fixtures::made;
use crate::stores::{demo_cells, fails, number, python, root, rows, skip, vectors, worst};

/// Runs the program; its exit code, what it printed, and what it said.
fn cellql(args: &[&str]) -> (Option<i32>, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_cellql")).arg("-q").args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

/// Runs the program, which must succeed; what it printed.
fn run(args: &[&str]) -> String {
    let (code, out, said) = cellql(args);
    assert_eq!(code, Some(0), "{args:?}: {said}");
    out
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn principal_components_are_those_of_scikit_learn() {
    let Some(python) = python() else { return skip("needs Python with scikit-learn") };
    made(&python);
    let folder = tempfile::tempdir().unwrap();
    demo_cells(folder.path()).await;
    let store = folder.path().join("store");
    let (model, found) = (folder.path().join("m.safetensors"), folder.path().join("v.parquet"));
    let names = folder.path().join("names.csv");
    let query = "SELECT symbol, source_names[1] AS name FROM genes WHERE array_length(source_names) = 1";
    std::fs::write(&names, run(&["sql", path(&store), "--format", "csv", "-c", query])).unwrap();
    for (whitening, genes) in [("0", "min-cells:0.2"), ("0.5", "min-cells:0.2")] {
        let name = format!("m{}", whitening.replace('.', "_"));
        let fit = ["model", "fit", path(&store), "--kind", "pca", "--name", &name, "--components", "12"];
        let options = ["--genes", genes, "--whitening", whitening, "--balance", "none"];
        let said = run(&[&fit[..], &options[..]].concat());
        assert!(said.contains("320 fitted to, 0 held out"), "{said}");
        let _ = std::fs::remove_file(&model);
        run(&["model", "export", path(&store), path(&model), "--name", &name]);
        let query = &format!("SELECT barcode, embed(expr, model => '{name}') AS vector FROM cells");
        let out = Command::new(env!("CARGO_BIN_EXE_cellql"))
            .args(["-q", "sql", path(&store), "--format", "parquet", "-c", query])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        std::fs::write(&found, out.stdout).unwrap();
        let check = Command::new(&python)
            .arg(root().join("tests/python/check_pca.py"))
            .args([root().join("demo/baron_pancreas.h5ad").as_path(), &model, &found, &names])
            .arg(whitening)
            .output()
            .unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linear_model_is_used_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    demo_cells(folder.path()).await;
    let store = folder.path().join("store");
    let uri = path(&store);
    let fit = ["model", "fit", uri, "--kind", "pca", "--components", "8", "--genes", "hvg:300"];
    let fit = [&fit[..], &["--balance", "donor_id"]].concat();
    run(&[&fit[..], &["--name", "lin", "--hold-out", "0.2", "--hold-out-where", "donor_id = 'human2'"]].concat());
    run(&[&fit[..], &["--name", "again", "--hold-out", "0.2", "--hold-out-where", "donor_id = 'human2'"]].concat());

    let session = Session::open(Store::open(uri).await.unwrap()).await.unwrap();
    // The same fit gives the same model.
    let same = "SELECT count(DISTINCT sha256) FROM models WHERE name IN ('lin', 'again')";
    assert_eq!(number(&rows(&session, same).await), 1.0);
    // The model of one cell is the model of many.
    let all = vectors(&rows(&session, "SELECT cell_id, embed(expr, model => 'lin') FROM cells ORDER BY 1").await);
    assert_eq!((all.len(), all[0].1.as_ref().map(Vec::len)), (320, Some(8)));
    let other = Session::open(Store::open(uri).await.unwrap()).await.unwrap();
    let one = "SELECT cell_id, embed(expr, model => 'lin') FROM cells WHERE cell_id = 7";
    let one = vectors(&rows(&other, one).await);
    assert!(worst(one[0].1.as_ref().unwrap(), all[7].1.as_ref().unwrap()) < 1e-6);
    // Its loadings read genes, so it has no pool, depth or precision, and no embeddings of genes.
    for (call, problem) in [
        ("embed(expr, model => 'lin', pool => 'max')", "no option pool"),
        ("embed(expr, model => 'lin', depth => 't3')", "no option depth"),
        ("embed(expr, model => 'lin', precision => 'int8')", "no option precision"),
        ("enhance(expr, model => 'lin')", "is linear and has no enhanced expression"),
        ("embed_gene(expr, 'INS', model => 'lin')", "is linear and has no gene embeddings"),
    ] {
        let error = fails(&session, &format!("SELECT {call} FROM cells")).await;
        assert!(error.contains(problem), "{call}: {error}");
    }

    // Stored, indexed, searched, exported and imported.
    run(&["index", "build", uri, "--model", "lin"]);
    let session = Session::open(Store::open(uri).await.unwrap()).await.unwrap();
    let stored = vectors(&rows(&session, "SELECT cell_id, vector FROM embeddings.\"lin\" ORDER BY 1").await);
    assert_eq!(stored, all);
    let nearest = "SELECT cell_id FROM vector_search('cells', 7, k => 3, recipe => 'lin')";
    assert_eq!(rows(&session, nearest).await.iter().map(|b| b.num_rows()).sum::<usize>(), 3);
    let file = folder.path().join("lin.safetensors");
    run(&["model", "export", uri, path(&file), "--name", "lin"]);
    run(&["model", "import", uri, path(&file), "--name", "imported"]);
    let (code, _, said) = cellql(&["model", "export", uri, path(&folder.path().join("lin.ckpt")), "--name", "lin"]);
    assert!(code == Some(1) && said.contains("linear"), "{said}");

    // Judged on what it held out: donor 2 and a fifth of donor 1.
    let judged = run(&["evaluate", uri, "representation", "--of", "lin", "--batch", "donor_id", "--format", "csv"]);
    assert_eq!(judged.lines().count(), 5, "{judged}");
    assert!(judged.starts_with("representation,dim,overall,knn_acc,knn_f1,nmi,ari,silhouette,clisi,across_acc"));
    let accuracy: f64 = judged.lines().nth(1).unwrap().split(',').nth(3).unwrap().parse().unwrap();
    assert!(accuracy > 0.6, "{judged}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whitened_model_has_fewer_uncorrelated_dimensions() {
    let folder = tempfile::tempdir().unwrap();
    demo_cells(folder.path()).await;
    let store = folder.path().join("store");
    let uri = path(&store);
    run(&["model", "fit", uri, "--kind", "pca", "--components", "20", "--name", "lin", "--balance", "none"]);
    let whiten = ["model", "fit", uri, "--kind", "whiten", "--of", "lin", "--name", "white"];
    run(&[&whiten[..], &["--components", "6", "--balance", "none"]].concat());
    let (code, _, said) =
        cellql(&["model", "fit", uri, "--kind", "whiten", "--of", "white", "--components", "3", "--name", "twice"]);
    assert!(code == Some(1) && said.contains("output map already"), "{said}");
    let session = Session::open(Store::open(uri).await.unwrap()).await.unwrap();
    let all = vectors(&rows(&session, "SELECT cell_id, embed(expr, model => 'white') FROM cells").await);
    let all: Vec<Vec<f32>> = all.into_iter().map(|(_, vector)| vector.unwrap()).collect();
    assert_eq!((all.len(), all[0].len()), (320, 6));
    for (a, b) in (0..6).flat_map(|a| (0..6).map(move |b| (a, b))) {
        let covariance = all.iter().map(|v| f64::from(v[a]) * f64::from(v[b])).sum::<f64>() / 319.0;
        assert!((covariance - f64::from(u8::from(a == b))).abs() < 1e-3, "{a} {b}: {covariance}");
    }
    // A new store's models: the linear one is meant where none is named, the transformer where only it can answer.
    run(&["model", "add", uri]);
    let session = Session::open(Store::open(uri).await.unwrap()).await.unwrap();
    let several = fails(&session, "SELECT embed(expr) FROM cells").await;
    assert!(several.contains("'lin'") && several.contains("'human_pca'"), "{several}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_store_embeds_with_the_linear_model_and_enhances_with_the_transformer() {
    let folder = tempfile::tempdir().unwrap();
    demo_cells(folder.path()).await;
    let store = folder.path().join("store");
    let uri = path(&store);
    run(&["model", "add", uri]);
    let session = Session::open(Store::open(uri).await.unwrap()).await.unwrap();
    let vector = vectors(&rows(&session, "SELECT cell_id, embed(expr) FROM cells LIMIT 1").await);
    assert_eq!(vector[0].1.as_ref().unwrap().len(), 100);
    let enhanced = "SELECT count(enhance(expr)) FROM (SELECT * FROM cells LIMIT 1)";
    assert_eq!(number(&rows(&session, enhanced).await), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_fits_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    demo_cells(folder.path()).await;
    let store = folder.path().join("store");
    let uri = path(&store);
    let fit = ["model", "fit", uri, "--kind", "pca", "--name", "m"];
    for (options, problem) in [
        (&["--balance", "donor"][..], "Did you mean 'donor_id'"),
        (&["--balance", "expr"], "a column of the table cells"),
        (&["--components", "0"], "one component at least"),
        (&["--whitening", "2"], "from 0 to 1"),
        (&["--where", "n_genes < 0"], "no cells to fit to"),
        (&["--hold-out", "1"], "no cells to fit to"),
        (&["--of", "x"], "--of is for --kind whiten"),
    ] {
        let (code, _, said) = cellql(&[&fit[..], options].concat());
        assert!(code == Some(1) && said.contains(problem), "{options:?}: {code:?} {said}");
    }
    let (code, _, said) = cellql(&[&fit[..], &["--genes", "hvg:x"]].concat());
    assert!(code == Some(2) && said.contains("hvg:2000"), "{said}");
}
