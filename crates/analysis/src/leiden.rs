//! Communities of a graph by the Leiden algorithm (Traag, Waltman and van Eck 2019, "From Louvain to Leiden",
//! Scientific Reports 9:5233), for modularity with a resolution.
//!
//! One pass moves nodes by a queue, refines communities into well-connected parts, aggregates the parts to the nodes of
//! a smaller graph, and repeats this on the smaller graph. Passes are repeated on their own result until modularity
//! stops rising. Refinement takes the best part for a node instead of a random one (θ → 0 in the paper), like
//! leidenalg, which scanpy uses. Only the order of nodes is random. The algorithm runs on one thread.

use std::borrow::Cow;
use std::collections::VecDeque;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::graph::{WeightedGraph, modularity};

/// Gains below this fraction of the graph's weight are treated as rounding errors.
const ROUNDING: f64 = 1e-13;
/// Maximum number of passes; modularity stops rising long before.
const MAX_PASSES: usize = 100;

/// The community of each node, `[n]`. Communities are numbered by descending size, ties by their lowest node.
///
/// `resolution` is γ of [`modularity`]: a higher value gives more communities. Every community is connected. The result
/// is determined by the seed.
pub fn leiden(graph: &WeightedGraph, resolution: f64, seed: u64) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut labels: Vec<u32> = (0..graph.nodes() as u32).collect();
    if graph.total() == 0.0 {
        return labels;
    }
    let mut quality = modularity(graph, &labels, resolution);
    for _ in 0..MAX_PASSES {
        let next = iterate(graph, &labels, resolution, &mut random);
        let next_quality = modularity(graph, &next, resolution);
        if next_quality <= quality + ROUNDING {
            break;
        }
        (labels, quality) = (next, next_quality);
    }
    by_size(&labels)
}

/// One pass over all levels of aggregation, starting from `labels`; the result is at least as good.
fn iterate(graph: &WeightedGraph, labels: &[u32], resolution: f64, random: &mut ChaCha8Rng) -> Vec<u32> {
    let mut level = Cow::Borrowed(graph);
    // `places`: the node of the level that each node of the graph belongs to. `labels`: communities of the nodes of the
    // level.
    let mut places: Vec<u32> = (0..graph.nodes() as u32).collect();
    let mut labels = labels.to_vec();
    loop {
        Communities::new(&level, labels.clone(), resolution).move_nodes(&level, random, &mut labels);
        let parts = refine(&level, &labels, resolution, random);
        let count = parts.iter().max().map_or(0, |last| *last as usize + 1);
        // Nothing was merged: each part is a community, or no community can be refined further.
        if count == level.nodes() {
            let whole: Vec<u32> = places.iter().map(|place| labels[*place as usize]).collect();
            return connected(graph, &whole);
        }
        let mut coarse = vec![0; count];
        for (part, label) in parts.iter().zip(&labels) {
            coarse[*part as usize] = *label;
        }
        places.iter_mut().for_each(|place| *place = parts[*place as usize]);
        labels = renumber(&coarse);
        level = Cow::Owned(aggregate(&level, &parts, count));
    }
}

/// Communities of the nodes of one level while nodes move between them.
struct Communities {
    of: Vec<u32>,
    /// By community: summed degrees, number of nodes.
    degrees: Vec<f64>,
    sizes: Vec<u32>,
    empty: Vec<u32>,
    /// γ / 2m: the penalty per product of degrees in modularity.
    price: f64,
    /// Smaller gains are treated as zero.
    rounding: f64,
    to: WeightsTo,
}

/// Weight of the edges from one node to each community, and the list of communities where it is not zero.
struct WeightsTo {
    weights: Vec<f64>,
    met: Vec<u32>,
}

impl WeightsTo {
    fn clear(&mut self) {
        self.met.drain(..).for_each(|community| self.weights[community as usize] = 0.0);
    }

    fn add(&mut self, community: u32, weight: f64) {
        let sum = &mut self.weights[community as usize];
        if *sum == 0.0 {
            self.met.push(community);
        }
        *sum += weight;
    }
}

