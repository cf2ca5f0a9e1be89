//! Every format and encoding, as anndata, scanpy, scipy and pyarrow write them, against what they read back themselves.
//! The files are made by `tests/python/make_fixtures.py`, in the Python that `scripts/test-python.sh` installs.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, UInt32Type};
use cellql::export::{FileFormat, export};
use cellql::ingest::{IngestOptions, IngestReport, InputFile, ingest, inputs};
use cellql::query::Session;
use cellql_formats::OpenOptions;
use cellql_schemas::expr::Profiles;
use cellql_store::progress::silent;
use serde_json::Value;
use tempfile::TempDir;

use crate::stores::{any_cell, empty, python, root, rows, test_data};

/// The folder of fixtures: files of every format, and real files of the test data in other encodings (`real_…`). Made
/// once.
pub fn made(python: &Path) -> &'static Path {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    let folder = MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let real = ["pbmc.h5ad", "10x_pbmc68k_reduced.h5ad", "wu2020_200_v0_11.h5ad"];
        let real = real.iter().filter_map(|name| test_data(name));
        let mut make = Command::new(python);
        make.arg(root().join("tests/python/make_fixtures.py")).arg(folder.path()).args(real);
        assert!(make.status().unwrap().success());
        folder
    });
    folder.path()
}

/// What another reader finds in a file.
struct Expected {
    barcodes: Vec<String>,
    genes: Vec<String>,
    /// Name of each gene and value, by name.
    cells: Vec<Vec<(String, f32)>>,
    obs: BTreeMap<String, Vec<Value>>,
}

impl Expected {
    fn read(folder: &Path) -> Self {
        let lines = |name: &str| -> Vec<String> {
            std::fs::read_to_string(folder.join(name)).unwrap().lines().map(str::to_owned).collect()
        };
        let (barcodes, genes) = (lines("barcodes.txt"), lines("genes.txt"));
        let bytes = std::fs::read(folder.join("matrix.bin")).unwrap();
        let long = |i: usize| i64::from_le_bytes(bytes[i * 8..i * 8 + 8].try_into().unwrap()) as usize;
        let (n, nnz) = (long(0), long(1));
        let indices = 8 * (n + 3);
        let data = indices + 4 * nnz;
        let word = |at: usize| -> [u8; 4] { bytes[at..at + 4].try_into().unwrap() };
        let value = |i: usize| {
            let gene = i32::from_le_bytes(word(indices + 4 * i)) as usize;
            (genes[gene].clone(), f32::from_le_bytes(word(data + 4 * i)))
        };
        let cell = |c: usize| {
            let mut values: Vec<_> = (long(c + 2)..long(c + 3)).map(value).collect();
            values.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
            values
        };
        let obs = serde_json::from_slice(&std::fs::read(folder.join("obs.json")).unwrap()).unwrap();
        Self { cells: (0..n).map(cell).collect(), barcodes, genes, obs }
    }
}

/// What the store holds of its only data set, by the file's own names.
async fn stored(session: &Session) -> (Vec<String>, Vec<Vec<(String, f32)>>) {
    let mut names = HashMap::new();
    for batch in rows(session, "SELECT measured_genes, measured_names FROM datasets").await {
        let (genes, of) = (batch.column(0).as_list::<i32>().value(0), batch.column(1).as_list::<i32>().value(0));
        let genes = genes.as_primitive::<UInt32Type>().values().iter().copied();
        names.extend(genes.zip(of.as_string::<i32>().iter().map(|n| n.unwrap().to_owned())));
    }
    let (mut barcodes, mut cells) = (Vec::new(), Vec::new());
    for batch in rows(session, "SELECT barcode, expr FROM cells ORDER BY cell_id").await {
        barcodes.extend(batch.column(0).as_string::<i32>().iter().map(|b| b.unwrap().to_owned()));
        for cell in Profiles::new(batch.column(1)).unwrap().iter().flatten() {
            let values = cell.gene_ids.iter().zip(cell.values).map(|(g, v)| (names[g].clone(), *v));
            let mut values: Vec<_> = values.collect();
            values.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
            cells.push(values);
        }
    }
    (barcodes, cells)
}

fn json(column: &ArrayRef) -> Vec<Value> {
    let text = |a: &ArrayRef| cast(a, &DataType::Utf8).unwrap();
    match column.data_type() {
        DataType::Boolean => column.as_boolean().iter().map(Value::from).collect(),
        DataType::Int64 | DataType::Float64 => {
            let numbers = cast(column, &DataType::Float64).unwrap();
            numbers.as_primitive::<Float64Type>().iter().map(Value::from).collect()
        }
        _ => text(column).as_string::<i32>().iter().map(Value::from).collect(),
    }
}

/// Numbers compare as numbers, also where a category was one.
fn same(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Number(a), Value::String(b)) => a.as_f64() == b.parse().ok(),
        (Value::String(a), Value::Number(b)) => a.parse::<f64>().ok() == b.as_f64(),
        (Value::String(a), Value::Bool(b)) => a.eq_ignore_ascii_case(&b.to_string()),
        (a, b) => a == b,
    }
}

/// Cells without any count have no place in a store of expression, but are counted.
fn kept(expected: &Expected) -> Vec<usize> {
    (0..expected.cells.len()).filter(|i| !expected.cells[*i].is_empty()).collect()
}

