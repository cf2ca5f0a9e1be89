//! A matrix by windows of cells: CSR rows directly, dense rows by their non-zeros, CSC through [`Spill`].

use super::file::{H5, H5Dataset};
use crate::Result;
use crate::block::BLOCK_VALUES;
use crate::rows::{Rows, narrow};
use crate::spill::Spill;

/// `indptr`, `indices` and `data`, and how many slices of which width they make.
pub(crate) struct Sparse {
    indptr: H5Dataset,
    indices: H5Dataset,
    data: H5Dataset,
    slices: u64,
    width: u64,
}

enum Form {
    Csr(Sparse),
    /// By gene; turned when the first rows are asked for.
    Csc(Sparse, Option<Spill>),
    Dense {
        data: H5Dataset,
        rows: u64,
        columns: u64,
    },
}

/// A cells × genes matrix of the file.
pub(crate) struct Matrix {
    form: Form,
    next: u64,
}

impl Matrix {
    /// Opens it and checks that it has a row for each of `n_obs` cells, before any size it states is believed.
    pub(crate) fn open(h5: &H5, object: &str, n_obs: u64) -> Result<Self> {
        let form = match h5.group(object) {
            Some(_) => open_sparse(h5, object, n_obs)?,
            None => open_dense(h5, object, n_obs)?,
        };
        Ok(Self { form, next: 0 })
    }

    /// The cells of a 10x file, which are the columns of its CSC matrix.
    pub(crate) fn of_slices(sparse: Sparse) -> Self {
        Self { form: Form::Csr(sparse), next: 0 }
    }

    /// Cells and genes.
    pub(crate) fn shape(&self) -> (u64, u64) {
        match &self.form {
            Form::Csr(s) => (s.slices, s.width),
            Form::Csc(s, _) => (s.width, s.slices),
            Form::Dense { rows, columns, .. } => (*rows, *columns),
        }
    }

    /// Some stored values from its beginning, middle and end: enough to tell counts from other things.
    pub(crate) fn sample(&self) -> Result<Vec<f32>> {
        const COUNT: u64 = 1 << 15;
        let (data, total, per_row) = match &self.form {
            Form::Csr(s) | Form::Csc(s, _) => (&s.data, s.data.rows(), 1),
            Form::Dense { data, rows, columns } => (data, *rows, (*columns).max(1)),
        };
        let count = (COUNT / per_row).max(1).min(total);
        let mut values = Vec::new();
        for start in [0, total / 2, total.saturating_sub(count)] {
            let count = count.min(total - start);
            match per_row {
                1 => values.extend(data.values(start, count)?),
                _ => values.extend(data.numbers(start, count)?.into_iter().map(|v| v as f32)),
            }
        }
        Ok(values)
    }

    /// Goes back to the first cell.
    pub(crate) fn rewind(&mut self) {
        self.next = 0;
        if let Form::Csc(_, Some(spill)) = &mut self.form {
            spill.rewind();
        }
    }

    /// At most `count` rows, fewer where they hold many values, but at least one; none at the end.
    pub(crate) fn rows(&mut self, count: u64) -> Result<Option<Rows>> {
        let (cells, _) = self.shape();
        if self.next >= cells {
            return Ok(None);
        }
        let count = count.min(cells - self.next);
        let rows = match &mut self.form {
            Form::Csr(sparse) => sparse.rows(self.next, count)?,
            Form::Dense { data, columns, .. } => dense(data, *columns, self.next, count)?,
            Form::Csc(sparse, spill) => {
                if spill.is_none() {
                    *spill = Some(turn(sparse)?);
                }
                let rows = spill.as_mut().map(|s| s.rows(count)).transpose();
                rows.map_err(|e| sparse.data.error(temporary(&e)))?.flatten().unwrap_or_else(Rows::new)
            }
        };
        self.next += rows.len() as u64;
        Ok(Some(rows))
    }
}

/// What is said where the temporary file of a [`Spill`] fails.
pub(crate) fn temporary(error: &std::io::Error) -> String {
    format!("cannot be turned from genes to cells: its temporary file failed ({error}); set TMPDIR to a larger disk")
}

fn open_dense(h5: &H5, object: &str, n_obs: u64) -> Result<Form> {
    if !h5.has_dataset(object) {
        return Err(h5.error(object, "is missing: there is no matrix to read"));
    }
    let data = h5.dataset(object)?;
    let [rows, columns] = *data.shape() else {
        return Err(data.error(format!("has {} dimensions, a matrix has 2", data.shape().len())));
    };
    check_rows(h5, object, rows, n_obs)?;
    Ok(Form::Dense { data, rows, columns })
}

