//! Nearest-neighbour questions, and the decision how each is answered.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::AsArray;
use arrow::datatypes::UInt64Type;
use cellql_schemas::embeddings;
use futures::TryStreamExt;
use lance::Dataset;
use rayon::prelude::*;
use tokio::sync::OnceCell;

use super::file::{self, Entry};
use super::graph::Graph;
use super::vectors::{self, Vectors, exact};
use super::{Kind, Metric, ivf};
use crate::error::{Error, Result};
use cellql_store::{Store, embedding_table, is_one_of};

/// Below this many vectors a scan is faster than loading a graph, and exact.
const SCAN_BELOW: usize = 1_000;
/// At most this part of the vectors is asked of a graph: a walk for k keeps 4·k candidates.
const SHARE_OF_GRAPH: usize = 20;
/// A filter that keeps less than this part is scanned for: a walk passes by as many vectors for each that qualifies, and a
/// scan looks at no others.
const LEAST_KEPT: f64 = 0.1;
/// An index that lacks more than this part of the table's vectors is not used.
const MOST_MISSING: f64 = 0.2;
/// Bytes of vectors that stay in memory between questions, unless told otherwise.
const KEPT: usize = 4 << 30;
/// Vectors that a scan of a larger table holds at once.
const ROWS_AT_ONCE: usize = 8192;

/// A row and how far it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Distance by the metric.
    pub distance: f32,
    /// Row of `cells`, or of `genes` where these are searched.
    pub cell_id: u64,
}

impl Eq for Neighbour {}

impl Ord for Neighbour {
    fn cmp(&self, other: &Self) -> Ordering {
        self.distance.total_cmp(&other.distance).then(self.cell_id.cmp(&other.cell_id))
    }
}

impl PartialOrd for Neighbour {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// How a question is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// Every vector was looked at.
    Exact,
    /// By the index of this kind and name.
    Index(Kind, String),
    /// Every vector was looked at, because the index cannot be used: why.
    ExactInstead(String),
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Method::Exact => f.write_str("exact scan"),
            Method::Index(Kind::Graph, name) => write!(f, "index '{name}'"),
            Method::Index(kind, name) => write!(f, "index '{name}' ({})", kind.name()),
            Method::ExactInstead(why) => write!(f, "exact scan, because {why}"),
        }
    }
}

/// Some queries with one `k`, metric and filter.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Vectors of the table's dimension, each with the row that must not be among its own neighbours.
    pub queries: &'a [(Vec<f32>, Option<u64>)],
    /// How many neighbours.
    pub k: usize,
    /// What near means.
    pub metric: Metric,
    /// Rows that may be answers; all where absent.
    pub among: Option<&'a HashSet<u64>>,
}

/// Neighbours of each query, nearest first, and how they were found.
pub type Found = (Vec<Vec<Neighbour>>, Method);

/// Answers questions about one embedding table at one version of a store. What it reads it keeps.
#[derive(Debug)]
pub struct Searcher {
    store: Store,
    recipe: String,
    table: String,
    /// Rows of the table.
    n: usize,
    /// Numbers per vector.
    dim: usize,
    version: u64,
    kept: usize,
    index: OnceCell<Usable>,
    vectors: Mutex<HashMap<Metric, Arc<Vectors>>>,
}

/// The index of a table, if any.
#[derive(Debug)]
enum Usable {
    No,
    Graph(Box<Indexed>),
    /// Lance's, of this name and in this table.
    Ivf(String, Arc<Dataset>),
    /// There is one, but it cannot be used: why.
    Not(String),
}

#[derive(Debug)]
struct Indexed {
    name: String,
    graph: Graph,
    /// Vectors of the table that the graph lacks.
    missing: Vectors,
    /// Rows of the graph that the table lacks.
    gone: HashSet<u64>,
}

impl Searcher {
    /// Opens the embeddings of a recipe.
    ///
    /// # Errors
    /// There is no such table.
    pub async fn open(store: &Store, recipe: &str) -> Result<Self> {
        let table = embedding_table(recipe);
        let rows = store.table(&table).await?;
        let n = rows.count_rows(None).await.map_err(Error::internal(format!("counting {table}")))?;
        Ok(Self {
            store: store.clone(),
            recipe: recipe.to_owned(),
            n,
            dim: vectors::dimension(&rows, &table)?,
            table,
            version: rows.version().version,
            kept: KEPT,
            index: OnceCell::new(),
            vectors: Mutex::default(),
        })
    }

    /// With so many bytes for vectors of each metric. A table that takes more is scanned by parts, from its files every time.
    pub fn keeping(self, bytes: usize) -> Self {
        Self { kept: bytes, ..self }
    }

    /// Name of the embedding table.
    pub fn recipe(&self) -> &str {
        &self.recipe
    }

