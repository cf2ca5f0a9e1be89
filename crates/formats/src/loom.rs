//! Reader of loom files: a dense genes × cells matrix and layers, with row attributes (genes) and column attributes
//! (cells).

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray};
use cellql_schemas::feature::Feature;

use crate::block::{BLOCK_CELLS, BLOCK_VALUES, Block, CellSource, ObsColumn};
use crate::error::Result;
use crate::features;
use crate::h5::file::{H5, H5Dataset, is_bool, is_float, is_integer, is_text};
use crate::h5::members::{Object, Objects};
use crate::options::OpenOptions;
use crate::rows::to_f32;
use crate::spill::{Spill, spill_problem};

/// Column attributes that name cells, best first.
const CELL_NAMES: &[&str] = &["CellID", "obs_names", "cell_id", "Barcode", "barcode", "cell_names"];
/// Row attributes that name genes, best first.
const GENE_NAMES: &[&str] = &["Gene", "var_names", "gene", "gene_name", "GeneName", "Accession", "gene_names"];

/// An open loom file.
pub(crate) struct Loom {
    data: H5Dataset,
    features: Vec<Feature>,
    barcodes: Vec<String>,
    columns: Vec<ObsColumn>,
    obs: Vec<ArrayRef>,
    notes: Vec<String>,
    cells: Option<Spill>,
    next: u64,
}

impl Loom {
    /// Opens the file and reads its row and column attributes.
    pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        let h5 = H5::open(path)?;
        let layers = h5.members("layers")?;
        let object = match options.layer.as_deref() {
            None => "matrix".to_owned(),
            Some(layer) if layers.iter().any(|l| l == layer) => format!("layers/{layer}"),
            Some(layer) => {
                return Err(
                    h5.error(&format!("layers/{layer}"), format!("is not in this file; it has {}", layers.join(", ")))
                );
            }
        };
        let data = h5.dataset(&object)?;
        let [genes, cells] = *data.shape() else {
            return Err(data.error("is not a matrix of two dimensions (genes × cells)"));
        };
        let features = features_of(&h5, genes)?;
        let barcodes = names_of(&h5, "col_attrs", CELL_NAMES, cells)?;
        let mut notes = Vec::new();
        if options.layer.is_none() && !layers.is_empty() {
            notes.push(format!("read from matrix; the file also has the layers {} (--layer)", layers.join(", ")));
        }
        let mut source = Self { data, features, barcodes, columns: vec![], obs: vec![], notes, cells: None, next: 0 };
        source.read_obs(&h5, cells)?;
        Ok(source)
    }

    fn read_obs(&mut self, h5: &H5, cells: u64) -> Result<()> {
        let (mut skipped, mut objects) = (Vec::new(), Objects::new(h5));
        for name in h5.members("col_attrs")? {
            if CELL_NAMES.first() == Some(&name.as_str()) {
                continue;
            }
            let values = match objects.take(&Objects::path("col_attrs", &name))? {
                Some(Object::Dataset(dataset)) => column(&dataset, cells)?,
                Some(Object::Group(_)) | None => None,
            };
            match values {
                Some(values) => {
                    self.columns.push(ObsColumn::plain(name, values.data_type().clone()));
                    self.obs.push(values);
                }
                None => skipped.push(name),
            }
        }
        if !skipped.is_empty() {
            self.notes.push(format!(
                "column attributes left out because their type has no equivalent in a table: {}",
                skipped.join(", ")
            ));
        }
        Ok(())
    }

    /// Transposes the matrix to cells × genes in one pass over the genes.
    fn transpose(&self) -> Result<Spill> {
        let (genes, cells) = (self.features.len() as u64, self.barcodes.len() as u64);
        let fail = |e: std::io::Error| self.data.error(spill_problem(&e));
        // Most values of an expression matrix are zero. The file does not state how many; a quarter is an upper
        // estimate.
        let mut spill = Spill::new(Some((cells, genes.saturating_mul(cells) / 4))).map_err(fail)?;
        let step = (BLOCK_VALUES as u64 / cells.max(1)).clamp(1, genes.max(1));
        for gene in (0..genes).step_by(step as usize) {
            let count = step.min(genes - gene);
            let numbers = self.data.read_f64(gene, count)?;
            if numbers.len() as u64 != count * cells {
                return Err(self.data.error(format!("gave {} numbers for {count} genes", numbers.len())));
            }
            for (i, row) in numbers.chunks_exact(cells.max(1) as usize).enumerate() {
                for (cell, &value) in row.iter().enumerate().filter(|(_, v)| **v != 0.0) {
                    let value = to_f32(value).map_err(|e| self.data.error(e))?;
                    spill.push(cell as u64, (gene + i as u64) as u32, value).map_err(fail)?;
                }
            }
        }
        Ok(spill)
    }
}

