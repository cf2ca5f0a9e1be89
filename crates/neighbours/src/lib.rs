//! Approximate nearest neighbours among unit vectors with an HNSW graph (Malkov & Yashunin 2018, arXiv:1603.09320).
//!
//! The graph and the vectors it searches are flat arrays. A search reads scalar-quantised vectors (8 bits a dimension),
//! because memory traffic limits it and these are a quarter of f32; the best candidates are then rescored with the f32
//! vectors.
//!
//! Equal vectors, and those nearer to each other than their codes can tell, share one node of the graph, and a search
//! that comes near it computes the f32 distances of all of them. So many copies of a vector, or many nearly equal ones,
//! are found like any others; hits of equal distance are sorted by position.
//!
//! Building and searching use all threads of rayon's pool. On one thread a seed gives the same graph on every
//! CPU.
//!
//! The crate depends on `cellql-kernels` for f32 dot products, on rayon, and on libc for advice about memory. It knows
//! nothing of stores, files or models. The f32 vectors `[n, dim]` stay with the caller and are passed to each call;
//! passing vectors of another number or dimension than the graph's is a fault of the caller and panics. A damaged graph
//! file is a [`GraphReadError`] and never panics.
//!
//! # Example
//!
//! ```
//! use cellql_neighbours::{HnswConfig, HnswGraph};
//!
//! // Unit vectors `[360, 2]`: one for each degree of a circle.
//! let angles = (0..360u16).map(|degree| f32::from(degree).to_radians());
//! let vectors: Vec<f32> = angles.flat_map(|angle| [angle.cos(), angle.sin()]).collect();
//!
//! let config = HnswConfig { m: 8, ef_construction: 64, seed: 0 };
//! let graph = HnswGraph::build(&vectors, 2, &config, |_linked| ());
//!
//! // The three nearest to 90 degrees, with ef_search = 32 and without a filter.
//! let hits = graph.search(&vectors, &[0.0, 1.0], 3, 32, None);
//! assert_eq!(hits[0].position, 90);
//! assert!(hits[0].distance < 1e-6);
//!
//! // The same among even degrees only.
//! let hits = graph.search(&vectors, &[0.0, 1.0], 3, 32, Some(&|position| position % 2 == 0));
//! assert!(hits.iter().all(|hit| [88, 90, 92].contains(&hit.position)));
//!
//! // A graph is written and read without its vectors.
//! let mut bytes = Vec::new();
//! graph.write(&mut bytes)?;
//! assert_eq!(HnswGraph::read(&bytes)?.len(), 360);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod build;
mod candidates;
#[cfg(test)]
mod clump_tests;
mod connect;
mod dot;
mod file;
mod graph;
mod memory;
mod nodes;
mod quantised;
mod search;
#[cfg(test)]
mod tests;
mod visited_list;

pub use file::GraphReadError;
pub use graph::{HnswConfig, HnswGraph};
pub use search::{Hit, PositionFilter};
