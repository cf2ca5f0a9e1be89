//! A graph as bytes: little-endian flat arrays one after another, and a reader that believes none of them.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::Ordering;

use crate::codes::Codes;
use crate::graph::Graph;
use crate::memory::{Links, NONE};

/// Why bytes are no graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadError(&'static str);

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no whole graph: {}", self.0)
    }
}

impl std::error::Error for ReadError {}

/// Vectors, dimension, links per upper layer, entry: u32 each.
const HEADER: usize = 4;

impl Graph {
    /// Writes the graph, without its vectors.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut numbers = Numbers { out, buffer: Vec::new() };
        let links = self.upper.width();
        for number in [self.len() as u32, self.dim() as u32, links as u32, self.entry] {
            numbers.put(number)?;
        }
        for value in self.codes.low.iter().chain(&self.codes.step) {
            numbers.put(value.to_bits())?;
        }
        for link in self.ground.all().iter().chain(self.upper.all()) {
            numbers.put(link.load(Ordering::Relaxed))?;
        }
        numbers.flush()?;
        out.write_all(&self.levels)?;
        (0..self.len() as u32).try_for_each(|id| out.write_all(self.codes.code(id)))
    }

    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// The bytes are too few or too many, or some name what is not there.
    pub fn read(bytes: &[u8]) -> Result<Self, ReadError> {
        let mut rest = Rest(bytes);
        let header: Vec<usize> = rest.numbers(HEADER)?.map(|n| n as usize).collect();
        let &[n, dim, links, entry] = header.as_slice() else { return Err(ReadError("its header is cut off")) };
        if !(1..=65_536).contains(&dim) || !(2..=255).contains(&links) || n >= NONE as usize {
            return Err(ReadError("its sizes are impossible"));
        }
        let mut ranges = rest.numbers(2 * dim)?.map(f32::from_bits);
        let low: Vec<f32> = ranges.by_ref().take(dim).collect();
        let step: Vec<f32> = ranges.collect();
        // Levels come after links, yet say how many links there are; the length of the whole says where levels begin.
        let ground = rest.take(size(n, 8 * links)?)?;
        let tail = size(n, dim + 1)?;
        let upper = rest.take(rest.0.len().checked_sub(tail).ok_or(CUT)?)?;
        let levels = rest.take(n)?.to_vec();
        let sum: u64 = levels.iter().map(|level| u64::from(*level)).sum();
        if upper.len() as u64 != sum * 4 * links as u64 || sum > u64::from(NONE) {
            return Err(ReadError("its layers are of another size than its levels say"));
        }
        let first =
            levels.iter().scan(0u32, |sum, level| Some(std::mem::replace(sum, *sum + u32::from(*level)))).collect();
        let highest = levels.iter().max().copied();
        if highest != levels.get(entry).copied() {
            return Err(ReadError("its entry is not on the highest layer"));
        }
        let mut codes = Codes::zeroed(n, dim, low, step);
        let stride = codes.stride;
        for (row, code) in codes.rows.get_mut().chunks_mut(stride).zip(rest.0.chunks(dim)) {
            row[..dim].copy_from_slice(code);
        }
        let graph = Self {
            codes,
            levels,
            first,
            ground: read_links(ground, 2 * links),
            upper: read_links(upper, links),
            entry: entry as u32,
        };
        graph.check().map(|()| graph)
    }

    /// Every link leads to a vector that is on the layer.
    fn check(&self) -> Result<(), ReadError> {
        let missing = ReadError("a link leads to a vector that is not there");
        let there = |id: u32, layer: u8| self.levels.get(id as usize).is_some_and(|level| *level >= layer);
        for id in 0..self.len() {
            for layer in 0..=self.levels[id] {
                let (links, row) = self.layer(usize::from(layer));
                if !links.of(row(id as u32)).all(|link| there(link, layer)) {
                    return Err(missing);
                }
            }
        }
        Ok(())
    }
}

const CUT: ReadError = ReadError("it is cut off");

fn size(a: usize, b: usize) -> Result<usize, ReadError> {
    a.checked_mul(b).ok_or(ReadError("its sizes are impossible"))
}

fn read_links(bytes: &[u8], width: usize) -> Links {
    let words = bytes.as_chunks::<4>().0;
    let links = Links::empty(words.len() / width, width);
    for (link, word) in links.all().iter().zip(words) {
        link.store(u32::from_le_bytes(*word), Ordering::Relaxed);
    }
    links
}

/// What was not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], ReadError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(CUT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn numbers(&mut self, count: usize) -> Result<impl Iterator<Item = u32> + 'a, ReadError> {
        Ok(self.take(4 * count)?.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)))
    }
}

/// Numbers on their way out, many at a time.
struct Numbers<'a, W> {
    out: &'a mut W,
    buffer: Vec<u8>,
}

impl<W: Write> Numbers<'_, W> {
    fn put(&mut self, number: u32) -> io::Result<()> {
        const FULL: usize = 1 << 16;
        self.buffer.extend(number.to_le_bytes());
        if self.buffer.len() >= FULL { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}
