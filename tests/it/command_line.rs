//! The program from outside: exit codes, what goes where, and the way from files to neighbours.

use std::path::Path;
use std::process::{Command, Output};

use crate::stores::{demo_file, reference};

fn cellql(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cellql")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn done(args: &[&str]) -> (String, String) {
    let out = cellql(args);
    assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
    (text(&out.stdout), text(&out.stderr))
}

fn path(of: &Path) -> &str {
    of.to_str().unwrap()
}

#[test]
fn from_counts_and_a_checkpoint_to_neighbours() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("my store");
    let store = path(&store);
    done(&["init", store]);
    let (out, err) = done(&["ingest", store, path(&demo_file())]);
    assert!(out.is_empty() && err.contains("320 of 320 cells kept") && err.contains("approved symbol"), "{err}");
    let (checkpoint, genes) = (reference("models.ckpt"), reference("gene_index.tsv"));
    let import =
        ["model", "import", store, path(&checkpoint), "--genes", path(&genes), "--key", "rde", "--name", "tiny"];
    let (_, err) = done(&import);
    assert!(err.contains("300 genes") && err.contains("non-commercial"), "{err}");
    let (_, err) = done(&["index", "build", store, "--on", "cells", "--model", "tiny"]);
    assert!(err.contains("320 vectors of 192 numbers"), "{err}");
    let (out, _) = done(&["search", store, "--cell", "4", "-k", "3", "--format", "csv", "--columns", "cell_type"]);
    assert_eq!(out.lines().count(), 4, "{out}");
    assert!(out.starts_with("cell_id,_distance,cell_type\n"), "{out}");
    let (_, err) = done(&["index", "build", store, "--on", "cells", "--model", "tiny"]);
    assert!(err.contains("0 cells added") && err.contains("320 were there"), "{err}");

    let sql = "SELECT cell_id, embed(expr, pool => 'max') AS v FROM cells ORDER BY cell_id LIMIT 2";
    let (out, _) = done(&["sql", store, "-c", sql, "--format", "ndjson"]);
    assert_eq!(out.lines().count(), 2);
    assert!(out.starts_with("{\"cell_id\":0,\"v\":["), "{out}");
    for format in ["table", "csv", "parquet", "arrow"] {
        let out = cellql(&["sql", store, "-c", sql, "--format", format]);
        assert!(out.status.success() && !out.stdout.is_empty(), "{format}: {}", text(&out.stderr));
    }
    let (out, _) = done(&["info", store]);
    assert!(out.contains("baron_pancreas") && out.contains("tiny"), "{out}");
}

#[test]
fn untrained_weights_are_called_so_wherever_they_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let store = path(&store);
    done(&["init", store]);
    let counts = reference("counts.csv");
    done(&["ingest", store, path(&counts), "--min-genes", "0"]);
    let (_, err) = done(&["model", "init", store, "--size", "3M", "--seed", "0", "--name", "fresh"]);
    assert!(err.contains("UNTRAINED"), "{err}");
    let (_, err) = done(&["sql", store, "-c", "SELECT embed(expr) FROM cells"]);
    assert!(err.contains("untrained weights"), "{err}");
    let (_, err) = done(&["embed", store]);
    assert!(err.contains("untrained weights"), "{err}");
    let (out, _) = done(&["model", "list", store, "--format", "csv"]);
    assert!(out.contains("false") && out.contains("untrained"), "{out}");
}

#[test]
fn failures_have_their_exit_codes_and_name_their_object() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let store = path(&store);
    let fails = |args: &[&str], code: i32, word: &str| {
        let out = cellql(args);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains(word), "{args:?}: {}", text(&out.stderr));
        assert!(out.stdout.is_empty(), "{args:?}");
    };
    fails(&["sql", store, "-c", "SELECT 1"], 1, "cellql init");
    done(&["init", store]);
    fails(&["init", store], 1, "already holds");
    fails(&["sql", store, "-c", "SELECT embed(expr) FROM cells"], 1, "no model");
    fails(&["search", store, "--cell", "1"], 1, "no embeddings");
    fails(&["ingest", store, "/no/such.h5ad"], 1, "/no/such.h5ad");
    fails(&["frobnicate"], 2, "frobnicate");
    fails(&["model", "init", store, "--size", "5M", "--name", "x"], 2, "3M, 10M, 100M");
    let checkpoint = reference("models.ckpt");
    fails(&["model", "import", store, path(&checkpoint), "--name", "x"], 1, "--genes");
    fails(&["model", "init", store, "--size", "3M", "--name", "a b"], 1, "cannot name a model");
}

#[test]
fn a_store_over_time_from_outside() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let store = at("store");
    done(&["init", &store]);
    std::fs::write(at("one.csv"), "cell,INS,GCG,1-Mar\na,1,2,0\nb,3,4,1\n").unwrap();
    std::fs::write(at("two.csv"), "cell,INS,GCG\nb2,3,4\nc,5,6\n").unwrap();
    let report = at("report.json");
    let (_, err) = done(&["ingest", &store, &at("one.csv"), &at("two.csv"), "--min-genes", "0", "--report", &report]);
    assert!(err.contains("1-Mar → MARCHF1, MTARC1"), "{err}");
    let reports: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(reports[0]["genes"]["ambiguous"][0]["name"], "1-Mar");
    assert_eq!(reports[1]["cells_kept"], 2);
    let (out, _) = done(&["versions", &store, "--format", "csv"]);
    assert_eq!(out.lines().count(), 4, "{out}");
    assert!(out.contains("one.csv") && out.contains("two.csv"), "{out}");
    let count = ["-c", "SELECT count(*) AS n FROM cells", "--format", "csv"];
    let (out, _) = done(&[&["sql", &store, "--at-version", "2"][..], &count].concat());
    assert_eq!(out, "n\n2\n");
    let (out, _) = done(&["dataset", "list", &store, "--format", "csv"]);
    assert!(out.lines().count() == 3 && out.contains("genes"), "{out}");

    let out_file = at("out.h5ad");
    let (_, err) = done(&["export", &store, &out_file, "--where", "barcode = 'c'"]);
    assert!(err.contains("1 cells, 2 genes"), "{err}");
    let again = cellql(&["export", &store, &out_file]);
    assert!(again.status.code() == Some(1) && text(&again.stderr).contains("is there already"));
    let nothing = cellql(&["export", &store, &at("x.h5ad"), "--where", "barcode = 'q'"]);
    assert!(nothing.status.code() == Some(1) && text(&nothing.stderr).contains("no cell satisfies"));
    let unclear = cellql(&["export", &store, &at("x.txt")]);
    assert!(unclear.status.code() == Some(1) && text(&unclear.stderr).contains(".parquet"));

    let (_, err) = done(&["dataset", "remove", &store, "two"]);
    assert!(err.contains("with 2 cells is removed"), "{err}");
    let (_, err) = done(&["compact", &store, "--keep", "1"]);
    assert!(err.contains("versions forgotten"), "{err}");
    let (out, _) = done(&[&["sql", &store][..], &count].concat());
    assert_eq!(out, "n\n2\n");
    let gone = cellql(&["info", &store, "--at-version", "2"]);
    assert!(gone.status.code() == Some(1) && text(&gone.stderr).contains("no version 2"));
}
