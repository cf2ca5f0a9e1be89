//! A cells × genes matrix, read by windows of cells. CSR is read directly, dense rows are made sparse, CSC is
//! transposed by [`Spill`].

use super::file::{H5, H5Dataset};
use crate::block::BLOCK_VALUES;
use crate::error::Result;
use crate::rows::{Rows, to_f32};
use crate::spill::{Spill, spill_problem};

/// `indptr`, `indices` and `data` of `slices` rows (CSR) or columns (CSC), each of `width` elements.
pub(crate) struct Sparse {
    indptr: H5Dataset,
    indices: H5Dataset,
    data: H5Dataset,
    slices: u64,
    width: u64,
}

/// How the matrix is stored.
enum Storage {
    Csr(Sparse),
    /// Stored gene by gene; transposed when the first rows are read.
    Csc(Sparse, Option<Spill>),
    Dense {
        data: H5Dataset,
        rows: u64,
        columns: u64,
    },
}

/// A cells × genes matrix of the file.
pub(crate) struct Matrix {
    storage: Storage,
    next: u64,
}

impl Matrix {
    /// Opens a matrix and checks that it has a row for each of `n_obs` cells, before memory is allocated for it.
    pub(crate) fn open(h5: &H5, object: &str, n_obs: u64) -> Result<Self> {
        let storage = match h5.group(object) {
            Some(_) => open_sparse(h5, object, n_obs)?,
            None => open_dense(h5, object, n_obs)?,
        };
        Ok(Self { storage, next: 0 })
    }

    /// A matrix of the cells of a 10x file, which are the columns of its CSC matrix.
    pub(crate) fn from_csr(sparse: Sparse) -> Self {
        Self { storage: Storage::Csr(sparse), next: 0 }
    }

    /// Number of cells and of genes.
    pub(crate) fn shape(&self) -> (u64, u64) {
        match &self.storage {
            Storage::Csr(s) => (s.slices, s.width),
            Storage::Csc(s, _) => (s.width, s.slices),
            Storage::Dense { rows, columns, .. } => (*rows, *columns),
        }
    }

    /// A sample of stored values from the beginning, middle and end of the matrix, enough to tell counts from other
    /// values.
    pub(crate) fn sample(&self) -> Result<Vec<f32>> {
        const COUNT: u64 = 1 << 15;
        let (data, total, per_row) = match &self.storage {
            Storage::Csr(s) | Storage::Csc(s, _) => (&s.data, s.data.rows(), 1),
            Storage::Dense { data, rows, columns } => (data, *rows, (*columns).max(1)),
        };
        let count = (COUNT / per_row).max(1).min(total);
        let mut values = Vec::new();
        for start in [0, total / 2, total.saturating_sub(count)] {
            let count = count.min(total - start);
            match per_row {
                1 => values.extend(data.read_f32(start, count)?),
                _ => values.extend(data.read_f64(start, count)?.into_iter().map(|v| v as f32)),
            }
        }
        Ok(values)
    }

    /// Goes back to the first cell.
    pub(crate) fn rewind(&mut self) {
        self.next = 0;
        if let Storage::Csc(_, Some(spill)) = &mut self.storage {
            spill.rewind();
        }
    }

    /// The next rows: at most `count`, fewer if they hold many values, but at least one; `None` at the end.
    pub(crate) fn rows(&mut self, count: u64) -> Result<Option<Rows>> {
        let (cells, _) = self.shape();
        if self.next >= cells {
            return Ok(None);
        }
        let count = count.min(cells - self.next);
        let rows = match &mut self.storage {
            Storage::Csr(sparse) => sparse.rows(self.next, count)?,
            Storage::Dense { data, columns, .. } => dense(data, *columns, self.next, count)?,
            Storage::Csc(sparse, spill) => {
                if spill.is_none() {
                    *spill = Some(transpose(sparse)?);
                }
                let rows = spill.as_mut().map(|s| s.rows(count)).transpose();
                rows.map_err(|e| sparse.data.error(spill_problem(&e)))?.flatten().unwrap_or_else(Rows::new)
            }
        };
        self.next += rows.len() as u64;
        Ok(Some(rows))
    }
}

fn open_dense(h5: &H5, object: &str, n_obs: u64) -> Result<Storage> {
    let data = h5.dataset(object)?;
    let [rows, columns] = *data.shape() else {
        return Err(data.error(format!("has {} dimensions; expected 2 (cells × genes)", data.shape().len())));
    };
    check_rows(h5, object, rows, n_obs)?;
    Ok(Storage::Dense { data, rows, columns })
}

