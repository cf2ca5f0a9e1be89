//! hnsw_rs, wrapped: built from unit vectors, written to and read from a folder.
//!
//! hnsw_rs ends the process on some damaged files and panics on others, so a folder is handed to it only after every
//! byte was checked against the manifest (see [`super::file`]).

use std::fmt;
use std::path::Path;

use hnsw_rs::anndists::dist::Distance;
use hnsw_rs::hnswio::HnswIo;
use hnsw_rs::prelude::{AnnT, Hnsw};
use serde::{Deserialize, Serialize};

use super::search::Neighbour;
use super::vectors::{Vectors, distance};
use crate::error::{Error, Result};

/// hnsw_rs's name for the files it writes: `vectors.hnsw.graph` and `vectors.hnsw.data`.
const BASENAME: &str = "vectors";
/// Files of a graph in its folder.
pub(super) const FILES: [&str; 2] = ["vectors.hnsw.graph", "vectors.hnsw.data"];

/// Cosine distance of unit vectors.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct UnitCosine;

impl Distance<f32> for UnitCosine {
    fn eval(&self, a: &[f32], b: &[f32]) -> f32 {
        distance(a, b)
    }
}

/// How a graph is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphOptions {
    /// Links per vector and layer; hnsw_rs takes at most 255.
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
    hnsw: Hnsw<'static, f32, UnitCosine>,
    cell_ids: Vec<u64>,
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("vectors", &self.cell_ids.len()).finish_non_exhaustive()
    }
}

impl Graph {
    /// Builds the graph.
    pub fn build(vectors: &Vectors, options: GraphOptions) -> Self {
        const LAYERS: usize = 16;
        let connections = usize::from(options.connections);
        let size = vectors.len().max(1);
        let mut hnsw = Hnsw::new(connections, size, LAYERS, options.ef_construction, UnitCosine);
        hnsw.set_extend_candidates(true);
        let points: Vec<(&[f32], usize)> = (0..vectors.len()).map(|i| (vectors.at(i), i)).collect();
        hnsw.parallel_insert_slice(&points);
        hnsw.set_searching_mode(true);
        Self { hnsw, cell_ids: vectors.cell_ids.clone() }
    }

    /// Cells in the graph, by position.
    pub fn cell_ids(&self) -> &[u64] {
        &self.cell_ids
    }

    /// The `k` nearest to a unit vector, nearest first; approximate.
    pub fn search(&self, query: &[f32], k: usize) -> Vec<Neighbour> {
        let ef = (4 * k).max(128);
        let found = self.hnsw.search(query, k, ef);
        let mut found: Vec<Neighbour> = found
            .into_iter()
            .filter_map(|n| Some(Neighbour { distance: n.distance, cell_id: *self.cell_ids.get(n.d_id)? }))
            .collect();
        found.sort_unstable();
        found
    }

    /// Writes [`FILES`] into a folder.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let doing = format!("writing the graph to {}", folder.display());
        self.hnsw.file_dump(folder, BASENAME).map_err(|e| Error::store(doing)(e.to_string()))?;
        Ok(())
    }

    /// Reads [`FILES`] from a folder. They must be whole: check them first.
    pub(super) fn read(folder: &Path, cell_ids: Vec<u64>) -> Result<Self> {
        let doing = format!("reading the graph from {}", folder.display());
        // hnsw_rs ties the graph to its reader by lifetime, though without memory mapping nothing is shared. A reader is
        // a few hundred bytes, and an index is opened once per process.
        let reader = Box::leak(Box::new(HnswIo::new(folder, BASENAME)));
        let hnsw: Hnsw<'static, f32, UnitCosine> =
            reader.load_hnsw().map_err(|e| Error::store(doing)(e.to_string()))?;
        if hnsw.get_nb_point() != cell_ids.len() {
            let (points, ids) = (hnsw.get_nb_point(), cell_ids.len());
            return Err(Error::Request(format!("the index holds {points} vectors but names {ids} cells")));
        }
        Ok(Self { hnsw, cell_ids })
    }
}
