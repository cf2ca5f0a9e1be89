//! What learning on a device computes beside matrix products: random features and their sums, attention of cells end to end,
//! norms, and sums of rows, with their ways back. `learning.cu` says it for CUDA devices; [`plain`] says the same in loops,
//! which is what the kernels are held against and what tensors on the CPU use.
//!
//! All numbers are f32, row after row. In a row of heads the numbers of one head stand together. A row with one number more a
//! head carries there what its function needs: its largest projection, a weight of its sum, the logarithm of a sum.

#[cfg(feature = "cuda")]
mod cuda;
pub mod plain;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
pub use cuda::{Cuda, CudaError, Numbers, Places, ROWS, Segments, keep_memory};

/// Heads of a row, and numbers of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// How many.
    pub heads: usize,
    /// Numbers of one.
    pub dim: usize,
}

impl Heads {
    /// Numbers of a row.
    pub fn width(self) -> usize {
        self.heads * self.dim
    }

    /// Numbers of a row with one more a head.
    pub fn wider(self) -> usize {
        self.heads * (self.dim + 1)
    }
}

/// Runs of at most `length` rows, none of two cells: cell, first row and the one past the last, one after another. `starts` says
/// where cells begin and is one longer than they are.
pub fn runs(starts: &[u32], length: usize) -> Vec<u32> {
    let of_cell = |(cell, bounds): (usize, &[u32])| {
        let (first, end) = (bounds[0], bounds[1]);
        (first..end).step_by(length).flat_map(move |at| [cell as u32, at, end.min(at + length as u32)])
    };
    starts.windows(2).enumerate().flat_map(of_cell).collect()
}
