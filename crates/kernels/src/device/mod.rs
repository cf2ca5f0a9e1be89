//! Kernels for training on a device, beside matrix products: random features and their sums, attention of packed cells,
//! norms, and sums of rows, each with its backward pass.
//!
//! `learning.cu` implements them for CUDA devices. [`plain`] implements them as loops: tests compare the kernels with
//! it, and tensors on the CPU use it.
//!
//! All numbers are f32, row after row. In a row of heads the numbers of one head are contiguous. Where a row has one
//! number more per head, that number is an input of the function: the row's largest projection, a weight of its sum, or
//! the logarithm of a sum.

#[cfg(feature = "cuda")]
mod cuda;
pub mod plain;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
pub use cuda::{Cuda, CudaError, DeviceFloats, DeviceIndices, Segments, keep_memory};

/// Rows of a thread block of `learning.cu`, and of a run where threads take rows.
pub const ROWS: usize = 128;
/// Lanes of a warp.
#[cfg(any(test, feature = "cuda"))]
const WARP: usize = 32;

/// Options that compile `learning.cu` for heads of `dim` numbers, `features` random features and `rows` rows per
/// thread. Every constant that the kernels share with Rust is passed here.
#[cfg(any(test, feature = "cuda"))]
fn compile_options(dim: usize, features: usize, rows: usize) -> [String; 7] {
    let (feature_eps, norm_eps) = (crate::favor::FEATURE_EPS, crate::norm::NORM_EPS);
    [
        format!("-DE={dim}"),
        format!("-DF={features}"),
        format!("-DR={rows}"),
        format!("-DROWS={ROWS}"),
        format!("-DWARP={WARP}"),
        format!("-DFEATURE_EPS={feature_eps:e}f"),
        format!("-DNORM_EPS={norm_eps:e}f"),
    ]
}

/// Heads of a row, and numbers of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Number of heads.
    pub heads: usize,
    /// Numbers of one head.
    pub dim: usize,
}

impl Heads {
    /// Numbers of a row.
    pub fn width(self) -> usize {
        self.heads * self.dim
    }

    /// Numbers of a row with one more per head.
    pub fn wider(self) -> usize {
        self.heads * (self.dim + 1)
    }
}

/// Cuts cells into runs of at most `length` rows: three numbers a run, its cell, its first row and the row past its
/// last. `starts` holds the first row of each cell, and the number of rows at the end.
pub fn runs(starts: &[u32], length: usize) -> Vec<u32> {
    let of_cell = |(cell, bounds): (usize, &[u32])| {
        let (first, end) = (bounds[0], bounds[1]);
        (first..end).step_by(length).flat_map(move |at| [cell as u32, at, end.min(at + length as u32)])
    };
    starts.windows(2).enumerate().flat_map(of_cell).collect()
}
