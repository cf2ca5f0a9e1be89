//! Vectors that are equal or nearly so, compared with exact search: positions, distances and order.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::tests::{build, clustered, on_threads, positions, written};
use crate::{GraphReadError, Hit, HnswGraph};

/// The ef_search that `cellql` uses.
fn ef(k: usize) -> usize {
    (4 * k).max(128)
}

fn distance(query: &[f32], vector: &[f32]) -> f32 {
    (1.0 - cellql_kernels::dot(query, vector)).max(0.0)
}

/// The `k` nearest that pass the filter, ties by position.
fn exact(vectors: &[f32], query: &[f32], k: usize, filter: impl Fn(u32) -> bool) -> Vec<Hit> {
    let all = vectors.chunks(query.len()).zip(0..).filter(|(_, position)| filter(*position));
    let mut all: Vec<Hit> = all.map(|(vector, position)| Hit { distance: distance(query, vector), position }).collect();
    all.sort_unstable();
    all.truncate(k);
    all
}

/// Unit vectors near a centre: each value is moved by up to `jitter`.
fn near(centre: &[f32], jitter: f32, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let vector: Vec<f32> = centre.iter().map(|c| c + jitter * rng.random_range(-1.0f32..=1.0)).collect();
    let norm = vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
    vector.iter().map(|v| (f64::from(*v) / norm) as f32).collect()
}

/// Vectors in random order: `others` of clusters and clumps of `size` around further vectors of the clusters. The
/// centres of the clumps come with them.
struct Clumps {
    vectors: Vec<f32>,
    centres: Vec<Vec<f32>>,
    rng: ChaCha8Rng,
}

fn clumps(others: usize, dim: usize, (count, size): (usize, usize), jitter: f32) -> Clumps {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut all: Vec<Vec<f32>> = clustered(others, dim, 1).chunks(dim).map(<[f32]>::to_vec).collect();
    let centres: Vec<Vec<f32>> = clustered(count, dim, 5).chunks(dim).map(<[f32]>::to_vec).collect();
    for centre in &centres {
        for _ in 0..size {
            all.push(if jitter == 0.0 { centre.clone() } else { near(centre, jitter, &mut rng) });
        }
    }
    for i in (1..all.len()).rev() {
        all.swap(i, rng.random_range(0..=i));
    }
    Clumps { vectors: all.concat(), centres, rng }
}

/// Mean recall of the queries; those of the exact neighbours are counted that were found.
fn recall(
    graph: &HnswGraph,
    vectors: &[f32],
    queries: &[Vec<f32>],
    k: usize,
    filter: impl Fn(u32) -> bool + Sync,
) -> f64 {
    let found = graph.search_many(vectors, &queries.concat(), k, ef(k), Some(&filter));
    let shares = found.iter().zip(queries).map(|(found, query)| {
        assert!(found.is_sorted() && found.iter().all(|hit| filter(hit.position)));
        let expected = exact(vectors, query, k, &filter);
        expected.iter().filter(|hit| found.contains(hit)).count() as f64 / expected.len() as f64
    });
    shares.sum::<f64>() / queries.len() as f64
}

#[test]
fn all_of_many_equal_vectors_are_found_in_order() {
    let Clumps { vectors, centres, .. } = clumps(700, 16, (1, 300), 0.0);
    let graph = build(&vectors, 16);
    assert_eq!((graph.len(), graph.nodes()), (1000, 701));
    for k in [1, 10, 299, 300, 350] {
        assert_eq!(
            graph.search(&vectors, &centres[0], k, ef(k), None),
            exact(&vectors, &centres[0], k, |_| true),
            "{k}"
        );
    }
    let only = [1.0f32, 0.0].repeat(300);
    let found = build(&only, 2).search(&only, &[0.6, 0.8], 299, ef(299), None);
    assert!(positions(&found).into_iter().eq(0..299));
}

#[test]
fn copies_of_many_vectors_are_found() {
    let Clumps { vectors, centres, .. } = clumps(0, 24, (60, 120), 0.0);
    let graph = build(&vectors, 24);
    assert_eq!(graph.nodes(), 60);
    for query in centres.iter().take(20).map(Vec::as_slice).chain(clustered(20, 24, 9).chunks(24)) {
        for k in [10, 200] {
            assert_eq!(graph.search(&vectors, query, k, ef(k), None), exact(&vectors, query, k, |_| true));
        }
    }
}

