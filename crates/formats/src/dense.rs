//! Dense text, comma or tab, plain or gzipped, in either orientation: cells × genes is read line by line, genes × cells is
//! turned. Which it is shows by the axis whose names are genes.

use std::path::{Path, PathBuf};

use arrow::array::StringArray;
use cellql_schemas::feature::Feature;

use crate::block::{BLOCK_CELLS, BLOCK_VALUES, Block, CellSource, ObsColumn};
use crate::features::{are_ensembl, identified, share_of_genes};
use crate::gzip::Lined;
use crate::h5::matrix::temporary;
use crate::rows::{Rows, narrow};
use crate::spill::Spill;
use crate::{FormatError, Result, gzip};

/// Longest line: a header of genes or barcodes is long, but a binary file may hold no line end at all.
const LINE: u64 = 1 << 28;
/// Names of the first column that are looked at.
const LOOKED_AT: usize = 500;

/// A dense text file.
pub(crate) struct Dense {
    path: PathBuf,
    features: Vec<Feature>,
    barcodes: Vec<String>,
    form: Form,
    next: u64,
}

enum Form {
    /// A cell a line.
    Cells(Box<Lines>),
    /// A gene a line, turned.
    Genes(Spill),
}

/// A text file, read record by record.
struct Lines {
    path: PathBuf,
    mark: u8,
    reader: Reader,
    record: csv::ByteRecord,
    /// Names of the columns of values.
    header: Vec<String>,
}

type Reader = csv::Reader<Lined>;

impl Dense {
    /// Opens the file and finds out where its genes are.
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
                form: Form::Cells(Box::new(lines)),
                next: 0,
            });
        }
        let (names, spill) = lines.turn()?;
        Ok(Self {
            path: path.to_owned(),
            features: features(names),
            barcodes: header,
            form: Form::Genes(spill),
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

/// True where the first line names genes rather than cells; where neither axis does, it is taken to.
fn genes_in_header(path: &Path, header: &[String]) -> Result<bool> {
    let across = share_of_genes(header.iter().take(LOOKED_AT * 4).map(String::as_str));
    let mut lines = Lines::open(path)?;
    let mut names = Vec::new();
    while names.len() < LOOKED_AT && lines.read()? {
        names.push(lines.name());
    }
    let down = share_of_genes(names.iter().map(String::as_str));
    Ok(across >= down)
}

impl Lines {
    fn open(path: &Path) -> Result<Self> {
        let fail = |e: std::io::Error| FormatError::new(path, "line 1", format!("cannot be read as text: {e}"));
        let mut first = Vec::new();
        gzip::read_line(gzip::open(path)?.as_mut(), &mut first, LINE).map_err(fail)?;
        if first.contains(&0) || std::str::from_utf8(&first).is_err() {
            return Err(FormatError::new(path, "file", "is of no format that is known, nor text"));
        }
        let count = |mark: u8| first.iter().filter(|b| **b == mark).count();
        let mark = [b';', b'\t', b','].into_iter().max_by_key(|m| count(*m)).unwrap_or(b',');
        let (reader, record) = (reader(path, mark)?, csv::ByteRecord::new());
        let mut lines = Self { path: path.to_owned(), mark, reader, record, header: Vec::new() };
        lines.read_header()?;
        Ok(lines)
    }

    /// The first line names the columns; R leaves out the name of the first one, which the second line shows.
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

    /// Goes back to the line after the first.
    fn rewind(&mut self) -> Result<()> {
        self.reader = reader(&self.path, self.mark)?;
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

    /// The next line, which has a name and a value for every column; false at the end.
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

    /// What the current line names.
    fn name(&self) -> String {
        self.record.get(0).map(name).unwrap_or_default()
    }

    /// Calls for every value of the current line that is not zero.
    fn values(&self, mut each: impl FnMut(usize, f32) -> Result<(), String>) -> Result<()> {
        for (column, field) in self.record.iter().skip(1).enumerate() {
            if field == b"0" {
                continue;
            }
            let text = std::str::from_utf8(field).map_err(|_| self.error(Some(column), "is no text"))?;
            let value: f64 =
                text.trim().parse().map_err(|_| self.error(Some(column), format!("'{text}' is not a number")))?;
            if value != 0.0 {
                let put = narrow(value).and_then(|v| each(column, v));
                put.map_err(|e| self.error(Some(column), e))?;
            }
        }
        Ok(())
    }

    /// One pass over a file of genes × cells: the genes' names, and the values by cell.
    fn turn(&mut self) -> Result<(Vec<String>, Spill)> {
        let cells = self.header.len() as u64;
        // A value takes two bytes of text at least; a gzipped file holds some ten times what it weighs.
        let bytes = std::fs::metadata(&self.path).map(|m| m.len()).unwrap_or_default();
        let spill = Spill::new(Some((cells, bytes)));
        let mut spill = spill.map_err(|e| FormatError::new(&self.path, "file", temporary(&e)))?;
        let mut names = Vec::new();
        while self.read()? {
            let gene = names.len() as u32;
            names.push(self.name());
            self.values(|cell, value| spill.push(cell as u64, gene, value).map_err(|e| temporary(&e)))?;
        }
        Ok((names, spill))
    }
}

fn reader(path: &Path, mark: u8) -> Result<Reader> {
    let mut builder = csv::ReaderBuilder::new();
    builder.delimiter(mark).has_headers(false).flexible(true);
    Ok(builder.from_reader(Lined::open(path, LINE)?))
}

fn name(field: &[u8]) -> String {
    String::from_utf8_lossy(field).trim().trim_start_matches('\u{feff}').to_owned()
}

impl CellSource for Dense {
    fn n_cells(&self) -> Option<u64> {
        match &self.form {
            Form::Cells(_) => None,
            Form::Genes(spill) => Some(spill.n_cells()),
        }
    }

    fn features(&self) -> &[Feature] {
        &self.features
    }

    fn obs_columns(&self) -> &[ObsColumn] {
        &[]
    }

    fn matrix(&self) -> &str {
        match self.form {
            Form::Cells(_) => "cells × genes",
            Form::Genes(_) => "genes × cells",
        }
    }

    fn notes(&self) -> &[String] {
        &[]
    }

    fn next_block(&mut self) -> Result<Option<Block>> {
        let (barcodes, rows) = match &mut self.form {
            Form::Cells(lines) => {
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
            Form::Genes(spill) => {
                let rows = spill.rows(BLOCK_CELLS as u64);
                let rows =
                    rows.map_err(|e| FormatError::new(&self.path, "file", temporary(&e)))?.unwrap_or_else(Rows::new);
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
        match &mut self.form {
            Form::Cells(lines) => lines.rewind(),
            Form::Genes(spill) => {
                spill.rewind();
                Ok(())
            }
        }
    }
}
