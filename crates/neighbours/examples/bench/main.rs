//! The Rust programs of `benches/neighbours.py`: builds a graph over its files, or answers its queries. Prints JSON
//! lines.
//!
//! usage: bench ours|hnsw_rs build FOLDER DIM M EF_CONSTRUCTION
//!        bench ours|hnsw_rs query FOLDER DIM EF,EF,… RECALL
//!
//! `query` goes up to the first ef_search that finds more than RECALL.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

mod measure;
mod ours;
mod peer;

use std::path::Path;

/// Neighbours of each query.
const K: usize = 10;

/// How a graph is built.
struct Settings {
    m: usize,
    ef_construction: usize,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [program, verb, folder, dim, first, second] = arguments.as_slice() else {
        println!("usage: bench ours|hnsw_rs build|query FOLDER DIM M|EF,EF,… EF_CONSTRUCTION|RECALL");
        std::process::exit(2);
    };
    let (folder, dim) = (Path::new(folder), dim.parse().unwrap());
    if verb == "build" {
        let settings = Settings { m: first.parse().unwrap(), ef_construction: second.parse().unwrap() };
        match program.as_str() {
            "ours" => ours::build(folder, dim, &settings),
            _ => peer::build(folder, dim, &settings),
        }
    } else {
        let (ladder, enough) = (first.split(',').map(|ef| ef.parse().unwrap()).collect(), second.parse().unwrap());
        match program.as_str() {
            "ours" => ours::query(folder, dim, ladder, enough),
            _ => peer::query(folder, dim, ladder, enough),
        }
    }
}