async fn compare_obs(session: &Session, report: &IngestReport, expected: &Expected, name: &str) {
    let batches = rows(session, "SELECT * FROM obs ORDER BY cell_id").await;
    let cells = kept(expected);
    for (column, theirs) in &expected.obs {
        let theirs: Vec<&Value> = cells.iter().map(|i| &theirs[*i]).collect();
        let kept = report.obs_columns.iter().find(|c| c.source == *column);
        let kept = kept.unwrap_or_else(|| panic!("{name}: obs column {column} is lost; notes {:?}", report.notes));
        let ours: Vec<Value> = batches.iter().flat_map(|b| json(b.column_by_name(&kept.name).unwrap())).collect();
        let differs = ours.iter().zip(&theirs).position(|(a, b)| !same(a, b));
        assert_eq!(ours.len(), theirs.len(), "{name}: {column}");
        assert!(
            differs.is_none(),
            "{name}: {column}, cell {differs:?}: {:?} / {:?}",
            ours[differs.unwrap()],
            theirs[differs.unwrap()]
        );
    }
}

/// Options that a file without names needs.
fn options(folder: &Path, name: &str) -> IngestOptions {
    let beside = |what: &str| Some(folder.join(format!("{name}.{what}.txt"))).filter(|p| p.exists());
    let open = OpenOptions { genes: beside("genes"), barcodes: beside("barcodes"), ..OpenOptions::default() };
    IngestOptions { open, ..any_cell() }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_holds_what_its_own_library_reads_from_it() {
    let Some(python) = python() else { return };
    let (made, folder) = (made(&python), tempfile::tempdir().unwrap());
    let mut names: Vec<String> = std::fs::read_dir(made)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|n| made.join(format!("{n}.expected")).exists())
        .collect();
    names.sort();
    assert!(names.len() >= 38, "{names:?}");
    let mut exported = Vec::new();
    for name in &names {
        let place = tempfile::tempdir().unwrap();
        let store = empty(place.path()).await;
        let (found, other) = inputs(made.join(name).to_str().unwrap()).await.unwrap();
        assert_eq!((found.len(), other.len()), (1, 0), "{name}: {found:?} {other:?}");
        let taken = ingest(&store, &found[0], &options(made, name), silent()).await;
        let (store, report) = taken.unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected = Expected::read(&made.join(format!("{name}.expected")));
        let session = Session::open(store.clone()).await.unwrap();
        let (barcodes, cells) = stored(&session).await;
        compare(name, &report, &expected, barcodes, cells);
        compare_obs(&session, &report, &expected, name).await;

        // Out as .h5ad for anndata to judge, and out and in again in our own forms.
        let out = folder.path().join(format!("{name}.h5ad"));
        export(&session, &out, FileFormat::H5ad, None, silent()).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        exported.push(out);
        for ending in ["parquet", "lance"] {
            comes_back(&session, &store, place.path(), ending, name).await;
        }
    }
    let check = Command::new(&python)
        .arg(root().join("tests/python/check_export.py"))
        .arg(made)
        .args(&exported)
        .status()
        .unwrap();
    assert!(check.success(), "anndata and scanpy disagree with what was exported");
}

fn compare(
    name: &str,
    report: &IngestReport,
    expected: &Expected,
    barcodes: Vec<String>,
    cells: Vec<Vec<(String, f32)>>,
) {
    let kept = kept(expected);
    assert_eq!(report.cells_read as usize, expected.cells.len(), "{name}");
    assert_eq!(report.genes.features, expected.genes.len(), "{name}");
    // Long form knows cells and genes in order of appearance only.
    let mut by_name: Vec<(String, Vec<(String, f32)>)> = barcodes.into_iter().zip(cells).collect();
    let mut theirs: Vec<(String, Vec<(String, f32)>)> =
        kept.iter().map(|i| (expected.barcodes[*i].clone(), expected.cells[*i].clone())).collect();
    if name.starts_with("long_") {
        by_name.sort_by(|a, b| a.0.cmp(&b.0));
        theirs.sort_by(|a, b| a.0.cmp(&b.0));
    }
    let ours: Vec<&String> = by_name.iter().map(|(b, _)| b).collect();
    assert_eq!(ours, theirs.iter().map(|(b, _)| b).collect::<Vec<_>>(), "{name}");
    if name == "real_10x_pbmc68k_reduced" {
        assert_eq!(report.value_kind, "recovered", "{:?}", report.notes);
        return;
    }
    assert_eq!(report.value_kind, "counts", "{name}");
    for (ours, theirs) in by_name.iter().zip(&theirs) {
        assert_eq!(ours, theirs, "{name}");
    }
}

/// Parquet and Lance exports are taken in again, with every value and every obs column.
async fn comes_back(session: &Session, store: &cellql_store::Store, place: &Path, ending: &str, name: &str) {
    let out = place.join(format!("out.{ending}"));
    export(session, &out, FileFormat::of(&out).unwrap(), None, silent()).await.unwrap();
    let again = empty(&place.join(ending)).await;
    let taken = ingest(&again, &InputFile::local(&out), &any_cell(), silent()).await;
    let (again, report) = taken.unwrap_or_else(|e| panic!("{name}.{ending}: {e}"));
    let again = Session::open(again).await.unwrap();
    let obs = session.obs_columns().await.unwrap();
    let columns: Vec<String> = obs.iter().map(|c| format!("\"{c}\"")).collect();
    let query = format!(
        "SELECT barcode, content_hash, total_counts, n_genes {} FROM cells ORDER BY cell_id",
        columns.iter().map(|c| format!(", {c}")).collect::<String>()
    );
    let text = |batches: Vec<arrow::record_batch::RecordBatch>| {
        arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string()
    };
    assert_eq!(text(rows(session, &query).await), text(rows(&again, &query).await), "{name}.{ending}");
    assert_eq!(report.genes.features as u64, count(session, store).await, "{name}.{ending}");
}

async fn count(session: &Session, _store: &cellql_store::Store) -> u64 {
    crate::stores::number(&rows(session, "SELECT cardinality(measured_genes) FROM datasets").await) as u64
}
