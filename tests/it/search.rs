//! Neighbours: exact answers, filters, damage, freshness; and embeddings that depend on nothing but the cell.

use std::collections::HashSet;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Float32Type;
use cellql::index::{
    self, IndexKind, KnnRequest, KnnResult, Metric, QueryVector, SearchMethod, Searcher, Vectors, exact,
};
use cellql::jobs::{AnnotateOptions, Groups, MemoryBudget, annotate, embed_genes};
use cellql::query::Session;
use cellql_store::progress::silent;
use cellql_store::{Store, embedding_table};

use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

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
        // A session of its own: nothing remembered from the one before, nor read from the store.
        let session = Session::open_only_computing(store.clone()).await.unwrap();
        let found = vectors(&rows(&session, sql).await);
        assert!(!found.is_empty());
        for (cell, vector) in found {
            let exact = stored[cell as usize].1.as_ref().unwrap();
            let difference = worst(vector.as_ref().unwrap(), exact);
            assert!(difference < 1e-5, "{sql}, cell {cell}: {difference}");
        }
    }
}

/// A store whose table `embeddings.random` has random vectors.
pub async fn with_vectors(store: &Store, batch: arrow::record_batch::RecordBatch) -> Store {
    let mut transaction = store.begin("random vectors").await.unwrap();
    let rows = RecordBatchStreamAdapter::new(batch.schema(), futures::stream::iter([Ok(batch)]));
    transaction.append(&embedding_table("random"), Box::pin(rows)).await.unwrap();
    transaction.publish().await.unwrap()
}

/// A graph over vectors enough that the planner takes it.
async fn indexed(folder: &std::path::Path) -> Store {
    let store = Store::init(folder.join("store").to_str().unwrap()).await.unwrap();
    let store = with_vectors(&store, some_vectors(0..3000, 16, 3)).await;
    index::build(&store, "graph", "random", Some(IndexKind::Hnsw), silent()).await.unwrap().0
}

/// The ten nearest to a cell, as a fresh process finds them.
async fn ask(store: &Store, cell: u64) -> (Vec<u64>, SearchMethod) {
    ask_among(store, cell, None).await
}

async fn ask_among(store: &Store, cell: u64, filter: Option<&HashSet<u64>>) -> (Vec<u64>, SearchMethod) {
    let searcher = Searcher::open(store, "random").await.unwrap();
    let query = searcher.vectors_of(&[cell]).await.unwrap().pop().unwrap().unwrap();
    let queries = [QueryVector { vector: query, exclude: Some(cell) }];
    let request = KnnRequest { queries: &queries, k: 10, metric: Metric::Cosine, filter };
    let KnnResult { neighbours, method } = searcher.search(request).await.unwrap();
    (neighbours[0].iter().map(|n| n.cell_id).collect(), method)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graph_is_used_when_whole_and_doubted_when_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = indexed(folder.path()).await;
    let vectors = Vectors::read(&store, &embedding_table("random"), Metric::Cosine).await.unwrap();
    let mut hits = 0;
    for cell in (0..3000).step_by(60) {
        let (found, method) = ask(&store, cell).await;
        assert_eq!(method, SearchMethod::Index(IndexKind::Hnsw, "graph".into()));
        let truth = exact(&vectors, vectors.at(cell as usize), 10, None, Some(cell));
        let truth: HashSet<u64> = truth.into_iter().map(|n| n.cell_id).collect();
        hits += found.iter().filter(|id| truth.contains(id)).count();
        assert_eq!(found.len(), 10);
    }
    assert!(hits as f64 >= 0.95 * 500.0, "recall@10 {}", hits as f64 / 500.0);

    // One byte of any of its files changed: named, and the answer is exact.
    let path = index::list(&store).await.unwrap()[0].path.clone();
    for file in ["graph", "vectors", "ids", "manifest.json"] {
        let at = store.local_path(&format!("{path}/{file}")).unwrap();
        let whole = std::fs::read(&at).unwrap();
        let mut bytes = whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&at, &bytes).unwrap();
        let (found, method) = ask(&store, 7).await;
        let truth = exact(&vectors, vectors.at(7), 10, None, Some(7));
        assert_eq!(found, truth.iter().map(|n| n.cell_id).collect::<Vec<_>>());
        assert!(matches!(&method, SearchMethod::ExactInstead(why) if why.contains(file)), "{method:?}");
        std::fs::write(&at, &whole).unwrap();
    }
}

/// Rows of an embedding table with random vectors.
pub fn some_vectors(ids: std::ops::Range<u64>, dim: usize, seed: u64) -> arrow::record_batch::RecordBatch {
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    vectors_of(ids, dim, |_, _| rng.random_range(-1.0..1.0))
}

