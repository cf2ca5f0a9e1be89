//! What goes in comes out: the same matrix in every layout an .h5ad can have, against values written here.

use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use cellql::query::Session;
use cellql_schemas::expr::Profiles;
use hdf5_pure::{AttrValue, FileBuilder};

use crate::stores::{any_cell, empty, rows, take_in};

const GENES: [&str; 4] = ["INS", "GCG", "SST", "not a gene"];
/// 5 cells × 4 genes.
const COUNTS: [[f64; 4]; 5] =
    [[3.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 7.0], [1.0, 1.0, 1.0, 1.0], [0.0, 5.0, 0.0, 0.0], [9.0, 0.0, 0.0, 4.0]];

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("cell{i}")).collect()
}

/// (indptr, indices, data) over the rows of a matrix.
fn compressed(rows: &[Vec<f64>]) -> (Vec<i32>, Vec<i32>, Vec<f32>) {
    let (mut indptr, mut indices, mut data) = (vec![0], Vec::new(), Vec::new());
    for row in rows {
        for (i, v) in row.iter().enumerate().filter(|(_, v)| **v != 0.0) {
            indices.push(i as i32);
            data.push(*v as f32);
        }
        indptr.push(data.len() as i32);
    }
    (indptr, indices, data)
}

fn write(path: &Path, form: &str) {
    write_with(path, form, None);
}

/// A file with a column `serial` of integers beyond 63 bits.
pub fn write_with_large_integers(path: &Path) {
    write_with(path, "csr", Some([u64::MAX, 1 << 63, 7, 0, 1]));
}

fn write_with(path: &Path, form: &str, serial: Option<[u64; 5]>) {
    let mut file = FileBuilder::new();
    let rows: Vec<Vec<f64>> = COUNTS.iter().map(|r| r.to_vec()).collect();
    let columns: Vec<Vec<f64>> = (0..4).map(|j| COUNTS.iter().map(|r| r[j]).collect()).collect();
    if form == "dense" {
        let all: Vec<f64> = COUNTS.iter().flatten().copied().collect();
        file.create_dataset("X").with_f64_data(&all).with_shape(&[5, 4]);
    } else {
        let (indptr, indices, data) = compressed(if form == "csr" { &rows } else { &columns });
        let mut x = file.create_group("X");
        x.set_attr("encoding-type", AttrValue::String(format!("{form}_matrix")));
        x.set_attr("shape", AttrValue::I64Array(vec![5, 4]));
        x.create_dataset("indptr").with_i32_data(&indptr);
        x.create_dataset("indices").with_i32_data(&indices);
        x.create_dataset("data").with_f32_data(&data);
        file.add_group(x.finish());
    }
    let mut obs = file.create_group("obs");
    obs.set_attr("_index", AttrValue::String("_index".into()));
    let mut columns = vec!["cell_type".to_owned(), "age".into(), "score".into()];
    columns.extend(serial.map(|_| "serial".to_owned()));
    obs.set_attr("column-order", AttrValue::StringArray(columns));
    if let Some(serial) = serial {
        obs.create_dataset("serial").with_u64_data(&serial);
    }
    let index = names(5);
    obs.create_dataset("_index").with_vlen_strings(&index.iter().map(String::as_str).collect::<Vec<_>>());
    let mut kind = obs.create_group("cell_type");
    kind.set_attr("encoding-type", AttrValue::String("categorical".into()));
    kind.create_dataset("codes").with_i8_data(&[0, 1, -1, 1, 0]);
    kind.create_dataset("categories").with_vlen_strings(&["beta", "alpha"]);
    obs.add_group(kind.finish());
    obs.create_dataset("age").with_i64_data(&[1, 2, 3, 4, 5]);
    obs.create_dataset("score").with_f64_data(&[0.5, f64::NAN, 1.5, 2.5, 3.5]);
    file.add_group(obs.finish());
    let mut var = file.create_group("var");
    var.set_attr("_index", AttrValue::String("gene".into()));
    var.set_attr("column-order", AttrValue::StringArray(vec![]));
    var.create_dataset("gene").with_vlen_strings(&GENES);
    file.add_group(var.finish());
    file.write(path.to_str().unwrap()).unwrap();
}

async fn ingested(folder: &Path, file: &Path) -> Session {
    let store = empty(folder).await;
    Session::open(take_in(&store, file, any_cell()).await.unwrap().0).await.unwrap()
}