impl Communities {
    fn new(graph: &WeightedGraph, of: Vec<u32>, resolution: f64) -> Self {
        let n = graph.nodes();
        let (mut degrees, mut sizes) = (vec![0.0; n], vec![0; n]);
        for (node, &community) in of.iter().enumerate() {
            degrees[community as usize] += graph.degree(node);
            sizes[community as usize] += 1;
        }
        let empty = (0..n as u32).rev().filter(|community| sizes[*community as usize] == 0).collect();
        let (price, rounding) = (resolution / graph.total(), ROUNDING * graph.total());
        let to = WeightsTo { weights: vec![0.0; n], met: Vec::new() };
        Self { of, degrees, sizes, empty, price, rounding, to }
    }

    /// Fast local moving (MoveNodesFast in the paper): each node moves to the community with the largest gain of
    /// modularity. Its neighbours in other communities are queued again, until no node moves. Writes the communities,
    /// renumbered from 0, to `labels`.
    fn move_nodes(mut self, graph: &WeightedGraph, random: &mut ChaCha8Rng, labels: &mut Vec<u32>) {
        let mut queue = VecDeque::from(shuffled(graph.nodes(), random));
        let mut queued = vec![true; graph.nodes()];
        while let Some(node) = queue.pop_front() {
            queued[node] = false;
            let Some(community) = self.move_node(graph, node) else { continue };
            for (other, _) in graph.neighbours(node) {
                if self.of[other] != community && !queued[other] {
                    queued[other] = true;
                    queue.push_back(other);
                }
            }
        }
        *labels = renumber(&self.of);
    }

    /// Moves a node to its best community and returns it; `None` if the node stays.
    fn move_node(&mut self, graph: &WeightedGraph, node: usize) -> Option<u32> {
        let (from, degree) = (self.of[node], graph.degree(node));
        self.to.clear();
        graph.neighbours(node).for_each(|(other, weight)| self.to.add(self.of[other], weight));
        let without = self.degrees[from as usize] - degree;
        let (mut best, mut most) =
            (from, self.to.weights[from as usize] - self.price * degree * without + self.rounding);
        for &community in self.to.met.iter().filter(|community| **community != from) {
            let at = community as usize;
            let gain = self.to.weights[at] - self.price * degree * self.degrees[at];
            if gain > most {
                (best, most) = (community, gain);
            }
        }
        if most < 0.0 && self.sizes[from as usize] > 1 {
            best = self.empty.pop().unwrap_or(from);
        }
        if best == from {
            return None;
        }
        self.sizes[from as usize] -= 1;
        self.degrees[from as usize] = without;
        if self.sizes[from as usize] == 0 {
            self.degrees[from as usize] = 0.0;
            self.empty.push(from);
        }
        self.sizes[best as usize] += 1;
        self.degrees[best as usize] += degree;
        self.of[node] = best;
        Some(best)
    }
}

/// RefinePartition in the paper: splits each community into well-connected parts, numbered from 0. Every node begins as
/// a part of its own. A node that is still alone and well connected to its community joins the part with the largest
/// gain, if that part is well connected too.
fn refine(graph: &WeightedGraph, labels: &[u32], resolution: f64, random: &mut ChaCha8Rng) -> Vec<u32> {
    let n = graph.nodes();
    let whole = Communities::new(graph, labels.to_vec(), resolution);
    let mut parts = Communities::new(graph, (0..n as u32).collect(), resolution);
    // By part: weight of the edges to the rest of its community.
    let inside = |node: usize| graph.neighbours(node).filter(move |(other, _)| labels[*other] == labels[node]);
    let mut outward: Vec<f64> = (0..n).map(|node| inside(node).map(|(_, weight)| weight).sum()).collect();
    for node in shuffled(n, random) {
        let (degree, all) = (graph.degree(node), whole.degrees[labels[node] as usize]);
        let well = |part: usize, parts: &Communities, outward: &[f64]| {
            let degrees = parts.degrees[part];
            outward[part] + parts.rounding >= parts.price * degrees * (all - degrees)
        };
        if parts.of[node] as usize != node || parts.sizes[node] != 1 || !well(node, &parts, &outward) {
            continue;
        }
        parts.to.clear();
        for (other, weight) in inside(node) {
            parts.to.add(parts.of[other], weight);
        }
        let (mut best, mut most) = (node, 0.0);
        for part in parts.to.met.iter().map(|part| *part as usize) {
            let gain = parts.to.weights[part] - parts.price * degree * parts.degrees[part];
            // As in the paper, a gain of zero is sufficient.
            if well(part, &parts, &outward) && gain >= most && (gain > most || best == node) {
                (best, most) = (part, gain);
            }
        }
        if best != node {
            outward[best] += outward[node] - 2.0 * parts.to.weights[best];
            parts.degrees[best] += degree;
            parts.sizes[best] += 1;
            parts.sizes[node] = 0;
            parts.of[node] = best as u32;
        }
    }
    renumber(&parts.of)
}

