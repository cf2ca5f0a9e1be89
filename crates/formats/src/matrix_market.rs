//! Reader of Matrix Market in the layout of 10x Genomics: `matrix.mtx` with `features.tsv` (or `genes.tsv`) and
//! `barcodes.tsv` beside it, each plain or gzipped and with an optional common prefix.

use std::ffi::OsStr;
use std::io::BufRead;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use arrow::array::StringArray;
use cellql_schemas::feature::Feature;

use crate::block::{BLOCK_CELLS, Block, CellSource, ObsColumn};
use crate::error::{FormatError, Result};
use crate::gzip;
use crate::name_tables::{FeatureTable, read_barcodes, read_features};
use crate::options::OpenOptions;
use crate::rows::to_f32;
use crate::spill::{Spill, spill_problem};

/// First bytes of every Matrix Market file, in any case.
const BANNER: &[u8] = b"%%MatrixMarket";

/// True for the beginning of a Matrix Market file.
pub(crate) fn has_banner(head: &[u8]) -> bool {
    head.get(..BANNER.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(BANNER))
}

/// The three files of a data set.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) matrix: PathBuf,
    pub(crate) features: PathBuf,
    pub(crate) barcodes: PathBuf,
}

impl Parts {
    /// Finds the files that belong to a matrix: those named by the options, else those in its folder with its prefix.
    pub(crate) fn of(matrix: &Path, options: &OpenOptions) -> Result<Self> {
        let folder = matrix.parent().unwrap_or(Path::new(""));
        let name = matrix.file_name().unwrap_or_default().as_bytes();
        let stem = name.strip_suffix(b".gz").unwrap_or(name);
        let prefix = stem.strip_suffix(b"matrix.mtx").or_else(|| stem.strip_suffix(b".mtx")).unwrap_or(stem);
        // In bytes, because a file name need not be UTF-8.
        let prefix = OsStr::from_bytes(prefix);
        let beside = |name: &str, ending: &str| {
            let mut file = prefix.to_owned();
            file.push(name);
            file.push(ending);
            folder.join(file)
        };
        let find = |given: Option<&PathBuf>, what: &str, names: &[&str]| {
            if let Some(given) = given {
                return Ok(given.clone());
            }
            let tried = names.iter().flat_map(|n| ["", ".gz"].map(|gz| beside(n, gz)));
            let missing = || {
                let problem = format!(
                    "there is no {}{} (or .gz) beside the matrix; name it with --{what}",
                    prefix.display(),
                    names[0]
                );
                FormatError::new(matrix, what, problem)
            };
            tried.into_iter().find(|p| p.is_file()).ok_or_else(missing)
        };
        Ok(Self {
            matrix: matrix.to_owned(),
            features: find(
                options.genes.as_ref(),
                "genes",
                &["features.tsv", "genes.tsv", "features.txt", "genes.txt"],
            )?,
            barcodes: find(options.barcodes.as_ref(), "barcodes", &["barcodes.tsv", "barcodes.txt", "cells.tsv"])?,
        })
    }
}

/// An open matrix with its names.
pub(crate) struct MatrixMarket {
    path: PathBuf,
    features: Vec<Feature>,
    barcodes: Vec<String>,
    cells: Spill,
    notes: Vec<String>,
    next: u64,
}

/// Content of the banner and of the line of sizes.
struct Header {
    pattern: bool,
    rows: u64,
    columns: u64,
    values: u64,
}

impl MatrixMarket {
    pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        let parts = Parts::of(path, options)?;
        let FeatureTable { features, is_expression: kept, left_out } = read_features(&parts.features)?;
        let mut barcodes = read_barcodes(&parts.barcodes)?;
        let mut reader = gzip::open(path)?;
        let mut lines = Lines { path, reader: reader.as_mut(), bytes: Vec::new(), number: 0 };
        let header = lines.header()?;
        let (genes, cells) = (features.len() as u64, barcodes.len() as u64);
        // Some writers begin the barcodes with a header line.
        let extra = |n: u64| n.checked_add(1) == Some(cells) && (header.rows == genes || header.columns == genes);
        if extra(header.columns) || extra(header.rows) {
            barcodes.remove(0);
        }
        let cells = barcodes.len() as u64;
        let by_gene = match (header.rows, header.columns) {
            shape if shape == (genes, cells) => true,
            shape if shape == (cells, genes) => false,
            (rows, columns) => {
                let problem = format!(
                    "are {rows} × {columns}, but there are {genes} features and {cells} barcodes; are these the \
                         files of this matrix?"
                );
                return Err(FormatError::new(path, "sizes", problem));
            }
        };
        let positions = positions(&kept);
        let cells = lines.values(&header, by_gene, &positions, cells)?;
        let notes = match left_out.values().sum::<usize>() {
            0 => Vec::new(),
            n => {
                let types = left_out.iter().map(|(kind, n)| format!("{n} {kind}")).collect::<Vec<_>>().join(", ");
                vec![format!("left out {n} features that are not gene expression: {types}")]
            }
        };
        let features = features.into_iter().zip(&kept).filter(|(_, k)| **k).map(|(f, _)| f).collect();
        Ok(Self { path: path.to_owned(), features, barcodes, cells, notes, next: 0 })
    }
}

