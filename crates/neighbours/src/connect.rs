//! Leads a search to every node of a finished graph.
//!
//! A row of links is cut when it is full, and where many nodes are near each other the last link to one of them may be
//! cut. No search would find that node again.

use crate::candidates::{Candidate, Kept};
use crate::graph::HnswGraph;
use crate::quantised::EncodedQuery;
use crate::search::SearchScratch;

impl HnswGraph {
    /// Links every node that no path on the base layer leads to from the entry point, from the nearest node with room
    /// that a path leads to. `ef` nodes near it are looked at.
    pub(crate) fn connect(&self, ef: usize) {
        let mut reached = vec![false; self.nodes()];
        self.reach(self.entry_point, &mut reached);
        let (mut query, mut scratch) = (EncodedQuery::default(), SearchScratch::default());
        for node in 0..self.nodes() as u32 {
            if reached[node as usize] {
                continue;
            }
            self.quantised.encode_row(node, &mut query);
            self.search_upper_layers(&query, 0, &mut scratch);
            self.search_layer(&query, 0, &mut Kept::nearest(ef), &mut scratch);
            self.link_from_nearest(node, &scratch.best, &reached);
            self.reach(node, &mut reached);
        }
    }

    /// Marks a node and all that links on the base layer lead to from it.
    fn reach(&self, from: u32, reached: &mut [bool]) {
        let mut to_follow = vec![from];
        while let Some(node) = to_follow.pop() {
            if reached.get_mut(node as usize).is_some_and(|reached| !std::mem::replace(reached, true)) {
                to_follow.extend(self.base.of(node as usize).filter(|to| !reached[*to as usize]));
            }
        }
    }

    /// Links a node from the first of `near` that is reached and has room. Without one the nearest gives up its last
    /// link, which the node takes over, so that the way there only becomes longer.
    fn link_from_nearest(&self, node: u32, near: &[Candidate], reached: &[bool]) {
        let near = || near.iter().map(|candidate| candidate.id).filter(|id| reached[*id as usize]);
        if near().any(|from| self.base.push(from as usize, node)) {
            return;
        }
        let from = near().next().unwrap_or(self.entry_point) as usize;
        let links: Vec<u32> = self.base.of(from).collect();
        let Some((last, others)) = links.split_last() else { return };
        let own: Vec<u32> = self.base.of(node as usize).take(self.base.width() - 1).collect();
        self.base.set(node as usize, own.into_iter().chain([*last]));
        self.base.set(from, others.iter().copied().chain([node]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::HnswConfig;

    #[test]
    fn a_node_without_a_link_to_it_is_linked_again() {
        let angles = (0..300u16).map(|degree| f32::from(degree).to_radians());
        let vectors: Vec<f32> = angles.flat_map(|angle| [angle.cos(), angle.sin()]).collect();
        let config = HnswConfig { m: 2, ef_construction: 16, seed: 0 };
        let graph = HnswGraph::build(&vectors, 2, &config, |_| ());
        let lost: Vec<u32> = (50..70).filter(|node| *node != graph.entry_point).collect();
        for node in 0..graph.nodes() {
            let links: Vec<u32> = graph.base.of(node).filter(|to| !lost.contains(to)).collect();
            graph.base.set(node, links.into_iter());
        }
        graph.connect(16);
        let mut reached = vec![false; graph.nodes()];
        graph.reach(graph.entry_point, &mut reached);
        assert!(reached.iter().all(|reached| *reached));
    }
}