/// The aggregate graph: its nodes are the `count` parts of `graph`.
fn aggregate(graph: &WeightedGraph, parts: &[u32], count: usize) -> WeightedGraph {
    let edges = (0..graph.nodes()).flat_map(|node| {
        let once = graph.neighbours(node).filter(move |(other, _)| *other > node);
        let between = once.map(move |(other, weight)| (parts[node], parts[other], weight));
        between.chain([(parts[node], parts[node], graph.self_loop(node))])
    });
    WeightedGraph::from_edges(count, edges)
}

/// Splits each community into its connected components. Parts are connected, but a pass can end with a community of
/// which no parts could be merged, and which may be disconnected. Splitting it never lowers modularity.
fn connected(graph: &WeightedGraph, labels: &[u32]) -> Vec<u32> {
    let mut pieces = vec![u32::MAX; labels.len()];
    let mut stack = Vec::new();
    for (start, piece) in (0..labels.len()).zip(0..) {
        if pieces[start] != u32::MAX {
            continue;
        }
        stack.push(start);
        while let Some(node) = stack.pop() {
            pieces[node] = piece;
            let same = graph.neighbours(node).map(|(other, _)| other).filter(|other| labels[*other] == labels[start]);
            stack.extend(same.filter(|other| pieces[*other] == u32::MAX));
        }
    }
    renumber(&pieces)
}

fn shuffled(n: usize, random: &mut ChaCha8Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(random);
    order
}

/// Renumbers communities 0, 1, … by first occurrence. Labels must be below the number of nodes.
fn renumber(labels: &[u32]) -> Vec<u32> {
    let mut names = vec![u32::MAX; labels.len()];
    let mut next = 0;
    let mut name = |label: &u32| {
        let name = &mut names[*label as usize];
        if *name == u32::MAX {
            (*name, next) = (next, next + 1);
        }
        *name
    };
    labels.iter().map(&mut name).collect()
}

