//! AnnData's `.h5ad`: matrix `X` in CSR, CSC or dense form, dataframes `obs` and `var` in encodings 0.1.0 and 0.2.0.

mod file;
mod frame;
mod matrix;

use std::path::Path;

use self::file::H5;
use self::frame::Frame;
use self::matrix::Matrix;
use super::ObsFields;
use super::block::{BLOCK_CELLS, Block, CellSource};
use crate::error::{Error, Result};
use crate::genes::Feature;

pub(super) use self::file::is_hdf5;

/// var columns that hold Ensembl ids beside symbols, as files in the wild call them.
const ENSEMBL_COLUMNS: &[&str] = &["gene_ids", "gene_id", "ensembl_id", "ensembl_ids", "ensembl", "feature_id"];
/// var columns that hold symbols where the index holds Ensembl ids.
const SYMBOL_COLUMNS: &[&str] = &["feature_name", "gene_symbols", "gene_symbol", "gene_name", "gene_names", "symbol"];

/// An open `.h5ad`.
pub(super) struct H5ad {
    path: std::path::PathBuf,
    features: Vec<Feature>,
    obs: Frame,
    matrix: Matrix,
    n_cells: u64,
    next: u64,
}

impl H5ad {
    /// Opens the file, reads its features and checks that its parts fit each other.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let h5 = H5::open(path)?;
        let obs = Frame::open(&h5, "obs")?;
        let var = Frame::open(&h5, "var")?;
        let matrix = Matrix::open(&h5, "X", obs.len())?;
        let features = features(&var)?;
        let (rows, columns) = matrix.shape();
        if columns != features.len() as u64 {
            let names = features.len();
            return Err(Error::input(path, "X", format!("has {columns} columns but var names {names} genes")));
        }
        Ok(Self { path: path.to_owned(), features, obs, matrix, n_cells: rows, next: 0 })
    }
}

fn features(var: &Frame) -> Result<Vec<Feature>> {
    let index = var.index_rows(0, var.len())?;
    let is_ensembl = |names: &[String]| names.iter().filter(|n| n.starts_with("ENSG")).count() * 2 > names.len();
    if is_ensembl(&index) {
        let symbols = SYMBOL_COLUMNS.iter().find_map(|n| var.text(n)).transpose()?.unwrap_or_else(|| index.clone());
        let pairs = symbols.into_iter().zip(index);
        return Ok(pairs.map(|(name, id)| Feature { name, ensembl_id: Some(id) }).collect());
    }
    // By content, not by name alone: `gene_id` may hold Entrez numbers beside an `ensembl_id`.
    let mut columns = ENSEMBL_COLUMNS.iter().filter_map(|n| var.text(n));
    let ids = columns.find(|column| !matches!(column, Ok(ids) if !is_ensembl(ids))).transpose()?;
    let Some(ids) = ids else {
        return Ok(index.into_iter().map(|name| Feature { name, ensembl_id: None }).collect());
    };
    let pairs = index.into_iter().zip(ids);
    Ok(pairs.map(|(name, id)| Feature { name, ensembl_id: (!id.is_empty()).then_some(id) }).collect())
}

impl CellSource for H5ad {
    fn n_cells(&self) -> Option<u64> {
        Some(self.n_cells)
    }

    fn features(&self) -> &[Feature] {
        &self.features
    }

    fn obs_fields(&self) -> ObsFields {
        self.obs.fields()
    }

    fn next_block(&mut self) -> Result<Option<Block>> {
        if self.next >= self.n_cells {
            return Ok(None);
        }
        let wanted = (BLOCK_CELLS as u64).min(self.n_cells - self.next);
        let rows = self.matrix.rows(self.next, wanted)?;
        let count = rows.starts.len() as u64 - 1;
        if count == 0 {
            return Err(Error::input(&self.path, "X", format!("ends at cell {}, before its last row", self.next)));
        }
        let block = Block {
            barcodes: self.obs.index_rows(self.next, count)?,
            obs: self.obs.columns(self.next, count)?,
            starts: rows.starts,
            features: rows.features,
            values: rows.values,
        };
        self.next += count;
        Ok(Some(block))
    }
}
