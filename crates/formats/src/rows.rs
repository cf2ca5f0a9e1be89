//! Sparse rows of a matrix, and how numbers of other types become its values.

use std::ops::Range;

/// Some rows of a matrix.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// Where each row starts; one longer than the rows.
    pub(crate) starts: Vec<usize>,
    /// Column of each value.
    pub(crate) features: Vec<u32>,
    /// Values.
    pub(crate) values: Vec<f32>,
}

impl Rows {
    /// No rows yet.
    pub(crate) fn new() -> Self {
        Self { starts: vec![0], ..Self::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Closes the row that the values pushed last belong to.
    pub(crate) fn close_row(&mut self) {
        self.starts.push(self.values.len());
    }

    /// A copy of some rows.
    pub(crate) fn slice(&self, rows: Range<usize>) -> Rows {
        let span = self.starts[rows.start]..self.starts[rows.end];
        Rows {
            starts: self.starts[rows.start..=rows.end].iter().map(|s| s - span.start).collect(),
            features: self.features[span.clone()].to_vec(),
            values: self.values[span].to_vec(),
        }
    }
}

/// A number as it is stored; an error text where a whole number does not survive.
pub(crate) fn narrow(value: f64) -> Result<f32, String> {
    let stored = value as f32;
    if f64::from(stored) != value && value.is_finite() && (value.fract() == 0.0 || !stored.is_finite()) {
        return Err(format!("the value {value} is too large to be stored exactly"));
    }
    Ok(stored)
}
