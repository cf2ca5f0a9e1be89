//! Reading the bench's files, and measuring time, memory and recall.

use std::fs::{File, read};
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use crate::K;

/// Reads f32 values in parts: the file beside the values would count as memory of the search.
pub(crate) fn floats(path: &Path) -> Vec<f32> {
    let file = File::open(path).unwrap();
    let mut values = Vec::with_capacity(file.metadata().unwrap().len() as usize / 4);
    let mut part = Vec::new();
    while (&file).take(1 << 20).read_to_end(&mut part).unwrap() > 0 {
        values.extend(part.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        part.clear();
    }
    values
}

/// Reads u32 values.
pub(crate) fn integers(path: &Path) -> Vec<u32> {
    read(path).unwrap().as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

/// Peak memory of this process so far in GiB.
pub(crate) fn peak_gib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / f64::from(1 << 20)
}

/// Share of the exact neighbours `[queries, K]` that were found.
pub(crate) fn recall(found: &[Vec<u32>], exact: &[u32]) -> f64 {
    let hits: usize = found.iter().zip(exact.chunks(K)).map(|(f, e)| e.iter().filter(|e| f.contains(e)).count()).sum();
    hits as f64 / exact.len() as f64
}

/// Builds a graph and prints the seconds and memory it took.
pub(crate) fn timed_build<T>(build: impl FnOnce() -> T) -> T {
    let (start, work) = (Instant::now(), processor_seconds());
    let graph = build();
    let (seconds, cpu_seconds) = (start.elapsed().as_secs_f64(), processor_seconds() - work);
    let (threads, peak) = (rayon::current_num_threads(), peak_gib());
    println!(r#"{{"seconds": {seconds}, "cpu_seconds": {cpu_seconds}, "threads": {threads}, "peak_gib": {peak}}}"#);
    graph
}

/// Answers the queries with each ef_search of a ladder, up to the first whose recall is above `enough`. A point of the
/// result is a JSON object.
pub(crate) fn climb(
    ladder: Vec<usize>,
    enough: f64,
    exact: &[u32],
    search: impl Fn(usize) -> Vec<Vec<u32>>,
) -> Vec<String> {
    search(ladder[0]);
    let mut points = Vec::new();
    for ef in ladder {
        let (start, work) = (Instant::now(), processor_seconds());
        let found = search(ef);
        let (seconds, work) = (start.elapsed().as_secs_f64(), processor_seconds() - work);
        let (rate, cpu_rate) = (found.len() as f64 / seconds, found.len() as f64 / work);
        let recall = recall(&found, exact);
        points.push(format!(r#"{{"ef": {ef}, "recall": {recall}, "rate": {rate}, "cpu_rate": {cpu_rate}}}"#));
        if recall > enough {
            break;
        }
    }
    points
}

/// Seconds that the threads of this process have run so far.
fn processor_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let nanoseconds = tasks.map(|task| {
        let line = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
        line.split(' ').next().unwrap().parse::<f64>().unwrap()
    });
    nanoseconds.sum::<f64>() / 1e9
}