fn open_sparse(h5: &H5, object: &str, n_obs: u64) -> Result<Storage> {
    let encoding = h5
        .text_attribute(object, "encoding-type")
        .or_else(|| h5.text_attribute(object, "h5sparse_format").map(|f| format!("{f}_matrix")));
    let shape = h5.integer_attribute(object, "shape").or_else(|| h5.integer_attribute(object, "h5sparse_shape"));
    let Some([rows, columns]) = shape.as_deref().and_then(|s| <[u64; 2]>::try_from(s).ok()) else {
        return Err(h5.error(object, "has no attribute 'shape' of two numbers"));
    };
    check_rows(h5, object, rows, n_obs)?;
    match encoding.as_deref() {
        Some("csr_matrix") => Ok(Storage::Csr(Sparse::open(h5, object, rows, columns)?)),
        Some("csc_matrix") => Ok(Storage::Csc(Sparse::open(h5, object, columns, rows)?, None)),
        other => {
            let found = other.unwrap_or("none");
            Err(h5.error(object, format!("has the encoding {found}, expected csr_matrix or csc_matrix")))
        }
    }
}

fn check_rows(h5: &H5, object: &str, rows: u64, n_obs: u64) -> Result<()> {
    match rows == n_obs {
        true => Ok(()),
        false => Err(h5.error(object, format!("has {rows} rows, but obs has {n_obs} cells"))),
    }
}

impl Sparse {
    /// Opens the arrays under `object` and checks that their lengths agree.
    pub(crate) fn open(h5: &H5, object: &str, slices: u64, width: u64) -> Result<Self> {
        let part = |name: &str| h5.dataset(&format!("{object}/{name}"));
        let sparse = Self { indptr: part("indptr")?, indices: part("indices")?, data: part("data")?, slices, width };
        if slices.checked_add(1) != Some(sparse.indptr.rows()) {
            let problem =
                format!("holds {} offsets for {slices} rows or columns; expected one more", sparse.indptr.rows());
            return Err(sparse.indptr.error(problem));
        }
        if sparse.indices.rows() != sparse.data.rows() {
            let problem =
                format!("holds {} indices, but data holds {} values", sparse.indices.rows(), sparse.data.rows());
            return Err(sparse.indices.error(problem));
        }
        Ok(sparse)
    }

    /// Offsets of `count` slices from `start`, checked to ascend within the values.
    fn offsets(&self, start: u64, count: u64) -> Result<Vec<u64>> {
        let raw = self.indptr.read_i64(start, count + 1)?;
        let end = self.data.rows();
        let fine = raw.windows(2).all(|w| w[0] <= w[1]) && raw.iter().all(|&o| o >= 0 && o as u64 <= end);
        if !fine {
            let problem = format!("offsets near slice {start} do not ascend, or exceed the number of values ({end})");
            return Err(self.indptr.error(problem));
        }
        Ok(raw.into_iter().map(|o| o as u64).collect())
    }

    /// Indices and values between two offsets.
    fn values(&self, from: u64, to: u64) -> Result<(Vec<u32>, Vec<f32>)> {
        let (indices, values) = rayon::join(
            || self.indices.read_indices(from, to - from, self.width),
            || self.data.read_f32(from, to - from),
        );
        Ok((indices?, values?))
    }

    /// Whole slices, as many as fit in a block.
    fn rows(&self, start: u64, count: u64) -> Result<Rows> {
        let mut offsets = self.offsets(start, count)?;
        let first = offsets[0];
        let fitting = offsets.iter().skip(1).take_while(|&&o| o - first <= BLOCK_VALUES as u64).count();
        offsets.truncate(fitting.max(1) + 1);
        let last = offsets[offsets.len() - 1];
        // A row cannot hold more values than its width, whatever the offsets state.
        if last - first > BLOCK_VALUES as u64 && last - first > self.width {
            let problem =
                format!("slice {start} states {} values, but the matrix is {} wide", last - first, self.width);
            return Err(self.indptr.error(problem));
        }
        let (features, values) = self.values(first, last)?;
        Ok(Rows { starts: offsets.iter().map(|o| (o - first) as usize).collect(), features, values })
    }
}

/// Transposes genes × cells to cells × genes.
fn transpose(sparse: &Sparse) -> Result<Spill> {
    let fail = |e: std::io::Error| sparse.data.error(spill_problem(&e));
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
    let numbers = data.read_f64(start, count)?;
    if numbers.len() as u64 != count * columns {
        return Err(data.error(format!(
            "{} returned {} numbers for {count} rows; the file may be damaged",
            data.object(),
            numbers.len()
        )));
    }
    let mut rows = Rows::new();
    for row in numbers.chunks(columns.max(1) as usize).take(count as usize) {
        for (feature, &value) in row.iter().enumerate().filter(|(_, v)| **v != 0.0) {
            rows.features.push(feature as u32);
            rows.values.push(to_f32(value).map_err(|e| data.error(e))?);
        }
        rows.close_row();
    }
    rows.starts.resize(count as usize + 1, rows.values.len());
    Ok(rows)
}
