//! Reader of AnnData's `.h5ad` in every encoding: dataframes as groups (0.1.0, 0.2.0) or compound tables; `X`, `raw.X`
//! or a layer as CSR, CSC (also of h5sparse) or dense matrix.

use std::path::Path;

use arrow::array::StringArray;
use cellql_schemas::feature::Feature;

use crate::block::{BLOCK_CELLS, Block, CellSource, ObsColumn};
use crate::error::Result;
use crate::features;
use crate::h5::file::{H5, LINK_HELP};
use crate::h5::frame::Frame;
use crate::h5::matrix::Matrix;
use crate::options::OpenOptions;

/// Names of layers that usually hold raw counts, best first.
const COUNT_LAYERS: &[&str] = &["counts", "raw_counts", "raw", "count", "umi", "umis", "spliced_unspliced_counts"];

/// An open `.h5ad`.
pub(crate) struct H5ad {
    h5: H5,
    features: Vec<Feature>,
    obs: Frame,
    matrix: Matrix,
    name: String,
    /// Object of the dataframe of genes.
    var: String,
    notes: Vec<String>,
    next: u64,
}

/// A matrix of the file that could be read.
struct Candidate {
    name: String,
    object: String,
    var: String,
    matrix: Matrix,
    class: ValueClass,
}

/// Class of the values in a sample of a matrix, preferred first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ValueClass {
    Counts,
    Fractional,
    Empty,
    Negative,
}

fn classify(sample: &[f32]) -> ValueClass {
    let mut class = ValueClass::Empty;
    for &value in sample.iter().filter(|v| **v != 0.0) {
        if value < 0.0 {
            return ValueClass::Negative;
        }
        match (class, value.fract() == 0.0) {
            (ValueClass::Empty, true) => class = ValueClass::Counts,
            (_, false) => class = ValueClass::Fractional,
            _ => {}
        }
    }
    class
}

impl H5ad {
    /// Opens the file, chooses the matrix, reads its features and checks that obs, var and matrix agree in shape.
    pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        let h5 = H5::open(path)?;
        let obs = Frame::open(&h5, "obs")?;
        let mut notes = Vec::new();
        let chosen = choose(&h5, obs.len(), options, &mut notes)?;
        let var = Frame::open(&h5, &chosen.var)?;
        let features = features::from_index(var.index()?, |name| var.text(name))?;
        let (_, columns) = chosen.matrix.shape();
        if columns != features.len() as u64 {
            let problem = format!("has {columns} columns but {} names {} genes", chosen.var, features.len());
            return Err(h5.error(&chosen.object, problem));
        }
        let mut note = |names: &[String], why: &str| {
            if !names.is_empty() {
                notes.push(format!("{why}: {}", names.join(", ")));
            }
        };
        note(obs.skipped(), "obs columns left out because their type has no equivalent in a table");
        note(obs.missing(), "obs columns left out because they are links, which are not followed, or missing");
        note(var.missing(), "var columns left out because they are links, which are not followed, or missing");
        let Candidate { name, var, matrix, .. } = chosen;
        Ok(Self { h5, features, obs, matrix, name, var, notes, next: 0 })
    }
}

/// The matrix to read: the requested one, else the one that holds raw counts.
fn choose(h5: &H5, n_obs: u64, options: &OpenOptions, notes: &mut Vec<String>) -> Result<Candidate> {
    let matrices = matrices(h5)?;
    let names: Vec<&str> = matrices.iter().map(|(name, ..)| name.as_str()).collect();
    if let Some(wanted) = options.matrix() {
        let found = matrices.iter().find(|(name, ..)| *name == wanted);
        let missing = || {
            h5.error(&wanted, format!("is not in this file, or is a link; it has {}; {LINK_HELP}", names.join(", ")))
        };
        let (name, object, var) = found.ok_or_else(missing)?;
        return Candidate::open(h5, name, object, var, n_obs);
    }
    let mut candidates = Vec::new();
    for (name, object, var) in &matrices {
        match Candidate::open(h5, name, object, var, n_obs) {
            Ok(candidate) => candidates.push(candidate),
            // A broken X is an error of the file. A layer of another shape or type is only skipped.
            Err(error) if name == "X" => return Err(error),
            Err(error) => notes.push(format!("{} was skipped: {}", error.object, error.problem)),
        }
    }
    let mut best: Option<Candidate> = None;
    for candidate in candidates {
        if best.as_ref().is_none_or(|held| candidate.rank() < held.rank()) {
            best = Some(candidate);
        }
    }
    let nothing = || {
        let problem = "is missing or a link, and so are raw/X and layers: there is no matrix to read";
        h5.error("X", format!("{problem}; {LINK_HELP}"))
    };
    let best = best.ok_or_else(nothing)?;
    if !names.contains(&"X") {
        notes.push("X is missing, or is a link, which is not followed".to_owned());
    }
    if matrices.len() > 1 {
        let what = match best.class {
            ValueClass::Counts => "whole numbers",
            ValueClass::Fractional => "no matrix holds whole numbers",
            ValueClass::Empty => "no matrix holds a value",
            ValueClass::Negative => "every matrix holds negative values",
        };
        notes.push(format!("read from {} ({what}); the file has {}", best.name, names.join(", ")));
    }
    Ok(best)
}

