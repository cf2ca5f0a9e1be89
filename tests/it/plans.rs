//! Plans of queries: where model calls stand, what they read, what they cost; and which queries an index answers.

use std::collections::HashSet;

use arrow::array::AsArray;
use arrow::record_batch::RecordBatch;
use cellql::index::{self, IndexKind};
use cellql::query::Session;
use cellql_store::Store;
use cellql_store::progress::silent;
use futures::StreamExt;

use crate::stores::{demo_store, ids, number, rows};

async fn explain(session: &Session, verb: &str, sql: &str) -> String {
    let found = rows(session, &format!("{verb} {sql}")).await;
    let text = |batch: &arrow::record_batch::RecordBatch| {
        batch.column(1).as_string::<i32>().iter().flatten().collect::<Vec<_>>().join("\n")
    };
    found.iter().map(text).collect::<Vec<_>>().join("\n")
}

/// The value of a metric in the text of EXPLAIN ANALYZE.
fn metric(plan: &str, name: &str) -> u64 {
    let at = plan.find(&format!(" {name}=")).unwrap_or_else(|| panic!("no {name} in {plan}")) + name.len() + 2;
    let digits: String = plan[at..].chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("{name} in {plan}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn model_calls_are_one_node_that_says_what_it_did() {
    let session = Session::open_only_computing(demo_store().await).await.unwrap();
    let plan = explain(&session, "EXPLAIN ANALYZE", "SELECT cell_id, embed(expr) FROM cells").await;
    assert!(plan.contains("ModelExec: expr=[") && plan.contains("source=[embed: model 'cell']"), "{plan}");
    assert_eq!((metric(&plan, "cells_computed"), metric(&plan, "cells_stored")), (320, 0), "{plan}");
    // Every cell has a token per vocabulary gene it expresses, T and S.
    let tokens = number(&rows(&session, "SELECT sum(genes_seen(expr) + 2) FROM cells").await);
    let shown = plan.split("tokens=").nth(1).and_then(|rest| rest.split(&[',', ']'][..]).next()).unwrap();
    assert_eq!(shown, format!("{:.2} K", tokens / 1000.0), "{plan}");
    assert!(metric(&plan, "batches") >= 1 && plan.contains("model_time="), "{plan}");
    // The session remembers.
    let plan = explain(&session, "EXPLAIN ANALYZE", "SELECT embed(expr) FROM cells").await;
    assert_eq!((metric(&plan, "cells_computed"), metric(&plan, "cells_remembered")), (0, 320), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_without_a_model_come_first() {
    let session = Session::open_only_computing(demo_store().await).await.unwrap();
    let sql = "SELECT cell_id FROM cells WHERE embed(expr) IS NOT NULL AND expression(expr, 'INS') > 1000";
    let found = ids(&rows(&session, sql).await);
    let embedded = session.take_notices().cells_embedded;
    let high = number(&rows(&session, "SELECT count(*) FROM cells WHERE expression(expr, 'INS') > 1000").await);
    assert!(high > 0.0 && high < 320.0);
    assert_eq!((found.len() as f64, embedded as f64), (high, high));
    let plan = explain(&session, "EXPLAIN FORMAT INDENT", sql).await;
    let place = |what: &str| plan.find(what).unwrap_or_else(|| panic!("no {what} in {plan}"));
    assert!(place("FilterExec: __keep") < place("ModelExec"), "{plan}");
    assert!(plan[place("ModelExec")..].contains("FilterExec: expression"), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sorts_and_aggregates_have_their_model_calls_below_them() {
    let session = Session::open_only_computing(demo_store().await).await.unwrap();
    for sql in [
        "SELECT cell_id FROM cells ORDER BY embed(expr)[1] DESC, embed(expr)[2], cell_id LIMIT 4",
        "SELECT cell_type, centroid(embed(expr)), count(embed(expr)) FROM cells GROUP BY cell_type",
        "SELECT embed(expr)[1] > 0, count(*) FROM cells GROUP BY embed(expr)[1] > 0",
    ] {
        let plan = explain(&session, "EXPLAIN ANALYZE", sql).await;
        assert_eq!(plan.matches("ModelExec").count(), 1, "{plan}");
        assert_eq!(metric(&plan, "cells_computed") + metric(&plan, "cells_remembered"), 320, "{plan}");
    }
    // Nothing is taken out of a branch.
    let sql = "SELECT cell_id FROM cells ORDER BY CASE WHEN cell_id < 5 THEN embed(expr, pool => 'max')[1] END LIMIT 4";
    session.take_notices();
    rows(&session, sql).await;
    assert_eq!(session.take_notices().cells_embedded, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_of_case_calls_the_model_for_its_own_rows() {
    let session = Session::open_only_computing(demo_store().await).await.unwrap();
    let beta = number(&rows(&session, "SELECT count(*) FROM cells WHERE cell_type = 'beta'").await);
    rows(&session, "SELECT CASE WHEN cell_type = 'beta' THEN cardinality(embed(expr)) ELSE 0 END FROM cells").await;
    assert_eq!(session.take_notices().cells_embedded as f64, beta);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_holds_is_read_and_nothing_else() {
    let session = Session::open(demo_store().await).await.unwrap();
    let plan = explain(&session, "EXPLAIN ANALYZE", "SELECT embed(expr) FROM cells").await;
    assert!(plan.contains("source=[embed: embeddings.\"cell\", else model 'cell']"), "{plan}");
    assert_eq!((metric(&plan, "cells_computed"), metric(&plan, "cells_stored")), (0, 320), "{plan}");
    assert_eq!(session.take_notices().cells_embedded, 0);
    for (sql, computed) in [
        // Another recipe.
        ("SELECT embed(expr, pool => 'max') FROM cells", 320),
        ("SELECT embed(expr, depth => 'f1') FROM cells WHERE cell_id < 7", 7),
        // Another content: the values are not those that were embedded.
        ("SELECT embed(log_normalise(expr), input => 'log') FROM cells WHERE cell_id < 5", 5),
        // The same content, whatever way the query came to it.
        ("SELECT embed(c.expr) FROM (SELECT expr FROM cells WHERE donor_id = 'human2') c ORDER BY 1 LIMIT 3", 0),
    ] {
        rows(&session, sql).await;
        assert_eq!(session.take_notices().cells_embedded, computed, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_query_ends_with_the_batch_that_runs() {
    let session = Session::open_only_computing(demo_store().await).await.unwrap();
    let mut stream = session.sql("SELECT embed(expr) FROM cells").await.unwrap().execute_stream().await.unwrap();
    let first = stream.next().await.unwrap().unwrap().num_rows();
    drop(stream);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let embedded = session.take_notices().cells_embedded;
    assert!(first < 200 && embedded <= 2 * first as u64 + 1, "{embedded} cells, batches of {first}");
}

/// 2,000 cells, some of which have random vectors with an index.
pub async fn indexed(folder: &std::path::Path, kind: IndexKind, vectors: std::ops::Range<u64>) -> Store {
    indexed_vectors(folder, kind, crate::search::some_vectors(vectors, 16, 3)).await
}

/// 2,000 cells with rows of an embedding table, 16 numbers each, and an index of them.
async fn indexed_vectors(folder: &std::path::Path, kind: IndexKind, vectors: RecordBatch) -> Store {
    let path = folder.join("store");
    let genes = "INS,GCG,SST";
    let cells: String = (0..2000).map(|i| format!("c{i},{},{},{}\n", i % 7 + 1, i % 5, i % 3)).collect();
    let file = folder.join("cells.csv");
    std::fs::write(&file, format!("cell,{genes}\n{cells}")).unwrap();
    let store = Store::init(path.to_str().unwrap()).await.unwrap();
    let (store, _) = crate::stores::take_in(&store, &file, crate::stores::any_cell()).await.unwrap();
    let store = crate::search::with_vectors(&store, vectors).await;
    index::build(&store, "near", "random", Some(kind), silent()).await.unwrap().0
}

fn literal(i: usize) -> String {
    let numbers: Vec<String> =
        (0..16).map(|j| format!("{:.3}", ((i * 31 + j * 17) % 23) as f32 / 11.0 - 1.0)).collect();
    format!("[{}]", numbers.join(", "))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limited_order_by_distance_is_answered_by_the_index() {
    let folder = tempfile::tempdir().unwrap();
    let session = Session::open(indexed(folder.path(), IndexKind::Hnsw, 0..2000).await).await.unwrap();
    let may_search = |plan: &str| plan.contains("IndexSearchExec");
    let fires = [
        "SELECT cell_id FROM embeddings ORDER BY cosine_distance(vector, Q) LIMIT 10",
        "SELECT cell_id, cosine_distance(Q, vector) AS d FROM embeddings ORDER BY d, cell_id LIMIT 10",
        "SELECT e.cell_id, c.barcode FROM embeddings e JOIN cells c ON c.cell_id = e.cell_id WHERE c.total_counts > 5 \
         ORDER BY cosine_distance(e.vector, Q) LIMIT 10",
        "SELECT cell_id FROM (SELECT cell_id, vector FROM embeddings WHERE cell_id % 2 = 0) v \
         ORDER BY cosine_distance(v.vector, Q) LIMIT 5 OFFSET 2",
    ];
    for sql in fires {
        let (mut hits, mut all) = (0, 0);
        for i in 0..10 {
            let sql = sql.replace('Q', &literal(i));
            let plan = explain(&session, "EXPLAIN FORMAT INDENT", &sql).await;
            assert!(may_search(&plan), "{plan}");
            let plan = explain(&session, "EXPLAIN ANALYZE", &sql).await;
            assert_eq!((metric(&plan, "answered_by_index"), metric(&plan, "answered_by_scan")), (1, 0), "{plan}");
            assert!(metric(&plan, "candidates") < 40, "{plan}");
            let found = ids(&rows(&session, &sql).await);
            // The same without the rule: a sum is no distance that it knows.
            let plain = sql.replace("cosine_distance", "0 + cosine_distance");
            let plan = explain(&session, "EXPLAIN FORMAT INDENT", &plain).await;
            assert!(!may_search(&plan), "{plan}");
            let truth: HashSet<u64> = ids(&rows(&session, &plain).await).into_iter().collect();
            assert_eq!(found.len(), truth.len(), "{sql}");
            (hits, all) = (hits + found.iter().filter(|id| truth.contains(id)).count(), all + truth.len());
        }
        assert!(hits as f64 >= 0.95 * all as f64, "{sql}: {hits} of {all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_orders_by_distance_look_at_every_row() {
    let folder = tempfile::tempdir().unwrap();
    let session = Session::open(indexed(folder.path(), IndexKind::Hnsw, 0..2000).await).await.unwrap();
    let joined = |side: &str| {
        format!(
            "SELECT e.cell_id FROM embeddings e JOIN ({side}) c ON c.cell_id = e.cell_id \
             ORDER BY cosine_distance(e.vector, Q) LIMIT 10"
        )
    };
    for sql in [
        "SELECT cell_id FROM embeddings ORDER BY cosine_distance(vector, Q)".to_owned(),
        "SELECT cell_id FROM embeddings ORDER BY cosine_distance(vector, Q) DESC LIMIT 10".into(),
        "SELECT cell_id FROM embeddings ORDER BY cosine_distance(vector, Q) NULLS FIRST LIMIT 10".into(),
        "SELECT cell_id FROM embeddings ORDER BY l2_distance(vector, Q) LIMIT 10".into(),
        "SELECT cell_id FROM embeddings ORDER BY cosine_distance(vector, Q) LIMIT 500".into(),
        "SELECT e.cell_id FROM embeddings e LEFT JOIN cells c ON c.cell_id = e.cell_id \
         WHERE c.total_counts > 5 OR c.cell_id IS NULL ORDER BY cosine_distance(e.vector, Q) LIMIT 10"
            .into(),
        "SELECT cell_id FROM embeddings ORDER BY cosine_distance(vector, vector) LIMIT 10".into(),
        // Another execution of these would give other rows.
        joined("SELECT cell_id FROM cells WHERE random() < 0.5"),
        joined("SELECT cell_id FROM cells LIMIT 1000"),
        joined("SELECT DISTINCT ON (n_genes, total_counts) cell_id FROM cells"),
    ] {
        let sql = sql.replace('Q', &literal(1));
        let plan = explain(&session, "EXPLAIN FORMAT INDENT", &sql).await;
        assert!(!plan.contains("IndexSearch"), "{plan}");
        assert!(plan.matches("/cells.lance").count() <= 1, "{plan}");
        rows(&session, &sql).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_keeps_few_rows_is_scanned_for() {
    let folder = tempfile::tempdir().unwrap();
    let session = Session::open(indexed(folder.path(), IndexKind::Hnsw, 0..2000).await).await.unwrap();
    let sql = "SELECT cell_id FROM embeddings WHERE cell_id % 100 = 0 ORDER BY cosine_distance(vector, Q) LIMIT 10";
    let plan = explain(&session, "EXPLAIN ANALYZE", &sql.replace('Q', &literal(1))).await;
    assert_eq!((metric(&plan, "answered_by_index"), metric(&plan, "answered_by_scan")), (0, 1), "{plan}");
    assert_eq!((metric(&plan, "rows_kept"), metric(&plan, "candidates")), (20, 0), "{plan}");
}

/// An input that fails when it is executed, and an index without its files, show that EXPLAIN touches neither.
#[tokio::test(flavor = "multi_thread")]
async fn explain_executes_neither_the_search_nor_its_inputs() {
    let folder = tempfile::tempdir().unwrap();
    let store = indexed(folder.path(), IndexKind::Hnsw, 0..2000).await;
    std::fs::remove_dir_all(store.local_path("indexes").unwrap()).unwrap();
    let session = Session::open(store).await.unwrap();
    for (sql, node) in [
        (
            "SELECT e.cell_id FROM embeddings e JOIN cells c ON c.cell_id = e.cell_id \
             WHERE CAST(c.barcode AS BIGINT) > 0 ORDER BY cosine_distance(e.vector, Q) LIMIT 10",
            "IndexSearchExec",
        ),
        ("SELECT cell_id FROM vector_search('cells', Q, where => 'CAST(barcode AS BIGINT) > 0')", "SearchExec"),
    ] {
        let sql = sql.replace('Q', &literal(1));
        let plan = explain(&session, "EXPLAIN FORMAT INDENT", &sql).await;
        assert!(plan.contains(node) && plan.contains("index 'near' or exact scan, decided at run time"), "{plan}");
        assert!(session.sql(&sql).await.unwrap().collect().await.is_err(), "{sql}");
    }
    // Without its files the index answers nothing.
    let sql = "SELECT cell_id FROM embeddings ORDER BY cosine_distance(vector, Q) LIMIT 10".replace('Q', &literal(1));
    let plan = explain(&session, "EXPLAIN ANALYZE", &sql).await;
    assert_eq!((metric(&plan, "answered_by_index"), metric(&plan, "answered_by_scan")), (0, 1), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_at_the_same_distance_are_told_apart_by_the_other_keys() {
    let folder = tempfile::tempdir().unwrap();
    // 40 cells have the same vector.
    let value = |row: u64, at: usize| ((row % 50 * 31 + at as u64 * 17) % 23) as f32 / 11.0 - 1.0;
    let vectors = crate::search::vectors_of(0..2000, 16, value);
    let session = Session::open(indexed_vectors(folder.path(), IndexKind::Hnsw, vectors).await).await.unwrap();
    for sql in [
        "SELECT cell_id FROM embeddings ORDER BY cosine_distance(vector, Q), cell_id DESC LIMIT 10",
        "SELECT e.cell_id FROM embeddings e JOIN cells c ON c.cell_id = e.cell_id \
         ORDER BY cosine_distance(e.vector, Q), c.total_counts DESC, c.barcode LIMIT 60",
        "SELECT cell_id FROM embeddings WHERE cell_id % 3 > 0 ORDER BY cosine_distance(vector, Q), cell_id \
         LIMIT 7 OFFSET 4",
    ] {
        for i in [0, 3, 8] {
            let sql = sql.replace('Q', &literal(i));
            assert!(explain(&session, "EXPLAIN FORMAT INDENT", &sql).await.contains("IndexSearchExec"), "{sql}");
            let plain = sql.replace("cosine_distance", "0 + cosine_distance");
            assert_eq!(ids(&rows(&session, &sql).await), ids(&rows(&session, &plain).await), "{sql}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_is_explained_and_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let session = Session::open(indexed(folder.path(), IndexKind::Hnsw, 0..2000).await).await.unwrap();
    let ask = |options: &str| format!("SELECT cell_id FROM vector_search('cells', 7{options})");
    for (options, planned, used) in [
        ("", "by=index 'near' or", "index 'near'"),
        (", where => 'total_counts > 5'", "by=index 'near' or", "index 'near'"),
        (", where => 'cell_id < 20'", "by=index 'near' or", "exact scan"),
        (", metric => 'l2'", "by=exact scan", "exact scan"),
        (", k => 1000", "by=exact scan", "exact scan"),
    ] {
        let plan = explain(&session, "EXPLAIN FORMAT INDENT", &ask(options)).await;
        assert!(plan.contains("SearchExec: cells") && plan.contains(planned), "{plan}");
        assert!(session.take_notices().searches.is_empty(), "EXPLAIN does not search");
        rows(&session, &ask(options)).await;
        let searches = session.take_notices().searches;
        assert!(searches.len() == 1 && searches[0].ends_with(used), "{searches:?}");
    }
}
