//! The choice between an index and a scan for a request, and between the kinds of index: by the table's size, k, the
//! metric, the filter, and what indexes there are.

use super::kind::IndexKind;
use super::loaded::LoadedIndex;
use super::metric::Metric;
use super::request::SearchMethod;
use super::search::Searcher;
use crate::error::Result;

/// Tables of fewer vectors are scanned: a scan is exact and faster than loading a graph.
const MIN_INDEXED: usize = 1_000;
/// An index is used for k up to the number of vectors divided by this: ef_search is 4 k, and a greater part of the
/// graph would be visited.
const MAX_K_SHARE: usize = 20;
/// Filters that keep a smaller part of the vectors are answered by a scan of those rows. A graph search would visit
/// many vectors for each one that passes.
const MIN_FILTER_SHARE: f64 = 0.1;

impl Searcher {
    /// Chooses how a request is answered. An index is used for cosine distance, in a table that is large enough, for a
    /// k that is small in proportion, and with a filter that keeps enough rows. `filter_rows` is the number of rows
    /// that pass the filter, `None` without a filter.
    ///
    /// # Errors
    /// The table of indexes cannot be read.
    pub async fn plan(&self, k: usize, metric: Metric, filter_rows: Option<usize>) -> Result<SearchMethod> {
        if !self.suits_index(k, metric, filter_rows) {
            return Ok(SearchMethod::Exact);
        }
        Ok(match self.index().await? {
            LoadedIndex::None => SearchMethod::Exact,
            LoadedIndex::Hnsw(index) => SearchMethod::Index(IndexKind::Hnsw, index.name.clone()),
            LoadedIndex::Ivf(name, _) => SearchMethod::Index(IndexKind::Ivf, name.clone()),
            LoadedIndex::Unusable(why) => SearchMethod::ExactInstead(why.clone()),
        })
    }

    /// The index that [`Searcher::plan`] would open for such a request, by its row in `indexes`; `None` where every
    /// vector is scanned. It opens no index: whether the files are whole and recent enough is known only when they are
    /// opened.
    ///
    /// # Errors
    /// The table of indexes cannot be read.
    pub async fn candidate_index(&self, k: usize, metric: Metric) -> Result<Option<SearchMethod>> {
        if !self.suits_index(k, metric, None) {
            return Ok(None);
        }
        let entry = self.indexed_table().best_entry().await?;
        Ok(entry.map(|entry| SearchMethod::Index(entry.kind, entry.name)))
    }

    fn suits_index(&self, k: usize, metric: Metric, filter_rows: Option<usize>) -> bool {
        let large_enough = self.rows >= MIN_INDEXED && k <= self.rows / MAX_K_SHARE;
        let keeps_enough = filter_rows.is_none_or(|kept| kept as f64 >= MIN_FILTER_SHARE * self.rows as f64);
        metric == Metric::Cosine && large_enough && keeps_enough
    }
}
