//! All 2,142 cells of Baron's human pancreas: ingested, embedded with a model of every human gene, searched.
//!
//! `scripts/fetch-test-data.sh` downloads the file, which the project does not ship.

use std::collections::HashSet;
use std::time::Instant;

use cellql::error::Error;
use cellql::index::{self, IndexKind, KnnRequest, Metric, QueryVector, Searcher, Vectors, exact};
use cellql::ingest::IngestOptions;
use cellql::model_registry;
use cellql::query::Session;
use cellql_model::{Config, Provenance, Size, initialise};
use cellql_schemas::vocabulary::Vocabulary;
use cellql_store::embedding_table;
use cellql_store::progress::silent;

use crate::stores::{embed_all, empty, number, rows, say, take_in, test_data, vectors, worst};

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_data_set_is_ingested_embedded_and_searched() {
    let Some(file) = test_data("raw-Baron_human.h5ad") else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = empty(folder.path()).await;
    let (store, report) = take_in(&store, &file, IngestOptions::default()).await.unwrap();
    assert_eq!((report.cells_read, report.cells_kept), (2142, 2142));
    assert_eq!(report.value_kind, "counts");
    assert_eq!(report.genes.features, 20_125);
    assert!(report.genes.resolved() > 20_000, "{}", report.genes.resolved());

    let vocabulary = Vocabulary::default_human();
    let mut config = Config::of_size(Size::M3, vocabulary.len());
    // One layer shows what four do, in a quarter of the time.
    config.encoder.depth = 1;
    let weights = initialise(&config, vocabulary, 0).unwrap();
    let (store, _) = model_registry::add(&store, "small", &weights, &Provenance::Untrained { seed: 0 }).await.unwrap();
    let start = Instant::now();
    let store = embed_all(&store, "small").await;
    let seconds = start.elapsed().as_secs_f64();
    say(&format!(
        "2,142 cells embedded with one layer of a 3M model in {seconds:.0} s, {:.1} cells/s",
        2142.0 / seconds
    ));

    let (store, built) = index::build(&store, "small", "small", Some(IndexKind::Hnsw), silent()).await.unwrap();
    assert_eq!(built.n_vectors, 2142);
    let session = Session::open(store.clone()).await.unwrap();
    assert_eq!(number(&rows(&session, "SELECT count(DISTINCT cell_type1) FROM cells").await), 14.0);

    let table = embedding_table("small");
    let vectors = Vectors::read(&store, &table, Metric::Cosine).await.unwrap();
    let searcher = Searcher::open(&store, "small").await.unwrap();
    let mut hits = 0;
    for i in (0..2142).step_by(21) {
        let (cell, unit) = (vectors.ids[i], vectors.at(i));
        let queries = [QueryVector { vector: unit.to_vec(), exclude: Some(cell) }];
        let request = KnnRequest { queries: &queries, k: 10, metric: Metric::Cosine, filter: None };
        let result = searcher.search(request).await.unwrap();
        assert_eq!(result.method, index::SearchMethod::Index(IndexKind::Hnsw, "small".into()));
        let truth: HashSet<u64> = exact(&vectors, unit, 10, None, Some(cell)).into_iter().map(|n| n.cell_id).collect();
        hits += result.neighbours[0].iter().filter(|n| truth.contains(&n.cell_id)).count();
    }
    let recall = hits as f64 / 1020.0;
    say(&format!("recall@10 of the graph over 102 queries: {recall:.3}"));
    assert!(recall >= 0.95, "{recall}");
    same_alone_and_in_any_order(&session).await;
}

/// Twelve cells of very different length: each alone, together backwards, and as stored.
async fn same_alone_and_in_any_order(session: &Session) {
    let chosen =
        "SELECT cell_id FROM (SELECT cell_id, row_number() OVER (ORDER BY n_genes) AS r FROM cells) WHERE r % 179 = 1";
    let cells = crate::stores::ids(&rows(session, chosen).await);
    assert_eq!(cells.len(), 12);
    let list = cells.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let stored = format!("SELECT cell_id, vector FROM embeddings WHERE cell_id IN ({list}) ORDER BY cell_id");
    let stored = vectors(&rows(session, &stored).await);
    let backwards = format!("SELECT cell_id, embed(expr) FROM cells WHERE cell_id IN ({list}) ORDER BY cell_id DESC");
    let mut backwards = vectors(&rows(session, &backwards).await);
    backwards.reverse();
    for ((cell, exact), (_, together)) in stored.iter().zip(&backwards) {
        let fresh = Session::open(session.engine().store().clone()).await.unwrap();
        let alone =
            vectors(&rows(&fresh, &format!("SELECT cell_id, embed(expr) FROM cells WHERE cell_id = {cell}")).await);
        for other in [together, &alone[0].1] {
            let difference = worst(exact.as_ref().unwrap(), other.as_ref().unwrap());
            assert!(difference < 1e-5, "cell {cell}: {difference}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mouse_cells_are_refused_with_the_reason() {
    let Some(file) = test_data("raw-Baron_mouse.h5ad") else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = empty(folder.path()).await;
    let error = take_in(&store, &file, IngestOptions::default()).await.unwrap_err();
    let Error::Input { file: refused, object, problem } = &error else { panic!("{error}") };
    assert_eq!((refused, object.as_str()), (&file, "gene names"));
    assert!(problem.contains("mouse"), "{error}");
}