async fn matrix(session: &Session) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    for batch in rows(session, "SELECT expr FROM cells ORDER BY cell_id").await {
        let profiles = Profiles::new(batch.column(0)).unwrap();
        let genes: Vec<u32> = GENES.iter().map(|g| session.engine().genes().find(g).unwrap()).collect();
        all.extend(profiles.iter().map(|c| genes.iter().map(|g| c.unwrap().value_of(*g)).collect::<Vec<f32>>()));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn csr_csc_and_dense_give_the_same_cells_and_obs() {
    let exact: Vec<Vec<f32>> = COUNTS.iter().map(|r| r.iter().map(|v| *v as f32).collect()).collect();
    for form in ["csr", "csc", "dense"] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cells.h5ad");
        write(&file, form);
        let session = ingested(folder.path(), &file).await;
        assert_eq!(matrix(&session).await, exact, "{form}");
        let obs =
            &rows(&session, "SELECT barcode, cell_type, age, score, total_counts FROM obs ORDER BY cell_id").await[0];
        let plain = |i: usize| cast(obs.column(i), &DataType::Utf8).unwrap();
        let text = |i: usize| plain(i).as_string::<i32>().iter().map(|v| v.map(str::to_owned)).collect::<Vec<_>>();
        assert_eq!(text(0), names(5).into_iter().map(Some).collect::<Vec<_>>());
        let types = [Some("beta"), Some("alpha"), None, Some("alpha"), Some("beta")];
        assert_eq!(text(1), types.map(|t| t.map(str::to_owned)));
        assert_eq!(obs.column(2).as_primitive::<Int64Type>().values().to_vec(), [1, 2, 3, 4, 5]);
        let scores = obs.column(3).as_primitive::<Float64Type>();
        assert!(scores.is_null(1) && scores.value(4) == 3.5);
        assert_eq!(obs.column(4).as_primitive::<Float64Type>().values().to_vec(), [6.0, 7.0, 4.0, 5.0, 13.0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_with_commas_or_tabs_gives_the_same_cells() {
    for (mark, name) in [(",", "cells.csv"), ("\t", "cells.tsv")] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        let line = |head: &str, fields: Vec<String>| format!("{head}{mark}{}\n", fields.join(mark));
        let mut text = line("", GENES.iter().map(ToString::to_string).collect());
        for (cell, row) in names(5).iter().zip(COUNTS) {
            text.push_str(&line(cell, row.iter().map(ToString::to_string).collect()));
        }
        std::fs::write(&file, text).unwrap();
        let session = ingested(folder.path(), &file).await;
        let exact: Vec<Vec<f32>> = COUNTS.iter().map(|r| r.iter().map(|v| *v as f32).collect()).collect();
        assert_eq!(matrix(&session).await, exact);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fractions_are_kept_and_marked_as_normalised() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log.csv");
    std::fs::write(&file, "c,INS,GCG\na,1,2\nb,0.5,0\n").unwrap();
    let session = ingested(folder.path(), &file).await;
    let kinds = &rows(&session, "SELECT DISTINCT value_kind FROM cells").await;
    assert_eq!(kinds[0].column(0).as_string::<i32>().value(0), "normalised");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_file_adds_columns_and_keeps_the_first_ones_rows() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second): (PathBuf, PathBuf) = (folder.path().join("a.h5ad"), folder.path().join("b.csv"));
    write(&first, "csr");
    std::fs::write(&second, "c,GCG,INS\nx,1,2\n").unwrap();
    let store = empty(folder.path()).await;
    let (store, _) = take_in(&store, &second, any_cell()).await.unwrap();
    let (store, report) = take_in(&store, &first, any_cell()).await.unwrap();
    assert_eq!(report.dataset_id, Some(1));
    let (again, report) = take_in(&store, &first, any_cell()).await.unwrap();
    assert_eq!((report.dataset_id, again.version()), (None, store.version()));
    let session = Session::open(store).await.unwrap();
    let typed = rows(&session, "SELECT cell_id FROM cells WHERE age > 0 AND cell_type IS NOT NULL").await;
    assert_eq!(crate::stores::ids(&typed).len(), 4);
    let ins = rows(&session, "SELECT expression(expr, 'INS') FROM cells WHERE barcode = 'x'").await;
    assert_eq!(crate::stores::number(&ins), 2.0);
}
