//! Buffers laid out for the kernels: they begin at a cache line, and their rows are an odd number of lines apart.

use std::ops::{Deref, DerefMut};

use super::view::{RowsView, RowsViewMut};

/// Bytes of a cache line, and of the widest vector.
const LINE: usize = 64;
/// f32 in a line.
pub(crate) const LANES: usize = LINE / 4;

/// A buffer whose first element stands at the start of a cache line.
#[derive(Debug, Default)]
pub(crate) struct Aligned<T> {
    data: Vec<T>,
    first: usize,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// A buffer of defaults.
    pub(crate) fn new(len: usize) -> Self {
        let slack = LINE / size_of::<T>();
        let data = vec![T::default(); len + slack];
        let first = data.as_ptr().align_offset(LINE).min(slack);
        Self { data, first, len }
    }

    /// At least `len` elements; what they hold is unspecified. Never gives memory back.
    pub(crate) fn at_least(&mut self, len: usize) -> &mut [T] {
        if self.len < len {
            *self = Self::new(len);
        }
        &mut self[..len]
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.data[self.first..self.first + self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data[self.first..self.first + self.len]
    }
}

/// Distance between rows of `width` elements of four bytes: whole lines, and an odd number of them. Kernels walk down
/// columns of a block of rows; with an even number, rows would compete for few sets of the cache.
pub(crate) fn stride(width: usize) -> usize {
    (width.div_ceil(LANES) | 1) * LANES
}

impl<T: Copy + Default> Clone for Aligned<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::new(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

/// A matrix of f32, `[rows, width]`, whose rows begin at cache lines.
#[derive(Debug, Default, Clone)]
pub struct Rows {
    data: Aligned<f32>,
    width: usize,
}

impl Rows {
    /// Rows of zeros.
    pub fn new(rows: usize, width: usize) -> Self {
        Self { data: Aligned::new(rows * stride(width)), width }
    }

    /// Makes room for `rows` rows of `width` numbers. What they hold is unspecified.
    pub fn resize(&mut self, rows: usize, width: usize) {
        self.width = width;
        self.data.at_least(rows * stride(width));
    }

    /// Copies the rows of `from` at the indices `at` to rows 0, 1, … of this matrix. Both have one width.
    pub fn gather(&mut self, from: &Self, at: impl IntoIterator<Item = usize>) {
        at.into_iter().enumerate().for_each(|(i, p)| self.row_mut(i).copy_from_slice(from.row(p)));
    }

    /// Copies rows 0, 1, … of `from` to the rows of this matrix at the indices `to`. Both have one width.
    pub fn scatter(&mut self, from: &Self, to: impl IntoIterator<Item = usize>) {
        to.into_iter().enumerate().for_each(|(i, p)| self.row_mut(p).copy_from_slice(from.row(i)));
    }

    /// Distance between the beginnings of two rows.
    pub fn stride(&self) -> usize {
        stride(self.width)
    }

    /// The row at `index`, `[width]`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.stride()..][..self.width]
    }

    /// The row at `index`, `[width]`, to write.
    pub fn row_mut(&mut self, index: usize) -> &mut [f32] {
        let (stride, width) = (self.stride(), self.width);
        &mut self.data[index * stride..][..width]
    }

    /// Rows from `first` on.
    pub fn view(&self, first: usize) -> RowsView<'_> {
        RowsView::new(&self.data[first * self.stride()..], self.stride(), self.width)
    }

    /// Rows from `first` on, to write.
    pub fn view_mut(&mut self, first: usize) -> RowsViewMut<'_> {
        let (stride, width) = (self.stride(), self.width);
        RowsViewMut::new(&mut self.data[first * stride..], stride, width)
    }

    /// Fills every row with zeros.
    pub fn clear(&mut self) {
        self.data.fill(0.0);
    }

    /// All numbers, those between rows among them: `[rows, stride]`.
    pub fn all_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_rows_lie_an_odd_number_of_lines_apart() {
        for len in [1, 15, 1000] {
            let buffer = Aligned::<f32>::new(len);
            assert_eq!((buffer.len(), buffer.as_ptr() as usize % LINE), (len, 0));
        }
        for width in [1, 16, 17, 768, 1024, 3072] {
            assert!(stride(width) >= width && (stride(width) / LANES) % 2 == 1);
        }
    }
}
