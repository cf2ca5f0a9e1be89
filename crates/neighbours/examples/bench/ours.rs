//! Our graph.

use std::fs::{File, read};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use cellql_neighbours::{Hit, HnswConfig, HnswGraph};
use rayon::prelude::*;

use crate::measure::{climb, floats, integers, peak_gib, recall, timed_build};
use crate::{K, Settings};

/// ef_search of filtered searches.
const FILTERED_EF: usize = 64;
/// Number of queries that filters are timed with: the way that is not taken can be very slow.
const FILTERED_QUERIES: usize = 50;
/// Shares of the set that pass the filters.
const SHARES: [&str; 3] = ["0.5", "0.05", "0.001"];

pub(crate) fn build(folder: &Path, dim: usize, settings: &Settings) {
    let vectors = floats(&folder.join("base.f32"));
    let config = HnswConfig { m: settings.m, ef_construction: settings.ef_construction, seed: 0 };
    let graph = timed_build(|| HnswGraph::build(&vectors, dim, &config, |_| ()));
    let mut out = BufWriter::new(File::create(folder.join("ours.graph")).unwrap());
    graph.write(&mut out).unwrap();
    out.flush().unwrap();
}

pub(crate) fn query(folder: &Path, dim: usize, ladder: Vec<usize>, enough: f64) {
    let vectors = floats(&folder.join("base.f32"));
    let queries = floats(&folder.join("queries.f32"));
    let graph = HnswGraph::read(&read(folder.join("ours.graph")).unwrap()).unwrap();
    assert_eq!(graph.dim(), dim, "a graph of other vectors");
    let exact = integers(&folder.join("exact-1.0.u32"));
    let points = climb(ladder, enough, &exact, |ef| positions(graph.search_many(&vectors, &queries, K, ef, None)));
    let filters: Vec<String> = SHARES.iter().map(|share| filter(folder, share, &graph, &vectors, &queries)).collect();
    let peak = peak_gib();
    println!(r#"{{"peak_gib": {peak}, "ladder": [{}], "filters": [{}]}}"#, points.join(","), filters.join(","));
}

fn positions(found: Vec<Vec<Hit>>) -> Vec<Vec<u32>> {
    found.into_iter().map(|hits| hits.into_iter().map(|hit| hit.position).collect()).collect()
}

/// Answers under a filter by the graph and by a scan, and says which a caller would take, from the bytes that each
/// reads. A graph search reads about twelve codes for each candidate it keeps, with 256 bytes of links and order for
/// each, and visits 1 / share candidates for each one that passes. A scan reads all vectors that pass.
fn filter(folder: &Path, share: &str, graph: &HnswGraph, vectors: &[f32], queries: &[f32]) -> String {
    let passes = read(folder.join(format!("among-{share}.u8"))).unwrap();
    let exact = integers(&folder.join(format!("exact-{share}.u32")));
    let kept: Vec<u32> = (0..passes.len() as u32).filter(|id| passes[*id as usize] == 1).collect();
    let part = kept.len() as f64 / passes.len() as f64;
    let dim = graph.dim();
    let graph_bytes = FILTERED_EF as f64 / part * 12.0 * (dim + 256) as f64;
    let scan_first = graph_bytes > (kept.len() * 4 * dim) as f64;
    let (queries, exact) = (&queries[..FILTERED_QUERIES * dim], &exact[..FILTERED_QUERIES * K]);
    let start = Instant::now();
    let passes = |id: u32| passes[id as usize] == 1;
    let by_graph = graph.search_many(vectors, queries, K, FILTERED_EF, Some(&passes));
    let graph_rate = by_graph.len() as f64 / start.elapsed().as_secs_f64();
    let by_graph = positions(by_graph);
    let start = Instant::now();
    let scanned: Vec<Vec<u32>> = queries.par_chunks(dim).map(|q| scan(vectors, dim, q, &kept)).collect();
    let scan_rate = scanned.len() as f64 / start.elapsed().as_secs_f64();
    let (by_graph, by_scan) = ((recall(&by_graph, exact), graph_rate), (recall(&scanned, exact), scan_rate));
    let (way, taken, other) = if scan_first { ("scan", by_scan, by_graph) } else { ("graph", by_graph, by_scan) };
    format!(
        r#"{{"share": {share}, "way": "{way}", "recall": {}, "rate": {}, "other_recall": {}, "other_rate": {}}}"#,
        taken.0, taken.1, other.0, other.1
    )
}

fn scan(vectors: &[f32], dim: usize, query: &[f32], kept: &[u32]) -> Vec<u32> {
    let distance = |id: &u32| -cellql_kernels::dot(query, &vectors[*id as usize * dim..][..dim]);
    let mut all: Vec<(f32, u32)> = kept.iter().map(|id| (distance(id), *id)).collect();
    let k = K.min(all.len());
    if k < all.len() {
        all.select_nth_unstable_by(k, |a, b| a.0.total_cmp(&b.0));
    }
    all.truncate(k);
    all.into_iter().map(|(_, id)| id).collect()
}
