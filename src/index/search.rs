//! Nearest-neighbour questions, and the decision how each is answered.

use std::cmp::Ordering;
use std::collections::HashSet;

use arrow::datatypes::{DataType, Schema};
use cellql_schemas::embeddings;

use super::file::{self, Entry};
use super::vectors::{Vectors, exact, unit};
use crate::error::{Error, Result};
use crate::store::{Store, embedding_table};

/// Below this many vectors a scan is faster than loading a graph, and exact.
const SCAN_BELOW: usize = 1_000;
/// At most this part of the vectors is asked of a graph: a walk for k keeps 4·k candidates.
const SHARE_OF_GRAPH: usize = 20;

/// A cell and how far it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Cosine distance, 0 to 2.
    pub distance: f32,
    /// Row of `cells`.
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

/// How a question was answered, for people who ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// Every vector was looked at.
    Exact,
    /// By the graph of this index.
    Graph(String),
    /// Every vector was looked at because the index could not be used.
    ExactInstead(String),
}

/// A question.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Embedding table.
    pub recipe: &'a str,
    /// A cell of it, or a vector.
    pub query: Query<'a>,
    /// How many.
    pub k: usize,
    /// Cells that may be answers; all where absent.
    pub among: Option<HashSet<u64>>,
}

/// From where.
#[derive(Debug, Clone, Copy)]
pub enum Query<'a> {
    /// A cell; it is not its own neighbour.
    Cell(u64),
    /// A vector of the table's dimension.
    Vector(&'a [f32]),
}

/// Scan or graph. Many neighbours are scanned for, since a walk would touch much of the graph. A filter always scans: it cannot promise k answers that qualify. So does an index over an older
/// version of the table: it lacks vectors, or has deleted ones.
pub fn uses_graph(n_vectors: usize, k: usize, filtered: bool, index_version: u64, table_version: u64) -> bool {
    index_version == table_version && !filtered && n_vectors >= SCAN_BELOW && k <= n_vectors / SHARE_OF_GRAPH
}

/// Answers a question, nearest first.
///
/// # Errors
/// An unknown recipe, a cell without a vector, or a vector of another dimension.
pub async fn search(store: &Store, request: Request<'_>) -> Result<(Vec<Neighbour>, Method)> {
    let name = embedding_table(request.recipe);
    let table = store.table(&name).await?;
    let (query, not) = query_unit(store, &name, &request).await?;
    let n_vectors = table.count_rows(None).await.map_err(Error::store(format!("counting {name}")))?;
    let version = table.version().version;
    let k = request.k.min(n_vectors);
    let (method, graph) = match usable_index(store, &request, n_vectors, version).await? {
        None => (Method::Exact, None),
        Some(entry) => match file::open(store, &entry).await {
            Ok(graph) => (Method::Graph(entry.name), Some(graph)),
            Err(error) => (Method::ExactInstead(error.to_string()), None),
        },
    };
    let found = match graph {
        None => exact(&Vectors::read(store, &name).await?, &query, k, request.among.as_ref(), not),
        Some(graph) => {
            let mut found = graph.search(&query, k + 1, None);
            found.retain(|n| Some(n.cell_id) != not);
            found.truncate(k);
            found
        }
    };
    Ok((found, method))
}

async fn usable_index(store: &Store, request: &Request<'_>, n: usize, version: u64) -> Result<Option<Entry>> {
    let all = file::list(store).await?;
    let usable = |i: &Entry| {
        i.recipe == request.recipe && uses_graph(n, request.k, request.among.is_some(), i.table_version, version)
    };
    Ok(all.into_iter().find(usable))
}

/// The unit vector a question starts from, and the cell it is of.
async fn query_unit(store: &Store, table: &str, request: &Request<'_>) -> Result<(Vec<f32>, Option<u64>)> {
    match request.query {
        Query::Cell(id) => {
            let filter = format!("{} = {id}", embeddings::CELL_ID);
            let one = Vectors::from_batches(&store.read(table, &Vectors::COLUMNS, Some(&filter)).await?)?;
            if one.is_empty() {
                let recipe = request.recipe;
                return Err(Error::Request(format!("cell {id} has no vector in the embedding table '{recipe}'")));
            }
            Ok((one.units, Some(id)))
        }
        Query::Vector(vector) => {
            let unit = unit(vector);
            let unit =
                unit.ok_or_else(|| Error::Request("the query vector has no direction: its length is 0".into()))?;
            let dim = dim_of(store, table).await?;
            if vector.len() != dim {
                let (given, recipe) = (vector.len(), request.recipe);
                let problem = format!("the query has {given} numbers, the vectors of '{recipe}' have {dim}");
                return Err(Error::Request(problem));
            }
            Ok((unit, None))
        }
    }
}

/// Numbers per vector of an embedding table.
async fn dim_of(store: &Store, table: &str) -> Result<usize> {
    let schema = Schema::from(store.table(table).await?.schema());
    match schema.field_with_name(embeddings::VECTOR).map(|f| f.data_type().clone()) {
        Ok(DataType::FixedSizeList(_, dim)) => Ok(dim as usize),
        _ => Err(Error::Request(format!("table {table} holds no vectors"))),
    }
}
