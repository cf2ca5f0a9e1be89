//! Layout of the operands of matrix products.
//!
//! All number formats share one layout of 32-bit lanes: a lane holds one f32, two bf16 or four 8-bit integers along the
//! inner dimension. A is read by broadcasting a lane; B is a panel `[lanes, 32]`; C is rows of 32 sums. One loop
//! therefore serves all formats and only the instruction differs.

/// Columns of a panel.
pub(crate) const PANEL: usize = 32;
/// Rows of A that are multiplied at once: their sums with a panel fill 28 of 32 vector registers.
pub(crate) const STRIP: usize = 14;

/// Size of a product of some rows with one panel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Rows of A and C.
    pub rows: usize,
    /// Lanes of the inner dimension.
    pub lanes: usize,
    /// Columns of the panel that are wanted. In f32, where sixteen or fewer are, the first sixteen are computed in half
    /// the time; in every other case all 32 are.
    pub columns: usize,
}

/// Rows of A: the lane of row `i` at inner position `p` is `data[i · row + p · step]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand<'a, T> {
    pub data: &'a [T],
    pub row: usize,
    pub step: usize,
}

impl<'a, T> Operand<'a, T> {
    /// Rows as they are stored, `row` apart.
    pub(crate) fn by_rows(data: &'a [T], row: usize) -> Self {
        Self { data, row, step: 1 }
    }

    /// The transpose of rows that are stored `step` apart.
    pub(crate) fn by_columns(data: &'a [T], step: usize) -> Self {
        Self { data, row: 1, step }
    }
}

/// Sums of a product: row `i` starts at `data[i · row]`.
#[derive(Debug)]
pub(crate) struct Sums<'a, T> {
    pub data: &'a mut [T],
    pub row: usize,
    /// Whether the product is added to what `data` holds.
    pub adds: bool,
}

impl<'a, T> Sums<'a, T> {
    /// Overwrites rows that are `row` apart.
    pub(crate) fn new(data: &'a mut [T], row: usize) -> Self {
        Self { data, row, adds: false }
    }

    /// Adds to rows that are `row` apart.
    pub(crate) fn added(data: &'a mut [T], row: usize) -> Self {
        Self { data, row, adds: true }
    }
}

/// A product behind pointers. Who makes one has checked every element that its sizes and strides reach.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "x86 only"))]
pub(crate) struct RawProduct<L, S> {
    pub rows: usize,
    pub lanes: usize,
    pub a: *const L,
    pub row: usize,
    pub step: usize,
    pub b: *const L,
    pub c: *mut S,
    pub c_row: usize,
    pub adds: bool,
}
