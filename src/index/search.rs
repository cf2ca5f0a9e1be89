//! Answers requests for nearest neighbours of one embedding table, by its index or by a scan.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use cellql_schemas::embeddings;
use futures::TryStreamExt;
use rayon::prelude::*;
use tokio::sync::OnceCell;

use super::ivf;
use super::loaded::{IndexedTable, LoadedIndex};
use super::metric::Metric;
use super::neighbour::Neighbour;
use super::request::{KnnRequest, KnnResult, QueryVector, SearchMethod};
use super::vectors::{self, Vectors, exact};
use crate::error::{Error, Result};
use cellql_store::{Store, embedding_table, is_one_of};

/// Bytes of vectors that stay in memory between requests by default.
const CACHE_BYTES: usize = 4 << 30;
/// Rows that a scan of a larger table reads at once.
const SCAN_ROWS: usize = 8192;

/// Answers requests about one embedding table at one version of a store. It keeps the index and the vectors it has
/// read.
#[derive(Debug)]
pub struct Searcher {
    store: Store,
    recipe: String,
    table: String,
    /// Rows of the table.
    pub(super) rows: usize,
    /// Dimension of the vectors.
    dim: usize,
    version: u64,
    cache_bytes: usize,
    index: OnceCell<LoadedIndex>,
    vectors: Mutex<HashMap<Metric, Arc<Vectors>>>,
}

impl Searcher {
    /// Opens the embedding table of a recipe.
    ///
    /// # Errors
    /// There is no such table.
    pub async fn open(store: &Store, recipe: &str) -> Result<Self> {
        let table = embedding_table(recipe);
        let dataset = store.table(&table).await?;
        let rows = dataset.count_rows(None).await.map_err(Error::internal(format!("counting {table}")))?;
        Ok(Self {
            store: store.clone(),
            recipe: recipe.to_owned(),
            rows,
            dim: vectors::dimension(&dataset, &table)?,
            table,
            version: dataset.version().version,
            cache_bytes: CACHE_BYTES,
            index: OnceCell::new(),
            vectors: Mutex::default(),
        })
    }

    /// Limits the vectors kept in memory for each metric to `bytes`. A table with more is read from its files by each
    /// scan.
    pub fn with_cache_bytes(self, bytes: usize) -> Self {
        Self { cache_bytes: bytes, ..self }
    }

    /// Recipe of the embedding table.
    pub fn recipe(&self) -> &str {
        &self.recipe
    }

    /// Answers a request.
    ///
    /// # Errors
    /// A query vector has another dimension than the table or the metric is not defined for it, or the table cannot be
    /// read.
    pub async fn search(&self, request: KnnRequest<'_>) -> Result<KnnResult> {
        let KnnRequest { k, metric, filter, .. } = request;
        let queries = self.prepare(&request)?;
        let k = k.min(self.rows);
        let method = self.plan(k, metric, filter.map(HashSet::len)).await?;
        let index = match &method {
            SearchMethod::Index(..) => self.index().await?,
            _ => &LoadedIndex::None,
        };
        let mut neighbours = match index {
            LoadedIndex::Hnsw(index) => index.search(&queries, k, filter),
            LoadedIndex::Ivf(name, table) => match ivf::search(table, &queries, k, filter).await {
                Ok(neighbours) => neighbours,
                Err(error) => {
                    let why = format!("index '{name}' cannot be read ({error}); build it again");
                    let neighbours = self.scan(&queries, k, metric, filter).await?;
                    return Ok(KnnResult { neighbours, method: SearchMethod::ExactInstead(why) });
                }
            },
            _ => return Ok(KnnResult { neighbours: self.scan(&queries, k, metric, filter).await?, method }),
        };
        if let Some(rows) = filter {
            self.complete(&mut neighbours, &queries, k.min(rows.len()), metric, rows).await?;
        }
        Ok(KnnResult { neighbours, method })
    }

    /// Scans for the queries that have fewer than `k` neighbours: an index search with a filter may end early.
    async fn complete(
        &self,
        neighbours: &mut [Vec<Neighbour>],
        queries: &[QueryVector],
        k: usize,
        metric: Metric,
        filter: &HashSet<u64>,
    ) -> Result<()> {
        let short: Vec<usize> = (0..neighbours.len()).filter(|i| neighbours[*i].len() < k).collect();
        if short.is_empty() {
            return Ok(());
        }
        let again: Vec<QueryVector> = short.iter().map(|i| queries[*i].clone()).collect();
        for (i, exact) in short.into_iter().zip(self.scan(&again, k, metric, Some(filter)).await?) {
            neighbours[i] = exact;
        }
        Ok(())
    }

