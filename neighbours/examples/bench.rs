//! Our side of `benches/neighbours.py`: builds a graph over its files, or answers its queries and prints JSON lines.
//!
//! usage: bench build FOLDER DIM M BREADTH
//!        bench query FOLDER DIM BREADTH,BREADTH,…
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr, reason = "a benchmark")]

use std::fs::{File, read};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use cellql_neighbours::{Graph, Options};
use rayon::prelude::*;

/// Neighbours asked for.
const K: usize = 10;
/// Where filters are answered.
const FILTER_BREADTH: usize = 64;
/// Shares of the set that filters keep.
const SHARES: [&str; 3] = ["0.5", "0.05", "0.001"];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = Path::new(&arguments[1]);
    let dim: usize = arguments[2].parse().unwrap();
    match arguments[0].as_str() {
        "build" => build(folder, dim, arguments[3].parse().unwrap(), arguments[4].parse().unwrap()),
        _ => query(folder, dim, arguments[3].split(',').map(|b| b.parse().unwrap()).collect()),
    }
}

fn floats(path: &Path) -> Vec<f32> {
    read(path).unwrap().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn numbers(path: &Path) -> Vec<u32> {
    read(path).unwrap().as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

/// Largest memory of this process so far, GiB.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / f64::from(1 << 20)
}

fn build(folder: &Path, dim: usize, links: usize, breadth: usize) {
    let vectors = floats(&folder.join("base.f32"));
    let start = Instant::now();
    let graph = Graph::build(&vectors, dim, &Options { links, breadth, seed: 0 }, |_| ());
    let seconds = start.elapsed().as_secs_f64();
    let mut out = BufWriter::new(File::create(folder.join("ours.graph")).unwrap());
    graph.write(&mut out).unwrap();
    out.flush().unwrap();
    let threads = rayon::current_num_threads();
    println!(r#"{{"seconds": {seconds}, "threads": {threads}, "peak_gib": {}, "bytes": {}}}"#, peak(), graph.bytes());
}

fn query(folder: &Path, dim: usize, ladder: Vec<usize>) {
    let vectors = floats(&folder.join("base.f32"));
    let queries = floats(&folder.join("queries.f32"));
    let graph = Graph::read(&read(folder.join("ours.graph")).unwrap()).unwrap();
    let exact = numbers(&folder.join("exact-1.0.u32"));
    graph.search_many(&vectors, &queries, K, ladder[0], None);
    let mut points = Vec::new();
    for breadth in ladder {
        if let Ok(rep) = std::env::var("REP") {
            let mut best = f64::MAX;
            for _ in 0..rep.parse().unwrap() {
                let start = Instant::now();
                graph.search_many(&vectors, &queries, K, breadth, None);
                best = best.min(start.elapsed().as_secs_f64());
            }
            eprintln!("{breadth}: best {:.0}", 1000.0 / best);
        }
        let start = Instant::now();
        let found = graph.search_many(&vectors, &queries, K, breadth, None);
        let rate = found.len() as f64 / start.elapsed().as_secs_f64();
        let found: Vec<Vec<u32>> = found.into_iter().map(|f| f.into_iter().map(|f| f.position).collect()).collect();
        if std::env::var("DBG").is_ok() {
            let per: Vec<usize> =
                found.iter().zip(exact.chunks(K)).map(|(f, e)| e.iter().filter(|e| f.contains(e)).count()).collect();
            let hist: Vec<usize> = (0..=K).map(|h| per.iter().filter(|p| **p == h).count()).collect();
            eprintln!("{breadth} {hist:?}");
        }
        points.push(format!(r#"{{"breadth": {breadth}, "recall": {}, "rate": {rate}}}"#, recall(&found, &exact)));
    }
    let filters: Vec<String> = if std::env::var("NOF").is_ok() {
        Vec::new()
    } else {
        SHARES.iter().map(|share| filter(folder, share, &graph, &vectors, &queries)).collect()
    };
    println!(r#"{{"peak_gib": {}, "ladder": [{}], "filters": [{}]}}"#, peak(), points.join(","), filters.join(","));
}

/// Share of the exact neighbours that were found.
fn recall(found: &[Vec<u32>], exact: &[u32]) -> f64 {
    let hits: usize = found.iter().zip(exact.chunks(K)).map(|(f, e)| e.iter().filter(|e| f.contains(e)).count()).sum();
    hits as f64 / exact.len() as f64
}

/// Answers under a filter both ways, and names the one a caller would take: a walk looks at about a row of links for each
/// candidate, and at 1 / share as many candidates; a scan looks at share · n vectors, of four times the bytes but in order,
/// which weighs the same.
fn filter(folder: &Path, share: &str, graph: &Graph, vectors: &[f32], queries: &[f32]) -> String {
    let among = read(folder.join(format!("among-{share}.u8"))).unwrap();
    let exact = numbers(&folder.join(format!("exact-{share}.u32")));
    let kept: Vec<u32> = (0..among.len() as u32).filter(|id| among[*id as usize] == 1).collect();
    let part = kept.len() as f64 / among.len() as f64;
    let walk_work = FILTER_BREADTH as f64 / part * 16.0;
    let dim = graph.dim();
    let start = Instant::now();
    let allowed = |id: u32| among[id as usize] == 1;
    let walked = graph.search_many(vectors, queries, K, FILTER_BREADTH, Some(&allowed));
    let walk_rate = walked.len() as f64 / start.elapsed().as_secs_f64();
    let walked: Vec<Vec<u32>> = walked.into_iter().map(|f| f.into_iter().map(|f| f.position).collect()).collect();
    let start = Instant::now();
    let scanned: Vec<Vec<u32>> = queries.par_chunks(dim).map(|q| scan(vectors, dim, q, &kept)).collect();
    let scan_rate = scanned.len() as f64 / start.elapsed().as_secs_f64();
    let (walk, scan) = ((recall(&walked, &exact), walk_rate), (recall(&scanned, &exact), scan_rate));
    let (way, taken, other) = if walk_work > kept.len() as f64 { ("scan", scan, walk) } else { ("graph", walk, scan) };
    format!(
        r#"{{"share": {share}, "way": "{way}", "recall": {}, "rate": {}, "other_recall": {}, "other_rate": {}}}"#,
        taken.0, taken.1, other.0, other.1
    )
}

fn scan(vectors: &[f32], dim: usize, query: &[f32], kept: &[u32]) -> Vec<u32> {
    let distance = |id: &u32| -cellql_neighbours::dot(query, &vectors[*id as usize * dim..][..dim]);
    let mut all: Vec<(f32, u32)> = kept.iter().map(|id| (distance(id), *id)).collect();
    let k = K.min(all.len());
    if k < all.len() {
        all.select_nth_unstable_by(k, |a, b| a.0.total_cmp(&b.0));
    }
    all.truncate(k);
    all.into_iter().map(|(_, id)| id).collect()
}
