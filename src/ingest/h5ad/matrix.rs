//! The matrix of an `.h5ad`, by windows of cells: CSR rows directly, dense rows by their non-zeros, CSC by passes.

use super::file::{H5, H5Dataset};
use crate::error::Result;
use crate::ingest::block::BLOCK_VALUES;

/// Values held at once while CSC columns are turned into rows; each pass over the file fills this much.
const PASS_VALUES: usize = 16 << 20;

/// Rows of a matrix, sparse.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Where each row starts; one longer than the rows.
    pub(super) starts: Vec<usize>,
    /// Column of each value.
    pub(super) features: Vec<u32>,
    /// Values.
    pub(super) values: Vec<f64>,
}

struct Sparse {
    indptr: H5Dataset,
    indices: H5Dataset,
    data: H5Dataset,
    rows: u64,
    columns: u64,
}

struct Csc {
    sparse: Sparse,
    /// Values of each row: counted in a first pass over the file.
    per_row: Vec<u32>,
    /// The rows of the current pass and where they begin in the matrix.
    pass: Rows,
    pass_start: u64,
}

enum Form {
    Csr(Sparse),
    Csc(Csc),
    Dense { data: H5Dataset, rows: u64, columns: u64 },
}

/// A cells × genes matrix of the file.
pub(super) struct Matrix {
    form: Form,
}

impl Matrix {
    /// Opens it and checks that it has a row for each of `n_obs` cells, before any size it states is believed.
    pub(super) fn open(h5: &H5, object: &str, n_obs: u64) -> Result<Self> {
        if h5.group(object).is_some() {
            return Self::open_sparse(h5, object, n_obs);
        }
        if !h5.has_dataset(object) {
            return Err(h5.error(object, "is missing: there is no matrix to read"));
        }
        let data = h5.dataset(object)?;
        let shape = data.shape()?;
        let [rows, columns] = shape[..] else {
            return Err(data.error(format!("has {} dimensions, a matrix has 2", shape.len())));
        };
        check_rows(h5, object, rows, n_obs)?;
        Ok(Self { form: Form::Dense { data, rows, columns } })
    }

    fn open_sparse(h5: &H5, object: &str, n_obs: u64) -> Result<Self> {
        let encoding = h5
            .text_attribute(object, "encoding-type")
            .or_else(|| h5.text_attribute(object, "h5sparse_format").map(|f| format!("{f}_matrix")));
        let shape = h5.number_attribute(object, "shape").or_else(|| h5.number_attribute(object, "h5sparse_shape"));
        let Some([rows, columns]) = shape.as_deref().and_then(|s| <[u64; 2]>::try_from(s).ok()) else {
            return Err(h5.error(object, "has no attribute 'shape' of two numbers"));
        };
        check_rows(h5, object, rows, n_obs)?;
        let part = |name: &str| h5.dataset(&format!("{object}/{name}"));
        let sparse = Sparse { indptr: part("indptr")?, indices: part("indices")?, data: part("data")?, rows, columns };
        let form = match encoding.as_deref() {
            Some("csr_matrix") => {
                sparse.check(rows)?;
                Form::Csr(sparse)
            }
            Some("csc_matrix") => {
                sparse.check(columns)?;
                Form::Csc(Csc::open(sparse)?)
            }
            other => {
                let found = other.unwrap_or("none");
                return Err(h5.error(object, format!("has the encoding {found}, expected csr_matrix or csc_matrix")));
            }
        };
        Ok(Self { form })
    }

    /// Cells and genes.
    pub(super) fn shape(&self) -> (u64, u64) {
        match &self.form {
            Form::Csr(s) => (s.rows, s.columns),
            Form::Csc(c) => (c.sparse.rows, c.sparse.columns),
            Form::Dense { rows, columns, .. } => (*rows, *columns),
        }
    }

    /// At most `count` rows from `start`, fewer where they hold many values, but at least one.
    pub(super) fn rows(&mut self, start: u64, count: u64) -> Result<Rows> {
        match &mut self.form {
            Form::Csr(sparse) => sparse.slices(start, count),
            Form::Csc(csc) => csc.rows(start, count),
            Form::Dense { data, columns, .. } => dense(data, *columns, start, count),
        }
    }
}

fn check_rows(h5: &H5, object: &str, rows: u64, n_obs: u64) -> Result<()> {
    match rows == n_obs {
        true => Ok(()),
        false => Err(h5.error(object, format!("has {rows} rows but obs names {n_obs} cells"))),
    }
}

impl Sparse {
    /// `indptr` and the two long arrays must fit each other before anything is read by them.
    fn check(&self, slices: u64) -> Result<()> {
        if slices.checked_add(1) != Some(self.indptr.rows()) {
            let problem = format!("holds {} offsets for {slices} slices; one more is needed", self.indptr.rows());
            return Err(self.indptr.error(problem));
        }
        if self.indices.rows() != self.data.rows() {
            let problem = format!("holds {} numbers, data {}", self.indices.rows(), self.data.rows());
            return Err(self.indices.error(problem));
        }
        Ok(())
    }

    /// Offsets of `count` slices from `start`, checked.
    fn offsets(&self, start: u64, count: u64) -> Result<Vec<u64>> {
        let raw = self.indptr.integers(start, count + 1)?;
        let end = self.data.rows();
        let fine = raw.windows(2).all(|w| w[0] <= w[1]) && raw.iter().all(|&o| o >= 0 && o as u64 <= end);
        if !fine {
            return Err(self
                .indptr
                .error(format!("offsets near slice {start} fall or pass the {end} values there are")));
        }
        Ok(raw.into_iter().map(|o| o as u64).collect())
    }

