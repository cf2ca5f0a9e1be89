//! The navigable graph of an index together with the vectors and rows it is of.
//!
//! Three files: `graph` (as `cellql-neighbours` writes it), `ids` (u64) and `vectors` (f32, unit length), both
//! little-endian by position. Every byte is checked against the manifest before it gets here (see [`super::file`]).

use cellql_neighbours as neighbours;
use serde::{Deserialize, Serialize};

use super::search::Neighbour;
use super::vectors::Vectors;
use crate::error::{Error, Result};
use cellql_model::FileBytes;

/// Files of a graph in its folder.
pub(super) const GRAPH: &str = "graph";
pub(super) const IDS: &str = "ids";
pub(super) const VECTORS: &str = "vectors";

/// How a graph is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GraphOptions {
    /// Links per vector and layer, 2 to 255.
    pub(super) links: usize,
    /// Candidates looked at when a vector is linked.
    pub(super) breadth: usize,
}

impl Default for GraphOptions {
    fn default() -> Self {
        let neighbours::Options { links, breadth, .. } = neighbours::Options::default();
        Self { links, breadth }
    }
}

/// A graph over vectors, and whose they are.
#[derive(Debug)]
pub(super) struct Graph {
    graph: neighbours::Graph,
    ids: Vec<u64>,
    vectors: FileBytes,
}

impl Graph {
    /// Builds the graph over unit vectors and gives its files. `on_progress` is told how many are linked.
    pub(super) fn build(
        vectors: &Vectors,
        options: GraphOptions,
        on_progress: impl Fn(u64) + Sync,
    ) -> Result<[(&'static str, Vec<u8>); 3]> {
        let options = neighbours::Options { links: options.links, breadth: options.breadth, seed: 0 };
        let graph = neighbours::Graph::build(&vectors.prepared, vectors.dim, &options, on_progress);
        let mut bytes = Vec::new();
        graph.write(&mut bytes).map_err(Error::internal("writing the graph"))?;
        let ids = vectors.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let units = vectors.prepared.iter().flat_map(|v| v.to_le_bytes()).collect();
        Ok([(GRAPH, bytes), (IDS, ids), (VECTORS, units)])
    }

    /// Of its files' bytes.
    ///
    /// # Errors
    /// What does not fit together, as a part of a sentence.
    pub(super) fn open(graph: &[u8], ids: &[u8], vectors: FileBytes) -> Result<Self, String> {
        let graph = neighbours::Graph::read(graph).map_err(|e| e.to_string())?;
        let ids: Vec<u64> = ids.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        let floats = bytemuck::try_cast_slice::<u8, f32>(&vectors).map_err(|e| e.to_string())?;
        if graph.len() != ids.len() || floats.len() != graph.len() * graph.dim() {
            return Err("holds another number of vectors than the other files".to_owned());
        }
        Ok(Self { graph, ids, vectors })
    }

    /// Rows in the graph, by position.
    pub(super) fn ids(&self) -> &[u64] {
        &self.ids
    }

    fn units(&self) -> &[f32] {
        // It was cast when the graph was opened.
        bytemuck::try_cast_slice(&self.vectors).unwrap_or_default()
    }

    /// Of each of some unit vectors the `k` nearest that `allowed` allows, nearest first; approximate.
    pub(super) fn search(
        &self,
        queries: &[Vec<f32>],
        k: usize,
        allowed: Option<&(dyn Fn(u64) -> bool + Sync)>,
    ) -> Vec<Vec<Neighbour>> {
        let by_position = allowed.map(|allowed| move |position: u32| allowed(self.ids[position as usize]));
        let by_position = by_position.as_ref().map(|f| f as &(dyn Fn(u32) -> bool + Sync));
        let flat: Vec<f32> = queries.concat();
        let found = self.graph.search_many(self.units(), &flat, k, breadth(k), by_position);
        let named = |f: neighbours::Found| Neighbour { distance: f.distance, cell_id: self.ids[f.position as usize] };
        found.into_iter().map(|one| one.into_iter().map(named).collect()).collect()
    }
}

/// Candidates kept on a walk for `k`; more find more (`make bench-neighbours` shows what each breadth finds).
fn breadth(k: usize) -> usize {
    (4 * k).max(128)
}
