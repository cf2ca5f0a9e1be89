//! An HNSW graph with the f32 vectors it was built from and the ids of their rows.
//!
//! It has three files: `graph` (as `cellql-neighbours` writes it), `ids` (u64 `[n]`) and `vectors` (f32 `[n, dim]`,
//! unit length), the last two little-endian. [`super::files`] checks every byte before it is read here.

use cellql_neighbours::{GraphReadError, Hit, HnswConfig, HnswGraph};
use serde::{Deserialize, Serialize};

use super::neighbour::Neighbour;
use super::request::QueryVector;
use super::vectors::Vectors;
use crate::error::{Error, Result};
use cellql_model::FileBytes;

/// Names of the files in the index's folder.
pub(super) const GRAPH: &str = "graph";
pub(super) const IDS: &str = "ids";
pub(super) const VECTORS: &str = "vectors";

/// How a graph is built, as the manifest records it. The names in the manifest are older than those of the fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HnswOptions {
    /// M: links per vector on each layer above the base layer, 2 to 255.
    #[serde(rename = "links")]
    pub(super) m: usize,
    /// Candidates kept while a vector is inserted.
    #[serde(rename = "breadth")]
    pub(super) ef_construction: usize,
}

impl Default for HnswOptions {
    fn default() -> Self {
        let HnswConfig { m, ef_construction, .. } = HnswConfig::default();
        Self { m, ef_construction }
    }
}

/// Why the files of an index cannot be opened although their checksums are right.
#[derive(Debug, thiserror::Error)]
pub(super) enum HnswOpenError {
    #[error(transparent)]
    Graph(#[from] GraphReadError),
    #[error("the vectors are not f32 values: {0}")]
    Vectors(bytemuck::PodCastError),
    #[error("the graph has {graph} vectors of dimension {dim}, but there are {ids} ids and {values} values of vectors")]
    Sizes { graph: usize, dim: usize, ids: usize, values: usize },
}

/// A graph, its vectors and the rows they belong to.
#[derive(Debug)]
pub(super) struct HnswIndex {
    graph: HnswGraph,
    ids: Vec<u64>,
    vectors: FileBytes,
}

impl HnswIndex {
    /// Builds a graph over unit vectors and returns its files: name and bytes. `on_progress` gets the number of vectors
    /// linked so far.
    pub(super) fn build(
        vectors: &Vectors,
        options: HnswOptions,
        on_progress: impl Fn(u64) + Sync,
    ) -> Result<[(&'static str, Vec<u8>); 3]> {
        let config = HnswConfig { m: options.m, ef_construction: options.ef_construction, seed: 0 };
        let graph = HnswGraph::build(&vectors.prepared, vectors.dim, &config, on_progress);
        let mut bytes = Vec::new();
        graph.write(&mut bytes).map_err(Error::internal("writing the graph"))?;
        let ids = vectors.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let values = vectors.prepared.iter().flat_map(|v| v.to_le_bytes()).collect();
        Ok([(GRAPH, bytes), (IDS, ids), (VECTORS, values)])
    }

    /// Opens a graph from the bytes of its files.
    ///
    /// # Errors
    /// The graph is damaged, or the files do not belong together.
    pub(super) fn open(graph: &[u8], ids: &[u8], vectors: FileBytes) -> Result<Self, HnswOpenError> {
        let graph = HnswGraph::read(graph)?;
        let ids: Vec<u64> = ids.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        let values = bytemuck::try_cast_slice::<u8, f32>(&vectors).map_err(HnswOpenError::Vectors)?.len();
        if graph.len() != ids.len() || values != graph.len() * graph.dim() {
            return Err(HnswOpenError::Sizes { graph: graph.len(), dim: graph.dim(), ids: ids.len(), values });
        }
        Ok(Self { graph, ids, vectors })
    }

    /// `[n]`: ids of the rows, by position in the graph.
    pub(super) fn ids(&self) -> &[u64] {
        &self.ids
    }

    fn vectors(&self) -> &[f32] {
        // `open` has checked that the cast succeeds.
        bytemuck::try_cast_slice(&self.vectors).unwrap_or_default()
    }

    /// The approximate `k` nearest to each prepared query among the rows that pass `filter`, nearest first. The query's
    /// own row is not excluded.
    pub(super) fn search(
        &self,
        queries: &[QueryVector],
        k: usize,
        filter: Option<&(dyn Fn(u64) -> bool + Sync)>,
    ) -> Vec<Vec<Neighbour>> {
        let by_position = filter.map(|filter| move |position: u32| filter(self.ids[position as usize]));
        let by_position = by_position.as_ref().map(|f| f as &(dyn Fn(u32) -> bool + Sync));
        let flat: Vec<f32> = queries.iter().flat_map(|query| query.vector.iter().copied()).collect();
        let found = self.graph.search_many(self.vectors(), &flat, k, ef_search(k), by_position);
        let neighbour = |hit: Hit| Neighbour { distance: hit.distance, cell_id: self.ids[hit.position as usize] };
        found.into_iter().map(|hits| hits.into_iter().map(neighbour).collect()).collect()
    }
}

/// ef_search for `k` neighbours. `make bench-neighbours` prints the recall of each ef_search.
fn ef_search(k: usize) -> usize {
    (4 * k).max(96)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_keep_the_names_of_their_options() {
        let json = serde_json::to_value(HnswOptions { m: 16, ef_construction: 128 }).unwrap();
        assert_eq!(json, serde_json::json!({ "links": 16, "breadth": 128 }));
    }
}
