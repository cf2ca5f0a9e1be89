//! The index of an embedding table, opened and brought up to the version of the table.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::UInt64Type;
use cellql_schemas::embeddings;
use lance::Dataset;
use rayon::prelude::*;

use super::entries::{self, IndexEntry};
use super::hnsw::HnswIndex;
use super::kind::IndexKind;
use super::metric::Metric;
use super::neighbour::Neighbour;
use super::request::QueryVector;
use super::vectors::{Vectors, exact};
use super::{files, ivf};
use crate::error::Result;
use cellql_store::{Store, is_one_of};

/// An index that lacks more than this part of the table's vectors is not used.
const MAX_MISSING: f64 = 0.2;

/// The index of an embedding table at one version.
#[derive(Debug)]
pub(super) enum LoadedIndex {
    /// The table has no index.
    None,
    /// An HNSW graph.
    Hnsw(Box<UpdatedHnsw>),
    /// Lance's IVF of this name, which is part of this table.
    Ivf(String, Arc<Dataset>),
    /// There is an index that cannot be used, for this reason.
    Unusable(String),
}

/// The embedding table that an index is opened for.
#[derive(Debug, Clone, Copy)]
pub(super) struct IndexedTable<'a> {
    pub(super) store: &'a Store,
    pub(super) recipe: &'a str,
    /// Name of the table.
    pub(super) name: &'a str,
    /// Version of the table.
    pub(super) version: u64,
    /// Number of rows.
    pub(super) rows: usize,
    /// Dimension of the vectors.
    pub(super) dim: usize,
}

impl IndexedTable<'_> {
    /// The row of `indexes` to use: of several the kind that fits the memory, and of these the newest. Opens no index.
    ///
    /// # Errors
    /// The list of indexes cannot be read.
    pub(super) async fn best_entry(&self) -> Result<Option<IndexEntry>> {
        let fitting = IndexKind::fitting(self.rows, self.dim);
        let of_table = entries::list(self.store).await?.into_iter().filter(|entry| entry.recipe == self.recipe);
        Ok(of_table.max_by_key(|entry| (entry.kind == fitting, entry.table_version)))
    }
}

impl LoadedIndex {
    /// Opens the index of a table. Of several it takes the kind that fits the memory, and of these the newest.
    ///
    /// # Errors
    /// The table or the list of indexes cannot be read. A damaged index is [`LoadedIndex::Unusable`].
    pub(super) async fn open(table: IndexedTable<'_>) -> Result<Self> {
        match table.best_entry().await? {
            None => Ok(LoadedIndex::None),
            Some(entry) if entry.kind == IndexKind::Hnsw => open_hnsw(table, entry).await,
            Some(entry) => open_ivf(table, entry).await,
        }
    }
}

async fn open_ivf(table: IndexedTable<'_>, entry: IndexEntry) -> Result<LoadedIndex> {
    let dataset = table.store.table(table.name).await?;
    let IndexEntry { name, n_vectors, table_version, .. } = entry;
    if !ivf::exists(&dataset).await? {
        return Ok(LoadedIndex::Unusable(format!("index '{name}' is no longer part of its table; build it again")));
    }
    if table_version != table.version {
        let now = ivf::count(&dataset).await?;
        if now.abs_diff(n_vectors as usize) as f64 > MAX_MISSING * now as f64 {
            return Ok(LoadedIndex::Unusable(too_old(&name)));
        }
    }
    Ok(LoadedIndex::Ivf(name, dataset))
}

async fn open_hnsw(table: IndexedTable<'_>, entry: IndexEntry) -> Result<LoadedIndex> {
    let index = match files::open(table.store, &entry).await {
        Ok(index) => index,
        Err(error) => return Ok(LoadedIndex::Unusable(error.to_string())),
    };
    let (mut missing, mut removed) = (Vectors::default(), HashSet::new());
    if entry.table_version != table.version {
        let batches = table.store.read(table.name, &[embeddings::CELL_ID], None).await?;
        let ids = batches.iter().flat_map(|b| b.column(0).as_primitive::<UInt64Type>().values().iter().copied());
        let now: HashSet<u64> = ids.collect();
        let indexed: HashSet<u64> = index.ids().iter().copied().collect();
        removed = indexed.difference(&now).copied().collect();
        let new: Vec<u64> = now.difference(&indexed).copied().collect();
        if (new.len() + removed.len()) as f64 > MAX_MISSING * table.rows as f64 {
            return Ok(LoadedIndex::Unusable(too_old(&entry.name)));
        }
        if !new.is_empty() {
            let condition = is_one_of(embeddings::CELL_ID, new);
            let batches = table.store.read(table.name, &Vectors::COLUMNS, Some(&condition)).await?;
            missing = Vectors::from_batches(&batches, Metric::Cosine)?;
        }
    }
    Ok(LoadedIndex::Hnsw(Box::new(UpdatedHnsw { name: entry.name, index, missing, removed })))
}

fn too_old(name: &str) -> String {
    format!("index '{name}' is of an older version of the table and lacks too much; build it again")
}

/// An HNSW index and what has changed in the table since it was built.
#[derive(Debug)]
pub(super) struct UpdatedHnsw {
    /// Name of the index.
    pub(super) name: String,
    index: HnswIndex,
    /// Vectors of the table that the graph lacks.
    missing: Vectors,
    /// Rows of the graph that the table no longer has.
    removed: HashSet<u64>,
}

impl UpdatedHnsw {
    /// The approximate `k` nearest to each prepared query: from the graph, and from an exact scan of the vectors it
    /// lacks.
    pub(super) fn search(
        &self,
        queries: &[QueryVector],
        k: usize,
        filter: Option<&HashSet<u64>>,
    ) -> Vec<Vec<Neighbour>> {
        let passes = |id: u64| !self.removed.contains(&id) && filter.is_none_or(|rows| rows.contains(&id));
        let restricted = filter.is_some() || !self.removed.is_empty();
        let graph_filter: Option<&(dyn Fn(u64) -> bool + Sync)> = if restricted { Some(&passes) } else { None };
        // One more than k, because the excluded row may be among them.
        let mut all = self.index.search(queries, k + 1, graph_filter);
        all.par_iter_mut().zip(queries).for_each(|(found, query)| {
            found.extend(exact(&self.missing, &query.vector, k + 1, filter, query.exclude));
            found.retain(|neighbour| Some(neighbour.cell_id) != query.exclude);
            found.sort_unstable();
            found.truncate(k);
        });
        all
    }
}
