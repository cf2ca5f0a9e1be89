//! Reader of dense text (CSV, TSV or semicolons), plain or gzipped, in either orientation. Cells × genes is read line
//! by line, genes × cells is transposed. The axis with the larger share of gene names is the axis of genes.

use std::path::{Path, PathBuf};

use arrow::array::StringArray;
use cellql_schemas::feature::Feature;

use crate::block::{BLOCK_CELLS, BLOCK_VALUES, Block, CellSource, ObsColumn};
use crate::error::{FormatError, Result};
use crate::features::{are_ensembl, identified, share_of_genes};
use crate::gzip;
use crate::gzip::LineLimited;
use crate::rows::{Rows, to_f32};
use crate::spill::{Spill, spill_problem};

/// Longest line, in bytes. A header of genes or barcodes is long, but a binary file may contain no line end.
const MAX_LINE_BYTES: u64 = 1 << 28;
/// Number of names in the first column that are compared with gene names.
const SAMPLED_NAMES: usize = 500;

/// A dense text file.
pub(crate) struct Delimited {
    path: PathBuf,
    features: Vec<Feature>,
    barcodes: Vec<String>,
    layout: Layout,
    next: u64,
}

/// Orientation of the file.
enum Layout {
    /// One cell per line.
    Cells(Box<Lines>),
    /// One gene per line, transposed.
    Genes(Spill),
}

/// The lines of the file as records.
struct Lines {
    path: PathBuf,
    delimiter: u8,
    reader: Reader,
    record: csv::ByteRecord,
    /// Names of the columns of values.
    header: Vec<String>,
}

type Reader = csv::Reader<LineLimited>;

impl Delimited {
    /// Opens the file and determines its orientation.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut lines = Lines::open(path)?;
        let genes_in_header = genes_in_header(path, &lines.header)?;
        let header = lines.header.clone();
        if genes_in_header {
            let features = features(header);
            return Ok(Self {
                path: path.to_owned(),
                features,
                barcodes: vec![],
                layout: Layout::Cells(Box::new(lines)),
                next: 0,
            });
        }
        let (names, spill) = lines.transpose()?;
        Ok(Self {
            path: path.to_owned(),
            features: features(names),
            barcodes: header,
            layout: Layout::Genes(spill),
            next: 0,
        })
    }
}

fn features(names: Vec<String>) -> Vec<Feature> {
    match are_ensembl(names.iter().map(String::as_str)) {
        true => names.into_iter().map(|n| identified(n.clone(), n)).collect(),
        false => names.into_iter().map(Feature::named).collect(),
    }
}

/// True if the first line holds gene names. It is assumed to if neither axis does.
fn genes_in_header(path: &Path, header: &[String]) -> Result<bool> {
    let across = share_of_genes(header.iter().take(SAMPLED_NAMES * 4).map(String::as_str));
    let mut lines = Lines::open(path)?;
    let mut names = Vec::new();
    while names.len() < SAMPLED_NAMES && lines.read()? {
        names.push(lines.name());
    }
    let down = share_of_genes(names.iter().map(String::as_str));
    Ok(across >= down)
}

impl Lines {
    fn open(path: &Path) -> Result<Self> {
        let fail = |e: std::io::Error| FormatError::new(path, "line 1", format!("cannot be read as text: {e}"));
        let mut first = Vec::new();
        gzip::read_line(gzip::open(path)?.as_mut(), &mut first, MAX_LINE_BYTES).map_err(fail)?;
        if first.contains(&0) || std::str::from_utf8(&first).is_err() {
            return Err(FormatError::new(path, "file", "is in no known format, nor text: its first line is binary"));
        }
        let count = |delimiter: u8| first.iter().filter(|b| **b == delimiter).count();
        let delimiter = [b';', b'\t', b','].into_iter().max_by_key(|m| count(*m)).unwrap_or(b',');
        let (reader, record) = (reader(path, delimiter)?, csv::ByteRecord::new());
        let mut lines = Self { path: path.to_owned(), delimiter, reader, record, header: Vec::new() };
        lines.read_header()?;
        Ok(lines)
    }

    /// Reads the column names. R leaves out the name of the first column: then the second line has one field more.
    fn read_header(&mut self) -> Result<()> {
        let wrong = |problem: &str| FormatError::new(&self.path, "line 1", problem);
        let mut all: Vec<String> = Vec::new();
        if self.reader.read_byte_record(&mut self.record).map_err(|e| wrong(&e.to_string()))? {
            all = self.record.iter().map(name).collect();
        }
        let more = self.reader.read_byte_record(&mut self.record).unwrap_or(false);
        let skip = usize::from(!(more && self.record.len() == all.len() + 1)).min(all.len());
        self.header = all.split_off(skip);
        if self.header.is_empty() {
            return Err(wrong("holds no gene names: expected barcode,GENE1,GENE2,… or gene,CELL1,CELL2,…"));
        }
        if self.header.iter().all(|n| n.is_empty() || n.parse::<f64>().is_ok()) {
            return Err(wrong("holds numbers where gene names should be"));
        }
        self.rewind()
    }

    /// Goes back to the second line.
    fn rewind(&mut self) -> Result<()> {
        self.reader = reader(&self.path, self.delimiter)?;
        let skipped = self.reader.read_byte_record(&mut self.record);
        skipped.map(|_| ()).map_err(|e| FormatError::new(&self.path, "line 1", e))
    }

