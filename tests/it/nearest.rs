//! An index answers queries for neighbours of every shape as the plain plan does, and finds what an exact scan finds.

use std::cell::RefCell;
use std::collections::HashSet;

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use cellql::index::{
    self, IndexKind, KnnRequest, KnnResult, Metric, QueryVector, SearchMethod, Searcher, Vectors, exact,
};
use cellql::query::Session;
use cellql_analysis::pca::{SparseRows, principal_components};
use cellql_neighbours::HnswConfig;
use cellql_schemas::cells;
use cellql_schemas::expr::Profiles;
use cellql_store::progress::silent;
use cellql_store::{Store, embedding_table};
use hnsw_rs::prelude::{Distance, Hnsw};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rand::{Rng, SeedableRng};

use crate::plans::indexed;
use crate::search::{changed, some_vectors, with_vectors};
use crate::stores::{ids, rows, say};

/// Ways to ask.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Table,
    Subquery,
    Join,
    Function,
}

#[derive(Debug, Clone)]
struct Case {
    shape: Shape,
    /// A condition that holds for embeddings and cells alike.
    filter: Option<String>,
    vector: Vec<f32>,
    limit: usize,
    offset: usize,
}

impl Case {
    /// The question in SQL, rows `cell_id, d`; `distance` is the name of the distance. `all` asks for every row there
    /// is.
    fn sql(&self, distance: &str, all: bool) -> String {
        let numbers: Vec<String> = self.vector.iter().map(|v| format!("{v:.4}")).collect();
        let vector = format!("[{}]", numbers.join(", "));
        let filter = self.filter.as_deref().unwrap_or("true");
        let (k, offset) = if all { (100_000, 0) } else { (self.limit, self.offset) };
        match self.shape {
            Shape::Table => format!(
                "SELECT cell_id, {distance}(vector, {vector}) AS d FROM embeddings WHERE {filter} \
                 ORDER BY d, cell_id LIMIT {k} OFFSET {offset}"
            ),
            Shape::Subquery => format!(
                "SELECT cell_id, {distance}({vector}, v.vector) AS d FROM (SELECT cell_id, vector FROM embeddings \
                 WHERE {filter}) v ORDER BY d, cell_id LIMIT {k} OFFSET {offset}"
            ),
            Shape::Join => format!(
                "SELECT e.cell_id, {distance}(e.vector, {vector}) AS d FROM embeddings e JOIN cells c \
                 ON c.cell_id = e.cell_id WHERE {} ORDER BY d, e.cell_id LIMIT {k} OFFSET {offset}",
                filter.replace("cell_id", "c.cell_id")
            ),
            Shape::Function => {
                let k = k + offset;
                let condition = self.filter.as_ref().map_or(String::new(), |f| format!(", where => '{f}'"));
                format!(
                    "SELECT cell_id, _distance AS d FROM vector_search('cells', {vector}, k => {k}{condition}) \
                     ORDER BY d, cell_id OFFSET {offset}"
                )
            }
        }
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let shape = prop_oneof![Just(Shape::Table), Just(Shape::Subquery), Just(Shape::Join), Just(Shape::Function)];
    let filter = prop_oneof![
        2 => Just(None),
        2 => (2u32..5, 0u32..2).prop_map(|(of, is)| Some(format!("cell_id % {of} = {is}"))),
        1 => (0u32..2000).prop_map(|from| Some(format!("cell_id >= {from}"))),
        1 => (0u32..1990).prop_map(|from| Some(format!("cell_id BETWEEN {from} AND {}", from + 12))),
        1 => Just(Some("cell_id IN (3, 5, 8)".to_owned())),
    ];
    let vector = prop::collection::vec(-1f32..1.0, 16);
    let fields = (shape, filter, vector, 1usize..40, 0usize..5);
    fields.prop_map(|(shape, filter, vector, limit, offset)| Case { shape, filter, vector, limit, offset })
}

fn distances(batches: &[arrow::record_batch::RecordBatch]) -> Vec<f64> {
    let column = |b: &arrow::record_batch::RecordBatch| {
        cast(b.column(1), &DataType::Float64).unwrap().as_primitive::<Float64Type>().values().to_vec()
    };
    batches.iter().flat_map(column).collect()
}

/// Asks both ways. Gives how many of the right rows were found, of how many, and whether an index was asked.
async fn compare(session: &Session, case: &Case) -> (usize, usize, bool) {
    let sql = case.sql("cosine_distance", false);
    let plan = rows(session, &format!("EXPLAIN ANALYZE {sql}")).await;
    let plan: String =
        plan.iter().map(|b| b.column(1).as_string::<i32>().iter().flatten().collect::<String>()).collect();
    session.take_notices();
    let answer = rows(session, &sql).await;
    let by_index = plan.contains("answered_by_index=1")
        || session.take_notices().searches.iter().any(|search| search.contains("index 'near'"));
    let (found, shown) = (ids(&answer), distances(&answer));
    // Every row that qualifies, nearest first, by a plan that no rule knows: a sum is no distance.
    let plain =
        Case { shape: if matches!(case.shape, Shape::Function) { Shape::Table } else { case.shape }, ..case.clone() };
    let plain = rows(session, &plain.sql("0 + cosine_distance", true)).await;
    let (all, truth) = (ids(&plain), distances(&plain));
    let wanted: HashSet<u64> = all.iter().skip(case.offset).take(case.limit).copied().collect();
    assert_eq!(found.len(), wanted.len(), "{sql}: as many rows as qualify");
    assert_eq!(found.iter().collect::<HashSet<_>>().len(), found.len(), "{sql}: no row twice");
    assert!(shown.is_sorted(), "{sql}: nearest first");
    for (id, distance) in found.iter().zip(&shown) {
        let at = all.iter().position(|a| a == id).unwrap_or_else(|| panic!("{sql}: row {id} does not qualify"));
        assert!((distance - truth[at]).abs() < 1e-5, "{sql}: row {id} is at {}, not {distance}", truth[at]);
    }
    (found.iter().filter(|id| wanted.contains(id)).count(), wanted.len(), by_index)
}

#[test]
fn any_question_is_answered_as_the_plain_plan_answers_it() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let sessions = runtime.block_on(async {
        let graph = indexed(folders[0].path(), IndexKind::Hnsw, 0..2000).await;
        let ivf = indexed(folders[1].path(), IndexKind::Ivf, 0..2000).await;
        // Rows that came after the index, and rows that went.
        let older = indexed(folders[2].path(), IndexKind::Hnsw, 0..1900).await;
        let new = some_vectors(1900..2000, 16, 9);
        let older = changed(&older, "cell_id % 19 = 4", Some(new)).await;
        let mut sessions = Vec::new();
        for store in [graph, ivf, older] {
            sessions.push(Session::open(store).await.unwrap());
        }
        sessions
    });
    for (session, what) in sessions.iter().zip(["graph", "ivf", "older graph"]) {
        // (rows found, rows right, questions that an index answered)
        let seen = RefCell::new((0, 0, 0));
        let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let ran = TestRunner::new_with_rng(config, rng).run(&cases(), |case| {
            let (hits, all, by_index) = runtime.block_on(compare(session, &case));
            let mut seen = seen.borrow_mut();
            *seen = (seen.0 + hits, seen.1 + all, seen.2 + usize::from(by_index));
            Ok(())
        });
        ran.unwrap_or_else(|e| panic!("{what}: {e}"));
        let (hits, all, by_index) = seen.into_inner();
        assert!(hits as f64 >= 0.95 * all as f64, "{what}: recall {hits} of {all}");
        assert!(by_index >= 20, "{what}: an index answered {by_index} of 60");
    }
}

