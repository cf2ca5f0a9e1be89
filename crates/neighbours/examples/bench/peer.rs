//! The graph of hnsw_rs. It computes distances with the dot product of our kernels, because its own are vectorised only
//! with a nightly compiler or the crate simdeez (features of anndists).

use std::path::Path;

use hnsw_rs::prelude::{AnnT, Distance, Hnsw, HnswIo};
use rayon::prelude::*;

use crate::measure::{climb, floats, integers, peak_gib, timed_build};
use crate::{K, Settings};

/// Name of its two files.
const BASENAME: &str = "hnsw_rs";
/// All the layers that it has.
const LAYERS: usize = 16;

/// One minus the dot product of unit vectors.
#[derive(Clone, Default)]
struct UnitCosine;

impl Distance<f32> for UnitCosine {
    fn eval(&self, a: &[f32], b: &[f32]) -> f32 {
        // hnsw_rs requires distances that are not negative.
        (1.0 - cellql_kernels::dot(a, b)).max(0.0)
    }
}

pub(crate) fn build(folder: &Path, dim: usize, settings: &Settings) {
    let vectors = floats(&folder.join("base.f32"));
    let n = vectors.len() / dim;
    let graph = timed_build(|| {
        let graph = Hnsw::new(settings.m, n, LAYERS, settings.ef_construction, UnitCosine);
        let with_ids: Vec<(&[f32], usize)> = vectors.chunks(dim).zip(0..).collect();
        graph.parallel_insert_slice(&with_ids);
        graph
    });
    assert_eq!(graph.file_dump(folder, BASENAME).unwrap(), BASENAME);
}

pub(crate) fn query(folder: &Path, dim: usize, ladder: Vec<usize>, enough: f64) {
    let queries = floats(&folder.join("queries.f32"));
    let files = HnswIo::new(folder, BASENAME);
    let graph: Hnsw<'_, f32, UnitCosine> = files.load_hnsw_with_dist(UnitCosine).unwrap();
    let exact = integers(&folder.join("exact-1.0.u32"));
    let points = climb(ladder, enough, &exact, |ef| {
        let found = queries.par_chunks(dim).map(|query| graph.search(query, K, ef));
        found.map(|found| found.into_iter().map(|n| n.d_id as u32).collect()).collect()
    });
    println!(r#"{{"peak_gib": {}, "ladder": [{}]}}"#, peak_gib(), points.join(","));
}