    fn error(&self, column: Option<usize>, problem: impl ToString) -> FormatError {
        let line = self.record.position().map_or(0, csv::Position::line);
        let object = match column.and_then(|c| self.header.get(c)) {
            Some(name) => format!("line {line}, column '{name}'"),
            None => format!("line {line}"),
        };
        FormatError::new(&self.path, object, problem)
    }

    /// Reads the next line and checks that it has a name and a value for every column; false at the end.
    fn read(&mut self) -> Result<bool> {
        let more = self.reader.read_byte_record(&mut self.record);
        if !more.map_err(|e| self.error(None, e))? {
            return Ok(false);
        }
        let (fields, expected) = (self.record.len(), self.header.len() + 1);
        match fields == expected {
            true => Ok(true),
            false => Err(self.error(None, format!("holds {fields} fields, expected {expected} as in the first line"))),
        }
    }

    /// Name in the first field of the current line.
    fn name(&self) -> String {
        self.record.get(0).map(name).unwrap_or_default()
    }

    /// Calls `each` with column and value of every non-zero value of the current line.
    fn values(&self, mut each: impl FnMut(usize, f32) -> Result<(), String>) -> Result<()> {
        for (column, field) in self.record.iter().skip(1).enumerate() {
            if field == b"0" {
                continue;
            }
            let text = std::str::from_utf8(field).map_err(|_| self.error(Some(column), "is not UTF-8 text"))?;
            let value: f64 =
                text.trim().parse().map_err(|_| self.error(Some(column), format!("'{text}' is not a number")))?;
            if value != 0.0 {
                let put = to_f32(value).and_then(|v| each(column, v));
                put.map_err(|e| self.error(Some(column), e))?;
            }
        }
        Ok(())
    }

    /// Transposes a file of genes × cells in one pass: the gene names, and the values by cell.
    fn transpose(&mut self) -> Result<(Vec<String>, Spill)> {
        let cells = self.header.len() as u64;
        // Estimate of the number of values: one takes at least two bytes of text, and gzip compresses text about
        // tenfold.
        let bytes = std::fs::metadata(&self.path).map(|m| m.len()).unwrap_or_default();
        let spill = Spill::new(Some((cells, bytes)));
        let mut spill = spill.map_err(|e| FormatError::new(&self.path, "file", spill_problem(&e)))?;
        let mut names = Vec::new();
        while self.read()? {
            let gene = names.len() as u32;
            names.push(self.name());
            self.values(|cell, value| spill.push(cell as u64, gene, value).map_err(|e| spill_problem(&e)))?;
        }
        Ok((names, spill))
    }
}

fn reader(path: &Path, delimiter: u8) -> Result<Reader> {
    let mut builder = csv::ReaderBuilder::new();
    builder.delimiter(delimiter).has_headers(false).flexible(true);
    Ok(builder.from_reader(LineLimited::open(path, MAX_LINE_BYTES)?))
}

fn name(field: &[u8]) -> String {
    String::from_utf8_lossy(field).trim().trim_start_matches('\u{feff}').to_owned()
}

impl CellSource for Delimited {
    fn n_cells(&self) -> Option<u64> {
        match &self.layout {
            Layout::Cells(_) => None,
            Layout::Genes(spill) => Some(spill.n_cells()),
        }
    }

    fn features(&self) -> &[Feature] {
        &self.features
    }

    fn obs_columns(&self) -> &[ObsColumn] {
        &[]
    }

    fn matrix(&self) -> &str {
        match self.layout {
            Layout::Cells(_) => "cells × genes",
            Layout::Genes(_) => "genes × cells",
        }
    }

    fn notes(&self) -> &[String] {
        &[]
    }

    fn next_block(&mut self) -> Result<Option<Block>> {
        let (barcodes, rows) = match &mut self.layout {
            Layout::Cells(lines) => {
                let (mut names, mut rows) = (Vec::new(), Rows::new());
                while rows.len() < BLOCK_CELLS && rows.values.len() < BLOCK_VALUES && lines.read()? {
                    names.push(lines.name());
                    let Rows { features, values, .. } = &mut rows;
                    lines.values(|gene, value| {
                        features.push(gene as u32);
                        values.push(value);
                        Ok(())
                    })?;
                    rows.close_row();
                }
                (StringArray::from_iter_values(names), rows)
            }
            Layout::Genes(spill) => {
                let rows = spill.rows(BLOCK_CELLS as u64);
                let rows = rows
                    .map_err(|e| FormatError::new(&self.path, "file", spill_problem(&e)))?
                    .unwrap_or_else(Rows::new);
                let start = self.next as usize;
                (StringArray::from_iter_values(&self.barcodes[start..start + rows.len()]), rows)
            }
        };
        self.next += rows.len() as u64;
        let Rows { starts, features, values } = rows;
        Ok((starts.len() > 1).then_some(Block { barcodes, obs: Vec::new(), starts, features, values }))
    }

    fn rewind(&mut self) -> Result<()> {
        self.next = 0;
        match &mut self.layout {
            Layout::Cells(lines) => lines.rewind(),
            Layout::Genes(spill) => {
                spill.rewind();
                Ok(())
            }
        }
    }
}