/// 120,000 vectors around 300 centres: 30 partitions, of which a query looks into 20.
fn clustered(n: u64) -> arrow::record_batch::RecordBatch {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
    let centres: Vec<f32> = (0..300 * 16).map(|_| rng.random_range(-1.0..1.0)).collect();
    let value = |row: u64, at: usize, rng: &mut rand_chacha::ChaCha8Rng| {
        centres[(row % 300) as usize * 16 + at] + rng.random_range(-0.4f32..0.4)
    };
    crate::search::vectors_of(0..n, 16, |row, at| value(row, at, &mut rng))
}

#[tokio::test(flavor = "multi_thread")]
async fn lances_partitions_find_what_a_scan_finds() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::init(folder.path().join("store").to_str().unwrap()).await.unwrap();
    let n = 120_000;
    let store = with_vectors(&store, clustered(n)).await;
    let (store, built) = index::build(&store, "far", "random", Some(IndexKind::Ivf), silent()).await.unwrap();
    assert_eq!((built.kind, built.n_vectors, built.dim), (IndexKind::Ivf, n as usize, 16));
    let vectors = Vectors::read(&store, &embedding_table("random"), Metric::Cosine).await.unwrap();
    let half: HashSet<u64> = (0..n).filter(|id| id % 2 == 0).collect();
    for filter in [None, Some(&half)] {
        let searcher = Searcher::open(&store, "random").await.unwrap();
        let query = |i: usize| QueryVector { vector: vectors.at(i * 1999).to_vec(), exclude: Some(i as u64 * 1999) };
        let queries: Vec<_> = (0..60).map(query).collect();
        let request = KnnRequest { queries: &queries, k: 10, metric: Metric::Cosine, filter };
        let KnnResult { neighbours, method } = searcher.search(request).await.unwrap();
        assert_eq!(method, SearchMethod::Index(IndexKind::Ivf, "far".into()));
        let mut hits = 0;
        for (query, found) in queries.iter().zip(&neighbours) {
            let truth = exact(&vectors, &query.vector, 10, filter, query.exclude);
            let truth: HashSet<u64> = truth.iter().map(|n| n.cell_id).collect();
            assert_eq!(found.len(), 10);
            hits += found.iter().filter(|n| truth.contains(&n.cell_id)).count();
        }
        assert!(hits >= 570, "recall {hits} of 600");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lances_index_is_doubted_too() {
    let folder = tempfile::tempdir().unwrap();
    let store = indexed(folder.path(), IndexKind::Ivf, 0..2000).await;
    let session = Session::open(store.clone()).await.unwrap();
    let ask = "SELECT cell_id FROM vector_search('cells', 7, k => 10)";
    let before = ids(&rows(&session, ask).await);
    assert!(session.take_notices().searches[0].contains("index 'near' (ivf)"));

    // The nearest goes and comes again under another name: found without building anew.
    let table = embedding_table("random");
    let moved = store.read(&table, &[], Some(&format!("cell_id = {}", before[0]))).await.unwrap().remove(0);
    let mut columns = moved.columns().to_vec();
    columns[0] = std::sync::Arc::new(arrow::array::UInt64Array::from(vec![1u64 << 40]));
    let renamed = arrow::record_batch::RecordBatch::try_new(moved.schema(), columns).unwrap();
    let later = changed(&store, &format!("cell_id = {}", before[0]), Some(renamed)).await;
    let searcher = Searcher::open(&later, "random").await.unwrap();
    let query = searcher.vectors_of(&[7]).await.unwrap().pop().unwrap().unwrap();
    let queries = [QueryVector { vector: query, exclude: Some(7) }];
    let request = KnnRequest { queries: &queries, k: 10, metric: Metric::Cosine, filter: None };
    let KnnResult { neighbours, method } = searcher.search(request).await.unwrap();
    assert_eq!(method, SearchMethod::Index(IndexKind::Ivf, "near".into()));
    let found: Vec<u64> = neighbours[0].iter().map(|n| n.cell_id).collect();
    assert_eq!((found[0], &found[1..]), (1 << 40, &before[1..]));

    // Its files are gone: named, and the answer is that of a scan.
    let files = store.local_path(&format!("{table}.lance/_indices")).unwrap();
    std::fs::remove_dir_all(files).unwrap();
    let fresh = Store::open(folder.path().join("store").to_str().unwrap()).await.unwrap();
    let KnnResult { neighbours, method } =
        Searcher::open(&fresh, "random").await.unwrap().search(request).await.unwrap();
    assert!(matches!(&method, SearchMethod::ExactInstead(why) if why.contains("'near'")), "{method:?}");
    assert_eq!(neighbours[0].iter().map(|n| n.cell_id).collect::<Vec<_>>(), found);
}

/// Log-normalised counts of Baron's 2,142 cells: of the 2,000 genes that most cells express, and their first 50
/// principal components over all genes. Each as dimension and values `[cells, dim]`.
async fn baron_vectors(file: &std::path::Path) -> [(usize, Vec<f32>); 2] {
    let folder = tempfile::tempdir().unwrap();
    let store = crate::stores::empty(folder.path()).await;
    let (store, _) = crate::stores::take_in(&store, file, crate::stores::any_cell()).await.unwrap();
    let batches = store.read(cells::TABLE, &[cells::EXPR], None).await.unwrap();
    let (mut offsets, mut columns, mut values) = (vec![0], Vec::new(), Vec::new());
    for batch in &batches {
        for profile in Profiles::new(batch.column(0)).unwrap().iter().flatten() {
            let total = profile.total();
            columns.extend_from_slice(profile.gene_ids);
            values.extend(profile.values.iter().map(|v| (f64::from(*v) / total * 1e4).ln_1p() as f32));
            offsets.push(columns.len());
        }
    }
    let n_genes = columns.iter().max().map_or(0, |most| *most as usize + 1);
    let rows = SparseRows { dim: n_genes, offsets: &offsets, columns: &columns, values: &values };
    let components = principal_components(rows, 50, 0);

    let mut expressed = vec![0u32; n_genes];
    columns.iter().for_each(|gene| expressed[*gene as usize] += 1);
    let mut genes: Vec<usize> = (0..n_genes).collect();
    genes.sort_by_key(|gene| std::cmp::Reverse(expressed[*gene]));
    let mut place = vec![None; n_genes];
    genes.iter().take(2000).enumerate().for_each(|(i, gene)| place[*gene] = Some(i));
    let mut counts = vec![0f32; (offsets.len() - 1) * 2000];
    for (row, bounds) in counts.chunks_mut(2000).zip(offsets.windows(2)) {
        for i in bounds[0]..bounds[1] {
            if let Some(at) = place[columns[i] as usize] {
                row[at] = values[i];
            }
        }
    }
    [(2000, counts), (components.count, components.scores)]
}

/// One minus the dot product, by the kernel that our graph uses too.
struct UnitCosine;

impl Distance<f32> for UnitCosine {
    fn eval(&self, a: &[f32], b: &[f32]) -> f32 {
        // hnsw_rs requires distances that are not negative.
        (1.0 - cellql_kernels::dot(a, b)).max(0.0)
    }
}

/// The oracle is hnsw_rs with the same M and ef_construction (the defaults) and the ef_search that an index takes for k
/// = 10.
#[tokio::test(flavor = "multi_thread")]
async fn recall_among_real_cells_is_not_below_that_of_hnsw_rs() {
    const K: usize = 10;
    let Some(file) = crate::stores::test_data("raw-Baron_human.h5ad") else { return };
    for (dim, values) in baron_vectors(&file).await {
        let n = values.len() / dim;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::init(folder.path().join("store").to_str().unwrap()).await.unwrap();
        let rows = crate::search::vectors_of(0..n as u64, dim, |row, at| values[row as usize * dim + at]);
        let store = with_vectors(&store, rows).await;
        let (store, _) = index::build(&store, "graph", "random", Some(IndexKind::Hnsw), silent()).await.unwrap();
        let vectors = Vectors::read(&store, &embedding_table("random"), Metric::Cosine).await.unwrap();
        assert_eq!(vectors.len(), n);

        let query = |i: usize| QueryVector { vector: vectors.at(i).to_vec(), exclude: Some(vectors.ids[i]) };
        let queries: Vec<_> = (0..n).step_by(2).map(query).collect();
        let searcher = Searcher::open(&store, "random").await.unwrap();
        let request = KnnRequest { queries: &queries, k: K, metric: Metric::Cosine, filter: None };
        let ours = searcher.search(request).await.unwrap();
        assert_eq!(ours.method, SearchMethod::Index(IndexKind::Hnsw, "graph".into()));

        let HnswConfig { m, ef_construction, .. } = HnswConfig::default();
        let theirs = Hnsw::new(m, n, 16, ef_construction, UnitCosine);
        (0..n).for_each(|i| theirs.insert_slice((vectors.at(i), i)));
        let (mut of_ours, mut of_theirs) = (0, 0);
        for (query, found) in queries.iter().zip(&ours.neighbours) {
            let truth = exact(&vectors, &query.vector, K, None, query.exclude);
            let truth: HashSet<u64> = truth.iter().map(|n| n.cell_id).collect();
            of_ours += found.iter().filter(|n| truth.contains(&n.cell_id)).count();
            let found = theirs.search(&query.vector, K + 1, 128).into_iter().map(|n| vectors.ids[n.d_id]);
            of_theirs += found.filter(|id| Some(*id) != query.exclude && truth.contains(id)).count();
        }
        let recall = |hits: usize| hits as f64 / (K * queries.len()) as f64;
        let (ours, theirs) = (recall(of_ours), recall(of_theirs));
        say(&format!("recall@10 among {n} cells of {dim} dimensions: {ours:.4}, hnsw_rs {theirs:.4}"));
        // Three standard errors of a recall of 0.995 over these 10,710 neighbours are 0.002.
        assert!(ours >= theirs - 0.002, "{dim} dimensions: {ours:.4}, hnsw_rs {theirs:.4}");
    }
}
