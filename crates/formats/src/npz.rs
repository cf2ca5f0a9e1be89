//! Reader of scipy's `.npz` of a sparse matrix (CSR, CSC or COO). It holds no names: genes come from `--genes`,
//! barcodes from `--barcodes` or are numbered.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use arrow::array::StringArray;
use cellql_schemas::feature::Feature;
use npyz::{DType, NpyFile, TypeChar};
use zip::ZipArchive;

use crate::block::{BLOCK_CELLS, BLOCK_VALUES, Block, CellSource, ObsColumn};
use crate::error::{FormatError, Result};
use crate::name_tables::{read_barcodes, read_features};
use crate::options::OpenOptions;
use crate::rows::to_f32;
use crate::spill::{Spill, spill_problem};

/// An open matrix.
pub(crate) struct Npz {
    path: PathBuf,
    features: Vec<Feature>,
    barcodes: Option<Vec<String>>,
    cells: Spill,
    next: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    Csr,
    Csc,
    Coo,
}

/// An array of the archive, read front to back as `f64`.
struct Array {
    path: PathBuf,
    name: String,
    len: u64,
    numbers: Box<dyn Iterator<Item = std::io::Result<f64>>>,
}

impl Npz {
    pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        let wrong = |object: &str, problem: String| FormatError::new(path, object, problem);
        let Some(genes) = &options.genes else {
            return Err(wrong(
                "genes",
                "an .npz matrix holds no gene names; give them with --genes FILE, one per line".into(),
            ));
        };
        let mut features = read_features(genes)?.features;
        let mut barcodes = options.barcodes.as_deref().map(read_barcodes).transpose()?;
        let layout = layout(path)?;
        let shape: Vec<u64> = Array::open(path, "shape")?.take_all()?;
        let [rows, columns] = shape[..] else {
            return Err(wrong("shape", format!("holds {} numbers; expected 2: rows and columns", shape.len())));
        };
        let n = features.len() as u64;
        // The file of genes may begin with a header line.
        if n != columns && n != rows && (n == columns + 1 || n == rows + 1) {
            features.remove(0);
        }
        let n = features.len() as u64;
        let by_gene = n != columns && n == rows;
        if !by_gene && n != columns {
            return Err(wrong("shape", format!("is {rows} × {columns}, but {} holds {n} genes", genes.display())));
        }
        let cells = if by_gene { columns } else { rows };
        if let Some(names) = barcodes.as_mut().filter(|b| b.len() as u64 == cells + 1) {
            names.remove(0);
        }
        if let Some(names) = barcodes.as_ref().filter(|b| b.len() as u64 != cells) {
            return Err(wrong("shape", format!("has {cells} cells, but the file of barcodes holds {}", names.len())));
        }
        let entries = Entries::open(path, layout, rows, columns)?;
        let cells = entries.spill(by_gene, cells)?;
        Ok(Self { path: path.to_owned(), features, barcodes, cells, next: 0 })
    }
}

/// Indices and values of a matrix, in the archive's order.
struct Entries {
    path: PathBuf,
    layout: Layout,
    rows: u64,
    columns: u64,
    /// Offsets of the rows (CSR) or columns (CSC); empty for COO.
    indptr: Vec<u64>,
    first: Array,
    second: Option<Array>,
    data: Array,
}

impl Entries {
    fn open(path: &Path, layout: Layout, rows: u64, columns: u64) -> Result<Self> {
        let data = Array::open(path, "data")?;
        let (indptr, first, second) = match layout {
            Layout::Coo => (Vec::new(), Array::open(path, "row")?, Some(Array::open(path, "col")?)),
            Layout::Csr | Layout::Csc => {
                let indptr = Array::open(path, "indptr")?;
                let slices = if layout == Layout::Csr { rows } else { columns };
                if slices.checked_add(1) != Some(indptr.len) {
                    return Err(indptr.error(format!(
                        "holds {} offsets for {slices} rows or columns; expected one more",
                        indptr.len
                    )));
                }
                (indptr.take_all()?, Array::open(path, "indices")?, None)
            }
        };
        let lengths = [Some(first.len), second.as_ref().map(|s| s.len)];
        if lengths.into_iter().flatten().any(|len| len != data.len) {
            return Err(first.error(format!("holds a different number of indices than data has values ({})", data.len)));
        }
        let fine = indptr.windows(2).all(|w| w[0] <= w[1])
            && (layout == Layout::Coo || indptr.last() == Some(&data.len) && indptr.first() == Some(&0));
        if !fine {
            return Err(FormatError::new(path, "indptr", "is not ascending from 0 to the number of values"));
        }
        Ok(Self { path: path.to_owned(), layout, rows, columns, indptr, first, second, data })
    }