fn open_sparse(h5: &H5, object: &str, n_obs: u64) -> Result<Form> {
    let encoding = h5
        .text_attribute(object, "encoding-type")
        .or_else(|| h5.text_attribute(object, "h5sparse_format").map(|f| format!("{f}_matrix")));
    let shape = h5.number_attribute(object, "shape").or_else(|| h5.number_attribute(object, "h5sparse_shape"));
    let Some([rows, columns]) = shape.as_deref().and_then(|s| <[u64; 2]>::try_from(s).ok()) else {
        return Err(h5.error(object, "has no attribute 'shape' of two numbers"));
    };
    check_rows(h5, object, rows, n_obs)?;
    match encoding.as_deref() {
        Some("csr_matrix") => Ok(Form::Csr(Sparse::open(h5, object, rows, columns)?)),
        Some("csc_matrix") => Ok(Form::Csc(Sparse::open(h5, object, columns, rows)?, None)),
        other => {
            let found = other.unwrap_or("none");
            Err(h5.error(object, format!("has the encoding {found}, expected csr_matrix or csc_matrix")))
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
    /// The arrays under `object`, which must fit each other before anything is read by them.
    pub(crate) fn open(h5: &H5, object: &str, slices: u64, width: u64) -> Result<Self> {
        let part = |name: &str| h5.dataset(&format!("{object}/{name}"));
        let sparse = Self { indptr: part("indptr")?, indices: part("indices")?, data: part("data")?, slices, width };
        if slices.checked_add(1) != Some(sparse.indptr.rows()) {
            let problem = format!("holds {} offsets for {slices} slices; one more is needed", sparse.indptr.rows());
            return Err(sparse.indptr.error(problem));
        }
        if sparse.indices.rows() != sparse.data.rows() {
            let problem = format!("holds {} numbers, data {}", sparse.indices.rows(), sparse.data.rows());
            return Err(sparse.indices.error(problem));
        }
        Ok(sparse)
    }

    /// Offsets of `count` slices from `start`, checked.
    fn offsets(&self, start: u64, count: u64) -> Result<Vec<u64>> {
        let raw = self.indptr.integers(start, count + 1)?;
        let end = self.data.rows();
        let fine = raw.windows(2).all(|w| w[0] <= w[1]) && raw.iter().all(|&o| o >= 0 && o as u64 <= end);
        if !fine {
            let problem = format!("offsets near slice {start} fall or pass the {end} values there are");
            return Err(self.indptr.error(problem));
        }
        Ok(raw.into_iter().map(|o| o as u64).collect())
    }

    /// Indices and values between two offsets.
    fn values(&self, from: u64, to: u64) -> Result<(Vec<u32>, Vec<f32>)> {
        let (indices, values) =
            rayon::join(|| self.indices.indices(from, to - from, self.width), || self.data.values(from, to - from));
        Ok((indices?, values?))
    }

    /// Whole slices, as many as fit a block.
    fn rows(&self, start: u64, count: u64) -> Result<Rows> {
        let mut offsets = self.offsets(start, count)?;
        let first = offsets[0];
        let fitting = offsets.iter().skip(1).take_while(|&&o| o - first <= BLOCK_VALUES as u64).count();
        offsets.truncate(fitting.max(1) + 1);
        let last = offsets[offsets.len() - 1];
        // A row cannot hold more than its width, whatever the offsets say.
        if last - first > BLOCK_VALUES as u64 && last - first > self.width {
            let problem = format!("slice {start} holds {} values, the matrix is {} wide", last - first, self.width);
            return Err(self.indptr.error(problem));
        }
        let (features, values) = self.values(first, last)?;
        Ok(Rows { starts: offsets.iter().map(|o| (o - first) as usize).collect(), features, values })
    }
}

/// From genes × cells to cells.
fn turn(sparse: &Sparse) -> Result<Spill> {
    let fail = |e: std::io::Error| sparse.data.error(temporary(&e));
    let mut spill = Spill::new(Some((sparse.width, sparse.data.rows()))).map_err(fail)?;
    let mut gene = 0;
    while gene < sparse.slices {
        let count = 1024.min(sparse.slices - gene);
        let offsets = sparse.offsets(gene, count)?;
        let last = offsets[offsets.len() - 1];
        let mut inside = 0;
        for from in (offsets[0]..last).step_by(BLOCK_VALUES) {
            let (cells, values) = sparse.values(from, last.min(from + BLOCK_VALUES as u64))?;
            for (i, (&cell, &value)) in cells.iter().zip(&values).enumerate() {
                while offsets[inside + 1] <= from + i as u64 {
                    inside += 1;
                }
                spill.push(u64::from(cell), (gene + inside as u64) as u32, value).map_err(fail)?;
            }
        }
        gene += count;
    }
    Ok(spill)
}

fn dense(data: &H5Dataset, columns: u64, start: u64, count: u64) -> Result<Rows> {
    let count = (BLOCK_VALUES as u64 / columns.max(1)).clamp(1, count);
    let numbers = data.numbers(start, count)?;
    if numbers.len() as u64 != count * columns {
        return Err(data.error(format!("{} gave {} numbers for {count} rows", data.object(), numbers.len())));
    }
    let mut rows = Rows::new();
    for row in numbers.chunks(columns.max(1) as usize).take(count as usize) {
        for (feature, &value) in row.iter().enumerate().filter(|(_, v)| **v != 0.0) {
            rows.features.push(feature as u32);
            rows.values.push(narrow(value).map_err(|e| data.error(e))?);
        }
        rows.close_row();
    }
    rows.starts.resize(count as usize + 1, rows.values.len());
    Ok(rows)
}
