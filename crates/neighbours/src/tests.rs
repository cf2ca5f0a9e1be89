//! The graph as a whole, compared with exact search.

use std::collections::HashSet;

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{GraphReadError, Hit, HnswConfig, HnswGraph};

const K: usize = 10;

/// Unit vectors in clusters, the same ones for every seed.
pub(crate) fn clustered(n: usize, dim: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let centres: Vec<f32> = (0..20 * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut vectors = Vec::with_capacity(n * dim);
    for _ in 0..n {
        let centre = rng.random_range(0..20) * dim;
        let vector: Vec<f32> = (0..dim).map(|d| centres[centre + d] + rng.random_range(-0.5..0.5)).collect();
        let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
        vectors.extend(vector.iter().map(|v| v / norm));
    }
    vectors
}

/// Positions of the `k` nearest that pass the filter, by exact search in f64.
fn exact(vectors: &[f32], query: &[f32], k: usize, filter: impl Fn(u32) -> bool) -> Vec<u32> {
    let product = |v: &[f32]| -> f64 { v.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    let mut all: Vec<(f64, u32)> =
        vectors.chunks(query.len()).map(product).zip(0..).filter(|(_, id)| filter(*id)).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    all.into_iter().take(k).map(|(_, id)| id).collect()
}

pub(crate) fn positions(hits: &[Hit]) -> Vec<u32> {
    hits.iter().map(|hit| hit.position).collect()
}

/// recall@10 of a hundred queries.
fn recall(graph: &HnswGraph, vectors: &[f32], ef: usize, filter: impl Fn(u32) -> bool + Sync) -> f64 {
    let dim = graph.dim();
    let queries = clustered(100, dim, 2);
    let found = graph.search_many(vectors, &queries, K, ef, Some(&filter));
    let hits = queries.chunks(dim).zip(found).map(|(query, found)| {
        let found: HashSet<u32> = positions(&found).into_iter().collect();
        exact(vectors, query, K, &filter).iter().filter(|id| found.contains(id)).count()
    });
    hits.sum::<usize>() as f64 / (100 * K) as f64
}

pub(crate) fn build(vectors: &[f32], dim: usize) -> HnswGraph {
    HnswGraph::build(vectors, dim, &HnswConfig::default(), |_| ())
}

pub(crate) fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

pub(crate) fn written(graph: &HnswGraph) -> Vec<u8> {
    let mut bytes = Vec::new();
    graph.write(&mut bytes).unwrap();
    bytes
}

#[test]
fn nearly_all_neighbours_are_found_whatever_the_number_of_threads() {
    let vectors = clustered(5000, 48, 1);
    for threads in [1, 4] {
        let graph = on_threads(threads, || build(&vectors, 48));
        let found = recall(&graph, &vectors, 64, |_| true);
        assert!(found > 0.97, "{threads} threads: {found}");
    }
}

#[test]
fn hits_pass_the_filter_and_nearly_all_are_found() {
    let vectors = clustered(5000, 48, 1);
    let graph = build(&vectors, 48);
    for every in [2, 20, 1000] {
        let found = recall(&graph, &vectors, 32, |id| id % every == 0);
        let possible = (5000 / every as usize).min(K) as f64 / K as f64;
        assert!(found > 0.97 * possible, "one in {every}: {found}");
        let answers = graph.search(&vectors, &vectors[..48], 7, 32, Some(&|id| id % every == 0));
        assert!(answers.iter().all(|f| f.position % every == 0));
    }
    assert!(graph.search(&vectors, &vectors[..48], K, 32, Some(&|_| false)).is_empty());
}

#[test]
fn distances_are_exact_and_in_order() {
    let vectors = clustered(500, 33, 4);
    let graph = build(&vectors, 33);
    for query in vectors.chunks(33).take(20) {
        let found = graph.search(&vectors, query, K, 50, None);
        assert!(found.is_sorted() && found.len() == K);
        for f in found {
            let other = &vectors[f.position as usize * 33..][..33];
            let product: f64 = query.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((f64::from(f.distance) - (1.0 - product).max(0.0)).abs() < 1e-6);
        }
    }
}

/// Vectors that differ by less than one step of the 8-bit codes.
#[test]
fn neighbours_of_equal_codes_are_rescored() {
    let angles = (0..360u16).map(|degree| f32::from(degree).to_radians());
    let vectors: Vec<f32> = angles.flat_map(|a| [a.cos(), a.sin()]).collect();
    let graph = build(&vectors, 2);
    for degree in 0..360u32 {
        let query = &vectors[2 * degree as usize..][..2];
        assert_eq!(positions(&graph.search(&vectors, query, 1, 64, None)), [degree]);
        let mut three = positions(&graph.search(&vectors, query, 3, 64, None));
        three.sort_unstable();
        let mut expected = [(degree + 359) % 360, degree, (degree + 1) % 360];
        expected.sort_unstable();
        assert_eq!(three, expected);
    }
    let four = graph.search(&vectors, &vectors[200..202], 4, 128, Some(&|id| id % 4 == 2));
    let mut four = positions(&four);
    four.sort_unstable();
    assert_eq!(four, [94, 98, 102, 106]);
}

#[test]
fn a_seed_gives_the_same_graph_on_one_thread() {
    let vectors = clustered(2000, 20, 1);
    let of = |seed| {
        on_threads(1, || {
            written(&HnswGraph::build(&vectors, 20, &HnswConfig { seed, ..HnswConfig::default() }, |_| ()))
        })
    };
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
}

#[test]
fn a_graph_of_no_or_one_vector_is_searched() {
    assert!(build(&[], 4).search(&[], &[1.0, 0.0, 0.0, 0.0], 5, 10, None).is_empty());
    let one = [0.6f32, 0.8];
    let found = build(&one, 2).search(&one, &[1.0, 0.0], 5, 1, None);
    assert_eq!(positions(&found), [0]);
    assert!((found[0].distance - 0.4).abs() < 1e-6);
    let graph = build(&[], 4);
    assert!(HnswGraph::read(&written(&graph)).unwrap().is_empty());
}

#[test]
fn nan_and_infinity_are_harmless() {
    let mut vectors = clustered(300, 8, 1);
    vectors[8..16].fill(f32::NAN);
    vectors[16] = f32::INFINITY;
    let graph = build(&vectors, 8);
    assert_eq!(graph.search(&vectors, &[f32::NAN; 8], 5, 10, None).len(), 5);
}

#[test]
fn progress_ends_at_the_number_of_vectors() {
    let vectors = clustered(3000, 8, 1);
    let most = std::sync::atomic::AtomicU64::new(0);
    HnswGraph::build(&vectors, 8, &HnswConfig::default(), |done| {
        most.fetch_max(done, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(most.into_inner(), 3000);
}

#[test]
fn a_graph_read_is_the_graph_written() {
    let vectors = clustered(1500, 30, 1);
    let graph = build(&vectors, 30);
    let bytes = written(&graph);
    let read = HnswGraph::read(&bytes).unwrap();
    assert_eq!(written(&read), bytes);
    for query in vectors.chunks(30).take(10) {
        assert_eq!(read.search(&vectors, query, K, 40, None), graph.search(&vectors, query, K, 40, None));
    }
}

#[test]
fn a_damaged_graph_is_refused_with_the_reason() {
    let vectors = clustered(1500, 30, 1);
    let bytes = written(&build(&vectors, 30));
    let error = |bytes: &[u8]| HnswGraph::read(bytes).unwrap_err();
    assert_eq!(error(&bytes[4..]), GraphReadError::Format);
    for cut in [0, 3, 23, 24, 100, bytes.len() / 2] {
        assert_eq!(error(&bytes[..cut]), GraphReadError::Truncated, "{cut}");
    }
    for end in [bytes[..bytes.len() - 1].to_vec(), [bytes.as_slice(), &[0]].concat()] {
        assert!(matches!(error(&end), GraphReadError::UpperLayers { .. }), "{}", end.len());
    }
    let with_word = |place: usize, word: u32| {
        let mut bytes = bytes.clone();
        bytes[4 * place..][..4].copy_from_slice(&word.to_le_bytes());
        bytes
    };
    let header = |nodes, dim| GraphReadError::Header { vectors: 1500, nodes, dim, m: 16 };
    assert_eq!(error(&with_word(3, 0)), header(1500, 0));
    assert_eq!(error(&with_word(2, 1501)), header(1501, 30));
    assert_eq!(error(&with_word(5, 1500)), GraphReadError::EntryPoint { entry_point: 1500 });
    // The first link of the first vector: after the header and two ranges of 30 values.
    let link = error(&with_word(6 + 60, 1_000_000));
    assert_eq!(link, GraphReadError::Link { from: 0, to: 1_000_000, layer: 0 });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A damaged graph is refused, or searches of it end and every hit is a vector of the set.
    #[test]
    fn damage_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        header: bool,
    ) {
        let vectors = clustered(120, 6, 1);
        let mut bytes = written(&build(&vectors, 6));
        let end = if header { 24 } else { bytes.len() };
        for (place, value) in changes {
            bytes[place.index(end)] = value;
        }
        if let Ok(graph) = HnswGraph::read(&bytes) && graph.len() == 120 && graph.dim() == 6 {
            for query in vectors.chunks(6).take(5) {
                let found = graph.search(&vectors, query, 5, 20, None);
                prop_assert!(found.iter().all(|f| f.position < 120));
                graph.search(&vectors, query, 5, 20, Some(&|id| id > 60));
            }
        }
    }

    #[test]
    fn bytes_that_were_never_a_graph_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(HnswGraph::read(&bytes).is_err());
    }
}