/// New index of each feature; `None` for a feature that is left out.
fn positions(kept: &[bool]) -> Vec<Option<u32>> {
    let mut next = 0;
    let number = |keep: &bool| {
        keep.then(|| {
            next += 1;
            next - 1
        })
    };
    kept.iter().map(number).collect()
}

/// The lines of the matrix file, with their numbers for errors.
struct Lines<'a> {
    path: &'a Path,
    reader: &'a mut dyn BufRead,
    bytes: Vec<u8>,
    number: u64,
}

impl Lines<'_> {
    fn error(&self, problem: impl ToString) -> FormatError {
        FormatError::new(self.path, format!("line {}", self.number), problem)
    }

    /// Reads the next line that is neither a comment nor empty; false at the end.
    fn next(&mut self) -> Result<bool> {
        loop {
            self.number += 1;
            let more = gzip::read_line(self.reader, &mut self.bytes, 4096);
            match more {
                Err(e) => return Err(self.error(format!("cannot be read: {e}"))),
                Ok(false) => return Ok(false),
                Ok(true) if self.bytes.starts_with(b"%") || self.bytes.iter().all(u8::is_ascii_whitespace) => {}
                Ok(true) => return Ok(true),
            }
        }
    }

    fn header(&mut self) -> Result<Header> {
        self.number = 1;
        gzip::read_line(self.reader, &mut self.bytes, 4096).map_err(|e| self.error(e))?;
        let banner = String::from_utf8_lossy(&self.bytes).to_lowercase();
        let words: Vec<&str> = banner.split_whitespace().collect();
        let pattern = match words[..] {
            ["%%matrixmarket", "matrix", "coordinate", "integer" | "real", "general"] => false,
            ["%%matrixmarket", "matrix", "coordinate", "pattern", "general"] => true,
            _ => {
                return Err(
                    self.error("has an unsupported banner; expected 'matrix coordinate integer|real|pattern general'")
                );
            }
        };
        if !self.next()? {
            return Err(self.error("is missing; expected the sizes of the matrix: rows, columns, values"));
        }
        let text = String::from_utf8_lossy(&self.bytes).into_owned();
        let sizes: Vec<u64> = text.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        match sizes[..] {
            [rows, columns, values] if rows.checked_mul(columns).is_some_and(|places| values <= places) => {
                Ok(Header { pattern, rows, columns, values })
            }
            [rows, columns, values] => {
                Err(self.error(format!("states {values} values in a matrix of {rows} × {columns}, which cannot be")))
            }
            _ => Err(self.error(format!("holds '{text}'; expected three sizes: rows, columns, values"))),
        }
    }

    /// Reads every value into the cell it belongs to.
    fn values(&mut self, header: &Header, by_gene: bool, positions: &[Option<u32>], cells: u64) -> Result<Spill> {
        let mut spill = Spill::new(Some((cells, header.values))).map_err(|e| self.error(spill_problem(&e)))?;
        let mut seen = 0u64;
        while self.next()? {
            seen += 1;
            let (row, column, value) = self.entry(header)?;
            let (gene, cell) = if by_gene { (row, column) } else { (column, row) };
            if let Some(feature) = positions[gene as usize] {
                spill.push(cell, feature, value).map_err(|e| self.error(spill_problem(&e)))?;
            }
        }
        match seen == header.values {
            true => Ok(spill),
            false => Err(self.error(format!("the file holds {seen} values but its header states {}", header.values))),
        }
    }

    fn entry(&self, header: &Header) -> Result<(u64, u64, f32)> {
        let text = std::str::from_utf8(&self.bytes).map_err(|_| self.error("is not UTF-8 text"))?;
        let mut words = text.split_ascii_whitespace();
        let mut position = |bound: u64| {
            let word = words.next().unwrap_or_default();
            let number: u64 =
                word.parse().map_err(|_| self.error(format!("'{word}' is not a row or column number")))?;
            match (1..=bound).contains(&number) {
                true => Ok(number - 1),
                false => Err(self.error(format!("position {number} is outside the matrix (1 to {bound})"))),
            }
        };
        let (row, column) = (position(header.rows)?, position(header.columns)?);
        if header.pattern {
            return Ok((row, column, 1.0));
        }
        let word = words.next().unwrap_or_default();
        let value: f64 = word.parse().map_err(|_| self.error(format!("'{word}' is not a number")))?;
        Ok((row, column, to_f32(value).map_err(|e| self.error(e))?))
    }
}

impl CellSource for MatrixMarket {
    fn n_cells(&self) -> Option<u64> {
        Some(self.barcodes.len() as u64)
    }

    fn features(&self) -> &[Feature] {
        &self.features
    }

    fn obs_columns(&self) -> &[ObsColumn] {
        &[]
    }

    fn matrix(&self) -> &str {
        "matrix"
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn next_block(&mut self) -> Result<Option<Block>> {
        let rows = self.cells.rows(BLOCK_CELLS as u64);
        let Some(rows) = rows.map_err(|e| FormatError::new(&self.path, "matrix", spill_problem(&e)))? else {
            return Ok(None);
        };
        let start = self.next as usize;
        self.next += rows.len() as u64;
        Ok(Some(Block {
            barcodes: StringArray::from_iter_values(&self.barcodes[start..start + rows.len()]),
            obs: Vec::new(),
            starts: rows.starts,
            features: rows.features,
            values: rows.values,
        }))
    }

    fn rewind(&mut self) -> Result<()> {
        self.next = 0;
        self.cells.rewind();
        Ok(())
    }
}