    /// The vector of each row of the table; `None` for rows without one.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn vectors_of(&self, rows: &[u64]) -> Result<Vec<Option<Vec<f32>>>> {
        let condition = is_one_of(embeddings::CELL_ID, rows.iter().copied());
        let batches = self.store.read(&self.table, &Vectors::COLUMNS, Some(&condition)).await?;
        // The inner product needs no preparation, so these are the stored vectors.
        let found = Vectors::from_batches(&batches, Metric::InnerProduct)?;
        let at: HashMap<u64, usize> = found.ids.iter().copied().zip(0..).collect();
        Ok(rows.iter().map(|row| at.get(row).map(|at| found.at(*at).to_vec())).collect())
    }

    /// The query vectors prepared for the metric.
    fn prepare(&self, request: &KnnRequest<'_>) -> Result<Vec<QueryVector>> {
        let prepare = |query: &QueryVector| {
            let (given, dim, recipe) = (query.vector.len(), self.dim, &self.recipe);
            if given != dim {
                let problem = format!("the query vector has dimension {given}, the vectors of '{recipe}' have {dim}");
                return Err(Error::Request(problem));
            }
            let vector = request.metric.prepare(&query.vector).ok_or_else(|| {
                let metric = request.metric.name();
                Error::Request(format!("the query vector has no direction, which the metric '{metric}' needs"))
            })?;
            Ok(QueryVector { vector, exclude: query.exclude })
        };
        request.queries.iter().map(prepare).collect()
    }

    /// Exact search of prepared queries, in memory if the vectors are there or fit.
    async fn scan(
        &self,
        queries: &[QueryVector],
        k: usize,
        metric: Metric,
        filter: Option<&HashSet<u64>>,
    ) -> Result<Vec<Vec<Neighbour>>> {
        let cached = self.vectors.lock().unwrap_or_else(PoisonError::into_inner).get(&metric).cloned();
        let vectors = match (cached, filter) {
            (Some(vectors), _) => vectors,
            // Few rows are read alone.
            (None, Some(filter)) if filter.len() < self.rows / 8 => {
                let rows = is_one_of(embeddings::CELL_ID, filter.iter().copied());
                let batches = self.store.read(&self.table, &Vectors::COLUMNS, Some(&rows)).await?;
                Arc::new(Vectors::from_batches(&batches, metric)?)
            }
            (None, _) if 4 * self.rows * self.dim > self.cache_bytes => {
                return self.scan_in_parts(queries, k, metric, filter).await;
            }
            (None, _) => {
                let vectors = Arc::new(Vectors::read(&self.store, &self.table, metric).await?);
                let mut all = self.vectors.lock().unwrap_or_else(PoisonError::into_inner);
                all.insert(metric, Arc::clone(&vectors));
                vectors
            }
        };
        Ok(queries.par_iter().map(|query| exact(&vectors, &query.vector, k, filter, query.exclude)).collect())
    }

    /// Exact search that reads the table in parts and keeps none of them.
    async fn scan_in_parts(
        &self,
        queries: &[QueryVector],
        k: usize,
        metric: Metric,
        filter: Option<&HashSet<u64>>,
    ) -> Result<Vec<Vec<Neighbour>>> {
        let doing = || Error::internal(format!("scanning {}", self.table));
        let table = self.store.table(&self.table).await?;
        let mut scan = table.scan();
        scan.project(&Vectors::COLUMNS).map_err(doing())?.batch_size(SCAN_ROWS);
        let mut parts = scan.try_into_stream().await.map_err(doing())?;
        let mut best: Vec<Vec<Neighbour>> = vec![Vec::new(); queries.len()];
        while let Some(part) = parts.try_next().await.map_err(doing())? {
            let vectors = Vectors::from_batches(&[part], metric)?;
            best.par_iter_mut().zip(queries).for_each(|(best, query)| {
                best.extend(exact(&vectors, &query.vector, k, filter, query.exclude));
                best.sort_unstable();
                best.truncate(k);
            });
        }
        Ok(best)
    }

    /// The index of the table, opened on first use.
    pub(super) async fn index(&self) -> Result<&LoadedIndex> {
        self.index.get_or_try_init(|| LoadedIndex::open(self.indexed_table())).await
    }

    pub(super) fn indexed_table(&self) -> IndexedTable<'_> {
        IndexedTable {
            store: &self.store,
            recipe: &self.recipe,
            name: &self.table,
            version: self.version,
            rows: self.rows,
            dim: self.dim,
        }
    }
}
