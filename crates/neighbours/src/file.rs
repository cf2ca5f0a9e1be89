//! Graphs as bytes: little-endian flat arrays one after another. The reader checks every length, link and member.
//!
//! | array | values | in files where |
//! |---|---|---|
//! | header | u32: [`FORMAT`], vectors n, nodes, dimension, M, entry point | always |
//! | range of each dimension | f32 `[dim]` smallest values, f32 `[dim]` steps of the codes | always |
//! | where each node's members end | u32 `[nodes]` | there are fewer nodes than vectors |
//! | members: positions by node | u32 `[n]` | there are fewer nodes than vectors |
//! | links of the base layer | u32 `[nodes, 2 M]` | always |
//! | links of the layers above | u32 `[sum of levels, M]` | always |
//! | levels | u8 `[nodes]` | always |
//! | 1 for each member that repeats the vector before it, else 0 | u8 `[n]` | there are fewer nodes than vectors |
//! | codes | u8 `[nodes, dim]` | always |
//!
//! Graphs without [`FORMAT`], which had a node for each vector, are refused: their codes were rounded in another way,
//! and a search of them lost vectors that have many near ones.

use std::io::{self, Write};
use std::sync::atomic::Ordering;

use crate::graph::{HnswGraph, first_upper_rows, m0};
use crate::memory::{Links, NONE};
use crate::nodes::NodeMembers;
use crate::quantised::QuantisedVectors;

/// Why bytes are not a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GraphReadError {
    /// The bytes end before the arrays that the header announces.
    #[error("the HNSW graph is cut off")]
    Truncated,
    /// The bytes do not begin as a graph of this version does.
    #[error("the HNSW graph has a format that this version does not read")]
    Format,
    /// The header states sizes that no graph has.
    #[error("the HNSW graph's header is wrong: {vectors} vectors, {nodes} nodes, dimension {dim}, M = {m}")]
    Header {
        /// Number of vectors that it states.
        vectors: u64,
        /// Number of nodes that it states; as many as vectors at most, and none only without vectors.
        nodes: u64,
        /// Dimension that it states; 1 to 65,536 is possible.
        dim: u64,
        /// M that it states; 2 to 255 is possible.
        m: u64,
    },
    /// The nodes do not stand for every vector once.
    #[error("the HNSW graph's nodes do not stand for every vector once; node {node} is wrong")]
    Members {
        /// The first node with wrong members.
        node: u32,
    },
    /// The links of the upper layers take another number of bytes than the nodes' levels require.
    #[error("the HNSW graph's upper layers have {found} bytes of links, but its levels require {expected}")]
    UpperLayers {
        /// Bytes of links there are.
        found: u64,
        /// Bytes of links that the levels require.
        expected: u64,
    },
    /// The entry point is not a node of the highest layer.
    #[error("the HNSW graph's entry point {entry_point} is not on the highest layer")]
    EntryPoint {
        /// The entry point.
        entry_point: u64,
    },
    /// A link leads to a node that is not on the layer.
    #[error("the HNSW graph links node {from} to {to}, which is not on layer {layer}")]
    Link {
        /// The node that has the link.
        from: u32,
        /// The node that the link names.
        to: u32,
        /// Layer of the link; 0 is the base layer.
        layer: u8,
    },
}

/// First value of a graph. No older graph begins with it: that would be one of 861 million vectors.
const FORMAT: u32 = u32::from_le_bytes(*b"HNS3");
/// Number of u32 values in the header.
const HEADER: usize = 6;

