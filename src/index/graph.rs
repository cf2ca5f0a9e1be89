//! The graph of `cellql-neighbours` with what it needs to answer for cells: their vectors and ids.

use std::fmt;

use cellql_neighbours::{Graph as Walks, Options};
use serde::{Deserialize, Serialize};

use super::search::Neighbour;
use super::vectors::Vectors;

/// How a graph is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphOptions {
    /// Links per vector and layer (M), 2 to 255; the ground layer has twice as many.
    pub connections: u8,
    /// Candidates looked at when a vector is linked.
    pub ef_construction: usize,
}

impl Default for GraphOptions {
    fn default() -> Self {
        Self { connections: 24, ef_construction: 256 }
    }
}

/// A navigable graph over vectors.
pub struct Graph {
    walks: Walks,
    vectors: Vectors,
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("vectors", &self.vectors.len()).finish_non_exhaustive()
    }
}

impl Graph {
    /// Builds the graph.
    pub fn build(vectors: Vectors, options: GraphOptions) -> Self {
        let seed = 0;
        let options = Options { links: usize::from(options.connections), breadth: options.ef_construction, seed };
        let walks = Walks::build(&vectors.units, vectors.dim, &options, |_| ());
        Self { walks, vectors }
    }

    /// What [`bytes`](Self::bytes) gave, with its vectors; an error says what is wrong, for people.
    pub(super) fn read(bytes: &[u8], vectors: Vectors) -> Result<Self, String> {
        let walks = Walks::read(bytes).map_err(|e| e.to_string())?;
        let (n, ids, numbers) = (walks.len(), vectors.len(), vectors.units.len());
        if ids != n || walks.dim() != vectors.dim || numbers != n * vectors.dim {
            return Err(format!("it links {n} vectors, but there are {ids} cells and {numbers} numbers"));
        }
        Ok(Self { walks, vectors })
    }

    /// The links, without the vectors.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Nothing is refused by memory.
        let _ = self.walks.write(&mut bytes);
        bytes
    }

    /// Vectors in the graph, by position.
    pub fn vectors(&self) -> &Vectors {
        &self.vectors
    }

    /// The `k` nearest to a unit vector, nearest first; approximate. With `allowed`, only cells it allows, of which fewer
    /// than `k` may be found; the fewer it allows the longer it takes.
    pub fn search(&self, query: &[f32], k: usize, allowed: Option<&(dyn Fn(u64) -> bool + Sync)>) -> Vec<Neighbour> {
        let breadth = (4 * k).max(128);
        let cell_id = |position: u32| self.vectors.cell_ids[position as usize];
        let among = allowed.map(|allowed| move |position: u32| allowed(cell_id(position)));
        let among = among.as_ref().map(|among| among as &(dyn Fn(u32) -> bool + Sync));
        let found = self.walks.search(&self.vectors.units, query, k, breadth, among);
        let mut found: Vec<Neighbour> =
            found.into_iter().map(|n| Neighbour { distance: n.distance, cell_id: cell_id(n.position) }).collect();
        found.sort_unstable();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors around a circle, a degree apart; cell ids are ten times the degree.
    fn circle() -> Vectors {
        let angles = (0..360u16).map(|degree| f32::from(degree).to_radians());
        let units = angles.flat_map(|a| [a.cos(), a.sin()]).collect();
        Vectors { dim: 2, cell_ids: (0..360).map(|i| 10 * i).collect(), units }
    }

    fn ids(found: &[Neighbour]) -> Vec<u64> {
        found.iter().map(|n| n.cell_id).collect()
    }

    #[test]
    fn answers_are_cells_and_obey_a_filter() {
        let vectors = circle();
        let query = vectors.at(100).to_vec();
        let graph = Graph::build(vectors, GraphOptions::default());
        assert_eq!(ids(&graph.search(&query, 1, None)), [1000]);
        let even = |id: u64| id % 40 == 20;
        let mut found = ids(&graph.search(&query, 4, Some(&even)));
        found.sort_unstable();
        assert_eq!(found, [940, 980, 1020, 1060]);
    }

    #[test]
    fn a_graph_of_other_vectors_is_refused() {
        let graph = Graph::build(circle(), GraphOptions::default());
        let bytes = graph.bytes();
        assert!(Graph::read(&bytes, circle()).is_ok());
        let mut fewer = circle();
        fewer.cell_ids.pop();
        assert!(Graph::read(&bytes, fewer).is_err());
        assert!(Graph::read(&bytes[1..], circle()).is_err());
    }
}
