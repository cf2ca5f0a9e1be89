//! What SQL adds to the model: `SELECT embed(expr)` over cells of a store beside the model's own call on the same cells
//! in memory. 3M sizes, the demo's cells. Limit: the direct call.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cellql::ingest::{IngestOptions, InputFile, ingest};
use cellql::model_registry;
use cellql::query::{Session, StoreEngine};
use cellql_model::{Config, DEFAULT_TOKEN_BUDGET, Provenance, Sample, Size, initialise};
use cellql_schemas::expr::Profiles;
use cellql_schemas::recipe::Recipe;
use cellql_schemas::vocabulary::Vocabulary;
use cellql_store::Store;
use cellql_store::progress::silent;
use criterion::{BatchSize, Criterion, SamplingMode, criterion_group};
use tokio::runtime::Runtime;

const CELLS: u64 = 48;

async fn store(folder: &Path) -> Store {
    let store = Store::init(folder.join("store").to_str().unwrap()).await.unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/baron_pancreas.h5ad");
    let (store, _) = ingest(&store, &InputFile::local(&file), &IngestOptions::default(), silent()).await.unwrap();
    let vocabulary = Vocabulary::default_human();
    let weights = initialise(&Config::of_size(Size::M3, vocabulary.len()), vocabulary, 0).unwrap();
    model_registry::add(&store, "m", &weights, &Provenance::Untrained { seed: 0 }).await.unwrap().0
}

fn overhead(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = runtime.block_on(store(folder.path()));
    let filter = format!("cell_id < {CELLS}");
    let batches = runtime.block_on(store.read("cells", &["expr"], Some(&filter))).unwrap();
    let cells: Vec<Profiles> = batches.iter().map(|b| Profiles::new(b.column(0)).unwrap()).collect();
    let engine = Arc::new(runtime.block_on(StoreEngine::open(store.clone())).unwrap());
    let recipe = Recipe::of_model("m");

    let mut group = c.benchmark_group("embed, 3M, 48 cells");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).warm_up_time(Duration::from_secs(1));
    group.bench_function("the model's own call", |b| {
        b.iter(|| {
            let samples =
                cells.iter().flat_map(Profiles::iter).map(|p| p.map(|profile| Sample { profile, total: None }));
            engine.embed_cells(&recipe, samples, DEFAULT_TOKEN_BUDGET).unwrap()
        });
    });
    // A session remembers what it computed, so each run has its own, with the model loaded.
    let fresh = || {
        runtime.block_on(async {
            let session = Session::open_only_computing(store.clone()).await.unwrap();
            let warm = session.sql("SELECT embed(expr) FROM cells WHERE cell_id = 300").await.unwrap();
            warm.collect().await.unwrap();
            session
        })
    };
    group.bench_function("SELECT embed(expr)", |b| {
        let sql = format!("SELECT cell_id, embed(expr) FROM cells WHERE {filter}");
        let run =
            |session: Session| runtime.block_on(async { session.sql(&sql).await.unwrap().collect().await.unwrap() });
        b.iter_batched(fresh, run, BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, overhead);
