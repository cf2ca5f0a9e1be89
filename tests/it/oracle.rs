//! DuckDB as oracle: random statements give the same rows in cellql and in DuckDB over the Parquet export.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::stores::{demo_file, python, reference, root, skip};

fn cellql(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellql"));
    command.args(args).arg("--quiet").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn check(output: &Output, what: &str) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {}\n{out}\n{err}", output.status);
}

fn done(args: &[&str]) {
    check(&cellql(args).output().unwrap(), &args.join(" "));
}

/// The Python for tests, if it has DuckDB.
#[track_caller]
fn python_with_duckdb() -> Option<PathBuf> {
    let python = python()?;
    let found = Command::new(&python).args(["-c", "import duckdb"]).stderr(Stdio::null()).status().unwrap();
    if !found.success() {
        skip("the Python for tests has no DuckDB; run scripts/test-python.sh");
        return None;
    }
    Some(python)
}

/// Ten random data sets.
fn random_files(python: &Path, folder: &Path) -> Vec<String> {
    let mut make = Command::new(python);
    make.arg(root().join("tests/python/make_random_datasets.py"));
    make.arg(demo_file()).arg(reference("gene_index.tsv")).arg(folder).args(["--cells", "80"]);
    check(&make.output().unwrap(), "make_random_datasets.py");
    (0..10).map(|file| folder.join(format!("random{file}.h5ad")).to_str().unwrap().to_owned()).collect()
}

/// A store of ten data sets, the last two of which two processes added at the same time, with embeddings of cells and
/// of genes, and an index.
fn made_store(store: &str, files: &[String]) {
    done(&["init", store, "--no-model"]);
    let ingest = |files: &[String]| {
        let mut command = cellql(&["ingest", store, "--min-genes", "0"]);
        command.args(files).spawn().unwrap()
    };
    check(&ingest(&files[..8]).wait_with_output().unwrap(), "ingest");
    let at_once = [ingest(&files[8..9]), ingest(&files[9..])];
    for writer in at_once {
        check(&writer.wait_with_output().unwrap(), "ingest of two processes at once");
    }
    let (checkpoint, genes) = (reference("models.ckpt"), reference("gene_index.tsv"));
    let (checkpoint, genes) = (checkpoint.to_str().unwrap(), genes.to_str().unwrap());
    done(&["model", "import", store, checkpoint, "--genes", genes, "--key", "rde", "--name", "tiny"]);
    done(&["embed", store, "--genes", "--model", "tiny", "--cells-per-group", "5"]);
    done(&["index", "build", store, "--model", "tiny", "--kind", "hnsw"]);
}

/// Exports the store and compares the answers to random statements.
fn compare(python: &Path, store: &str, folder: &Path, statements: u32, seed: u32) {
    std::fs::create_dir(folder).unwrap();
    done(&["export", store, folder.join("cells.parquet").to_str().unwrap()]);
    let mut run = Command::new(python);
    run.arg(root().join("tests/python/random_statements.py"));
    run.args([env!("CARGO_BIN_EXE_cellql"), store]).arg(folder);
    run.args(["--statements", &statements.to_string(), "--seed", &seed.to_string()]);
    check(&run.output().unwrap(), "random_statements.py");
}

#[test]
fn random_statements_give_the_rows_that_duckdb_gives() {
    let Some(python) = python_with_duckdb() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = path.to_str().unwrap();
    made_store(store, &random_files(&python, &folder.path().join("files")));
    compare(&python, store, &folder.path().join("before"), 1000, 1);
    for data_set in ["random3", "random6"] {
        done(&["dataset", "remove", store, data_set]);
    }
    done(&["compact", store, "--keep", "1"]);
    compare(&python, store, &folder.path().join("after"), 300, 2);
}
