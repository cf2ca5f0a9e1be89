//! Local inverse Simpson's index (LISI, Korsunsky et al. 2019, Nat. Methods 16:1289) on graphs, as scib computes it
//! (Luecken et al. 2022, Nat. Methods 19:41): the effective number of different labels among the nearest nodes of a
//! node.
//!
//! Depends on [`crate::graph`].

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use rayon::prelude::*;

use crate::graph::WeightedGraph;

/// Nearest nodes of a node.
const NEIGHBOURS: usize = 90;
/// Effective number of these that count: `exp` of the entropy of their weights.
const PERPLEXITY: f64 = 30.0;
/// Bisection of the width: maximum number of steps, and tolerance of the entropy.
const STEPS: usize = 50;
const TOLERANCE: f64 = 1e-5;

/// The median over nodes of the LISI of `labels`, from 1 (all neighbours have the same label) to the number of labels.
///
/// The neighbours of a node are the 90 nodes with the shortest paths to it, where the length of an edge is its weight,
/// as in scib. Their weights are `exp(-β d)` with β such that the perplexity is 30. As in scib, a node with fewer than
/// 90 reachable nodes counts as 1, one without edges is left out. `None` if no node has edges, or
/// if there are not more than 90 nodes.
///
/// # Panics
/// If there is not a label for every node.
pub fn median_lisi(graph: &WeightedGraph, labels: &[u32]) -> Option<f64> {
    assert_eq!(labels.len(), graph.nodes(), "a label for every node");
    if graph.nodes() <= NEIGHBOURS {
        return None;
    }
    let of_node = |node: usize| {
        let nearest = nearest_by_path(graph, node);
        match nearest.len() {
            0 => None,
            n if n < NEIGHBOURS => Some(1.0),
            _ => Some(lisi(&nearest, labels)),
        }
    };
    let mut all: Vec<f64> = (0..graph.nodes()).into_par_iter().filter_map(of_node).collect();
    all.sort_by(f64::total_cmp);
    match all.len() {
        0 => None,
        n if n % 2 == 1 => Some(all[n / 2]),
        n => Some(f64::midpoint(all[n / 2 - 1], all[n / 2])),
    }
}

/// A node that was reached; the nearest is the largest, ties by number.
#[derive(PartialEq)]
struct Reached {
    distance: f64,
    node: usize,
}

impl Eq for Reached {}

impl PartialOrd for Reached {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Reached {
    fn cmp(&self, other: &Self) -> Ordering {
        other.distance.total_cmp(&self.distance).then(other.node.cmp(&self.node))
    }
}

/// The nodes with the shortest paths from a node, without itself, and the lengths of the paths (Dijkstra).
fn nearest_by_path(graph: &WeightedGraph, start: usize) -> Vec<(usize, f64)> {
    let mut found = Vec::with_capacity(NEIGHBOURS);
    let mut best = HashMap::from([(start, 0.0)]);
    let mut queue = BinaryHeap::from([Reached { distance: 0.0, node: start }]);
    while let Some(Reached { distance, node }) = queue.pop() {
        if best.get(&node).is_some_and(|best| distance > *best) {
            continue;
        }
        if node != start {
            found.push((node, distance));
            if found.len() == NEIGHBOURS {
                break;
            }
        }
        for (other, length) in graph.neighbours(node) {
            let through = distance + length;
            if best.get(&other).is_none_or(|best| through < *best) {
                best.insert(other, through);
                queue.push(Reached { distance: through, node: other });
            }
        }
    }
    found
}

/// The inverse of Simpson's index of the labels of weighted neighbours.
fn lisi(nearest: &[(usize, f64)], labels: &[u32]) -> f64 {
    let target = PERPLEXITY.ln();
    let (mut low, mut high, mut beta) = (f64::NEG_INFINITY, f64::INFINITY, 1.0);
    let (mut entropy, mut weights) = weigh(nearest, beta);
    for _ in 0..STEPS {
        if (entropy - target).abs() <= TOLERANCE {
            break;
        }
        if entropy > target {
            low = beta;
            beta = if high.is_infinite() { beta * 2.0 } else { f64::midpoint(beta, high) };
        } else {
            high = beta;
            beta = if low.is_infinite() { beta / 2.0 } else { f64::midpoint(beta, low) };
        }
        (entropy, weights) = weigh(nearest, beta);
    }
    let mut shares: Vec<(u32, f64)> = Vec::new();
    for ((node, _), weight) in nearest.iter().zip(&weights) {
        match shares.iter_mut().find(|(label, _)| *label == labels[*node]) {
            Some((_, share)) => *share += weight,
            None => shares.push((labels[*node], *weight)),
        }
    }
    1.0 / shares.iter().map(|(_, share)| share * share).sum::<f64>()
}

/// The weights of neighbours for a β, with sum 1, and their entropy.
fn weigh(nearest: &[(usize, f64)], beta: f64) -> (f64, Vec<f64>) {
    let weights: Vec<f64> = nearest.iter().map(|(_, distance)| (-distance * beta).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let moment: f64 = nearest.iter().zip(&weights).map(|((_, distance), weight)| distance * weight).sum();
    (sum.ln() + beta * moment / sum, weights.iter().map(|weight| weight / sum).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connectivities::connectivities;
    use crate::knn::nearest_neighbours;

    /// `X[i, j] = (i * 6007 + j * 3001 + i * i * (j + 1) * 17) % 10007 / 1000` for i below 300, j below 3, as in the
    /// test of the connectivities; labels `i % 3` and `X[i, 0] > 5`. scib 1.1.7: `a = AnnData(X)`, `sc.pp.neighbors(a,
    /// 15, use_rep="X")`, `np.nanmedian(lisi_graph_py(a, "label"))`.
    #[test]
    fn medians_are_those_of_scib() {
        let point = |at: u64| {
            let (i, j) = (at / 3, at % 3);
            ((i * 6007 + j * 3001 + i * i * (j + 1) * 17) % 10007) as f32 / 1000.0
        };
        let points: Vec<f32> = (0..900).map(point).collect();
        let graph = connectivities(&nearest_neighbours(&points, 3, 14));
        let mixed: Vec<u32> = (0..300).map(|i| i % 3).collect();
        let halves: Vec<u32> = points.iter().step_by(3).map(|x| u32::from(*x > 5.0)).collect();
        let (mixed, halves) = (median_lisi(&graph, &mixed).unwrap(), median_lisi(&graph, &halves).unwrap());
        assert!(
            (mixed - 2.7547816801126754).abs() < 1e-4 && (halves - 1.442808249576359).abs() < 1e-4,
            "{mixed} {halves}"
        );
    }

    #[test]
    fn small_parts_count_as_one_and_small_graphs_have_none() {
        let pair = |nodes: usize| WeightedGraph::from_edges(nodes, [(0, 1, 1.0)]);
        assert_eq!(median_lisi(&pair(91), &[1; 91]), Some(1.0));
        assert_eq!(median_lisi(&pair(90), &[1; 90]), None);
        assert_eq!(median_lisi(&WeightedGraph::from_edges(200, []), &[0; 200]), None);
    }
}
