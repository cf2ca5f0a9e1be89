//! `cellql evaluate` from outside: which cells, and figures that are known beforehand.

use std::path::Path;
use std::process::Command;

use cellql_model::CheckpointKey;

use crate::stores::{add_reference_model, demo_cells, demo_file};

/// Runs the program; rows of its CSV as fields, the header first.
fn evaluate(store: &Path, args: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellql"));
    let out = command.arg("evaluate").arg(store).args(args).args(["--format", "csv"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
    reader.records().map(|record| record.unwrap().iter().map(str::to_owned).collect()).collect()
}

fn number(field: &str) -> f64 {
    field.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_judged_beside_what_needs_none() {
    let folder = tempfile::tempdir().unwrap();
    let store = demo_cells(folder.path()).await;
    add_reference_model(&store, CheckpointKey::Gene).await;
    let store = folder.path().join("store");

    let rows = evaluate(&store, &["clustering", "--folds", "1,2", "--cells", "200"]);
    assert_eq!(rows[0], ["representation", "numbers", "clusters", "resolution", "nmi", "ari", "silhouette"]);
    let names: Vec<&str> = rows[1..].iter().map(|row| row[0].as_str()).collect();
    assert_eq!(names.len(), 5, "{names:?}");
    assert!(names[1].ends_with("depth × 2") && names[2].contains("untrained"), "{names:?}");
    for row in &rows[1..] {
        let (nmi, ari, silhouette) = (number(&row[4]), number(&row[5]), number(&row[6]));
        assert!((0.0..=1.0).contains(&nmi) && (-0.5..=1.0).contains(&ari) && (-1.0..=1.0).contains(&silhouette));
    }
    // Principal components separate the types of pancreas cells; plain counts separate them less.
    let (components, counts) = (&rows[4], &rows[5]);
    assert_eq!(components[1], "50");
    assert!(number(&components[5]) > 0.5 && number(&components[5]) > number(&counts[5]), "{components:?} {counts:?}");

    // Of cells that lose nearly nothing, nearly nothing is wrong; of those that lose much, more.
    let rows = evaluate(&store, &["enhancement", "--rates", "0.05,0.9999", "--cells", "40"]);
    assert_eq!(rows[0], ["kept", "cells", "of", "mae", "mre", "pearson", "pearson_all_genes"]);
    let thinned: Vec<&Vec<String>> = rows[1..].iter().filter(|row| row[2] == "downsampled cells").collect();
    assert_eq!((rows.len(), thinned.len()), (7, 2));
    // What knows nothing of a cell is the same at every rate.
    let mean: Vec<&[String]> =
        rows[1..].iter().filter(|row| row[2] == "mean of other cells").map(|row| &row[3..]).collect();
    assert!(mean.len() == 2 && mean[0] == mean[1] && number(&mean[0][2]) > 0.3, "{mean:?}");
    assert!(number(&thinned[1][3]) < 0.02 && number(&thinned[1][5]) > 0.99, "{:?}", thinned[1]);
    assert!(number(&thinned[0][3]) > 5.0 * number(&thinned[1][3]), "{:?}", thinned[0]);
    assert!(number(&thinned[0][4]) > number(&thinned[1][4]));
}

/// Runs the program; its status and what it said.
fn cellql(args: &[&str]) -> (Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_cellql")).args(args).output().unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn cells_are_called_unseen_only_where_that_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (alike, otherwise, strange) = (path("alike"), path("otherwise"), path("strange.csv"));
    let demo = demo_file().display().to_string();
    // A feature that is no gene changes the numbers of the features that come after it.
    std::fs::write(&strange, "cell,A1BG,A2M,no_gene_at_all\none,1,0,3\ntwo,0,2,1\nthree,1,1,1\n").unwrap();
    for (store, files) in [(&alike, vec![&demo]), (&otherwise, vec![&strange, &demo])] {
        assert_eq!(cellql(&["init", store]).0, Some(0));
        for file in files {
            let (status, said) = cellql(&["ingest", store, file, "--min-genes", "0"]);
            assert_eq!(status, Some(0), "{said}");
        }
    }
    // The same cells are held out in both stores: donor human2 and a tenth of the others.
    let held_out = |store: &str| {
        let options = ["--of", "human_pca", "--no-baselines", "--where", "total_counts > 2000"];
        let (status, said) = cellql(&[&["evaluate", store, "representation"], &options[..]].concat());
        assert_eq!(status, Some(0), "{said}");
        let count = said.split(" cells that no model was trained on").next().unwrap();
        count.lines().last().unwrap().parse::<u64>().unwrap()
    };
    let count = held_out(&alike);
    assert!((100..250).contains(&count) && held_out(&otherwise) == count, "{count}");

    let judge = |more: &[&str]| {
        cellql(&[&["evaluate", &alike, "enhancement", "--cells", "1", "--rates", "0.1"], more].concat())
    };
    // Of the models of the store one can do this; it held out the same cells.
    let (status, said) = judge(&[]);
    assert!(status == Some(0) && said.contains("model 'human_3m', 1 cells that no model was trained on"), "{said}");
    let (status, said) = judge(&["--all-cells", "--where", "total_counts > 2000"]);
    assert!(status == Some(0) && said.contains("may include cells that a model was trained on"), "{said}");
    assert_eq!(cellql(&["model", "init", &alike, "--name", "new", "--size", "3M"]).0, Some(0));
    let (status, said) = judge(&["--model", "new"]);
    assert!(status == Some(0) && said.contains("1 cells that no model was trained on"), "{said}");
    let (status, said) = judge(&["--model", "human_pca"]);
    assert!(status == Some(1) && said.contains("is linear"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = demo_cells(folder.path()).await;
    add_reference_model(&store, CheckpointKey::Cell).await;
    let store = folder.path().join("store");
    for (args, said) in [
        (&["representation", "--label", "total_counts"][..], "holds numbers; name a column with labels"),
        (&["representation", "--all-cells", "--neighbours", "5000"][..], "--neighbours 5000: a cell has"),
        (&["representation", "--picture", "scores.png"][..], "a name that ends in .svg"),
        (&["representation", "--picture", "no/such/folder/scores.svg"][..], "give another --picture"),
        (&["clustering", "--label", "no_such"][..], "no_such"),
        (&["clustering", "--where", "cell_type = 'beta'"][..], "cannot be compared with them"),
        (&["clustering", "--label", "expr"][..], "--label expr"),
        (&["clustering", "--folds", "0"][..], "--folds 0"),
        (&["enhancement", "--rates", "1.5"][..], "--rates 1.5"),
        (&["enhancement", "--rates", "1e-12", "--cells", "2"][..], "--rates 0.000000000001"),
        (&["scaling", "nowhere"][..], "unknown model 'nowhere'"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellql"));
        let out = command.arg("evaluate").arg(&store).args(args).output().unwrap();
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(1) && error.contains(said), "{args:?}: {error}");
    }
}
