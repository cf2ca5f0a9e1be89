//! Transposes a matrix on disk: values that arrive gene by gene, or in any order, come out cell by cell.
//!
//! Values are sorted into buckets of consecutive cells in a temporary file, in one pass and in bounded memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use bytemuck::{Pod, Zeroable};

use crate::rows::Rows;

/// Target number of values in a bucket. A whole bucket is in memory while its rows are assembled.
const BUCKET_VALUES: u64 = 4 << 20;
/// Cells in a bucket if the size of the matrix is unknown.
const UNKNOWN_CELLS: u64 = 2048;
/// Values buffered per bucket before they are written.
const BUFFER: usize = 1024;

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Entry {
    cell: u32,
    feature: u32,
    value: f32,
}

#[derive(Debug, Default)]
struct Bucket {
    buffer: Vec<Entry>,
    /// Offsets in the file, in bytes, of the buffers written so far.
    extents: Vec<u64>,
}

/// The values of a matrix, grouped into buckets of `cells_per_bucket` consecutive cells.
#[derive(Debug)]
pub(crate) struct Spill {
    file: File,
    end: u64,
    buckets: Vec<Bucket>,
    cells_per_bucket: u64,
    cells: u64,
    next: u64,
    held: Option<(u64, Rows)>,
}

impl Spill {
    /// An empty spill for a matrix of `size`: number of cells and approximate number of values, if they are known.
    pub(crate) fn new(size: Option<(u64, u64)>) -> std::io::Result<Self> {
        let cells_per_bucket = match size {
            Some((cells, values)) => (cells * BUCKET_VALUES / values.max(1)).clamp(1, 1 << 20),
            None => UNKNOWN_CELLS,
        };
        Ok(Self {
            file: tempfile::tempfile()?,
            end: 0,
            buckets: Vec::new(),
            cells_per_bucket,
            cells: size.map_or(0, |(cells, _)| cells),
            next: 0,
            held: None,
        })
    }

    /// Adds a value of a cell.
    pub(crate) fn push(&mut self, cell: u64, feature: u32, value: f32) -> std::io::Result<()> {
        let (number, inside) = ((cell / self.cells_per_bucket) as usize, (cell % self.cells_per_bucket) as u32);
        if number >= self.buckets.len() {
            self.buckets.resize_with(number + 1, Bucket::default);
        }
        self.cells = self.cells.max(cell + 1);
        let bucket = &mut self.buckets[number];
        bucket.buffer.push(Entry { cell: inside, feature, value });
        if bucket.buffer.len() == BUFFER {
            self.file.write_all(bytemuck::cast_slice(&bucket.buffer))?;
            bucket.extents.push(self.end);
            self.end += size_of_val(bucket.buffer.as_slice()) as u64;
            bucket.buffer.clear();
        }
        Ok(())
    }

    /// Number of cells: the number given to [`Spill::new`], or up to the last cell that has a value.
    pub(crate) fn n_cells(&self) -> u64 {
        self.cells
    }

    /// Goes back to the first cell.
    pub(crate) fn rewind(&mut self) {
        self.next = 0;
    }

    /// The next rows, at most `count`; `None` at the end.
    pub(crate) fn rows(&mut self, count: u64) -> std::io::Result<Option<Rows>> {
        if self.next >= self.cells {
            return Ok(None);
        }
        let number = self.next / self.cells_per_bucket;
        if self.held.as_ref().is_none_or(|(held, _)| *held != number) {
            self.held = None;
            self.held = Some((number, self.assemble(number)?));
        }
        let first = (self.next % self.cells_per_bucket) as usize;
        let Some((_, held)) = &self.held else { return Ok(None) };
        let last = (first + count as usize).min(held.len());
        let rows = held.slice(first..last);
        self.next += rows.len() as u64;
        Ok(Some(rows))
    }

    /// All rows of a bucket. Values of a cell keep the order in which they were pushed.
    fn assemble(&mut self, number: u64) -> std::io::Result<Rows> {
        let entries = self.entries(number as usize)?;
        let first = number * self.cells_per_bucket;
        let cells = self.cells_per_bucket.min(self.cells - first) as usize;
        let mut starts = vec![0usize; cells + 1];
        entries.iter().for_each(|e| starts[e.cell as usize + 1] += 1);
        for i in 0..cells {
            starts[i + 1] += starts[i];
        }
        let mut next = starts.clone();
        let (mut features, mut values) = (vec![0u32; entries.len()], vec![0f32; entries.len()]);
        for entry in &entries {
            let place = &mut next[entry.cell as usize];
            features[*place] = entry.feature;
            values[*place] = entry.value;
            *place += 1;
        }
        Ok(Rows { starts, features, values })
    }

    fn entries(&mut self, number: usize) -> std::io::Result<Vec<Entry>> {
        let Some(bucket) = self.buckets.get(number) else {
            return Ok(Vec::new());
        };
        let mut entries = vec![Entry::zeroed(); bucket.extents.len() * BUFFER];
        for (place, &at) in entries.chunks_mut(BUFFER).zip(&bucket.extents) {
            self.file.seek(SeekFrom::Start(at))?;
            self.file.read_exact(bytemuck::cast_slice_mut(place))?;
        }
        entries.extend_from_slice(&bucket.buffer);
        Ok(entries)
    }
}

/// The problem to report if the temporary file of a [`Spill`] cannot be written or read.
pub(crate) fn spill_problem(error: &std::io::Error) -> String {
    format!("cannot be transposed to cells × genes: the temporary file failed ({error}); set TMPDIR to a larger disk")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_in_any_order_come_back_by_cell_more_than_once() {
        let mut spill = Spill::new(Some((5000, 20_000_000))).unwrap();
        for feature in 0..3u32 {
            for cell in (0..5000u64).rev().filter(|c| c % 3 != 1) {
                spill.push(cell, feature, (cell * 10) as f32 + feature as f32).unwrap();
            }
        }
        assert!(spill.cells_per_bucket < 5000);
        for _ in 0..2 {
            let mut cell = 0u64;
            while let Some(rows) = spill.rows(700).unwrap() {
                for i in 0..rows.len() {
                    let span = rows.starts[i]..rows.starts[i + 1];
                    let expected: &[u32] = if cell % 3 == 1 { &[] } else { &[0, 1, 2] };
                    assert_eq!(&rows.features[span.clone()], expected);
                    assert!(rows.values[span].iter().zip(0..).all(|(v, f)| *v == (cell * 10 + f) as f32));
                    cell += 1;
                }
            }
            assert_eq!(cell, 5000);
            spill.rewind();
        }
    }
}
