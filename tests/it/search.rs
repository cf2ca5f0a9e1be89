//! Neighbours: exact answers, filters, damage, freshness; and embeddings that depend on nothing but the cell.

use std::collections::HashSet;

use arrow::array::AsArray;
use arrow::datatypes::Float32Type;
use cellql::index::{self, GraphOptions, Vectors, exact};
use cellql::query::Session;
use cellql::store::{Store, embedding_table};

use crate::stores::{demo_store, ids, rows, vectors, worst};

fn text(column: &arrow::array::ArrayRef) -> arrow::array::ArrayRef {
    arrow::compute::cast(column, &arrow::datatypes::DataType::Utf8).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn vector_search_agrees_with_plain_sql() {
    let session = Session::open(demo_store().await).await.unwrap();
    for cell in [0, 17, 319] {
        let plain = format!(
            "SELECT e.cell_id FROM embeddings e, embeddings q WHERE q.cell_id = {cell} AND e.cell_id <> {cell} \
             ORDER BY cosine_distance(e.vector, q.vector) LIMIT 10"
        );
        let search = format!("SELECT cell_id FROM vector_search('cells', {cell}, k => 10)");
        // As sets: two cells whose distances differ by less than f32 can tell may change places.
        let set = |found: Vec<u64>| found.into_iter().collect::<HashSet<u64>>();
        assert_eq!(set(ids(&rows(&session, &search).await)), set(ids(&rows(&session, &plain).await)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_gives_k_rows_that_satisfy_it() {
    let session = Session::open(demo_store().await).await.unwrap();
    let found = rows(
        &session,
        "SELECT cell_id, cell_type, donor_id FROM vector_search('cells', 4, k => 7, \
         where => 'cell_type = ''beta'' AND donor_id = ''human2''')",
    )
    .await;
    assert_eq!(ids(&found).len(), 7);
    for batch in &found {
        assert!(text(batch.column(1)).as_string::<i32>().iter().all(|t| t == Some("beta")));
        assert!(text(batch.column(2)).as_string::<i32>().iter().all(|d| d == Some("human2")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vector_finds_the_cell_it_belongs_to() {
    let session = Session::open(demo_store().await).await.unwrap();
    let batches = rows(&session, "SELECT cell_id, vector FROM embeddings WHERE cell_id = 42").await;
    let vector = vectors(&batches)[0].1.clone().unwrap();
    let text: Vec<String> = vector.iter().map(|v| format!("{v:e}")).collect();
    let sql = format!("SELECT cell_id, _distance FROM vector_search('cells', [{}], k => 1)", text.join(","));
    let found = rows(&session, &sql).await;
    assert_eq!(ids(&found), [42]);
    assert!(found[0].column(1).as_primitive::<Float32Type>().value(0) < 1e-6);
}

/// The same cell alone, among others, in another order, computed and stored: one vector.
#[tokio::test(flavor = "multi_thread")]
async fn an_embedding_depends_on_its_cell_alone() {
    let store = demo_store().await;
    let stored = Session::open(store.clone()).await.unwrap();
    let stored = vectors(&rows(&stored, "SELECT cell_id, vector FROM embeddings ORDER BY cell_id").await);
    let selections = [
        "SELECT cell_id, embed(expr) FROM cells",
        "SELECT cell_id, embed(expr) FROM cells WHERE cell_id % 7 = 0 ORDER BY cell_id DESC",
        "SELECT cell_id, embed(expr) FROM cells WHERE cell_id = 14",
        "SELECT cell_id, embed(expr) FROM cells WHERE cell_id IN (14, 3)",
    ];
    for sql in selections {
        // A session of its own: nothing remembered from the one before.
        let session = Session::open(store.clone()).await.unwrap();
        let found = vectors(&rows(&session, sql).await);
        assert!(!found.is_empty());
        for (cell, vector) in found {
            let exact = stored[cell as usize].1.as_ref().unwrap();
            let difference = worst(vector.as_ref().unwrap(), exact);
            assert!(difference < 1e-5, "{sql}, cell {cell}: {difference}");
        }
    }
}

/// A graph over vectors enough that the planner takes it.
async fn indexed(folder: &std::path::Path) -> Store {
    use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, UInt32Array, UInt64Array};
    use arrow::record_batch::RecordBatch;
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use rand::{Rng, SeedableRng};
    use std::sync::Arc;
    let (n, dim) = (3000usize, 16usize);
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let values: Vec<f32> = (0..n * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
    let schema = Arc::new(cellql_schemas::embeddings::schema(dim));
    let arrow::datatypes::DataType::FixedSizeList(item, _) = schema.field(1).data_type().clone() else { panic!() };
    let list = FixedSizeListArray::new(item, dim as i32, Arc::new(Float32Array::from(values)), None);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(0..n as u64)),
        Arc::new(list),
        Arc::new(UInt32Array::from(vec![1; n])),
    ];
    let batch = RecordBatch::try_new(Arc::clone(&schema) as _, columns).unwrap();
    let store = Store::init(folder.join("store").to_str().unwrap()).await.unwrap();
    let mut transaction = store.begin("random vectors").await.unwrap();
    let rows = RecordBatchStreamAdapter::new(schema, futures::stream::iter([Ok(batch)]));
    transaction.append(&embedding_table("random"), Box::pin(rows)).await.unwrap();
    let store = transaction.publish().await.unwrap();
    index::build(&store, "graph", "random", GraphOptions::default()).await.unwrap().0
}

async fn ask(store: &Store, cell: u64) -> (Vec<u64>, index::Method) {
    let request = index::Request { recipe: "random", query: index::Query::Cell(cell), k: 10, among: None };
    let (found, method) = index::search(store, request).await.unwrap();
    (found.into_iter().map(|n| n.cell_id).collect(), method)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graph_is_used_when_whole_and_doubted_when_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = indexed(folder.path()).await;
    let vectors = Vectors::read(&store, &embedding_table("random")).await.unwrap();
    let mut hits = 0;
    for cell in (0..3000).step_by(60) {
        let (found, method) = ask(&store, cell).await;
        assert_eq!(method, index::Method::Graph("graph".into()));
        let truth = exact(&vectors, vectors.at(cell as usize), 10, None, Some(cell));
        let truth: HashSet<u64> = truth.into_iter().map(|n| n.cell_id).collect();
        hits += found.iter().filter(|id| truth.contains(id)).count();
        assert_eq!(found.len(), 10);
    }
    assert!(hits as f64 >= 0.95 * 500.0, "recall@10 {}", hits as f64 / 500.0);

    // One byte of any of its files changed: named, and the answer is exact.
    let path = index::list(&store).await.unwrap()[0].path.clone();
    for file in ["graph", "vectors", "cell_ids", "manifest.json"] {
        let at = store.local_path(&format!("{path}/{file}")).unwrap();
        let whole = std::fs::read(&at).unwrap();
        let mut bytes = whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&at, &bytes).unwrap();
        let (found, method) = ask(&store, 7).await;
        let truth = exact(&vectors, vectors.at(7), 10, None, Some(7));
        assert_eq!(found, truth.iter().map(|n| n.cell_id).collect::<Vec<_>>());
        assert!(matches!(&method, index::Method::ExactInstead(why) if why.contains(file)), "{method:?}");
        std::fs::write(&at, &whole).unwrap();
    }
}