impl HnswGraph {
    /// Writes the graph, without the f32 vectors.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut words = WordWriter { out, buffer: Vec::new() };
        let m = self.upper.width();
        let sizes = [self.len(), self.nodes(), self.dim(), m].map(|size| size as u32);
        for word in [FORMAT].into_iter().chain(sizes).chain([self.entry_point]) {
            words.put(word)?;
        }
        for value in self.quantised.min.iter().chain(&self.quantised.step) {
            words.put(value.to_bits())?;
        }
        if let Some(members) = &self.members {
            for word in members.starts.iter().skip(1).chain(&members.positions) {
                words.put(*word)?;
            }
        }
        for link in self.base.all().iter().chain(self.upper.all()) {
            words.put(link.load(Ordering::Relaxed))?;
        }
        words.flush()?;
        out.write_all(&self.levels)?;
        out.write_all(self.members.as_ref().map_or(&[], |members| &members.repeats))?;
        (0..self.nodes() as u32).try_for_each(|id| out.write_all(self.quantised.code(id)))
    }

    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// The bytes are too few or too many, or name vectors that do not exist.
    pub fn read(bytes: &[u8]) -> Result<Self, GraphReadError> {
        let mut unread = Unread(bytes);
        let Header { n, nodes, dim, m, entry_point } = Header::read(&mut unread)?;
        let mut ranges = unread.words(2 * dim)?.map(f32::from_bits);
        let min: Vec<f32> = ranges.by_ref().take(dim).collect();
        let step: Vec<f32> = ranges.collect();
        let shared = nodes < n;
        let ends = unread.words(if shared { nodes } else { 0 })?;
        let positions = unread.words(if shared { n } else { 0 })?;
        // The levels give the number of upper links but follow them. The total length tells where the levels begin.
        let base = unread.take(nodes.checked_mul(4 * m0(m)).ok_or(GraphReadError::Truncated)?)?;
        let repeats = if shared { n } else { 0 };
        let tail =
            nodes.checked_mul(dim + 1).and_then(|bytes| bytes.checked_add(repeats)).ok_or(GraphReadError::Truncated)?;
        let upper = unread.take(unread.0.len().checked_sub(tail).ok_or(GraphReadError::Truncated)?)?;
        let levels = unread.take(nodes)?.to_vec();
        let repeats = unread.take(repeats)?.to_vec();
        let sum: u64 = levels.iter().map(|level| u64::from(*level)).sum();
        let (found, expected) = (upper.len() as u64, sum * 4 * m as u64);
        if found != expected || sum > u64::from(NONE) {
            return Err(GraphReadError::UpperLayers { found, expected });
        }
        if levels.iter().max() != levels.get(entry_point) {
            return Err(GraphReadError::EntryPoint { entry_point: entry_point as u64 });
        }
        let mut quantised = QuantisedVectors::zeroed(nodes, dim, min, step);
        let stride = quantised.stride;
        for (row, code) in quantised.rows.get_mut().chunks_mut(stride).zip(unread.0.chunks(dim)) {
            row[..dim].copy_from_slice(code);
        }
        let members = shared.then(|| read_members(ends, positions, repeats)).transpose()?;
        let (first_upper, entry_point) = (first_upper_rows(&levels), entry_point as u32);
        let (base, upper) = (read_links(base, m0(m)), read_links(upper, m));
        let graph = Self { quantised, members, levels, first_upper, base, upper, entry_point };
        graph.check_links().map(|()| graph)
    }

    /// Checks that every link leads to a vector that is on the link's layer.
    fn check_links(&self) -> Result<(), GraphReadError> {
        let on_layer = |id: u32, layer: u8| self.levels.get(id as usize).is_some_and(|level| *level >= layer);
        for from in 0..self.nodes() as u32 {
            for layer in 0..=self.levels[from as usize] {
                let (links, row) = self.layer(usize::from(layer));
                if let Some(to) = links.of(row(from)).find(|to| !on_layer(*to, layer)) {
                    return Err(GraphReadError::Link { from, to, layer });
                }
            }
        }
        Ok(())
    }
}

/// The members of nodes, from where each node's end. Checks that they are all positions, each once, at least one of a
/// node, and that the first of a node repeats none.
fn read_members(
    ends: impl Iterator<Item = u32>,
    positions: impl Iterator<Item = u32>,
    repeats: Vec<u8>,
) -> Result<NodeMembers, GraphReadError> {
    let members =
        NodeMembers { starts: [0].into_iter().chain(ends).collect(), positions: positions.collect(), repeats };
    let n = members.positions.len();
    let mut seen = vec![false; n];
    let mut is_new =
        |position: &u32| seen.get_mut(*position as usize).is_some_and(|seen| !std::mem::replace(seen, true));
    let (mut node, mut last) = (0, 0);
    for range in members.starts.windows(2) {
        let (start, end) = (range[0] as usize, range[1] as usize);
        let whole = start < end && members.repeats.get(start) == Some(&0);
        if !whole || !members.positions.get(start..end).is_some_and(|positions| positions.iter().all(&mut is_new)) {
            return Err(GraphReadError::Members { node });
        }
        (node, last) = (node + 1, end);
    }
    if last == n { Ok(members) } else { Err(GraphReadError::Members { node: node.saturating_sub(1) }) }
}

/// The sizes that a graph begins with.
struct Header {
    n: usize,
    nodes: usize,
    dim: usize,
    m: usize,
    entry_point: usize,
}

impl Header {
    fn read(unread: &mut Unread<'_>) -> Result<Self, GraphReadError> {
        if unread.words(1)?.next() != Some(FORMAT) {
            return Err(GraphReadError::Format);
        }
        let values: Vec<usize> = unread.words(HEADER - 1)?.map(|n| n as usize).collect();
        let &[n, nodes, dim, m, entry_point] = values.as_slice() else { return Err(GraphReadError::Truncated) };
        let possible = nodes <= n && (nodes > 0 || n == 0) && n < NONE as usize;
        if !(1..=65_536).contains(&dim) || !(2..=255).contains(&m) || !possible {
            let [vectors, nodes, dim, m] = [n, nodes, dim, m].map(|size| size as u64);
            return Err(GraphReadError::Header { vectors, nodes, dim, m });
        }
        Ok(Self { n, nodes, dim, m, entry_point })
    }
}

fn read_links(bytes: &[u8], width: usize) -> Links {
    let words = bytes.as_chunks::<4>().0;
    let links = Links::empty(words.len() / width, width);
    for (link, word) in links.all().iter().zip(words) {
        link.store(u32::from_le_bytes(*word), Ordering::Relaxed);
    }
    links
}

/// The bytes that were not read yet.
struct Unread<'a>(&'a [u8]);

impl<'a> Unread<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], GraphReadError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(GraphReadError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn words(&mut self, count: usize) -> Result<impl Iterator<Item = u32> + 'a, GraphReadError> {
        Ok(self.take(4 * count)?.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)))
    }
}

/// Writes u32 values, many at a time.
struct WordWriter<'a, W> {
    out: &'a mut W,
    buffer: Vec<u8>,
}

impl<W: Write> WordWriter<'_, W> {
    fn put(&mut self, word: u32) -> io::Result<()> {
        const FULL: usize = 1 << 16;
        self.buffer.extend(word.to_le_bytes());
        if self.buffer.len() >= FULL { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}
