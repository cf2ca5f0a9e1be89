//! Approximate nearest neighbours among unit vectors: a navigable graph (Malkov & Yashunin 2018, HNSW) in flat arrays.
//!
//! A walk reads vectors in 8 bits ([`codes`](Graph)), a quarter of the memory traffic of f32, which is what limits it; the
//! best it finds are compared once more in f32. Links are chosen by the paper's heuristic. Building and searching use all
//! threads of rayon's pool; on one thread a seed gives the same graph every time, and on any CPU.
//!
//! Depends on `kernels` for products of f32, on rayon, and on libc for advice about memory. Knows nothing of stores, files
//! or models: vectors come with the calls as `[n, dim]` f32 of length one, and vectors of another number than the graph's are a fault of the caller, hence a
//! panic. A damaged written graph is an [`Err`](ReadError), never a panic.

mod build;
mod codes;
mod dot;
mod file;
mod graph;
mod memory;
#[cfg(test)]
mod tests;
mod walk;

pub use file::ReadError;
pub use graph::{Allowed, Found, Graph, Options};
