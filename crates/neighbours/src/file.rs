//! Graphs as bytes: little-endian flat arrays one after another. The reader checks every length and link.

use std::io::{self, Write};
use std::sync::atomic::Ordering;

use crate::graph::{HnswGraph, m0};
use crate::memory::{Links, NONE};
use crate::quantised::QuantisedVectors;

/// Why bytes are not a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GraphReadError {
    /// The bytes end before the arrays that the header announces.
    #[error("the HNSW graph is cut off")]
    Truncated,
    /// The header states sizes that no graph has.
    #[error("the HNSW graph's header is wrong: {vectors} vectors, dimension {dim}, M = {m}")]
    Header {
        /// Number of vectors that it states.
        vectors: u64,
        /// Dimension that it states; 1 to 65,536 is possible.
        dim: u64,
        /// M that it states; 2 to 255 is possible.
        m: u64,
    },
    /// The links of the upper layers take another number of bytes than the vectors' levels require.
    #[error("the HNSW graph's upper layers have {found} bytes of links, but its levels require {expected}")]
    UpperLayers {
        /// Bytes of links there are.
        found: u64,
        /// Bytes of links that the levels require.
        expected: u64,
    },
    /// The entry point is not a vector of the highest layer.
    #[error("the HNSW graph's entry point {entry_point} is not on the highest layer")]
    EntryPoint {
        /// Position of the entry point.
        entry_point: u64,
    },
    /// A link leads to a vector that is not on the layer.
    #[error("the HNSW graph links vector {from} to {to}, which is not on layer {layer}")]
    Link {
        /// Position of the vector that has the link.
        from: u32,
        /// Position that the link names.
        to: u32,
        /// Layer of the link; 0 is the base layer.
        layer: u8,
    },
}

/// Number of u32 values in the header: vectors, dimension, M, entry point.
const HEADER: usize = 4;

impl HnswGraph {
    /// Writes the graph, without the f32 vectors.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut words = WordWriter { out, buffer: Vec::new() };
        let m = self.upper.width();
        for word in [self.len() as u32, self.dim() as u32, m as u32, self.entry_point] {
            words.put(word)?;
        }
        for value in self.quantised.min.iter().chain(&self.quantised.step) {
            words.put(value.to_bits())?;
        }
        for link in self.base.all().iter().chain(self.upper.all()) {
            words.put(link.load(Ordering::Relaxed))?;
        }
        words.flush()?;
        out.write_all(&self.levels)?;
        (0..self.len() as u32).try_for_each(|id| out.write_all(self.quantised.code(id)))
    }

    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// The bytes are too few or too many, or name vectors that do not exist.
    pub fn read(bytes: &[u8]) -> Result<Self, GraphReadError> {
        let mut unread = Unread(bytes);
        let header: Vec<usize> = unread.words(HEADER)?.map(|n| n as usize).collect();
        let &[n, dim, m, entry_point] = header.as_slice() else { return Err(GraphReadError::Truncated) };
        let wrong_header = GraphReadError::Header { vectors: n as u64, dim: dim as u64, m: m as u64 };
        if !(1..=65_536).contains(&dim) || !(2..=255).contains(&m) || n >= NONE as usize {
            return Err(wrong_header);
        }
        let mut ranges = unread.words(2 * dim)?.map(f32::from_bits);
        let min: Vec<f32> = ranges.by_ref().take(dim).collect();
        let step: Vec<f32> = ranges.collect();
        // The levels give the number of upper links but follow them. The total length tells where the levels begin.
        let base = unread.take(n.checked_mul(4 * m0(m)).ok_or(wrong_header)?)?;
        let tail = n.checked_mul(dim + 1).ok_or(wrong_header)?;
        let upper = unread.take(unread.0.len().checked_sub(tail).ok_or(GraphReadError::Truncated)?)?;
        let levels = unread.take(n)?.to_vec();
        let sum: u64 = levels.iter().map(|level| u64::from(*level)).sum();
        let (found, expected) = (upper.len() as u64, sum * 4 * m as u64);
        if found != expected || sum > u64::from(NONE) {
            return Err(GraphReadError::UpperLayers { found, expected });
        }
        let first_upper =
            levels.iter().scan(0u32, |sum, level| Some(std::mem::replace(sum, *sum + u32::from(*level)))).collect();
        if levels.iter().max() != levels.get(entry_point) {
            return Err(GraphReadError::EntryPoint { entry_point: entry_point as u64 });
        }
        let mut quantised = QuantisedVectors::zeroed(n, dim, min, step);
        let stride = quantised.stride;
        for (row, code) in quantised.rows.get_mut().chunks_mut(stride).zip(unread.0.chunks(dim)) {
            row[..dim].copy_from_slice(code);
        }
        let (base, upper) = (read_links(base, m0(m)), read_links(upper, m));
        let graph = Self { quantised, levels, first_upper, base, upper, entry_point: entry_point as u32 };
        graph.check_links().map(|()| graph)
    }

    /// Checks that every link leads to a vector that is on the link's layer.
    fn check_links(&self) -> Result<(), GraphReadError> {
        let on_layer = |id: u32, layer: u8| self.levels.get(id as usize).is_some_and(|level| *level >= layer);
        for from in 0..self.len() as u32 {
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