    /// How a question would be answered. Scan or graph: few vectors, or a good part of them wanted, are scanned, since a walk
    /// would touch much of the graph; so are filters that keep little, and metrics the graph is not of. `kept` is the number
    /// of rows a filter keeps.
    ///
    /// # Errors
    /// The table of indexes cannot be read.
    pub async fn plan(&self, k: usize, metric: Metric, kept: Option<usize>) -> Result<Method> {
        let enough = self.n >= SCAN_BELOW && k <= self.n / SHARE_OF_GRAPH;
        let keeps = kept.is_none_or(|kept| kept as f64 >= LEAST_KEPT * self.n as f64);
        if metric != Metric::Cosine || !enough || !keeps {
            return Ok(Method::Exact);
        }
        Ok(match self.index().await? {
            Usable::No => Method::Exact,
            Usable::Graph(indexed) => Method::Index(Kind::Graph, indexed.name.clone()),
            Usable::Ivf(name, _) => Method::Index(Kind::Ivf, name.clone()),
            Usable::Not(why) => Method::ExactInstead(why.clone()),
        })
    }

    /// Answers a question.
    ///
    /// # Errors
    /// A query of another dimension or without direction, or a table that cannot be read.
    pub async fn search(&self, question: Question<'_>) -> Result<Found> {
        let Question { k, metric, among, .. } = question;
        let queries = self.prepared(&question)?;
        let k = k.min(self.n);
        let method = self.plan(k, metric, among.map(HashSet::len)).await?;
        let indexed = match &method {
            Method::Index(..) => self.index().await?,
            _ => &Usable::No,
        };
        let mut found = match indexed {
            Usable::Graph(indexed) => indexed.search(&queries, k, among),
            Usable::Ivf(name, table) => match ivf::search(table, &queries, k, among).await {
                Ok(found) => found,
                Err(error) => {
                    let why = format!("index '{name}' cannot be read ({error}); build it again");
                    return Ok((self.scan(&queries, k, metric, among).await?, Method::ExactInstead(why)));
                }
            },
            _ => return Ok((self.scan(&queries, k, metric, among).await?, method)),
        };
        // A walk may end before it met k rows that qualify.
        let short: Vec<usize> =
            (0..found.len()).filter(|i| among.is_some_and(|set| found[*i].len() < k.min(set.len()))).collect();
        if !short.is_empty() {
            let again: Vec<_> = short.iter().map(|i| queries[*i].clone()).collect();
            for (i, exact) in short.into_iter().zip(self.scan(&again, k, metric, among).await?) {
                found[i] = exact;
            }
        }
        Ok((found, method))
    }