    /// Indices and values between two offsets; each index is below `bound`.
    fn values(&self, from: u64, to: u64, bound: u64) -> Result<(Vec<u32>, Vec<f64>)> {
        let indices = self.indices.integers(from, to - from)?;
        if let Some(wrong) = indices.iter().find(|&&i| i < 0 || i as u64 >= bound) {
            return Err(self.indices.error(format!("holds the index {wrong}, outside the matrix (below {bound})")));
        }
        let indices = indices.into_iter().map(|i| i as u32).collect();
        Ok((indices, self.data.numbers(from, to - from)?))
    }

    /// CSR: whole rows, as many as fit a block.
    fn slices(&self, start: u64, count: u64) -> Result<Rows> {
        let mut offsets = self.offsets(start, count)?;
        let first = offsets[0];
        let fitting = offsets.iter().skip(1).take_while(|&&o| o - first <= BLOCK_VALUES as u64).count();
        offsets.truncate(fitting.max(1) + 1);
        let last = offsets[offsets.len() - 1];
        let (features, values) = self.values(first, last, self.columns)?;
        Ok(Rows { starts: offsets.iter().map(|o| (o - first) as usize).collect(), features, values })
    }
}

impl Csc {
    fn open(sparse: Sparse) -> Result<Self> {
        let rows = usize::try_from(sparse.rows).map_err(|e| sparse.indptr.error(e))?;
        let mut per_row = vec![0u32; rows];
        let total = sparse.data.rows();
        for from in (0..total).step_by(BLOCK_VALUES) {
            let to = total.min(from + BLOCK_VALUES as u64);
            let indices = sparse.indices.integers(from, to - from)?;
            for i in indices {
                match usize::try_from(i).ok().and_then(|i| per_row.get_mut(i)) {
                    Some(count) => *count += 1,
                    None => {
                        let problem = format!("holds the index {i}, outside the matrix (below {rows})");
                        return Err(sparse.indices.error(problem));
                    }
                }
            }
        }
        Ok(Self { sparse, per_row, pass: Rows { starts: vec![0], ..Rows::default() }, pass_start: 0 })
    }

    fn pass_end(&self) -> u64 {
        self.pass_start + self.pass.starts.len() as u64 - 1
    }

    fn rows(&mut self, start: u64, count: u64) -> Result<Rows> {
        if start < self.pass_start || start >= self.pass_end() {
            self.fill(start)?;
        }
        let first = (start - self.pass_start) as usize;
        let last = (first + count as usize).min(self.pass.starts.len() - 1);
        let span = self.pass.starts[first]..self.pass.starts[last];
        Ok(Rows {
            starts: self.pass.starts[first..=last].iter().map(|s| s - span.start).collect(),
            features: self.pass.features[span.clone()].to_vec(),
            values: self.pass.values[span].to_vec(),
        })
    }

    /// One pass over the whole file that keeps the values of as many rows from `start` as fit.
    fn fill(&mut self, start: u64) -> Result<()> {
        let mut starts = vec![0usize];
        let mut held = 0;
        for &count in &self.per_row[start as usize..] {
            if starts.len() > 1 && held + count as usize > PASS_VALUES {
                break;
            }
            held += count as usize;
            starts.push(held);
        }
        let rows = starts.len() - 1;
        let mut next = starts.clone();
        let (mut features, mut values) = (vec![0u32; held], vec![0f64; held]);
        let step = 1024;
        for column in (0..self.sparse.columns).step_by(step) {
            let columns = (step as u64).min(self.sparse.columns - column);
            let offsets = self.sparse.offsets(column, columns)?;
            self.scan_columns(column, &offsets, start, rows, |row, feature, value| {
                let place = next[row];
                features[place] = feature;
                values[place] = value;
                next[row] += 1;
            })?;
        }
        self.pass = Rows { starts, features, values };
        self.pass_start = start;
        Ok(())
    }

    fn scan_columns(
        &self,
        first_column: u64,
        offsets: &[u64],
        start: u64,
        rows: usize,
        mut put: impl FnMut(usize, u32, f64),
    ) -> Result<()> {
        let last = offsets[offsets.len() - 1];
        let mut column = 0;
        for from in (offsets[0]..last).step_by(BLOCK_VALUES) {
            let to = last.min(from + BLOCK_VALUES as u64);
            let (indices, values) = self.sparse.values(from, to, self.sparse.rows)?;
            for (i, (&row, &value)) in indices.iter().zip(&values).enumerate() {
                while offsets[column + 1] <= from + i as u64 {
                    column += 1;
                }
                let row = u64::from(row);
                if row >= start && row < start + rows as u64 {
                    put((row - start) as usize, (first_column + column as u64) as u32, value);
                }
            }
        }
        Ok(())
    }
}

fn dense(data: &H5Dataset, columns: u64, start: u64, count: u64) -> Result<Rows> {
    let count = (BLOCK_VALUES as u64 / columns.max(1)).clamp(1, count);
    let numbers = data.numbers(start, count)?;
    if numbers.len() as u64 != count * columns {
        return Err(data.error(format!("{} gave {} numbers for {count} rows", data.object(), numbers.len())));
    }
    let mut rows = Rows { starts: vec![0], ..Rows::default() };
    for row in numbers.chunks(columns.max(1) as usize).take(count as usize) {
        for (feature, &value) in row.iter().enumerate().filter(|(_, v)| **v != 0.0) {
            rows.features.push(feature as u32);
            rows.values.push(value);
        }
        rows.starts.push(rows.values.len());
    }
    rows.starts.resize(count as usize + 1, rows.values.len());
    Ok(rows)
}
