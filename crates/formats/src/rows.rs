//! Sparse rows of a matrix, and the conversion of numbers to its value type.

use std::ops::Range;

/// Rows of a matrix in CSR form.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// Offset of the first value of each row, `[rows + 1]`.
    pub(crate) starts: Vec<usize>,
    /// Column of each value.
    pub(crate) features: Vec<u32>,
    /// The values.
    pub(crate) values: Vec<f32>,
}

impl Rows {
    /// An empty list of rows.
    pub(crate) fn new() -> Self {
        Self { starts: vec![0], ..Self::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Ends the current row: values pushed later belong to the next one.
    pub(crate) fn close_row(&mut self) {
        self.starts.push(self.values.len());
    }

    /// A copy of the rows in a range.
    pub(crate) fn slice(&self, rows: Range<usize>) -> Rows {
        let span = self.starts[rows.start]..self.starts[rows.end];
        Rows {
            starts: self.starts[rows.start..=rows.end].iter().map(|s| s - span.start).collect(),
            features: self.features[span.clone()].to_vec(),
            values: self.values[span].to_vec(),
        }
    }
}

/// Converts a number to `f32`. Fails if a whole number would change or a finite number would become infinite.
pub(crate) fn to_f32(value: f64) -> Result<f32, String> {
    let stored = value as f32;
    if f64::from(stored) != value && value.is_finite() && (value.fract() == 0.0 || !stored.is_finite()) {
        return Err(format!("the value {value} is too large to be stored exactly as a 32-bit float"));
    }
    Ok(stored)
}
