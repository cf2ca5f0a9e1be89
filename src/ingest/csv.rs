//! Dense text: cells × genes, the first column the barcode, the first line the gene names. Comma or tab.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::ObsFields;
use super::block::{BLOCK_CELLS, BLOCK_VALUES, Block, CellSource};
use crate::error::{Error, Result};
use crate::genes::Feature;

/// A dense text file, read a line at a time.
pub(super) struct Csv {
    path: PathBuf,
    features: Vec<Feature>,
    reader: csv::Reader<File>,
    record: csv::StringRecord,
}

impl Csv {
    /// Opens the file and reads its gene names.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let delimiter = delimiter(path)?;
        let wrong = |object: &str, problem: String| Error::input(path, object, problem);
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .from_path(path)
            .map_err(|e| wrong("file", format!("cannot be opened: {e}")))?;
        let header = reader.headers().map_err(|e| wrong("line 1", format!("is no line of text: {e}")))?;
        let features: Vec<Feature> =
            header.iter().skip(1).map(|name| Feature { name: name.trim().to_owned(), ensembl_id: None }).collect();
        if features.is_empty() {
            return Err(wrong("line 1", "holds no gene names: expected barcode,GENE1,GENE2,…".to_owned()));
        }
        if features.iter().all(|f| f.name.is_empty() || f.name.parse::<f64>().is_ok()) {
            return Err(wrong("line 1", "holds numbers where gene names should be".to_owned()));
        }
        Ok(Self { path: path.to_owned(), features, reader, record: csv::StringRecord::new() })
    }

    fn next_line(&mut self) -> Result<bool> {
        self.reader.read_record(&mut self.record).map_err(|e| {
            let line = e.position().map_or(0, csv::Position::line);
            let problem = match e.kind() {
                csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                    format!("holds {len} fields, the first line {expected_len}")
                }
                _ => e.to_string(),
            };
            Error::input(&self.path, format!("line {line}"), problem)
        })
    }

    fn push_line(&self, block: &mut Block) -> Result<()> {
        let line = self.record.position().map_or(0, csv::Position::line);
        block.barcodes.push(self.record.get(0).unwrap_or_default().to_owned());
        for (feature, text) in self.record.iter().skip(1).enumerate() {
            let value: f64 = text.trim().parse().map_err(|_| {
                let object = format!("line {line}, gene '{}'", self.features[feature].name);
                Error::input(&self.path, object, format!("'{text}' is not a number"))
            })?;
            if value != 0.0 {
                block.features.push(feature as u32);
                block.values.push(value);
            }
        }
        block.starts.push(block.values.len());
        Ok(())
    }
}

/// The mark that stands more often in the first line.
fn delimiter(path: &Path) -> Result<u8> {
    use std::io::{BufRead, BufReader, Read};
    let fail = |e: std::io::Error| Error::input(path, "file", format!("cannot be read as text: {e}"));
    let mut line = Vec::new();
    let file = File::open(path).map_err(fail)?;
    // A line of gene names is long, but not that long: a binary file may hold no line end at all.
    BufReader::new(file.take(16 << 20)).read_until(b'\n', &mut line).map_err(fail)?;
    if line.contains(&0) {
        return Err(Error::input(path, "file", "is neither HDF5 nor text; expected .h5ad or a dense .csv"));
    }
    let count = |mark: u8| line.iter().filter(|b| **b == mark).count();
    Ok(if count(b'\t') > count(b',') { b'\t' } else { b',' })
}

impl CellSource for Csv {
    fn n_cells(&self) -> Option<u64> {
        None
    }

    fn features(&self) -> &[Feature] {
        &self.features
    }

    fn obs_fields(&self) -> ObsFields {
        Vec::new()
    }

    fn next_block(&mut self) -> Result<Option<Block>> {
        let mut block = Block { starts: vec![0], ..Block::default() };
        while block.barcodes.len() < BLOCK_CELLS && block.values.len() < BLOCK_VALUES && self.next_line()? {
            self.push_line(&mut block)?;
        }
        Ok((!block.barcodes.is_empty()).then_some(block))
    }
}
