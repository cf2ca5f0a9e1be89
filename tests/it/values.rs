//! What values are: genes that a name leaves, zero and unknown, counts and what only looks like them, and exports that
//! come back as they were.

use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray};
use arrow::datatypes::Float64Type;
use cellql::export::{FileFormat, export};
use cellql::ingest::{IngestOptions, IngestReport, ingest, inputs};
use cellql::query::Session;
use cellql_formats::{OpenOptions, open};
use cellql_schemas::recipe::Input;
use cellql_store::Store;
use cellql_store::progress::silent;

use crate::stores::{any_cell, empty, number, rows, take_in, test_data};

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// The only column as text, NULL as `-`.
async fn texts(session: &Session, sql: &str) -> Vec<String> {
    let mut all = Vec::new();
    for batch in rows(session, sql).await {
        let column = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8).unwrap();
        all.extend(column.as_string::<i32>().iter().map(|text| text.unwrap_or("-").to_owned()));
    }
    all
}

/// COX1, COX2 and ND1 of this file are mitochondrial genes, because PTGS1, PTGS2 and IVNS1ABP stand beside them. The
/// expected mean is scanpy's, over the genes of these names.
#[tokio::test(flavor = "multi_thread")]
async fn mitochondrial_genes_of_a_file_with_old_names_are_found() {
    let Some(file) = test_data("wu2020_200_v0_11.h5ad") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (store, report) = take_in(&empty(folder.path()).await, &file, IngestOptions::default()).await.unwrap();
    let eliminated: Vec<&str> = report.genes.elimination.iter().map(|r| r.symbol.as_str()).collect();
    for gene in ["MT-CO1", "MT-CO2", "MT-ND1"] {
        assert!(eliminated.contains(&gene), "{eliminated:?}");
    }
    let session = Session::open(store).await.unwrap();
    let mean = number(&rows(&session, "SELECT avg(mito_fraction) FROM cells").await);
    assert!((mean - 0.0404).abs() < 0.0005, "{mean}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gene_that_a_data_set_did_not_measure_is_null_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let store = empty(folder.path()).await;
    let both = write(folder.path(), "both.csv", "c,INS,GCG,SST\na,4,0,1\nb,0,2,0\n");
    let one = write(folder.path(), "one.csv", "c,INS,SST\nx,6,2\n");
    let (store, _) = take_in(&store, &both, any_cell()).await.unwrap();
    let (store, _) = take_in(&store, &one, any_cell()).await.unwrap();
    let session = Session::open(store).await.unwrap();
    let of = |what: &str| format!("SELECT {what} FROM cells ORDER BY cell_id");
    assert_eq!(texts(&session, &of("expression(expr, 'GCG')")).await, ["0.0", "2.0", "-"]);
    assert_eq!(
        texts(&session, &of("expression(log_normalise(expr), 'GCG') IS NULL")).await,
        ["false", "false", "true"]
    );
    assert_eq!(texts(&session, &of("expression(expr, ['GCG', 'INS'])[1]")).await, ["0.0", "2.0", "-"]);
    assert_eq!(texts(&session, "SELECT avg(expression(expr, 'GCG')) FROM cells").await, ["1.0"]);
    assert_eq!(texts(&session, "SELECT expression(mean_expr(expr), 'GCG') FROM cells").await, ["1.0"]);
    let per_set = "SELECT expression(mean_expr(expr), 'GCG') FROM cells GROUP BY dataset_id ORDER BY dataset_id";
    assert_eq!(texts(&session, per_set).await, ["1.0", "-"]);
    assert_eq!(texts(&session, &of("gene_score(expr, ['GCG']) IS NULL")).await, ["false", "false", "true"]);
    let filtered = "SELECT barcode FROM cells WHERE expression(expr, 'GCG') = 0 OR expression(expr, 'GCG') IS NULL";
    assert_eq!(texts(&session, &format!("{filtered} ORDER BY cell_id")).await, ["a", "x"]);
    // Through a subquery and a join, where the column of the data set is no longer there.
    let inside = "SELECT expression(e, 'GCG') FROM (SELECT expr AS e, barcode FROM cells) AS s WHERE barcode = 'x'";
    assert_eq!(texts(&session, inside).await, ["-"]);
    let measured = "SELECT count(*) FROM measured m JOIN genes USING (gene_id) WHERE symbol = 'GCG'";
    assert_eq!(number(&rows(&session, measured).await), 1.0);
}

/// Whole numbers that are no counts, made of real counts as tools make them.
#[tokio::test(flavor = "multi_thread")]
async fn rounded_normalised_values_are_not_counts() {
    let Some(file) = test_data("raw-Baron_human.h5ad") else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut source = open(&file, &OpenOptions::default()).unwrap();
    let block = source.next_block().unwrap().unwrap();
    let genes: Vec<String> = source.features().iter().map(|f| f.name.clone()).collect();
    // Lengths of genes from 500 to 8,000, by their place.
    let length = |gene: usize| 500.0 + (gene * 7919 % 7500) as f64;
    let table = |name: &str, genes_kept: &dyn Fn(usize) -> bool, of: &dyn Fn(f64, f64, f64, usize) -> f64| {
        let mut text = String::from("gene");
        let cells: Vec<usize> = (0..120).collect();
        cells.iter().for_each(|cell| text.push_str(&format!(",c{cell}")));
        let mut rows = vec![vec![0.0; cells.len()]; genes.len()];
        for cell in &cells {
            let (features, values) = block.cell(*cell);
            let total: f64 = values.iter().map(|v| f64::from(*v)).sum();
            let rate = |f: &u32, v: &f32| f64::from(*v) / length(*f as usize);
            let rates: f64 = features.iter().zip(values).map(|(f, v)| rate(f, v)).sum();
            for (feature, value) in features.iter().zip(values) {
                rows[*feature as usize][*cell] = of(f64::from(*value), total, rates, *feature as usize).round();
            }
        }
        for (gene, row) in rows.iter().enumerate().filter(|(gene, _)| genes_kept(*gene)) {
            text.push_str(&format!("\n{}", genes[gene]));
            row.iter().for_each(|value| text.push_str(&format!(",{value}")));
        }
        write(folder.path(), name, &(text + "\n"))
    };
    let all = |_: usize| true;
    let counts = table("counts.csv", &all, &|v, _, _, _| v);
    let cp10k = table("cp10k.csv", &all, &|v, total, _, _| v / total * 1e4);
    let tpm = table("tpm.csv", &|gene| gene % 10 != 3, &|v, _, rates, gene| v / length(gene) / rates * 1e6);
    let fpkm = table("fpkm.csv", &all, &|v, total, _, gene| v / length(gene) / total * 1e9);
    for (file, kind) in [(counts, "counts"), (cp10k, "linear"), (tpm, "linear"), (fpkm.clone(), "linear")] {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let store = empty(&folder.path().join(&name)).await;
        let (_, report) = take_in(&store, &file, IngestOptions::default()).await.unwrap();
        assert_eq!(report.value_kind, kind, "{name}: {:?}", report.notes);
        let said = report.notes.join(" ").contains("--input counts");
        assert_eq!(said, kind == "linear", "{name}: {:?}", report.notes);
    }
    // The user decides.
    let store = empty(&folder.path().join("again")).await;
    let counts = IngestOptions { values: Some(Input::Counts), ..IngestOptions::default() };
    assert_eq!(take_in(&store, &fpkm, counts).await.unwrap().1.value_kind, "counts");
    let log = IngestOptions { values: Some(Input::Log), ..IngestOptions::default() };
    let store = empty(&folder.path().join("log")).await;
    let error = take_in(&store, &fpkm, log).await.unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("--input linear"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tpm_that_no_logarithm_was_taken_of_is_not_read_as_logarithms() {
    let Some(file) = test_data("Pollen_Data.csv") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (_, report) = take_in(&empty(folder.path()).await, &file, IngestOptions::default()).await.unwrap();
    assert_eq!((report.value_kind.as_str(), report.input.name()), ("linear", "linear"));
}

async fn exported_and_back(folder: &Path, store: &Store, ending: &str) -> (Session, Vec<IngestReport>) {
    let file = folder.join(format!("out.{ending}"));
    let session = Session::open(store.clone()).await.unwrap();
    export(&session, &file, ending.parse::<FileFormat>().unwrap(), None, silent()).await.unwrap();
    let mut back = empty(&folder.join(format!("back_{ending}"))).await;
    let mut reports = Vec::new();
    for input in inputs(file.to_str().unwrap()).await.unwrap().0 {
        let (next, report) = ingest(&back, &input, &IngestOptions::default(), silent()).await.unwrap();
        back = next;
        reports.push(report);
    }
    (Session::open(back).await.unwrap(), reports)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_several_data_sets_comes_back_data_set_by_data_set() {
    let folder = tempfile::tempdir().unwrap();
    let store = empty(folder.path()).await;
    // Counts; logarithms with other genes; TPM. Barcodes repeat, and one gene has an old name.
    let counts = write(folder.path(), "counts.csv", "c,INS,IL8,odd gene\na,4,0,1\nb,0,2,3\n");
    let log = write(folder.path(), "log.csv", "c,INS,SST\na,0.5,2.25\nz,1.5,0\n");
    let tpm = write(folder.path(), "tpm.csv", "c,GCG,SST\na,700000.5,299999.5\n");
    let mut store = store;
    for file in [&counts, &log, &tpm] {
        store = take_in(&store, file, any_cell()).await.unwrap().0;
    }
    let original = Session::open(store.clone()).await.unwrap();
    let questions = [
        "SELECT name || ' ' || value_kind || ' ' || input || ' ' || cells_kept FROM datasets ORDER BY dataset_id",
        "SELECT array_to_string(measured_names, ',') FROM datasets ORDER BY dataset_id",
        "SELECT dataset_id || barcode || value_kind || total_counts FROM cells ORDER BY cell_id",
        "SELECT content_hash FROM cells ORDER BY cell_id",
        "SELECT dataset_id || symbol FROM measured JOIN genes USING (gene_id) ORDER BY 1",
    ];
    for ending in ["h5ad", "parquet", "lance"] {
        let (back, reports) = exported_and_back(folder.path(), &store, ending).await;
        assert_eq!(reports.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["counts", "log", "tpm"], "{ending}");
        for question in questions {
            assert_eq!(texts(&back, question).await, texts(&original, question).await, "{ending}: {question}");
        }
        let columns = texts(&back, "SELECT count(*) FROM information_schema.columns WHERE table_name = 'cells'").await;
        assert_eq!(columns, ["10"], "{ending}: columns of ours do not become obs columns");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn features_of_other_types_are_no_genes() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("10x");
    std::fs::create_dir(&data).unwrap();
    write(&data, "barcodes.tsv", "AAAC\nAAAG\n");
    let features = "ENSG00000254647\tINS\tGene Expression\nchr1:1-9\tchr1:1-9\tPeaks\nx\tx\tCustom\n\
                    ENSG00000115263\tGCG\tGene Expression\n";
    write(&data, "features.tsv", features);
    let text = "%%MatrixMarket matrix coordinate integer general\n4 2 5\n1 1 3\n2 1 8\n3 1 9\n4 2 5\n2 2 7\n";
    let matrix = write(&data, "matrix.mtx", text);
    let (store, report) = take_in(&empty(folder.path()).await, &matrix, any_cell()).await.unwrap();
    assert_eq!(report.genes.features, 2);
    assert!(
        report.notes.iter().any(|note| note.contains("1 Custom") && note.contains("1 Peaks")),
        "{:?}",
        report.notes
    );
    let session = Session::open(store).await.unwrap();
    assert_eq!(number(&rows(&session, "SELECT sum(total_counts) FROM cells").await), 8.0);

    write(&data, "features.tsv", "a\ta\tPeaks\nb\tb\tPeaks\nc\tc\tPeaks\nd\td\tPeaks\n");
    let error = take_in(&empty(&folder.path().join("other")).await, &matrix, any_cell()).await.unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("'Peaks'"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn integers_beyond_63_bits_keep_their_values() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large.h5ad");
    crate::formats::write_with_large_integers(&file);
    let (store, _) = take_in(&empty(folder.path()).await, &file, any_cell()).await.unwrap();
    let session = Session::open(store.clone()).await.unwrap();
    let expected = ["18446744073709551615", "9223372036854775808", "7", "0", "1"];
    assert_eq!(texts(&session, "SELECT serial FROM cells ORDER BY cell_id").await, expected);
    for ending in ["h5ad", "parquet"] {
        let (back, _) = exported_and_back(folder.path(), &store, ending).await;
        assert_eq!(texts(&back, "SELECT serial FROM cells ORDER BY cell_id").await, expected, "{ending}");
    }
    let ages = rows(&session, "SELECT age FROM cells ORDER BY cell_id").await;
    let ages = arrow::compute::cast(ages[0].column(0), &arrow::datatypes::DataType::Float64).unwrap();
    assert_eq!(ages.as_primitive::<Float64Type>().values().to_vec(), [1.0, 2.0, 3.0, 4.0, 5.0]);
    assert!(ages.null_count() == 0);
}

/// Every cell lacks a count of one, so the values are no counts; the last cell, beyond those that detection looks at,
/// shows that they are no logarithms either.
#[tokio::test(flavor = "multi_thread")]
async fn the_report_says_why_values_are_no_counts_also_after_a_third_reading() {
    let folder = tempfile::tempdir().unwrap();
    let cell = |i: usize| format!("c{i},{},{},{}\n", 2 + i % 3, 3 + i % 5, 2 + i % 7);
    let text: String = (0..300).map(cell).collect();
    let file = write(folder.path(), "linear.csv", &format!("c,INS,GCG,SST\n{text}last,2,3,30\n"));
    let (_, report) = take_in(&empty(folder.path()).await, &file, any_cell()).await.unwrap();
    assert_eq!(report.value_kind, "linear", "{:?}", report.notes);
    assert!(report.notes.iter().any(|note| note.contains("no gene of one count")), "{:?}", report.notes);
}
