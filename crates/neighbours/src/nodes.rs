//! Nodes that stand for several vectors: equal ones, and ones too near each other for 8-bit codes to tell apart.
//!
//! In a graph with a node for each vector, those of a clump of near vectors would link only to each other, and a search
//! would keep some of them, chosen by rounding. So the vectors of a clump share a node, whose codes are those of one of
//! them, and a search that reaches the node computes the distances of all in f32.

use std::sync::atomic::{AtomicU32, Ordering};

use rayon::prelude::*;

/// The positions of the vectors that each node stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NodeMembers {
    /// `[nodes + 1]`: where a node's members begin in `positions`, and where the last end.
    pub(crate) starts: Vec<u32>,
    /// `[n]`: positions by node. Equal vectors follow one another, by position.
    pub(crate) positions: Vec<u32>,
    /// `[n]`: 1 where the vector equals that of the member before it, which is of the same node; otherwise 0.
    pub(crate) repeats: Vec<u8>,
}

/// A vector that a node stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) position: u32,
    /// The vector equals that of the member before it.
    pub(crate) repeats: bool,
}

impl NodeMembers {
    /// True if a node has several members.
    pub(crate) fn is_shared(&self, node: u32) -> bool {
        self.starts[node as usize + 1] - self.starts[node as usize] > 1
    }

    /// The members of a node, at least one.
    pub(crate) fn of(&self, node: u32) -> impl Iterator<Item = Member> + '_ {
        let range = self.starts[node as usize] as usize..self.starts[node as usize + 1] as usize;
        let (positions, repeats) = (&self.positions[range.clone()], &self.repeats[range]);
        positions.iter().zip(repeats).map(|(position, repeats)| Member { position: *position, repeats: *repeats != 0 })
    }
}

/// Which vectors share a node while a graph is built. Nodes are named by the position of their first vector.
#[derive(Debug)]
pub(crate) struct SharedNodes {
    /// `[n]`: the first position with an equal vector.
    first_equal: Vec<u32>,
    /// `[n]`: the node of the vector, for vectors that are the first of their equals.
    node: Vec<AtomicU32>,
}

impl SharedNodes {
    /// Equal vectors of `[n, dim]` share a node.
    pub(crate) fn of_equal(vectors: &[f32], dim: usize) -> Self {
        let n = vectors.len() / dim;
        let vector = |position: u32| &vectors[position as usize * dim..][..dim];
        let mut by_hash: Vec<(u64, u32)> =
            (0..n as u32).into_par_iter().map(|position| (hash(vector(position)), position)).collect();
        by_hash.par_sort_unstable();
        let mut first_equal: Vec<u32> = (0..n as u32).collect();
        for same_hash in by_hash.chunk_by(|a, b| a.0 == b.0) {
            let first = same_hash[0].1;
            // Others of the same hash have no equals here; they are found to be near when they are inserted.
            let equal = |position: &u32| bits(vector(*position)).eq(bits(vector(first)));
            for position in same_hash[1..].iter().map(|(_, position)| *position).filter(equal) {
                first_equal[position as usize] = first;
            }
        }
        Self { first_equal, node: (0..n as u32).map(AtomicU32::new).collect() }
    }

    /// True if no vector of a lower position equals the one at this position.
    pub(crate) fn is_first(&self, position: u32) -> bool {
        self.first_equal[position as usize] == position
    }

    /// Lets a vector, the first of its equals, share an existing node.
    pub(crate) fn join(&self, position: u32, node: u32) {
        self.node[position as usize].store(node, Ordering::Relaxed);
    }

    /// The positions that name nodes, ascending, and the members of each; `None` for members if no node is shared.
    pub(crate) fn finish(self) -> (Vec<u32>, Option<NodeMembers>) {
        let node_of = |position: u32| {
            let first = self.first_equal[position as usize];
            self.node[first as usize].load(Ordering::Relaxed)
        };
        let n = self.node.len() as u32;
        let nodes: Vec<u32> = (0..n).filter(|position| node_of(*position) == *position).collect();
        if nodes.len() == n as usize {
            return (nodes, None);
        }
        let mut positions: Vec<u32> = (0..n).collect();
        positions.par_sort_unstable_by_key(|p| (node_of(*p), self.first_equal[*p as usize], *p));
        let repeats = positions.iter().map(|position| u8::from(!self.is_first(*position))).collect();
        let runs = positions.chunk_by(|a, b| node_of(*a) == node_of(*b)).map(|run| run.len() as u32);
        let starts = std::iter::once(0).chain(runs.scan(0, |end, len| {
            *end += len;
            Some(*end)
        }));
        let starts = starts.collect();
        (nodes, Some(NodeMembers { starts, positions, repeats }))
    }
}

fn bits(vector: &[f32]) -> impl Iterator<Item = u32> + '_ {
    vector.iter().map(|value| value.to_bits())
}

/// Hash of a vector's bits. Equality is checked where hashes are equal, so a weak and fast one is enough.
fn hash(vector: &[f32]) -> u64 {
    bits(vector).fold(0, |hash: u64, bits| (hash.rotate_left(5) ^ u64::from(bits)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_vectors_and_joined_ones_are_members_of_one_node() {
        let vectors = [1.0f32, 0.0, 0.0, 1.0, 1.0, 0.0, 0.6, 0.8, 0.0, 1.0, 0.6, 0.8, 0.8, 0.6];
        let shared = SharedNodes::of_equal(&vectors, 2);
        assert_eq!((0..7).filter(|p| shared.is_first(*p)).collect::<Vec<_>>(), [0, 1, 3, 6]);
        shared.join(1, 3);
        let (nodes, members) = shared.finish();
        let members = members.unwrap();
        assert_eq!(nodes, [0, 3, 6]);
        assert_eq!(
            (members.starts.as_slice(), members.positions.as_slice()),
            (&[0, 2, 6, 7][..], &[0, 2, 1, 4, 3, 5, 6][..])
        );
        let of_second: Vec<_> = members.of(1).map(|member| (member.position, member.repeats)).collect();
        assert_eq!(of_second, [(1, false), (4, true), (3, false), (5, true)]);
    }

    #[test]
    fn different_vectors_have_nodes_of_their_own() {
        let (nodes, members) = SharedNodes::of_equal(&[0.0f32, 1.0, -0.0], 1).finish();
        assert_eq!((nodes, members), (vec![0, 1, 2], None));
    }
}
