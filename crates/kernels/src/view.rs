//! Views of rows of f32 that are stored some distance apart: all of a matrix, some of its rows, or some of its columns.

/// Rows of `width` f32, `stride` apart.
#[derive(Debug, Clone, Copy)]
pub struct RowsView<'a> {
    data: &'a [f32],
    stride: usize,
    width: usize,
}

impl<'a> RowsView<'a> {
    /// Rows of `width` numbers that begin every `stride` numbers of `data`.
    pub fn new(data: &'a [f32], stride: usize, width: usize) -> Self {
        Self { data, stride, width }
    }

    /// A single row.
    pub fn of_row(row: &'a [f32]) -> Self {
        Self { data: row, stride: row.len(), width: row.len() }
    }

    /// Numbers of a row.
    pub fn width(self) -> usize {
        self.width
    }

    /// Distance between the beginnings of two rows.
    pub fn stride(self) -> usize {
        self.stride
    }

    /// The row at `index`, `[width]`.
    pub fn row(self, index: usize) -> &'a [f32] {
        &self.data[index * self.stride..][..self.width]
    }

    /// The first `count` rows.
    pub fn rows(self, count: usize) -> impl ExactSizeIterator<Item = &'a [f32]> {
        (0..count).map(move |i| self.row(i))
    }

    /// Rows from `first` on.
    #[must_use]
    pub fn from(self, first: usize) -> Self {
        Self { data: &self.data[first * self.stride..], ..self }
    }

    /// Of every row the `width` numbers from `first` on.
    #[must_use]
    pub fn columns(self, first: usize, width: usize) -> Self {
        Self { data: &self.data[first..], stride: self.stride, width }
    }

    /// All numbers from the first row on, those between rows among them.
    pub(crate) fn data(self) -> &'a [f32] {
        self.data
    }
}

/// [`RowsView`] to write.
#[derive(Debug)]
pub struct RowsViewMut<'a> {
    data: &'a mut [f32],
    stride: usize,
    width: usize,
}

impl<'a> RowsViewMut<'a> {
    /// Rows of `width` numbers that begin every `stride` numbers of `data`.
    pub fn new(data: &'a mut [f32], stride: usize, width: usize) -> Self {
        Self { data, stride, width }
    }

    /// A single row.
    pub fn of_row(row: &'a mut [f32]) -> Self {
        let width = row.len();
        Self { data: row, stride: width, width }
    }

    /// Distance between the beginnings of two rows.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The row at `index`, `[width]`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.stride..][..self.width]
    }

    /// The row at `index`, `[width]`.
    pub fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.data[index * self.stride..][..self.width]
    }

    /// The same rows, to read.
    pub fn view(&self) -> RowsView<'_> {
        RowsView { data: self.data, stride: self.stride, width: self.width }
    }

    /// The same rows, for a call that takes a view.
    pub fn reborrow(&mut self) -> RowsViewMut<'_> {
        RowsViewMut { data: self.data, stride: self.stride, width: self.width }
    }

    /// Rows from `first` on.
    pub fn from(&mut self, first: usize) -> RowsViewMut<'_> {
        RowsViewMut { data: &mut self.data[first * self.stride..], stride: self.stride, width: self.width }
    }

    /// Of every row the `width` numbers from `first` on.
    pub fn columns(&mut self, first: usize, width: usize) -> RowsViewMut<'_> {
        RowsViewMut { data: &mut self.data[first..], stride: self.stride, width }
    }

    /// All numbers from the first row on, those between rows among them.
    pub(crate) fn data_mut(&mut self) -> &mut [f32] {
        self.data
    }
}