    /// Vectors of rows of the table; `None` for rows without one.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn vectors_of(&self, rows: &[u64]) -> Result<Vec<Option<Vec<f32>>>> {
        let batches = self
            .store
            .read(&self.table, &Vectors::COLUMNS, Some(&is_one_of(embeddings::CELL_ID, rows.iter().copied())))
            .await?;
        // The inner product needs no preparation, so these are the vectors as they are.
        let found = Vectors::from_batches(&batches, Metric::InnerProduct)?;
        let at: HashMap<u64, usize> = found.ids.iter().copied().zip(0..).collect();
        Ok(rows.iter().map(|row| at.get(row).map(|at| found.at(*at).to_vec())).collect())
    }

    fn prepared(&self, question: &Question<'_>) -> Result<Vec<(Vec<f32>, Option<u64>)>> {
        let dim = self.dim;
        let prepare = |(vector, not): &(Vec<f32>, Option<u64>)| {
            if vector.len() != dim {
                let (given, recipe) = (vector.len(), &self.recipe);
                let problem = format!("the query has {given} numbers, the vectors of '{recipe}' have {dim}");
                return Err(Error::Request(problem));
            }
            let prepared = question.metric.prepare(vector).ok_or_else(|| {
                let metric = question.metric.name();
                Error::Request(format!("the query vector has no direction, which the metric '{metric}' needs"))
            })?;
            Ok((prepared, *not))
        };
        question.queries.iter().map(prepare).collect()
    }

    async fn scan(
        &self,
        queries: &[(Vec<f32>, Option<u64>)],
        k: usize,
        metric: Metric,
        among: Option<&HashSet<u64>>,
    ) -> Result<Vec<Vec<Neighbour>>> {
        let kept = self.vectors.lock().unwrap_or_else(PoisonError::into_inner).get(&metric).cloned();
        let vectors = match (kept, among) {
            (Some(vectors), _) => vectors,
            // Few rows are read by themselves.
            (None, Some(among)) if among.len() < self.n / 8 => {
                let rows = is_one_of(embeddings::CELL_ID, among.iter().copied());
                let batches = self.store.read(&self.table, &Vectors::COLUMNS, Some(&rows)).await?;
                Arc::new(Vectors::from_batches(&batches, metric)?)
            }
            (None, _) if 4 * self.n * self.dim > self.kept => {
                return self.scan_by_parts(queries, k, metric, among).await;
            }
            (None, _) => {
                let vectors = Arc::new(Vectors::read(&self.store, &self.table, metric).await?);
                let mut all = self.vectors.lock().unwrap_or_else(PoisonError::into_inner);
                all.insert(metric, Arc::clone(&vectors));
                vectors
            }
        };
        Ok(queries.par_iter().map(|(query, not)| exact(&vectors, query, k, among, *not)).collect())
    }

    async fn scan_by_parts(
        &self,
        queries: &[(Vec<f32>, Option<u64>)],
        k: usize,
        metric: Metric,
        among: Option<&HashSet<u64>>,
    ) -> Result<Vec<Vec<Neighbour>>> {
        let doing = || Error::internal(format!("scanning {}", self.table));
        let table = self.store.table(&self.table).await?;
        let mut scan = table.scan();
        scan.project(&Vectors::COLUMNS).map_err(doing())?.batch_size(ROWS_AT_ONCE);
        let mut parts = scan.try_into_stream().await.map_err(doing())?;
        let mut best: Vec<Vec<Neighbour>> = vec![Vec::new(); queries.len()];
        while let Some(part) = parts.try_next().await.map_err(doing())? {
            let vectors = Vectors::from_batches(&[part], metric)?;
            best.par_iter_mut().zip(queries).for_each(|(best, (query, not))| {
                best.extend(exact(&vectors, query, k, among, *not));
                best.sort_unstable();
                best.truncate(k);
            });
        }
        Ok(best)
    }

    async fn index(&self) -> Result<&Usable> {
        self.index.get_or_try_init(|| self.open_index()).await
    }

    async fn open_index(&self) -> Result<Usable> {
        let all = file::list(&self.store).await?;
        // Of several the kind that fits, and of these the newest.
        let fitting = Kind::fitting(self.n, self.dim);
        let of_table = all.into_iter().filter(|i| i.recipe == self.recipe);
        let Some(entry) = of_table.max_by_key(|i| (i.kind == fitting, i.table_version)) else { return Ok(Usable::No) };
        match entry.kind {
            Kind::Graph => self.open_graph(entry).await,
            Kind::Ivf => self.open_ivf(entry).await,
        }
    }

    async fn open_ivf(&self, entry: Entry) -> Result<Usable> {
        let table = self.store.table(&self.table).await?;
        let Entry { name, n_vectors, table_version, .. } = entry;
        if !ivf::exists(&table).await? {
            return Ok(Usable::Not(format!("index '{name}' is no longer part of its table; build it again")));
        }
        if table_version != self.version {
            let now = ivf::count(&table).await?;
            if now.abs_diff(n_vectors as usize) as f64 > MOST_MISSING * now as f64 {
                return Ok(Usable::Not(too_old(&name)));
            }
        }
        Ok(Usable::Ivf(name, table))
    }

    async fn open_graph(&self, entry: Entry) -> Result<Usable> {
        let graph = match file::open(&self.store, &entry).await {
            Ok(graph) => graph,
            Err(error) => return Ok(Usable::Not(error.to_string())),
        };
        let (mut missing, mut gone) = (Vectors::default(), HashSet::new());
        if entry.table_version != self.version {
            let batches = self.store.read(&self.table, &[embeddings::CELL_ID], None).await?;
            let ids = batches.iter().flat_map(|b| b.column(0).as_primitive::<UInt64Type>().values().iter().copied());
            let now: HashSet<u64> = ids.collect();
            let known: HashSet<u64> = graph.ids().iter().copied().collect();
            gone = known.difference(&now).copied().collect();
            let new: Vec<u64> = now.difference(&known).copied().collect();
            if (new.len() + gone.len()) as f64 > MOST_MISSING * self.n as f64 {
                return Ok(Usable::Not(too_old(&entry.name)));
            }
            if !new.is_empty() {
                let batches =
                    self.store.read(&self.table, &Vectors::COLUMNS, Some(&is_one_of(embeddings::CELL_ID, new))).await?;
                missing = Vectors::from_batches(&batches, Metric::Cosine)?;
            }
        }
        Ok(Usable::Graph(Box::new(Indexed { name: entry.name, graph, missing, gone })))
    }
}

fn too_old(name: &str) -> String {
    format!("index '{name}' is of an older version of the table and lacks too much; build it again")
}

impl Indexed {
    /// The graph's answers and those among the vectors it lacks.
    fn search(
        &self,
        queries: &[(Vec<f32>, Option<u64>)],
        k: usize,
        among: Option<&HashSet<u64>>,
    ) -> Vec<Vec<Neighbour>> {
        let allowed = |id: u64| !self.gone.contains(&id) && among.is_none_or(|set| set.contains(&id));
        let restricts = among.is_some() || !self.gone.is_empty();
        let allowed: Option<&(dyn Fn(u64) -> bool + Sync)> = if restricts { Some(&allowed) } else { None };
        // One more than asked for, since the row of the query itself may be among them.
        let vectors: Vec<Vec<f32>> = queries.iter().map(|(query, _)| query.clone()).collect();
        let mut all = self.graph.search(&vectors, k + 1, allowed);
        all.par_iter_mut().zip(queries).for_each(|(found, (query, not))| {
            found.extend(exact(&self.missing, query, k + 1, among, *not));
            found.retain(|n| Some(n.cell_id) != *not);
            found.sort_unstable();
            found.truncate(k);
        });
        all
    }
}