    fn spill(mut self, by_gene: bool, cells: u64) -> Result<Spill> {
        let fail = |e: std::io::Error| FormatError::new(&self.path, "data", spill_problem(&e));
        // A number of cells far above the number of values is not believed: it is only stated, and memory depends on
        // it.
        if self.layout != Layout::Csr && !by_gene && cells > self.data.len.saturating_mul(1000) + 1000 {
            return Err(self.data.error(format!("the shape states {cells} cells for only {} values", self.data.len)));
        }
        let mut spill = Spill::new(Some((cells, self.data.len))).map_err(fail)?;
        let mut slice = 0usize;
        for at in 0..self.data.len {
            let (row, column) = match self.layout {
                Layout::Coo => {
                    let second = self.second.as_mut().map_or(Ok(0), |s| s.position(self.columns))?;
                    (self.first.position(self.rows)?, second)
                }
                Layout::Csr | Layout::Csc => {
                    while self.indptr[slice + 1] <= at {
                        slice += 1;
                    }
                    match self.layout {
                        Layout::Csr => (slice as u64, self.first.position(self.columns)?),
                        _ => (self.first.position(self.rows)?, slice as u64),
                    }
                }
            };
            let value = to_f32(self.data.next()?).map_err(|e| self.data.error(e))?;
            let (cell, gene) = if by_gene { (column, row) } else { (row, column) };
            spill.push(cell, gene as u32, value).map_err(fail)?;
        }
        Ok(spill)
    }
}

fn archive(path: &Path) -> Result<ZipArchive<BufReader<File>>> {
    let file = File::open(path).map_err(|e| FormatError::new(path, "file", format!("cannot be opened: {e}")))?;
    ZipArchive::new(BufReader::new(file))
        .map_err(|e| FormatError::new(path, "file", format!("is not a readable zip archive, perhaps cut short: {e}")))
}

/// Reads the layout from the bytes of `format.npy`, whose type (`|S3`) is not numeric.
fn layout(path: &Path) -> Result<Layout> {
    let wrong = |problem: String| FormatError::new(path, "format", problem);
    let mut archive = archive(path)?;
    let mut bytes = Vec::new();
    let entry = archive
        .by_name("format.npy")
        .map_err(|e| wrong(format!("is missing ({e}); the file was not written by scipy.sparse.save_npz")))?;
    entry.take(4096).read_to_end(&mut bytes).map_err(|e| wrong(format!("cannot be read: {e}")))?;
    let ends = |word: &[u8]| {
        bytes.ends_with(word) || {
            // numpy's unicode strings are four bytes a character.
            let wide: Vec<u8> = word.iter().flat_map(|b| [*b, 0, 0, 0]).collect();
            bytes.ends_with(&wide)
        }
    };
    match () {
        () if ends(b"csr") => Ok(Layout::Csr),
        () if ends(b"csc") => Ok(Layout::Csc),
        () if ends(b"coo") => Ok(Layout::Coo),
        () => Err(wrong("is not csr, csc or coo, the layouts that are read".into())),
    }
}