/// Renumbers communities by descending size, ties by first occurrence.
fn by_size(labels: &[u32]) -> Vec<u32> {
    let labels = renumber(labels);
    let mut sizes = vec![0usize; labels.iter().max().map_or(0, |last| *last as usize + 1)];
    labels.iter().for_each(|label| sizes[*label as usize] += 1);
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|label| std::cmp::Reverse(sizes[*label]));
    let mut names = vec![0; sizes.len()];
    for (&label, name) in order.iter().zip(0..) {
        names[label] = name;
    }
    labels.iter().map(|label| names[*label as usize]).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::Rng;

    use super::*;

    /// Groups of `size` nodes with an edge within and between with the given chances.
    fn planted(groups: u32, size: u32, within: f64, between: f64) -> (WeightedGraph, Vec<u32>) {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let labels: Vec<u32> = (0..groups * size).map(|node| node % groups).collect();
        let pairs = (0..groups * size).flat_map(|a| (0..a).map(move |b| (a, b)));
        let chance = |a: u32, b: u32| if a % groups == b % groups { within } else { between };
        let edges: Vec<_> =
            pairs.filter(|&(a, b)| random.random_bool(chance(a, b))).map(|(a, b)| (a, b, 1.0)).collect();
        (WeightedGraph::from_edges(labels.len(), edges), labels)
    }

    /// Whether each community's nodes reach each other inside it: one piece per community.
    fn all_connected(graph: &WeightedGraph, labels: &[u32]) -> bool {
        renumber(&connected(graph, labels)) == renumber(labels)
    }

    #[test]
    fn planted_communities_are_found() {
        let (graph, labels) = planted(8, 50, 0.4, 0.02);
        for seed in 0..5 {
            assert_eq!(renumber(&leiden(&graph, 1.0, seed)), renumber(&labels));
        }
    }

    #[test]
    fn hidden_communities_score_no_less_than_planted_ones() {
        let (graph, labels) = planted(6, 60, 0.25, 0.07);
        for seed in 0..5 {
            let found = leiden(&graph, 1.0, seed);
            assert!(
                modularity(&graph, &found, 1.0) >= modularity(&graph, &labels, 1.0) && all_connected(&graph, &found)
            );
        }
    }

    #[test]
    fn cliques_joined_by_an_edge_part_and_the_larger_is_first() {
        let clique = |nodes: std::ops::Range<u32>| {
            nodes.clone().flat_map(move |a| nodes.clone().filter(move |b| *b < a).map(move |b| (a, b, 1.0)))
        };
        let graph = WeightedGraph::from_edges(11, clique(0..5).chain(clique(5..11)).chain([(0, 10, 1.0)]));
        assert_eq!(leiden(&graph, 1.0, 3), [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(leiden(&graph, 0.01, 3), [0; 11]);
        assert_eq!(leiden(&graph, 20.0, 3), (0..11).collect::<Vec<u32>>());
    }

    /// The best partition of Zachary's club has a modularity of 0.4198 (Brandes et al. 2008), and leidenalg 0.12.0
    /// finds it.
    #[test]
    fn the_karate_club_is_parted_at_its_best() {
        const TIES: &str = "\
            0-1 0-2 0-3 0-4 0-5 0-6 0-7 0-8 0-10 0-11 0-12 0-13 0-17 0-19 0-21 0-31 1-2 1-3 1-7 1-13 1-17 1-19 \
            1-21 1-30 2-3 2-7 2-27 2-28 2-32 2-9 2-8 2-13 3-7 3-12 3-13 4-6 4-10 5-6 5-10 5-16 6-16 8-30 8-32 \
            8-33 9-33 13-33 14-32 14-33 15-32 15-33 18-32 18-33 19-33 20-32 20-33 22-32 22-33 23-25 23-27 23-32 \
            23-33 23-29 24-25 24-27 24-31 25-31 26-29 26-33 27-33 28-31 28-33 29-32 29-33 30-32 30-33 31-32 \
            31-33 32-33";
        let edge =
            |pair: &str| pair.split_once('-').map(|(a, b)| (a.parse().unwrap(), b.parse().unwrap(), 1.0)).unwrap();
        let graph = WeightedGraph::from_edges(34, TIES.split(' ').map(edge));
        let best = (0..10).map(|seed| modularity(&graph, &leiden(&graph, 1.0, seed), 1.0)).fold(0.0, f64::max);
        assert!((best - 0.41978961).abs() < 1e-7, "{best}");
    }

    #[test]
    fn graphs_without_edges_fall_apart() {
        assert!(leiden(&WeightedGraph::from_edges(0, []), 1.0, 0).is_empty());
        assert_eq!(leiden(&WeightedGraph::from_edges(3, []), 1.0, 0), [0, 1, 2]);
        assert_eq!(leiden(&WeightedGraph::from_edges(4, [(1, 3, 2.0), (0, 0, 1.0)]), 1.0, 0), [1, 0, 2, 0]);
    }

    proptest! {
        #[test]
        fn communities_are_connected_numbered_by_size_and_better_than_none(
            edges in prop::collection::vec((0u32..40, 0u32..40, 0.0f64..2.0), 0..160),
            resolution in 0.1f64..3.0, seed: u64,
        ) {
            let graph = WeightedGraph::from_edges(40, edges);
            let labels = leiden(&graph, resolution, seed);
            prop_assert_eq!(&labels, &leiden(&graph, resolution, seed));
            prop_assert!(all_connected(&graph, &labels));
            let alone: Vec<u32> = (0..40).collect();
            let quality = modularity(&graph, &labels, resolution);
            prop_assert!(quality >= modularity(&graph, &alone, resolution) - 1e-12);
            let sizes: Vec<usize> = (0..=40).map(|c| labels.iter().filter(|label| **label == c).count()).collect();
            prop_assert!(sizes.is_sorted_by(|a, b| a >= b) && sizes.iter().sum::<usize>() == 40);
        }

        /// No node is better off in the community of a neighbour or alone: what local moving leaves behind.
        #[test]
        fn no_move_of_one_node_gains(
            edges in prop::collection::vec((0u32..25, 0u32..25, 0.1f64..2.0), 1..100), seed: u64,
        ) {
            let graph = WeightedGraph::from_edges(25, edges);
            let labels = leiden(&graph, 1.0, seed);
            let quality = modularity(&graph, &labels, 1.0);
            for node in 0..25 {
                for community in 0..25 {
                    let mut moved = labels.clone();
                    moved[node] = community;
                    prop_assert!(modularity(&graph, &moved, 1.0) <= quality + 1e-9);
                }
            }
        }
    }
}