#[test]
fn nearly_all_of_a_clump_are_found_whatever_its_size_and_width() {
    for (dim, size) in [(16, 2000), (48, 10), (48, 120), (48, 2000), (200, 500)] {
        for jitter in [1e-6, 1e-4, 1e-3, 3e-3, 5e-3, 1e-2] {
            let count = (2000 / size).min(20);
            let Clumps { vectors, centres, mut rng } = clumps(2000, dim, (count, size), jitter);
            let graph = build(&vectors, dim);
            let queries: Vec<Vec<f32>> = centres.iter().cycle().take(20).map(|c| near(c, jitter, &mut rng)).collect();
            for k in [10, size.min(300)] {
                let found = recall(&graph, &vectors, &queries, k, |_| true);
                assert!(found >= 0.95, "{dim} dimensions, clumps of {size} within {jitter}, k = {k}: {found}");
                let found = recall(&graph, &vectors, &queries, k, |position| position % 3 == 0);
                assert!(found >= 0.95, "{dim} dimensions, clumps of {size} within {jitter}, k = {k}, filter: {found}");
            }
            let others: Vec<Vec<f32>> = clustered(20, dim, 8).chunks(dim).map(<[f32]>::to_vec).collect();
            let found = recall(&graph, &vectors, &others, 10, |_| true);
            assert!(found >= 0.95, "{dim} dimensions, others than clumps of {size} within {jitter}: {found}");
        }
    }
}

#[test]
fn a_filter_chooses_among_equal_vectors() {
    let Clumps { vectors, centres, .. } = clumps(400, 16, (10, 120), 0.0);
    let graph = build(&vectors, 16);
    for every in [2, 7, 50, 400] {
        let filter = |position: u32| position % every == 1;
        for query in &centres {
            let found = graph.search(&vectors, query, 10, ef(10), Some(&filter));
            assert_eq!(found, exact(&vectors, query, 10, filter), "one in {every}");
        }
    }
    assert!(graph.search(&vectors, &centres[0], 10, ef(10), Some(&|_| false)).is_empty());
}

#[test]
fn a_seed_gives_the_same_graph_of_clumps_on_one_thread() {
    for jitter in [0.0, 1e-4, 3e-3] {
        let Clumps { vectors, .. } = clumps(500, 20, (4, 120), jitter);
        let [first, second] = [(), ()].map(|()| written(&on_threads(1, || build(&vectors, 20))));
        assert_eq!(first, second);
    }
}

#[test]
fn the_number_of_threads_does_not_change_the_neighbours_in_a_clump() {
    for jitter in [0.0, 1e-4] {
        let Clumps { vectors, centres, .. } = clumps(500, 20, (4, 120), jitter);
        for threads in [1, 4] {
            let graph = on_threads(threads, || build(&vectors, 20));
            for query in &centres {
                let found = graph.search(&vectors, query, 100, ef(100), None);
                assert_eq!(found, exact(&vectors, query, 100, |_| true), "{jitter} on {threads}");
            }
        }
    }
}

#[test]
fn a_graph_of_clumps_read_is_the_graph_written() {
    for jitter in [0.0, 1e-5] {
        let Clumps { vectors, centres, .. } = clumps(300, 10, (5, 100), jitter);
        let graph = build(&vectors, 10);
        assert!(graph.nodes() < 400);
        let bytes = written(&graph);
        let read = HnswGraph::read(&bytes).unwrap();
        assert_eq!((written(&read), read.len()), (bytes, 800));
        for query in &centres {
            let found = read.search(&vectors, query, 120, ef(120), None);
            assert_eq!(found, graph.search(&vectors, query, 120, ef(120), None));
        }
    }
}

#[test]
fn wrong_members_of_nodes_are_refused() {
    let vectors = [1.0f32, 0.0, 0.0, 1.0].repeat(20);
    let graph = build(&vectors, 2);
    let bytes = written(&graph);
    let with_word = |place: usize, word: u32| {
        let mut bytes = bytes.clone();
        bytes[4 * place..][..4].copy_from_slice(&word.to_le_bytes());
        HnswGraph::read(&bytes).unwrap_err()
    };
    // After the header and two ranges of two values: where the members of both nodes end, then the members.
    let ends = 6 + 4;
    for (place, word, node) in [
        (ends, 0, 0),
        (ends, 41, 0),
        (ends + 1, 39, 1),
        (ends + 1, 41, 1),
        (ends + 2, 40, 0),
        (ends + 3, 0, 0),
        (ends + 2 + 20, 0, 1),
    ] {
        assert_eq!(with_word(place, word), GraphReadError::Members { node }, "{place}: {word}");
    }
    // No node, or more nodes than vectors.
    for nodes in [0, 41] {
        let error = with_word(2, nodes);
        assert!(matches!(error, GraphReadError::Header { vectors: 40, .. }), "{error}");
    }
}