/// Values of a column attribute, or `None` if its shape or type cannot be an obs column.
fn column(dataset: &H5Dataset, cells: u64) -> Result<Option<ArrayRef>> {
    if dataset.shape() != [cells] {
        return Ok(None);
    }
    Ok(Some(match dataset.dtype() {
        kind if is_text(kind) => Arc::new(StringArray::from_iter_values(dataset.read_text(0, cells)?)) as ArrayRef,
        kind if is_float(kind) => {
            let values = dataset.read_f64(0, cells)?.into_iter();
            Arc::new(values.map(|v| (!v.is_nan()).then_some(v)).collect::<Float64Array>())
        }
        kind if is_bool(kind) => {
            Arc::new(BooleanArray::from_iter(dataset.read_bytes(0, cells)?.iter().map(|b| Some(*b != 0))))
        }
        kind if is_integer(kind) => Arc::new(Int64Array::from(dataset.read_i64(0, cells)?)),
        _ => return Ok(None),
    }))
}

fn names_of(h5: &H5, group: &str, known: &[&str], count: u64) -> Result<Vec<String>> {
    let name = known.iter().find(|n| h5.has_dataset(&format!("{group}/{n}")));
    let Some(name) = name else {
        return Err(h5.error(group, format!("has none of {}, so its rows have no names", known.join(", "))));
    };
    let object = format!("{group}/{name}");
    let names = h5.all_texts(&object)?;
    match names.len() as u64 == count {
        true => Ok(names),
        false => Err(h5.error(&object, format!("names {} of {count}", names.len()))),
    }
}

fn features_of(h5: &H5, genes: u64) -> Result<Vec<Feature>> {
    let index = names_of(h5, "row_attrs", GENE_NAMES, genes)?;
    features::from_index(index, |name| {
        let object = format!("row_attrs/{name}");
        let dataset = h5.dataset(&object).ok().filter(|d| is_text(d.dtype()) && d.shape() == [genes])?;
        Some(dataset.read_text(0, genes))
    })
}

impl CellSource for Loom {
    fn n_cells(&self) -> Option<u64> {
        Some(self.barcodes.len() as u64)
    }

    fn features(&self) -> &[Feature] {
        &self.features
    }

    fn obs_columns(&self) -> &[ObsColumn] {
        &self.columns
    }

    fn matrix(&self) -> &str {
        self.data.object()
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn next_block(&mut self) -> Result<Option<Block>> {
        if self.cells.is_none() {
            self.cells = Some(self.transpose()?);
        }
        let rows = self.cells.as_mut().map(|c| c.rows(BLOCK_CELLS as u64)).transpose();
        let Some(rows) = rows.map_err(|e| self.data.error(spill_problem(&e)))?.flatten() else {
            return Ok(None);
        };
        let (start, count) = (self.next as usize, rows.len());
        self.next += count as u64;
        Ok(Some(Block {
            barcodes: StringArray::from_iter_values(&self.barcodes[start..start + count]),
            obs: self.obs.iter().map(|c| c.slice(start, count)).collect(),
            starts: rows.starts,
            features: rows.features,
            values: rows.values,
        }))
    }

    fn rewind(&mut self) -> Result<()> {
        self.next = 0;
        if let Some(cells) = &mut self.cells {
            cells.rewind();
        }
        Ok(())
    }
}
