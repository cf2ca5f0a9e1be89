//! Our side of `benches/neighbours.py`: builds a graph over its files, or answers its queries and prints JSON lines.
//!
//! usage: bench build FOLDER DIM M BREADTH
//!        bench query FOLDER DIM BREADTH,BREADTH,… RECALL      (up to the first breadth that finds more than RECALL)
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr, reason = "a benchmark")]

use std::fs::{File, read};
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::time::Instant;

use cellql_neighbours::{Hit, HnswConfig, HnswGraph};
use rayon::prelude::*;

/// Neighbours asked for.
const K: usize = 10;
/// Where filters are answered.
const FILTER_BREADTH: usize = 64;
/// How many queries filters are timed with: the way that is not taken can be very slow.
const FILTERED: usize = 50;
/// Shares of the set that filters keep.
const SHARES: [&str; 3] = ["0.5", "0.05", "0.001"];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = Path::new(&arguments[1]);
    let dim: usize = arguments[2].parse().unwrap();
    match arguments[0].as_str() {
        "build" => build(folder, dim, arguments[3].parse().unwrap(), arguments[4].parse().unwrap()),
        _ => {
            let ladder = arguments[3].split(',').map(|b| b.parse().unwrap()).collect();
            query(folder, dim, ladder, arguments[4].parse().unwrap());
        }
    }
}

/// Reads by parts: the file and the numbers at once would be counted as memory of the search.
fn floats(path: &Path) -> Vec<f32> {
    let file = File::open(path).unwrap();
    let mut values = Vec::with_capacity(file.metadata().unwrap().len() as usize / 4);
    let mut part = Vec::new();
    while (&file).take(1 << 20).read_to_end(&mut part).unwrap() > 0 {
        values.extend(part.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        part.clear();
    }
    values
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

fn build(folder: &Path, dim: usize, m: usize, ef_construction: usize) {
    let vectors = floats(&folder.join("base.f32"));
    let (start, work) = (Instant::now(), processor_seconds());
    let graph = HnswGraph::build(&vectors, dim, &HnswConfig { m, ef_construction, seed: 0 }, |_| ());
    let (seconds, cpu_seconds) = (start.elapsed().as_secs_f64(), processor_seconds() - work);
    let mut out = BufWriter::new(File::create(folder.join("ours.graph")).unwrap());
    graph.write(&mut out).unwrap();
    out.flush().unwrap();
    let threads = rayon::current_num_threads();
    println!(
        r#"{{"seconds": {seconds}, "cpu_seconds": {cpu_seconds}, "threads": {threads}, "peak_gib": {}, "bytes": {}}}"#,
        peak(),
        graph.bytes()
    );
}

fn query(folder: &Path, dim: usize, ladder: Vec<usize>, enough: f64) {
    let vectors = floats(&folder.join("base.f32"));
    let queries = floats(&folder.join("queries.f32"));
    let graph = HnswGraph::read(&read(folder.join("ours.graph")).unwrap()).unwrap();
    assert_eq!(graph.dim(), dim, "a graph of other vectors");
    let exact = numbers(&folder.join("exact-1.0.u32"));
    graph.search_many(&vectors, &queries, K, ladder[0], None);
    let mut points = Vec::new();
    for breadth in ladder {
        let (start, work) = (Instant::now(), processor_seconds());
        let found = graph.search_many(&vectors, &queries, K, breadth, None);
        let (seconds, work) = (start.elapsed().as_secs_f64(), processor_seconds() - work);
        let (rate, cpu_rate) = (found.len() as f64 / seconds, found.len() as f64 / work);
        let recall = recall(&positions(found), &exact);
        points.push(format!(r#"{{"breadth": {breadth}, "recall": {recall}, "rate": {rate}, "cpu_rate": {cpu_rate}}}"#));
        if recall > enough {
            break;
        }
    }
    let filters: Vec<String> = SHARES.iter().map(|share| filter(folder, share, &graph, &vectors, &queries)).collect();
    println!(r#"{{"peak_gib": {}, "ladder": [{}], "filters": [{}]}}"#, peak(), points.join(","), filters.join(","));
}

fn positions(found: Vec<Vec<Hit>>) -> Vec<Vec<u32>> {
    found.into_iter().map(|found| found.into_iter().map(|f| f.position).collect()).collect()
}

/// What this process's threads have run so far.
fn processor_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let nanoseconds = tasks.map(|task| {
        let line = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
        line.split(' ').next().unwrap().parse::<f64>().unwrap()
    });
    nanoseconds.sum::<f64>() / 1e9
}

/// Share of the exact neighbours that were found.
fn recall(found: &[Vec<u32>], exact: &[u32]) -> f64 {
    let hits: usize = found.iter().zip(exact.chunks(K)).map(|(f, e)| e.iter().filter(|e| f.contains(e)).count()).sum();
    hits as f64 / exact.len() as f64
}

/// Answers under a filter both ways, and names the one a caller would take, by the bytes that each reads: a walk about
/// twelve codes for every candidate it keeps, with as much again for links and order as 256 bytes, and it goes past 1 / share
/// candidates for one that is allowed; a scan all vectors that are allowed.
fn filter(folder: &Path, share: &str, graph: &HnswGraph, vectors: &[f32], queries: &[f32]) -> String {
    let among = read(folder.join(format!("among-{share}.u8"))).unwrap();
    let exact = numbers(&folder.join(format!("exact-{share}.u32")));
    let kept: Vec<u32> = (0..among.len() as u32).filter(|id| among[*id as usize] == 1).collect();
    let part = kept.len() as f64 / among.len() as f64;
    let dim = graph.dim();
    let walk = FILTER_BREADTH as f64 / part * 12.0 * (dim + 256) as f64;
    let scan_first = walk > (kept.len() * 4 * dim) as f64;
    let (queries, exact) = (&queries[..FILTERED * dim], &exact[..FILTERED * K]);
    let start = Instant::now();
    let allowed = |id: u32| among[id as usize] == 1;
    let walked = graph.search_many(vectors, queries, K, FILTER_BREADTH, Some(&allowed));
    let walk_rate = walked.len() as f64 / start.elapsed().as_secs_f64();
    let walked = positions(walked);
    let start = Instant::now();
    let scanned: Vec<Vec<u32>> = queries.par_chunks(dim).map(|q| scan(vectors, dim, q, &kept)).collect();
    let scan_rate = scanned.len() as f64 / start.elapsed().as_secs_f64();
    let (walk, scan) = ((recall(&walked, exact), walk_rate), (recall(&scanned, exact), scan_rate));
    let (way, taken, other) = if scan_first { ("scan", scan, walk) } else { ("graph", walk, scan) };
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