/// Rows of an embedding table, numbers by row and place.
pub fn vectors_of(
    ids: std::ops::Range<u64>,
    dim: usize,
    mut number: impl FnMut(u64, usize) -> f32,
) -> arrow::record_batch::RecordBatch {
    use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, UInt32Array, UInt64Array};
    use std::sync::Arc;
    let n = (ids.end - ids.start) as usize;
    let values: Vec<f32> =
        ids.clone().flat_map(|row| (0..dim).map(move |at| (row, at))).map(|(r, a)| number(r, a)).collect();
    let schema = Arc::new(cellql_schemas::embeddings::schema(dim));
    let arrow::datatypes::DataType::FixedSizeList(item, _) = schema.field(1).data_type().clone() else { panic!() };
    let list = FixedSizeListArray::new(item, dim as i32, Arc::new(Float32Array::from(values)), None);
    let columns: Vec<ArrayRef> =
        vec![Arc::new(UInt64Array::from_iter_values(ids)), Arc::new(list), Arc::new(UInt32Array::from(vec![1; n]))];
    arrow::record_batch::RecordBatch::try_new(schema, columns).unwrap()
}

pub async fn changed(store: &Store, delete: &str, add: Option<arrow::record_batch::RecordBatch>) -> Store {
    let table = embedding_table("random");
    let mut transaction = store.begin("changing vectors").await.unwrap();
    transaction.delete(&table, delete).await.unwrap();
    if let Some(batch) = add {
        let schema = batch.schema();
        let rows = RecordBatchStreamAdapter::new(schema, futures::stream::iter([Ok(batch)]));
        transaction.append(&table, Box::pin(rows)).await.unwrap();
    }
    transaction.publish().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_finds_what_came_after_it_and_not_what_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let store = indexed(folder.path()).await;
    let (before, _) = ask(&store, 7).await;
    // The nearest goes, and 100 come, two of which are the query and nearly the query.
    let mut new = some_vectors(3000..3100, 16, 5);
    let seven = Vectors::read(&store, &embedding_table("random"), Metric::InnerProduct).await.unwrap().at(7).to_vec();
    let list = new.column(1).as_fixed_size_list();
    let mut values = list.values().as_primitive::<Float32Type>().values().to_vec();
    values[..16].copy_from_slice(&seven);
    values[16..32].copy_from_slice(&seven);
    values[16] += 1e-3;
    let item = match list.data_type() {
        arrow::datatypes::DataType::FixedSizeList(item, _) => item.clone(),
        _ => panic!(),
    };
    let values = std::sync::Arc::new(arrow::array::Float32Array::from(values));
    let list = arrow::array::FixedSizeListArray::new(item, 16, values, None);
    let columns = vec![new.column(0).clone(), std::sync::Arc::new(list), new.column(2).clone()];
    new = arrow::record_batch::RecordBatch::try_new(new.schema(), columns).unwrap();
    let store = changed(&store, &format!("cell_id = {}", before[0]), Some(new)).await;

    let (now, method) = ask(&store, 7).await;
    assert_eq!(method, SearchMethod::Index(IndexKind::Hnsw, "graph".into()), "an index that lacks little is used");
    assert_eq!(now[..2], [3000, 3001]);
    assert_eq!(now[2..], before[1..9]);

    let store = changed(&store, "cell_id < 1000 AND cell_id <> 7", None).await;
    let (now, method) = ask(&store, 7).await;
    assert!(matches!(&method, SearchMethod::ExactInstead(why) if why.contains("older version")), "{method:?}");
    assert!(now.len() == 10 && now.iter().all(|id| *id >= 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_larger_than_the_cache_is_scanned_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::init(folder.path().join("store").to_str().unwrap()).await.unwrap();
    let store = with_vectors(&store, some_vectors(0..20_000, 8, 4)).await;
    let searcher = Searcher::open(&store, "random").await.unwrap();
    let queries: Vec<_> = searcher.vectors_of(&[3, 19_999]).await.unwrap().into_iter().map(Option::unwrap).collect();
    let queries = queries.into_iter().zip([Some(3), None]);
    let queries: Vec<_> = queries.map(|(vector, exclude)| QueryVector { vector, exclude }).collect();
    let most: HashSet<u64> = (0..20_000).filter(|id| id % 3 > 0).collect();
    for metric in [Metric::Cosine, Metric::L2, Metric::InnerProduct, Metric::Correlation] {
        for filter in [None, Some(&most)] {
            let request = KnnRequest { queries: &queries, k: 15, metric, filter };
            let whole = searcher.search(request).await.unwrap().neighbours;
            let in_parts = Searcher::open(&store, "random").await.unwrap().with_cache_bytes(1000);
            assert_eq!(in_parts.search(request).await.unwrap().neighbours, whole, "{metric:?}");
            assert!(whole.iter().all(|found| found.len() == 15));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_keep_k_rows_however_little_they_keep() {
    let folder = tempfile::tempdir().unwrap();
    let store = indexed(folder.path()).await;
    let vectors = Vectors::read(&store, &embedding_table("random"), Metric::Cosine).await.unwrap();
    for (every, by_graph) in [(2, true), (20, false), (1000, false)] {
        let kept: HashSet<u64> = (0..3000).filter(|id| id % every == 1).collect();
        let (mut hits, mut all) = (0, 0);
        for cell in (0..3000).step_by(100) {
            let (found, method) = ask_among(&store, cell, Some(&kept)).await;
            assert_eq!(matches!(method, SearchMethod::Index(..)), by_graph, "{method:?}");
            let truth = exact(&vectors, vectors.at(cell as usize), 10, Some(&kept), Some(cell));
            let truth: HashSet<u64> = truth.into_iter().map(|n| n.cell_id).collect();
            assert_eq!(found.len(), truth.len());
            (hits, all) = (hits + found.iter().filter(|id| truth.contains(id)).count(), all + truth.len());
        }
        assert!(hits as f64 >= 0.95 * all as f64, "recall {hits} of {all} where every {every}th is kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cells_of_a_file_find_themselves_and_vote() {
    let store = demo_store().await;
    let session = Session::open(store.clone()).await.unwrap();
    let input = cellql::ingest::InputFile::local(crate::stores::demo_file());
    let asked = AnnotateOptions { recipe: None, k: 3, metric: Metric::Cosine, condition: None };
    let found = annotate(session.engine(), &input, &crate::stores::any_cell(), &asked, silent()).await.unwrap();
    assert_eq!(found.barcodes.len(), 320);
    for (cell, neighbours) in found.neighbours.iter().enumerate() {
        let neighbours = neighbours.as_ref().unwrap();
        assert_eq!(neighbours.len(), 3);
        assert!(neighbours[0].distance < 1e-5 && neighbours.windows(2).all(|w| w[0].distance <= w[1].distance));
        // A cell may have a twin; it is as near.
        assert!(neighbours[0].cell_id == cell as u64 || neighbours[1].distance < 1e-5);
    }
    // By the nearest alone every cell gets its own type, with all of the one vote.
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_cellql"))
        .args(["search", store.uri(), "--query"])
        .arg(crate::stores::demo_file())
        .args(["--vote", "cell_type", "-k", "1", "--format", "csv"])
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let voted = String::from_utf8(run.stdout).unwrap();
    let types = rows(&session, "SELECT barcode, cell_type FROM cells ORDER BY cell_id").await;
    let types: Vec<(String, String)> = types
        .iter()
        .flat_map(|b| {
            let [barcode, kind] = [0, 1].map(|i| text(b.column(i)));
            let all = barcode.as_string::<i32>().iter().zip(kind.as_string::<i32>());
            all.map(|(b, k)| (b.unwrap().to_owned(), k.unwrap().to_owned())).collect::<Vec<_>>()
        })
        .collect();
    let lines: Vec<Vec<&str>> = voted.lines().skip(1).map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.len(), 320);
    let right = lines.iter().zip(&types).filter(|(line, (barcode, kind))| line[0] == barcode && line[1] == kind);
    assert_eq!(right.count(), 320);
    assert!(lines.iter().all(|line| line[2] == "1.0" && line[3] == "1"), "{:?}", lines[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn genes_near_a_gene_are_those_that_plain_sql_finds() {
    let folder = tempfile::tempdir().unwrap();
    let store = crate::stores::empty(folder.path()).await;
    let (store, _) = crate::stores::take_in(&store, &crate::stores::reference("counts.csv"), crate::stores::any_cell())
        .await
        .unwrap();
    let store = crate::stores::add_reference_model(&store, cellql_model::CheckpointKey::Gene).await;
    let engine = std::sync::Arc::new(cellql::query::StoreEngine::open(store).await.unwrap());
    let recipe = cellql_schemas::recipe::Recipe::of_model("gene");
    let (groups, memory) = (Groups { by: None, at_most: None }, MemoryBudget::default());
    let (store, _) = embed_genes(&engine, &recipe, None, &groups, memory, silent()).await.unwrap();
    let session = Session::open(store).await.unwrap();
    for (metric, distance) in
        [("cosine", "cosine_distance"), ("l2", "l2_distance"), ("correlation", "correlation_distance")]
    {
        let search =
            format!("SELECT gene_id, symbol FROM vector_search('genes', 'ACTN1', k => 8, metric => '{metric}')");
        let plain = format!(
            "SELECT e.gene_id FROM gene_embeddings e, gene_embeddings q JOIN genes g ON g.gene_id = q.gene_id \
             WHERE g.symbol = 'ACTN1' AND e.gene_id <> q.gene_id ORDER BY {distance}(e.vector, q.vector) LIMIT 8"
        );
        let set = |batches: Vec<arrow::record_batch::RecordBatch>| -> HashSet<u32> {
            let ids =
                batches.iter().map(|b| b.column(0).as_primitive::<arrow::datatypes::UInt32Type>().values().to_vec());
            ids.flatten().collect()
        };
        let (found, truth) = (set(rows(&session, &search).await), set(rows(&session, &plain).await));
        assert_eq!((found.len(), found == truth), (8, true), "{metric}");
    }
    let error =
        crate::stores::fails(&session, "SELECT * FROM vector_search('genes', 'ACTN1', metric => 'cosin')").await;
    assert!(error.contains("Did you mean 'cosine'"), "{error}");
    let error = crate::stores::fails(&session, "SELECT * FROM vector_search('cells', 'ACTN1')").await;
    assert!(error.contains("no embeddings"), "{error}");
}
