//! The graph beside hnsw_rs, the oracle: at equal M, ef_construction and ef_search its recall is not lower.
//!
//! This holds from ef_search = 4 k on, which is the least that `cellql` uses. Below, hnsw_rs finds up to four
//! hundredths more, for two reasons: at ef_search = k our candidates are ranked by 8-bit codes and there are no others
//! to rescore, and a full row of links is cut by the paper's heuristic here (as in hnswlib) but to the nearest M there,
//! so its rows are fuller and a search compares more vectors.
#![allow(clippy::unwrap_used, reason = "a test")]

use cellql_neighbours::{HnswConfig, HnswGraph};
use hnsw_rs::prelude::{Distance, Hnsw};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Neighbours of each query.
const K: usize = 10;
/// Queries of each set of vectors.
const QUERIES: usize = 500;
/// Recall may be lower by this and by two standard errors of the difference, which is taken query by query.
const MARGIN: f64 = 0.005;

/// One minus the dot product, by the kernel that our graph uses too.
#[derive(Clone, Default)]
struct UnitCosine;

impl Distance<f32> for UnitCosine {
    fn eval(&self, a: &[f32], b: &[f32]) -> f32 {
        // hnsw_rs requires distances that are not negative.
        (1.0 - cellql_kernels::dot(a, b)).max(0.0)
    }
}

/// Unit vectors `[n, dim]` around centres `[clusters, dim]`.
fn clustered(n: usize, dim: usize, rng: &mut ChaCha8Rng, centres: &[f32]) -> Vec<f32> {
    let mut vectors = Vec::with_capacity(n * dim);
    for _ in 0..n {
        let centre = &centres[rng.random_range(0..centres.len() / dim) * dim..][..dim];
        let vector: Vec<f32> = centre.iter().map(|c| c + rng.random_range(-0.6f32..0.6)).collect();
        let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
        vectors.extend(vector.iter().map(|v| v / norm));
    }
    vectors
}

/// Positions of the nearest, by exact search in f64.
fn exact(vectors: &[f32], query: &[f32]) -> Vec<u32> {
    let dot = |v: &[f32]| -> f64 { v.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    let mut all: Vec<(f64, u32)> = vectors.chunks(query.len()).map(dot).zip(0..).collect();
    all.select_nth_unstable_by(K, |a, b| b.0.total_cmp(&a.0));
    all[..K].iter().map(|(_, id)| *id).collect()
}

/// Share of the exact neighbours that were found for each query.
fn recalls(found: &[Vec<u32>], truth: &[Vec<u32>]) -> Vec<f64> {
    let hits = found.iter().zip(truth).map(|(f, t)| t.iter().filter(|id| f.contains(id)).count());
    hits.map(|hits| hits as f64 / K as f64).collect()
}

/// Mean of some values and its standard error.
fn mean(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

/// Both graphs are built on one thread from a seed, so the test gives the same figures every time.
#[test]
fn recall_is_not_below_that_of_hnsw_rs_at_equal_settings() {
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    // From many clusters of few dimensions to few clusters of many, M from small to the default.
    for (n, dim, clusters, m, ef_construction) in
        [(6_000, 16, 50, 8, 64), (5_000, 64, 20, 16, 128), (4_000, 100, 10, 12, 100)]
    {
        let centres: Vec<f32> = (0..clusters * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
        let vectors = clustered(n, dim, &mut rng, &centres);
        let queries = clustered(QUERIES, dim, &mut rng, &centres);
        let truth: Vec<Vec<u32>> = queries.par_chunks(dim).map(|query| exact(&vectors, query)).collect();

        let config = HnswConfig { m, ef_construction, seed: 0 };
        let ours = one_thread.install(|| HnswGraph::build(&vectors, dim, &config, |_| ()));
        // 16 layers are the most that hnsw_rs has.
        let theirs = Hnsw::new(m, n, 16, ef_construction, UnitCosine);
        vectors.chunks(dim).zip(0..).for_each(|vector| theirs.insert_slice(vector));

        for ef in [4 * K, 8 * K, 128] {
            let of_ours = ours.search_many(&vectors, &queries, K, ef, None);
            let of_ours: Vec<Vec<u32>> = of_ours.iter().map(|f| f.iter().map(|hit| hit.position).collect()).collect();
            let of_theirs = queries.par_chunks(dim).map(|query| theirs.search(query, K, ef));
            let of_theirs: Vec<Vec<u32>> = of_theirs.map(|f| f.iter().map(|n| n.d_id as u32).collect()).collect();
            let (of_ours, of_theirs) = (recalls(&of_ours, &truth), recalls(&of_theirs, &truth));
            let lower: Vec<f64> = of_theirs.iter().zip(&of_ours).map(|(theirs, ours)| theirs - ours).collect();
            let (lower, error) = mean(&lower);
            let case =
                format!("{n} x {dim}, M = {m}, ef = {ef}: {:.4}, lower by {lower:.4} ± {error:.4}", mean(&of_ours).0);
            assert!(lower <= MARGIN + 2.0 * error, "{case}");
        }
    }
}
