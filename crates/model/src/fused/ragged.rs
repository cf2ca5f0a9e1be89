//! Index structures of ragged batches: row offsets of cells, and lists of rows.

use std::ops::Range;

#[cfg(feature = "cuda")]
use candle_core::Tensor;
use candle_core::{Device, Result, Shape};
#[cfg(feature = "cuda")]
use cellql_kernels::device::ROWS;
use cellql_kernels::device::runs;

/// Rows that one thread of the scatter kernel sums.
#[cfg(feature = "cuda")]
const CHUNK_ROWS: usize = 1024;
/// Rows of a list that one thread sums; longer lists are split.
const MAX_LIST_ROWS: usize = 256;

/// Row offsets of the cells of a ragged batch, in memory and on the device: cell `i` holds the rows
/// `offsets[i]..offsets[i + 1]`. There is one offset more than there are cells.
#[derive(Debug, Clone)]
pub(crate) struct CellOffsets {
    pub(super) offsets: Vec<u32>,
    #[cfg(feature = "cuda")]
    pub(super) on_device: Option<DeviceOffsets>,
}

/// Offsets and work items of the CUDA kernels, as u32 tensors on the device.
#[cfg(feature = "cuda")]
#[derive(Debug, Clone)]
pub(super) struct DeviceOffsets {
    /// `[cells + 1]`
    pub(super) offsets: Tensor,
    /// Runs of at most [`ROWS`] rows of one cell: cell, first row, end row.
    pub(super) tiles: Tensor,
    /// Runs of at most [`CHUNK_ROWS`] rows of one cell: cell, first row, end row.
    pub(super) chunks: Tensor,
    /// Chunks of each cell.
    pub(super) chunk_lists: RowLists,
}

impl CellOffsets {
    /// Uploads offsets to a CUDA device; on the CPU it only keeps them.
    ///
    /// # Errors
    /// The device has no memory left.
    pub(crate) fn new(offsets: Vec<u32>, device: &Device) -> Result<Self> {
        #[cfg(feature = "cuda")]
        let on_device = match device.is_cuda() {
            false => None,
            true => {
                let chunks = runs(&offsets, CHUNK_ROWS);
                let cell_of: Vec<u32> = chunks.chunks_exact(3).map(|chunk| chunk[0]).collect();
                Some(DeviceOffsets {
                    offsets: Tensor::new(offsets.as_slice(), device)?,
                    tiles: Tensor::new(runs(&offsets, ROWS), device)?,
                    chunk_lists: RowLists::invert(&cell_of, offsets.len() - 1),
                    chunks: Tensor::new(chunks, device)?,
                })
            }
        };
        #[cfg(not(feature = "cuda"))]
        let _ = device;
        Ok(Self {
            offsets,
            #[cfg(feature = "cuda")]
            on_device,
        })
    }

    /// Offsets after selecting some rows; `rows` is ascending.
    pub(crate) fn select(&self, rows: &[u32], device: &Device) -> Result<Self> {
        let before = |offset: &u32| rows.partition_point(|row| row < offset) as u32;
        Self::new(self.offsets.iter().map(before).collect(), device)
    }

    /// Row range of each cell.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        self.offsets.windows(2).map(|bounds| bounds[0] as usize..bounds[1] as usize)
    }

    /// Number of cells.
    pub(super) fn cells(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Checks that a tensor is `[rows, width]` with the rows of these cells. The kernels do not check bounds.
    pub(super) fn check_shape(&self, shape: &Shape, width: usize) -> Result<()> {
        let rows = self.offsets.last().map_or(0, |end| *end as usize);
        if self.offsets.first() != Some(&0) || !self.offsets.is_sorted() {
            candle_core::bail!("the row offsets of {} cells do not begin at 0 or are not ascending", self.cells());
        }
        if shape.dims() != [rows, width] {
            candle_core::bail!("a tensor of {} cells has shape {shape:?}; expected [{rows}, {width}]", self.cells());
        }
        Ok(())
    }
}

/// Lists of row indices in compressed form: list `i` holds `rows[offsets[i]..offsets[i + 1]]`.
#[derive(Debug, Clone)]
pub(super) struct RowLists {
    pub(super) offsets: Vec<u32>,
    pub(super) rows: Vec<u32>,
}

impl RowLists {
    /// Inverts an index: list `i` holds every `row` with `index[row] == i`, ascending. `count` is the number of lists
    /// and greater than every entry of `index`.
    pub(super) fn invert(index: &[u32], count: usize) -> Self {
        let mut offsets = vec![0u32; count + 1];
        index.iter().for_each(|list| offsets[*list as usize + 1] += 1);
        (0..count).for_each(|i| offsets[i + 1] += offsets[i]);
        let (mut next, mut rows) = (offsets.clone(), vec![0; index.len()]);
        for (row, list) in index.iter().enumerate() {
            let place = &mut next[*list as usize];
            rows[*place as usize] = row as u32;
            *place += 1;
        }
        Self { offsets, rows }
    }

    /// Number of lists.
    pub(super) fn count(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Splits lists into pieces of at most [`MAX_LIST_ROWS`] rows. Returns the pieces, and for each list its pieces;
    /// `None` if no list is longer.
    pub(super) fn split(&self) -> Option<(Self, Self)> {
        if !self.offsets.windows(2).any(|bounds| (bounds[1] - bounds[0]) as usize > MAX_LIST_ROWS) {
            return None;
        }
        let pieces = runs(&self.offsets, MAX_LIST_ROWS);
        let list_of: Vec<u32> = pieces.chunks_exact(3).map(|piece| piece[0]).collect();
        let offsets = std::iter::once(0).chain(pieces.chunks_exact(3).map(|piece| piece[2])).collect();
        Some((Self { offsets, rows: self.rows.clone() }, Self::invert(&list_of, self.count())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inverted_index_lists_the_rows_of_each_entry() {
        let lists = RowLists::invert(&[2, 0, 2, 2], 4);
        assert_eq!(
            (lists.offsets.as_slice(), lists.rows.as_slice()),
            ([0, 1, 1, 4, 4].as_slice(), [1, 0, 2, 3].as_slice())
        );
        assert!(lists.split().is_none());
    }

    #[test]
    fn long_lists_are_split_into_pieces_that_cover_them() {
        let index: Vec<u32> = (0..700).map(|row| u32::from(row >= 600)).collect();
        let (pieces, pieces_of_list) = RowLists::invert(&index, 2).split().unwrap();
        assert_eq!(pieces.offsets, [0, 256, 512, 600, 700]);
        assert_eq!(pieces.rows, (0..700).collect::<Vec<u32>>());
        assert_eq!((pieces_of_list.offsets, pieces_of_list.rows), (vec![0, 3, 4], vec![0, 1, 2, 3]));
    }

    #[test]
    fn selected_rows_stay_with_their_cells() {
        let offsets = CellOffsets::new(vec![0, 3, 3, 8], &Device::Cpu).unwrap();
        let selected = offsets.select(&[1, 2, 7], &Device::Cpu).unwrap();
        assert_eq!(selected.ranges().collect::<Vec<_>>(), [0..2, 2..2, 2..3]);
        assert!(selected.check_shape(&Shape::from((3, 5)), 5).is_ok());
        assert!(selected.check_shape(&Shape::from((4, 5)), 5).is_err());
        assert!(CellOffsets::new(vec![0, 3, 2], &Device::Cpu).unwrap().check_shape(&Shape::from((2, 5)), 5).is_err());
    }
}
