//! UMAP's fuzzy connectivities of a k-nearest-neighbour graph (McInnes, Healy and Melville 2018, arXiv:1802.03426).
//!
//! `sc.pp.neighbors` of scanpy computes the same weights from the same neighbours. Depends on [`crate::knn`] and
//! [`crate::graph`].

use crate::graph::WeightedGraph;
use crate::knn::KnnGraph;

/// Maximum number of bisection steps, and tolerance of the sum of memberships (`smooth_knn_dist` of umap-learn).
const STEPS: usize = 64;
const TOLERANCE: f64 = 1e-5;
/// Minimum width σ, as a fraction of the mean distance.
const MIN_WIDTH: f64 = 1e-3;

/// The graph of UMAP's connectivities, as umap-learn's `fuzzy_simplicial_set` makes it with `local_connectivity` and
/// `set_op_mix_ratio` of one, scanpy's defaults.
///
/// The membership of neighbour j of i is `exp(-max(0, d_ij - ρ_i) / σ_i)`. ρ_i is the distance from i to its nearest
/// neighbour at a distance above zero. σ_i is chosen so that the memberships of i sum to `log2(k + 1)` (UMAP counts i
/// itself among `n_neighbors = k + 1`). The weight of an edge with memberships a and b in its two directions is `a + b
/// - a b`, in (0, 1].
pub fn connectivities(neighbours: &KnnGraph) -> WeightedGraph {
    let (n, k) = (neighbours.n, neighbours.k.max(1));
    // UMAP's means include the distance of each vector to itself.
    let mean = neighbours.distances.iter().sum::<f64>() / (n * (k + 1)) as f64;
    let mut memberships = Vec::with_capacity(neighbours.indices.len());
    for (i, (others, distances)) in (0..).zip(neighbours.indices.chunks(k).zip(neighbours.distances.chunks(k))) {
        let (nearest, width) = kernel(distances, mean);
        for (&j, distance) in others.iter().zip(distances) {
            let beyond = distance - nearest;
            let membership = if beyond <= 0.0 || width == 0.0 { 1.0 } else { (-beyond / width).exp() };
            memberships.push((i.min(j), i.max(j), membership));
        }
    }
    memberships.sort_by_key(|&(a, b, _): &(u32, u32, f64)| (a, b));
    memberships.dedup_by(|other, one| {
        let same = (one.0, one.1) == (other.0, other.1);
        one.2 += if same { other.2 - one.2 * other.2 } else { 0.0 };
        same
    });
    WeightedGraph::from_edges(n, memberships)
}

/// ρ and σ of a vector, from the ascending distances of its neighbours and the mean of all distances.
fn kernel(distances: &[f64], mean: f64) -> (f64, f64) {
    let counted = (distances.len() + 1) as f64;
    let target = counted.log2();
    let nearest = distances.iter().copied().find(|distance| *distance > 0.0).unwrap_or(0.0);
    let sum = |width: f64| -> f64 {
        distances.iter().map(|d| d - nearest).map(|d| if d > 0.0 { (-d / width).exp() } else { 1.0 }).sum()
    };
    let (mut low, mut high, mut width) = (0.0, f64::INFINITY, 1.0);
    for _ in 0..STEPS {
        let over = sum(width) - target;
        if over.abs() < TOLERANCE {
            break;
        }
        (low, high) = if over > 0.0 { (low, width) } else { (width, high) };
        width = if high.is_infinite() { width * 2.0 } else { (low + high) / 2.0 };
    }
    let scale = if nearest > 0.0 { distances.iter().sum::<f64>() / counted } else { mean };
    (nearest, width.max(MIN_WIDTH * scale))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::knn::nearest_neighbours;

    /// `X[i, j] = (i * 6007 + j * 3001 + i * i * (j + 1) * 17) % 10007 / 1000` for i below 60, j below 3.
    fn points() -> Vec<f32> {
        (0..180u32)
            .map(|at| (at / 3, at % 3))
            .map(|(i, j)| (i * 6007 + j * 3001 + i * i * (j + 1) * 17) % 10007)
            .map(|v| v as f32 / 1000.0)
            .collect()
    }

    /// umap-learn 0.5.12: X as above in float32, `D, I = NearestNeighbors(n_neighbors=8).fit(X).kneighbors()` with each
    /// point put before its 7 neighbours, `W = fuzzy_simplicial_set(X, 8, RandomState(0), "euclidean", knn_indices=I,
    /// knn_dists=D)[0]`; `W.sum(), W.nnz`, `W[0]` and the degree of point 5.
    #[test]
    fn weights_are_those_of_umap() {
        let graph = connectivities(&nearest_neighbours(&points(), 3, 7));
        let edges: usize = (0..60).map(|node| graph.neighbours(node).count()).sum();
        assert!((graph.total() - 260.82993).abs() < 1e-3 && edges == 514, "{} {edges}", graph.total());
        assert!((graph.degree(5) - 4.714477).abs() < 1e-4, "{}", graph.degree(5));
        let expected = [
            (2, 0.259848),
            (5, 1.000000),
            (21, 0.415610),
            (22, 0.692217),
            (25, 0.656142),
            (35, 0.424141),
            (38, 0.225326),
            (42, 0.287355),
        ];
        let found: Vec<(usize, f64)> = graph.neighbours(0).collect();
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.0 == expected.0 && (found.1 - expected.1).abs() < 1e-5, "{found:?} {expected:?}");
        }
    }

    #[test]
    fn equal_points_are_joined_fully() {
        let graph = connectivities(&nearest_neighbours(&[0.0, 0.0, 0.0, 5.0], 1, 2));
        assert_eq!(graph.neighbours(0).take(2).collect::<Vec<_>>(), [(1, 1.0), (2, 1.0)]);
    }

    #[test]
    fn few_points_make_a_small_graph() {
        for (points, nodes, total) in [(&[][..], 0, 0.0), (&[1.0], 1, 0.0), (&[1.0, 2.0], 2, 2.0)] {
            let graph = connectivities(&nearest_neighbours(points, 1, 7));
            assert_eq!((graph.nodes(), graph.total()), (nodes, total));
        }
    }
}
