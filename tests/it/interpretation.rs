//! How the values, genes and cells of real files are interpreted.

use std::path::Path;

use arrow::array::{Array, AsArray};
use cellql::error::Error;
use cellql::ingest::{IngestOptions, IngestReport, ingest, inputs};
use cellql::query::Session;
use cellql_formats::OpenOptions;
use cellql_store::Store;
use cellql_store::progress::silent;

use crate::stores::{any_cell, empty, fails, number, rows, take_in, test_data};

fn write(folder: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

async fn take_real(name: &str, options: IngestOptions) -> Option<(Store, IngestReport, tempfile::TempDir)> {
    let file = test_data(name)?;
    let folder = tempfile::tempdir().unwrap();
    let store = empty(folder.path()).await;
    let (store, report) = take_in(&store, &file, options).await.unwrap();
    Some((store, report, folder))
}

#[tokio::test(flavor = "multi_thread")]
async fn tpm_is_never_called_counts() {
    let Some((_, report, _folder)) = take_real("oligodendroglioma.h5ad", IngestOptions::default()).await else {
        return;
    };
    assert_eq!((report.value_kind.as_str(), report.cells_kept), ("linear", 184));
    assert_eq!(report.input.name(), "linear");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_normalised_counts_rounded_to_three_decimals_are_had_back() {
    let Some((store, report, _folder)) = take_real("10x_pbmc68k_reduced.h5ad", any_cell()).await else { return };
    assert_eq!((report.value_kind.as_str(), report.matrix.as_str()), ("recovered", "raw/X"));
    let notes = report.notes.join("; ");
    assert!(notes.contains("raw/X") && notes.contains("3 decimals") && notes.contains("log(1 + x)"), "{notes}");
    let session = Session::open(store).await.unwrap();
    let fractions = "SELECT count(*) FROM \"X\" WHERE value <> floor(value) OR value < 1";
    assert_eq!(number(&rows(&session, fractions).await), 0.0);
    assert_eq!(number(&rows(&session, "SELECT min(value) FROM \"X\"").await), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_matrix_that_is_asked_for_is_read_and_another_of_the_file_is_another_data_set() {
    let Some((store, _, _folder)) = take_real("10x_pbmc68k_reduced.h5ad", any_cell()).await else { return };
    let file = test_data("10x_pbmc68k_reduced.h5ad").unwrap();
    let scaled =
        IngestOptions { open: OpenOptions { layer: Some("X".into()), ..OpenOptions::default() }, ..any_cell() };
    let error = take_in(&store, &file, scaled).await.unwrap_err();
    assert!(matches!(&error, Error::Input { object, .. } if object.starts_with("matrix, cell")), "{error}");
    let missing =
        IngestOptions { open: OpenOptions { layer: Some("no".into()), ..OpenOptions::default() }, ..any_cell() };
    let error = take_in(&store, &file, missing).await.unwrap_err().to_string();
    assert!(error.contains("layers/no") && error.contains("raw/X"), "{error}");
    // The same choice made by name is the same data set.
    let raw = IngestOptions { open: OpenOptions { raw: true, ..OpenOptions::default() }, ..any_cell() };
    let (again, report) = take_in(&store, &file, raw).await.unwrap();
    assert_eq!((report.dataset_id, again.version()), (None, store.version()));
}

#[tokio::test(flavor = "multi_thread")]
async fn cells_that_two_files_share_are_marked_or_left_out() {
    let Some((store, _, _folder)) = take_real("raw-Baron_human.h5ad", IngestOptions::default()).await else { return };
    let Some(file) = test_data("Baron_H1_Data.csv") else { return };
    let (both, report) = take_in(&store, &file, IngestOptions::default()).await.unwrap();
    assert_eq!((report.cells_read, report.cells_kept, report.cells_duplicate), (1937, 1937, 472));
    assert_eq!(report.matrix, "genes × cells");
    let session = Session::open(both.clone()).await.unwrap();
    let pairs = "SELECT count(*) FROM cells a JOIN cells b ON a.duplicate_of = b.cell_id \
                 WHERE a.dataset_id = 1 AND b.dataset_id = 0 AND a.barcode = b.barcode";
    assert_eq!(number(&rows(&session, pairs).await), 472.0);

    let folder = tempfile::tempdir().unwrap();
    let store = empty(folder.path()).await;
    let (store, _) =
        take_in(&store, &test_data("raw-Baron_human.h5ad").unwrap(), IngestOptions::default()).await.unwrap();
    let skipping = IngestOptions { skip_duplicates: true, ..IngestOptions::default() };
    let (store, report) = take_in(&store, &file, skipping).await.unwrap();
    assert_eq!((report.cells_kept, report.cells_dropped["in the store already"]), (1937 - 472, 472));
    let session = Session::open(store).await.unwrap();
    assert_eq!(number(&rows(&session, "SELECT count(DISTINCT content_hash) FROM cells").await), 2142.0 + 1465.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_a_spreadsheet_has_changed_are_known_and_two_names_of_a_gene_never_merge() {
    let folder = tempfile::tempdir().unwrap();
    let store = empty(folder.path()).await;
    let file = write(folder.path(), "dates.csv", "cell,Sep-02,SEPTIN2,7-Mar,1-Mar,1-Mar,IL8,INS\na,1,2,3,4,5,6,7\n");
    let (store, report) = take_in(&store, &file, any_cell()).await.unwrap();
    let pairs = |list: &[cellql_store::genes::Renamed]| {
        list.iter().map(|r| format!("{} → {}", r.name, r.symbol)).collect::<Vec<_>>()
    };
    assert_eq!(pairs(&report.genes.dates), ["7-Mar → MARCHF7"]);
    assert_eq!(pairs(&report.genes.second), ["Sep-02 → SEPTIN2"]);
    assert_eq!(pairs(&report.genes.ambiguous), ["1-Mar → MARCHF1, MTARC1"; 2]);
    let session = Session::open(store).await.unwrap();
    let values = "SELECT expression(expr, 'SEPTIN2') + 10 * expression(expr, 'MARCHF7') \
                  + 100 * expression(expr, 'CXCL8') \
                  + 1000 * n_genes + 10000 * total_counts FROM cells";
    assert_eq!(number(&rows(&session, values).await), 2.0 + 30.0 + 600.0 + 7000.0 + 280_000.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_species_are_refused_by_name_and_by_id() {
    let folder = tempfile::tempdir().unwrap();
    let store = empty(folder.path()).await;
    let ids = write(folder.path(), "ids.csv", "c,ENSMUSG00000064372,ENSMUSG00000064371\na,1,2\n");
    let error = take_in(&store, &ids, any_cell()).await.unwrap_err();
    let Error::Input { file, object, problem } = &error else { panic!("{error}") };
    assert_eq!((file, object.as_str()), (&ids, "gene names"));
    assert!(problem.contains("ENSMUSG00000064372"), "{error}");
    if let Some(mouse) = test_data("raw-Baron_mouse.h5ad") {
        let error = take_in(&store, &mouse, any_cell()).await.unwrap_err();
        assert!(
            matches!(&error, Error::Input { file, object, .. } if *file == mouse && object == "gene names"),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mitochondrial_share_is_of_counts_and_unknown_where_none_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let store = empty(folder.path()).await;
    let with = write(folder.path(), "with.csv", "c,MT-CO1,MT.ND1,INS\na,1,2,9\nb,0,0,4\n");
    let without = write(folder.path(), "without.csv", "c,GCG,INS\nx,1,2\n");
    let (store, _) = take_in(&store, &with, any_cell()).await.unwrap();
    let (store, _) = take_in(&store, &without, any_cell()).await.unwrap();
    let session = Session::open(store).await.unwrap();
    let of = |cell: &str| format!("SELECT mito_fraction FROM cells WHERE barcode = '{cell}'");
    assert_eq!((number(&rows(&session, &of("a")).await), number(&rows(&session, &of("b")).await)), (0.25, 0.0));
    assert!(rows(&session, &of("x")).await[0].column(0).is_null(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_set_is_removed_with_all_that_was_its_own_and_versions_still_have_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = empty(folder.path()).await;
    let text = |extra: &str, name: &str| format!("c,INS,GCG,{name}\nsame,5,6,0\n{extra},1,2,3\n");
    let files =
        ["one", "two", "three"].map(|n| write(folder.path(), &format!("{n}.csv"), &text(n, &format!("odd_{n}"))));
    let mut store = store;
    for file in &files {
        store = take_in(&store, file, any_cell()).await.unwrap().0;
    }
    let before = store.version().version;
    let session = Session::open(store.clone()).await.unwrap();
    let marked = "SELECT count(*) FROM cells WHERE duplicate_of = 0";
    assert_eq!(number(&rows(&session, marked).await), 2.0);
    assert_eq!(
        number(&rows(&session, "SELECT expression(expr, 'odd_one') FROM cells WHERE barcode = 'one'").await),
        3.0
    );

    let error = cellql::ingest::remove(&store, "on").await.unwrap_err().to_string();
    assert!(error.contains("'one'"), "{error}");
    let (store, report) = cellql::ingest::remove(&store, "one").await.unwrap();
    assert_eq!((report.dataset_id, report.cells), (0, 2));
    let session = Session::open(store.clone()).await.unwrap();
    assert_eq!(number(&rows(&session, "SELECT count(*) FROM cells").await), 4.0);
    assert_eq!(number(&rows(&session, "SELECT count(*) FROM cells WHERE dataset_id = 0").await), 0.0);
    // The first of the equal cells that remain stands for the other now.
    let left = "SELECT a.cell_id FROM cells a WHERE a.barcode = 'same' AND a.duplicate_of IS NULL";
    assert_eq!(number(&rows(&session, left).await), 2.0);
    assert_eq!(number(&rows(&session, "SELECT duplicate_of FROM cells WHERE cell_id = 4").await), 2.0);
    let unknown = fails(&session, "SELECT expression(expr, 'odd_one') FROM cells").await;
    assert!(unknown.contains("unknown gene 'odd_one'"), "{unknown}");

    let earlier = Session::open(Store::open_at(store.uri(), before).await.unwrap()).await.unwrap();
    assert_eq!(number(&rows(&earlier, "SELECT count(*) FROM cells").await), 6.0);
    let error = Store::open_at(store.uri(), 99).await.unwrap_err().to_string();
    assert!(error.contains("no version 99") && error.contains("from 1 to"), "{error}");

    // Compacted, the newest version is what it was, and forgotten ones say so.
    let (store, done) = store.compact(Some(1)).await.unwrap();
    assert!(done.files_after < done.files_before && done.versions_forgotten > 0, "{done:?}");
    let session = Session::open(store.clone()).await.unwrap();
    assert_eq!(number(&rows(&session, "SELECT sum(total_counts) FROM cells").await), 34.0);
    assert!(Store::open_at(store.uri(), before).await.is_err());
    // Taken in again, the file is a data set of its own with cells of its own.
    let (store, report) = take_in(&store, &files[0], any_cell()).await.unwrap();
    assert_eq!((report.dataset_id, report.cells_duplicate), (Some(3), 1));
    let session = Session::open(store).await.unwrap();
    assert_eq!(number(&rows(&session, "SELECT min(cell_id) FROM cells WHERE dataset_id = 3").await), 6.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn obs_under_a_common_synonym_takes_the_fixed_name_and_stays_a_dictionary() {
    let Some((store, report, _folder)) = take_real("raw-Baron_human.h5ad", IngestOptions::default()).await else {
        return;
    };
    let renamed: Vec<String> = report
        .obs_columns
        .iter()
        .filter(|c| c.source != c.name)
        .map(|c| format!("{} → {}", c.source, c.name))
        .collect();
    assert!(
        renamed.contains(&"cell_ontology_class → cell_type".to_owned())
            && renamed.contains(&"donor → donor_id".to_owned()),
        "{renamed:?}"
    );
    let session = Session::open(store).await.unwrap();
    let batches = rows(&session, "SELECT cell_type1 FROM cells LIMIT 5").await;
    assert!(matches!(batches[0].column(0).data_type(), arrow::datatypes::DataType::Dictionary(_, _)));
    let betas = rows(&session, "SELECT count(*) FROM cells WHERE cell_type1 = 'beta'").await;
    assert_eq!(number(&betas), 623.0);
    let kinds = rows(&session, "SELECT DISTINCT value_kind FROM cells").await;
    assert_eq!(kinds[0].column(0).as_string::<i32>().value(0), "counts");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_an_object_store_and_of_a_directory_are_fetched_and_named_by_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir_all(data.join("inside")).unwrap();
    let first = write(&data, "one.csv", "c,INS,GCG\na,1,2\n");
    write(&data.join("inside"), "two.csv", "c,INS,GCG\nb,3,4\n");
    write(&data, "readme.md", "no cells");
    let store = empty(folder.path()).await;
    // Lance's way to reach a local file through the interface of object stores.
    let remote = |path: &Path| format!("file-object-store://{}", path.display());
    let (one, other) = inputs(&remote(&first)).await.unwrap();
    assert_eq!((one.len(), other.len()), (1, 0));
    assert_eq!(one[0].uri, remote(&first));
    let (all, other) = inputs(&remote(&data)).await.unwrap();
    let uris: Vec<String> = all.iter().map(|i| i.uri.clone()).collect();
    assert_eq!(uris, ["inside/two.csv", "one.csv"].map(|n| format!("{}/{n}", remote(&data))));
    assert_eq!(other.len(), 1);
    let mut store = store;
    for input in one.iter().chain(&all) {
        store = ingest(&store, input, &any_cell(), silent()).await.unwrap().0;
    }
    let session = Session::open(store).await.unwrap();
    // The same bytes under another path are the same data set.
    assert_eq!(number(&rows(&session, "SELECT count(*) FROM datasets").await), 2.0);
    let local = inputs(data.to_str().unwrap()).await.unwrap().0;
    assert_eq!(local.len(), 2);
    assert!(inputs(&remote(&folder.path().join("nothing.csv"))).await.is_err());
}