/// For each matrix of the file: its name for the user, its path in the file, and the dataframe of its columns.
fn matrices(h5: &H5) -> Result<Vec<(String, String, String)>> {
    let mut found = Vec::new();
    let mut add = |name: &str, object: &str, var: &str| {
        if h5.has(object) {
            found.push((name.to_owned(), object.to_owned(), var.to_owned()));
        }
    };
    add("X", "X", "var");
    add("raw/X", "raw/X", "raw/var");
    add("raw/X", "raw.X", "raw.var");
    for layer in h5.members("layers")? {
        let object = format!("layers/{layer}");
        add(&object, &object, "var");
    }
    Ok(found)
}

impl Candidate {
    fn open(h5: &H5, name: &str, object: &str, var: &str, n_obs: u64) -> Result<Self> {
        let matrix = Matrix::open(h5, object, n_obs)?;
        let class = classify(&matrix.sample()?);
        Ok(Self { name: name.to_owned(), object: object.to_owned(), var: var.to_owned(), matrix, class })
    }

    /// Sort key, best first: counts, then more genes, then `X`, `raw/X` and layers with a name of counts.
    fn rank(&self) -> (ValueClass, std::cmp::Reverse<u64>, usize) {
        let (_, genes) = self.matrix.shape();
        let by_name = match self.name.strip_prefix("layers/") {
            None => usize::from(self.name != "X"),
            Some(layer) => {
                let layer = layer.to_lowercase();
                2 + COUNT_LAYERS.iter().position(|l| *l == layer).unwrap_or(COUNT_LAYERS.len())
            }
        };
        (self.class, std::cmp::Reverse(genes), by_name)
    }
}

impl CellSource for H5ad {
    fn n_cells(&self) -> Option<u64> {
        Some(self.obs.len())
    }

    fn features(&self) -> &[Feature] {
        &self.features
    }

    fn obs_columns(&self) -> &[ObsColumn] {
        self.obs.columns()
    }

    fn matrix(&self) -> &str {
        &self.name
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn exported_gene_ids(&self) -> Result<Option<Vec<u32>>> {
        let object = format!("{}/gene_id", self.var);
        if !self.h5.has_dataset(&object) {
            return Ok(None);
        }
        let ids = self.h5.dataset(&object)?;
        let ids = ids.read_indices(0, ids.rows(), u64::from(u32::MAX))?;
        Ok((ids.len() == self.features.len()).then_some(ids))
    }

    fn next_block(&mut self) -> Result<Option<Block>> {
        let Some(rows) = self.matrix.rows(BLOCK_CELLS as u64)? else {
            return Ok(None);
        };
        let count = rows.len() as u64;
        if count == 0 {
            return Err(self.h5.error(&self.name, format!("ends at cell {}, before its last row", self.next)));
        }
        let block = Block {
            barcodes: StringArray::from_iter_values(self.obs.index_rows(self.next, count)?),
            obs: self.obs.rows(self.next, count)?,
            starts: rows.starts,
            features: rows.features,
            values: rows.values,
        };
        self.next += count;
        Ok(Some(block))
    }

    fn rewind(&mut self) -> Result<()> {
        self.next = 0;
        self.matrix.rewind();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampled_values_are_classified_as_counts_fractional_negative_or_empty() {
        assert!(classify(&[0.0, 3.0, 1.0]) == ValueClass::Counts);
        assert!(classify(&[0.0, 3.0, 0.5]) == ValueClass::Fractional);
        assert!(classify(&[0.0, -0.5, 3.0]) == ValueClass::Negative);
        assert!(classify(&[0.0]) == ValueClass::Empty);
    }
}