impl Array {
    fn open(path: &Path, name: &str) -> Result<Self> {
        let wrong = |problem: String| FormatError::new(path, name, problem);
        let archive = archive(path)?;
        let index = archive.index_for_name(&format!("{name}.npy")).ok_or_else(|| wrong("is missing".into()))?;
        // The iterator below owns the decompressed stream, which outlives the archive.
        let (size, reader) = entry(archive, index).map_err(|e| wrong(format!("cannot be read: {e}")))?;
        let npy = NpyFile::new(reader).map_err(|e| wrong(format!("is not a readable .npy array: {e}")))?;
        let len = npy.shape().iter().product::<u64>();
        let plain = match npy.dtype() {
            DType::Plain(plain) => plain,
            other => return Err(wrong(format!("holds {}, expected numbers", other.descr()))),
        };
        let width = plain.size_field();
        if len.checked_mul(width.max(1)).is_none_or(|b| b > size) {
            return Err(wrong(format!("states {len} numbers but holds only {size} bytes")));
        }
        macro_rules! read {
            ($t:ty) => {
                Box::new(npy.data::<$t>().map_err(|e| wrong(e.to_string()))?.map(|v| v.map(|v| v as f64)))
            };
        }
        let numbers: Box<dyn Iterator<Item = std::io::Result<f64>>> = match (plain.type_char(), width) {
            (TypeChar::Float, 4) => read!(f32),
            (TypeChar::Float, 8) => read!(f64),
            (TypeChar::Int, 1) => read!(i8),
            (TypeChar::Int, 2) => read!(i16),
            (TypeChar::Int, 4) => read!(i32),
            (TypeChar::Int, 8) => read!(i64),
            (TypeChar::Uint, 1) => read!(u8),
            (TypeChar::Uint, 2) => read!(u16),
            (TypeChar::Uint, 4) => read!(u32),
            (TypeChar::Uint, 8) => read!(u64),
            (TypeChar::Bool, _) => Box::new(
                npy.data::<bool>().map_err(|e| wrong(e.to_string()))?.map(|v| v.map(|b| f64::from(u8::from(b)))),
            ),
            _ => return Err(wrong(format!("holds {plain}, expected numbers"))),
        };
        Ok(Self { path: path.to_owned(), name: name.to_owned(), len, numbers })
    }

    fn error(&self, problem: impl ToString) -> FormatError {
        FormatError::new(&self.path, &self.name, problem)
    }

    fn next(&mut self) -> Result<f64> {
        match self.numbers.next() {
            Some(Ok(number)) => Ok(number),
            Some(Err(e)) => Err(self.error(format!("cannot be read, perhaps the file is cut short: {e}"))),
            None => Err(self.error("ends before its last number")),
        }
    }

    fn position(&mut self, bound: u64) -> Result<u64> {
        let number = self.next()?;
        match number >= 0.0 && number < bound as f64 {
            true => Ok(number as u64),
            false => Err(self.error(format!("holds the index {number}, outside the matrix (below {bound})"))),
        }
    }

    fn take_all(mut self) -> Result<Vec<u64>> {
        let len = self.len;
        (0..len).map(|_| self.position(1 << 53)).collect()
    }
}

/// A decompressed entry.
type Decompressed = Box<dyn Read>;

/// Uncompressed size in bytes and stream of an entry; the stream outlives the archive.
fn entry(mut archive: ZipArchive<BufReader<File>>, index: usize) -> Result<(u64, Decompressed), String> {
    use std::io::{Seek, SeekFrom};
    let (start, packed, size, method) = {
        let entry = archive.by_index_raw(index).map_err(|e| e.to_string())?;
        let start = entry.data_start().ok_or("its offset in the archive is unknown")?;
        (start, entry.compressed_size(), entry.size(), entry.compression())
    };
    let mut file = archive.into_inner();
    file.seek(SeekFrom::Start(start)).map_err(|e| e.to_string())?;
    let raw = file.take(packed);
    match method {
        zip::CompressionMethod::Stored => Ok((size, Box::new(raw))),
        zip::CompressionMethod::Deflated => {
            Ok((size, Box::new(BufReader::with_capacity(BLOCK_VALUES / 8, flate2::read::DeflateDecoder::new(raw)))))
        }
        other => Err(format!("is compressed with {other}, which is not supported; expected stored or deflate")),
    }
}

impl CellSource for Npz {
    fn n_cells(&self) -> Option<u64> {
        Some(self.cells.n_cells())
    }

    fn features(&self) -> &[Feature] {
        &self.features
    }

    fn obs_columns(&self) -> &[ObsColumn] {
        &[]
    }

    fn matrix(&self) -> &str {
        "data"
    }

    fn notes(&self) -> &[String] {
        &[]
    }

    fn next_block(&mut self) -> Result<Option<Block>> {
        let rows = self.cells.rows(BLOCK_CELLS as u64);
        let Some(rows) = rows.map_err(|e| FormatError::new(&self.path, "data", spill_problem(&e)))? else {
            return Ok(None);
        };
        let (start, count) = (self.next as usize, rows.len());
        self.next += count as u64;
        let barcodes = match &self.barcodes {
            Some(names) => StringArray::from_iter_values(&names[start..start + count]),
            None => StringArray::from_iter_values((start..start + count).map(|i| i.to_string())),
        };
        Ok(Some(Block { barcodes, obs: Vec::new(), starts: rows.starts, features: rows.features, values: rows.values }))
    }

    fn rewind(&mut self) -> Result<()> {
        self.next = 0;
        self.cells.rewind();
        Ok(())
    }
}
