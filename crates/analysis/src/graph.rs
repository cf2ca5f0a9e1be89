//! A weighted undirected graph, and the modularity of a partition of it (Newman 2004; with resolution, Reichardt and
//! Bornholdt 2006). Nodes are numbers from 0.

/// A weighted undirected graph, possibly with self-loops.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedGraph {
    /// `[n + 1]`: offset of each node's first neighbour.
    offsets: Vec<usize>,
    neighbours: Vec<(u32, f64)>,
    /// `[n]`: weight of each node's self-loop.
    loops: Vec<f64>,
    /// `[n]`: weighted degree of each node; a self-loop counts twice.
    degrees: Vec<f64>,
}

impl WeightedGraph {
    /// A graph of `n` nodes from edges (node, node, weight). Weights of repeated edges, in either direction, are
    /// summed. Edges with a weight of zero or below are ignored, because modularity is not defined for them.
    ///
    /// # Panics
    /// If an edge names a node that is not below `n`.
    pub fn from_edges(n: usize, edges: impl IntoIterator<Item = (u32, u32, f64)>) -> Self {
        let mut ends = Vec::new();
        let mut loops = vec![0.0; n];
        for (a, b, weight) in edges.into_iter().filter(|edge| edge.2 > 0.0) {
            assert!((a as usize) < n && (b as usize) < n, "an edge between nodes of the graph");
            if a == b {
                loops[a as usize] += weight;
            } else {
                ends.extend([(a, b, weight), (b, a, weight)]);
            }
        }
        // A stable sort: repeated edges are summed in the order in which they were given, at both ends.
        ends.sort_by_key(|&(a, b, _)| (a, b));
        ends.dedup_by(|next, kept| {
            let same = (next.0, next.1) == (kept.0, kept.1);
            kept.2 += if same { next.2 } else { 0.0 };
            same
        });
        let offsets: Vec<usize> = (0..=n).map(|node| ends.partition_point(|end| (end.0 as usize) < node)).collect();
        let neighbours: Vec<(u32, f64)> = ends.into_iter().map(|(_, b, weight)| (b, weight)).collect();
        let degree = |node: usize| {
            let ends = &neighbours[offsets[node]..offsets[node + 1]];
            ends.iter().map(|(_, weight)| weight).sum::<f64>() + 2.0 * loops[node]
        };
        let degrees = (0..n).map(degree).collect();
        Self { offsets, neighbours, loops, degrees }
    }

    /// Number of nodes.
    pub fn nodes(&self) -> usize {
        self.loops.len()
    }

    /// Neighbours of a node in ascending order, each with the weight of its edge; without the node itself.
    pub fn neighbours(&self, node: usize) -> impl Iterator<Item = (usize, f64)> {
        self.neighbours[self.offsets[node]..self.offsets[node + 1]]
            .iter()
            .map(|&(other, weight)| (other as usize, weight))
    }

    /// Weight of a node's self-loop; zero if there is none.
    pub fn self_loop(&self, node: usize) -> f64 {
        self.loops[node]
    }

    /// Weighted degree of a node: the sum of the weights of its edges, a self-loop counted twice.
    pub fn degree(&self, node: usize) -> f64 {
        self.degrees[node]
    }

    /// Sum of all weighted degrees: 2m, twice the total weight of the edges.
    pub fn total(&self) -> f64 {
        self.degrees.iter().sum()
    }
}

/// Modularity with a resolution γ (Reichardt and Bornholdt 2006, configuration model; Newman's for γ = 1): `Q = Σ_c [
/// w_c / 2m - γ (K_c / 2m)² ]`, w_c twice the weight inside community c, K_c its summed degrees, 2m their total.
///
/// Zero for a graph with no edges.
///
/// # Panics
/// If there is not a label for every node.
pub fn modularity(graph: &WeightedGraph, labels: &[u32], resolution: f64) -> f64 {
    assert_eq!(labels.len(), graph.nodes(), "a label for every node");
    let total = graph.total();
    if total == 0.0 {
        return 0.0;
    }
    let mut names = labels.to_vec();
    names.sort_unstable();
    names.dedup();
    let mut communities = vec![(0.0, 0.0); names.len()];
    for (node, label) in labels.iter().enumerate() {
        let (inside, degrees) = &mut communities[names.partition_point(|name| name < label)];
        let same = graph.neighbours(node).filter(|(other, _)| labels[*other] == *label);
        *inside += same.map(|(_, weight)| weight).sum::<f64>() + 2.0 * graph.self_loop(node);
        *degrees += graph.degree(node);
    }
    communities.iter().map(|(inside, degrees)| inside / total - resolution * (degrees / total).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_summed_seen_from_both_ends_and_dropped_below_zero() {
        let graph = WeightedGraph::from_edges(
            4,
            [(0, 1, 1.0), (1, 0, 0.5), (2, 2, 3.0), (1, 2, 2.0), (0, 3, 0.0), (3, 1, -1.0)],
        );
        let neighbours = |node| graph.neighbours(node).collect::<Vec<_>>();
        assert_eq!(neighbours(0), [(1, 1.5)]);
        assert_eq!(neighbours(1), [(0, 1.5), (2, 2.0)]);
        assert_eq!(neighbours(3), []);
        assert_eq!((graph.self_loop(2), graph.degree(2), graph.total()), (3.0, 8.0, 13.0));
    }

    /// igraph 1.0.0: `g = WeightedGraph(edges); g.modularity(labels, weights=weights, resolution=r)`, with
    /// `edges = [(i, i * i % 12) for i in range(12)]`, an edge to itself among them, `weights = [1 + i % 3 for i in
    /// range(12)]` and `labels = [i // 4 for i in range(12)]`.
    #[test]
    fn modularity_is_that_of_igraph() {
        let graph = WeightedGraph::from_edges(12, (0..12u32).map(|i| (i, i * i % 12, f64::from(1 + i % 3))));
        let labels: Vec<u32> = (0..12).map(|i| i / 4).collect();
        assert!((modularity(&graph, &labels, 1.0) - -0.09982638888888887).abs() < 1e-12);
        assert!((modularity(&graph, &labels, 0.5) - 0.07508680555555555).abs() < 1e-12);
        assert_eq!(modularity(&WeightedGraph::from_edges(2, []), &[0, 1], 1.0), 0.0);
    }
}
