//! Golden files of SQL, and how many cells each shape of query sends through the model.

use std::path::Path;

use arrow::util::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use cellql::error::Error;
use cellql::index::IndexKind;
use cellql::query::Session;
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};

use crate::stores::{demo_store, root, rows};

struct Database(Session);

#[async_trait]
impl AsyncDB for Database {
    type Error = Error;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<Self::ColumnType>, Error> {
        let batches = self.0.sql(sql).await?.collect().await?;
        let types = vec![DefaultColumnType::Any; batches.first().map_or(0, |b| b.num_columns())];
        let options = FormatOptions::default().with_null("NULL");
        let mut out = Vec::new();
        for batch in &batches {
            let columns: Vec<ArrayFormatter> =
                batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options).unwrap()).collect();
            for i in 0..batch.num_rows() {
                let cells: Vec<String> = columns.iter().map(|c| c.value(i).to_string()).collect();
                // A plan is one cell of many lines; a golden file has a line each.
                match cells.iter().any(|c| c.contains('\n')) {
                    true => out.extend(cells.join(" ").lines().map(|line| vec![line.trim().to_owned()])),
                    false => out.push(cells),
                }
            }
        }
        Ok(DBOutput::Rows { types, rows: out })
    }

    async fn shutdown(&mut self) {}
}

/// Searches need more vectors than the demo has.
const OVER_VECTORS: &str = "nearest";

async fn golden(file: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let store = match file.file_stem().is_some_and(|name| name == OVER_VECTORS) {
        true => crate::plans::indexed(folder.path(), IndexKind::Hnsw, 0..2000).await,
        false => demo_store().await,
    };
    let mut runner = Runner::new(|| async { Ok(Database(Session::open(store.clone()).await?)) });
    runner.run_file_async(file).await.unwrap_or_else(|e| panic!("{e}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn golden_files_hold() {
    let mut files: Vec<_> = std::fs::read_dir(root().join("tests/sql")).unwrap().map(|f| f.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "slt"));
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        golden(&file).await;
    }
}

/// What `list_functions()` and docs/functions.md show can be pasted and runs.
#[tokio::test(flavor = "multi_thread")]
async fn every_example_of_a_function_runs() {
    let session = Session::open(demo_store().await).await.unwrap();
    for function in cellql_udfs::FUNCTIONS {
        assert!(function.example.contains(&format!("{}(", function.name)), "{}", function.name);
        let found = rows(&session, function.example).await;
        assert!(found.iter().any(|batch| batch.num_rows() > 0), "{}: no rows", function.name);
    }
}

/// Cells that went through the model, per shape of query over 320 cells.
#[tokio::test(flavor = "multi_thread")]
async fn a_cell_is_embedded_once_per_query_and_only_if_needed() {
    let shapes: &[(&str, u64)] = &[
        ("SELECT embed(expr) FROM cells", 320),
        ("SELECT embed(expr) AS a, embed(expr) AS b FROM cells", 320),
        ("SELECT embed(expr) FROM cells WHERE embed(expr) IS NOT NULL", 320),
        ("SELECT embed(expr) FROM cells WHERE donor_id = 'human2' AND cell_type = 'beta'", 20),
        (
            "WITH v AS (SELECT cell_id, embed(expr) AS e FROM cells) SELECT a.cell_id FROM v a JOIN v b ON \
                 a.cell_id = b.cell_id AND a.e = b.e",
            320,
        ),
        ("SELECT cell_type, count(embed(expr)) FROM cells GROUP BY cell_type", 320),
        ("SELECT count(*) FROM (SELECT embed(expr) FROM cells)", 0),
        ("SELECT embed(expr) FROM cells LIMIT 10", 10),
        ("SELECT cell_id, embed(expr) FROM cells ORDER BY cell_id DESC LIMIT 10", 10),
        ("SELECT cell_type, embed(expr) FROM cells ORDER BY total_counts LIMIT 10", 10),
        ("SELECT cell_id FROM cells ORDER BY cosine_distance(embed(expr), embed(expr)) LIMIT 10", 320),
        (
            "SELECT cell_id FROM cells ORDER BY cosine_distance(embed(expr), embed(expr, pool => 'all')), cell_id \
                 LIMIT 3",
            320,
        ),
        ("SELECT cell_type, centroid(embed(expr)) FROM cells WHERE cell_type = 'beta' GROUP BY cell_type", 40),
        ("SELECT count(*) FROM cells GROUP BY cardinality(embed(expr)) HAVING count(embed(expr)) > 3", 320),
        ("EXPLAIN SELECT embed(expr) FROM cells", 0),
    ];
    let store = demo_store().await;
    for (sql, expected) in shapes {
        let session = Session::open_only_computing(store.clone()).await.unwrap();
        rows(&session, sql).await;
        assert_eq!(session.take_notices().cells_embedded, *expected, "{sql}");
    }
}
