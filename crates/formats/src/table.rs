//! Reader of tables, from Parquet or any [`TableReader`]: an export of cellql (one row per cell, with `expr`) or long
//! form (one row per value: cell, gene, value) in any order.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use cellql_schemas::cells;
use cellql_schemas::exported::{self, ExportedGene};
use cellql_schemas::expr::{Profiles, is_expr};
use cellql_schemas::feature::Feature;

use crate::block::{BLOCK_CELLS, Block, CellSource, ObsColumn, categorical_type};
use crate::error::{FormatError, Result};
use crate::exported::datasets_of;
use crate::features::{are_ensembl, identified};
use crate::rows::{Rows, to_f32};
use crate::spill::{Spill, spill_problem};

/// Names of the three columns of long form, in lower case, best first.
const CELL: &[&str] = &["cell", "cell_id", "barcode", "obs", "cell_name", "obs_names"];
const GENE: &[&str] = &["gene", "gene_name", "symbol", "gene_id", "feature", "var", "var_names", "gene_symbol"];
const VALUE: &[&str] = &["value", "count", "counts", "expression", "umi", "x"];

/// Record batches of a table, each with the text of its error.
pub type Batches = Box<dyn Iterator<Item = Result<RecordBatch, String>> + Send>;

/// A table that can be read from its first row repeatedly.
pub trait TableReader: Send {
    /// Columns and metadata of the table.
    fn schema(&self) -> SchemaRef;
    /// Number of rows, if it is known.
    fn rows(&self) -> Option<u64>;
    /// Record batches from the first row, with at least the named columns. No cell has more than `most_values` values
    /// in its expression.
    ///
    /// # Errors
    /// The table cannot be read; the text says why.
    fn batches(&self, columns: &[&str], most_values: usize) -> Result<Batches, String>;
}

/// A table that is read as cells.
pub struct TableSource {
    path: PathBuf,
    features: Vec<Feature>,
    columns: Vec<ObsColumn>,
    notes: Vec<String>,
    layout: Layout,
}

/// Layout of the table.
enum Layout {
    Export(Export),
    Long { cells: Spill, barcodes: Vec<String>, next: u64 },
}

/// An export of cellql: one row per cell.
struct Export {
    table: Box<dyn TableReader>,
    batches: Batches,
    /// Index of each gene id among the features.
    positions: HashMap<u32, u32>,
    gene_ids: Vec<u32>,
}

impl TableSource {
    /// Determines the layout of a table and opens it. `path` is named in errors.
    ///
    /// # Errors
    /// The table is neither an export nor long form, or it cannot be read.
    pub fn open(path: &Path, table: Box<dyn TableReader>) -> Result<Self> {
        let schema = table.schema();
        let is_export = schema.field_with_name(cells::EXPR).is_ok_and(|f| is_expr(f.data_type()));
        if is_export { Self::export(path, table, &schema) } else { Self::long(path, table, &schema) }
    }

    fn export(path: &Path, table: Box<dyn TableReader>, schema: &Schema) -> Result<Self> {
        let wrong = |object: &str, problem: String| FormatError::new(path, object, problem);
        let genes = schema.metadata().get(exported::GENES);
        let genes = genes.ok_or_else(|| {
            wrong(
                exported::GENES,
                "is missing from the metadata, so the meaning of the gene ids is unknown; export the table again"
                    .into(),
            )
        })?;
        let genes: Vec<ExportedGene> = serde_json::from_str(genes)
            .map_err(|e| wrong(exported::GENES, format!("is not a JSON list of genes: {e}")))?;
        let gene_ids: Vec<u32> = genes.iter().map(|gene| gene.gene_id).collect();
        let positions = gene_ids.iter().copied().zip(0..).collect();
        let features: Vec<Feature> =
            genes.into_iter().map(|g| Feature { name: g.symbol, ensembl_id: g.ensembl_id }).collect();
        let (mut columns, mut skipped) = (Vec::new(), Vec::new());
        // The data sets of an export are told by this column.
        let is_divided = !datasets_of(schema).is_empty();
        let is_read = |name: &str| !cells::is_reserved(name) || (is_divided && name == cells::DATASET_ID);
        for field in schema.fields().iter().filter(|f| is_read(f.name())) {
            match obs_type(field.data_type()) {
                Some(of) => columns.push(ObsColumn::plain(field.name(), of)),
                None => skipped.push(field.name().clone()),
            }
        }
        let notes = match skipped.is_empty() {
            true => Vec::new(),
            false => vec![format!("columns left out because their type is not an obs type: {}", skipped.join(", "))],
        };
        let batches = export_batches(path, table.as_ref(), &columns, features.len())?;
        let layout = Layout::Export(Export { table, batches, positions, gene_ids });
        Ok(Self { path: path.to_owned(), features, columns, notes, layout })
    }

    fn long(path: &Path, table: Box<dyn TableReader>, schema: &Schema) -> Result<Self> {
        let find = |names: &[&str]| {
            let named = |name: &&str| schema.fields().iter().find(|f| f.name().eq_ignore_ascii_case(name));
            names.iter().find_map(named).map(|f| f.name().clone())
        };
        let (cell, gene, value) = (find(CELL), find(GENE), find(VALUE));
        let (Some(cell), Some(gene), Some(value)) = (cell, gene, value) else {
            let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
            let problem = format!(
                "are {}; expected an export of cellql (expr with its genes) or long form (cell, gene, value)",
                names.join(", ")
            );
            return Err(FormatError::new(path, "columns", problem));
        };
        let mut names = Interner::default();
        let mut genes = Interner::default();
        let mut spill = Spill::new(None).map_err(|e| FormatError::new(path, "rows", spill_problem(&e)))?;
        for batch in table.batches(&[&cell, &gene, &value], 1).map_err(|e| FormatError::new(path, "rows", e))? {
            let batch = batch.map_err(|e| FormatError::new(path, "rows", e))?;
            let column = |name: &str, of: &DataType| complete(path, &batch, name, of);
            let (cells, named) = (column(&cell, &DataType::Utf8)?, column(&gene, &DataType::Utf8)?);
            let values = column(&value, &DataType::Float64)?;
            let (cells, named) = (cells.as_string::<i32>(), named.as_string::<i32>());
            for (i, value) in values.as_primitive::<Float64Type>().values().iter().enumerate() {
                let value = to_f32(*value).map_err(|e| FormatError::new(path, "values", e))?;
                let (cell, gene) = (names.number(cells.value(i)), genes.number(named.value(i)));
                spill
                    .push(u64::from(cell), gene, value)
                    .map_err(|e| FormatError::new(path, "rows", spill_problem(&e)))?;
            }
        }
        let features = match are_ensembl(genes.names.iter().map(String::as_str)) {
            true => genes.names.into_iter().map(|n| identified(n.clone(), n)).collect(),
            false => genes.names.into_iter().map(Feature::named).collect(),
        };
        let layout = Layout::Long { cells: spill, barcodes: names.names, next: 0 };
        Ok(Self { path: path.to_owned(), features, columns: Vec::new(), notes: Vec::new(), layout })
    }

    fn error(&self, object: &str, problem: impl ToString) -> FormatError {
        FormatError::new(&self.path, object, problem)
    }

    fn exported_block(&mut self) -> Result<Option<Block>> {
        let Layout::Export(export) = &mut self.layout else { return Ok(None) };
        let Some(batch) = export.batches.next() else { return Ok(None) };
        let batch = batch.map_err(|e| FormatError::new(&self.path, "rows", e))?;
        let Layout::Export(export) = &self.layout else { return Ok(None) };
        let barcodes = complete(&self.path, &batch, cells::BARCODE, &DataType::Utf8)?;
        let expr = batch.column_by_name(cells::EXPR).ok_or_else(|| self.error(cells::EXPR, "is missing"))?;
        let profiles = Profiles::new(expr).map_err(|e| self.error(cells::EXPR, e))?;
        let mut rows = Rows::new();
        for profile in profiles.iter().flatten() {
            for (gene, value) in profile.gene_ids.iter().zip(profile.values) {
                let unknown =
                    || self.error(cells::EXPR, format!("gene_id {gene} is not listed in the metadata 'cellql.genes'"));
                rows.features.push(*export.positions.get(gene).ok_or_else(unknown)?);
                rows.values.push(*value);
            }
            rows.close_row();
        }
        if rows.len() != batch.num_rows() {
            return Err(self.error(cells::EXPR, "is NULL in some rows"));
        }
        let obs = self.columns.iter().map(|c| column(&self.path, &batch, &c.name, &c.data_type));
        let Rows { starts, features, values } = rows;
        Ok(Some(Block {
            barcodes: barcodes.as_string::<i32>().clone(),
            obs: obs.collect::<Result<_>>()?,
            starts,
            features,
            values,
        }))
    }

    fn long_block(&mut self) -> Result<Option<Block>> {
        let Layout::Long { cells, barcodes, next } = &mut self.layout else { return Ok(None) };
        let rows = cells.rows(BLOCK_CELLS as u64);
        let Some(rows) = rows.map_err(|e| FormatError::new(&self.path, "rows", spill_problem(&e)))? else {
            return Ok(None);
        };
        let start = *next as usize;
        *next += rows.len() as u64;
        let barcodes = StringArray::from_iter_values(&barcodes[start..start + rows.len()]);
        Ok(Some(Block { barcodes, obs: Vec::new(), starts: rows.starts, features: rows.features, values: rows.values }))
    }
}

/// The rows of an export with its obs columns.
fn export_batches(path: &Path, table: &dyn TableReader, obs: &[ObsColumn], genes: usize) -> Result<Batches> {
    let columns: Vec<&str> = [cells::BARCODE, cells::EXPR].into_iter().chain(obs.iter().map(|c| &*c.name)).collect();
    table.batches(&columns, genes).map_err(|e| FormatError::new(path, "rows", e))
}

/// A column cast to a type, without missing values.
fn complete(path: &Path, batch: &RecordBatch, name: &str, of: &DataType) -> Result<ArrayRef> {
    let column = column(path, batch, name, of)?;
    match column.null_count() {
        0 => Ok(column),
        n => Err(FormatError::new(path, name, format!("has {n} values that are missing or cannot be read as {of}"))),
    }
}

/// A column cast to a type.
fn column(path: &Path, batch: &RecordBatch, name: &str, of: &DataType) -> Result<ArrayRef> {
    let wrong = |problem: String| FormatError::new(path, name, problem);
    let column = batch.column_by_name(name).ok_or_else(|| wrong("is missing".into()))?;
    cast(column, of).map_err(|e| wrong(format!("cannot be read as {of}: {e}")))
}

/// The obs type for values of a type; `None` if there is none.
fn obs_type(of: &DataType) -> Option<DataType> {
    match of {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(DataType::Utf8),
        DataType::Dictionary(_, values) if obs_type(values) == Some(DataType::Utf8) => Some(categorical_type()),
        DataType::Boolean => Some(DataType::Boolean),
        DataType::UInt64 => Some(DataType::UInt64),
        other if other.is_integer() => Some(DataType::Int64),
        other if other.is_floating() => Some(DataType::Float64),
        _ => None,
    }
}

/// Numbers names in order of appearance.
#[derive(Default)]
struct Interner {
    names: Vec<String>,
    numbers: HashMap<String, u32>,
    last: u32,
}

impl Interner {
    fn number(&mut self, name: &str) -> u32 {
        // Rows of one cell are usually adjacent.
        if self.names.get(self.last as usize).is_some_and(|n| n == name) {
            return self.last;
        }
        self.last = match self.numbers.get(name) {
            Some(number) => *number,
            None => {
                let number = self.names.len() as u32;
                self.names.push(name.to_owned());
                self.numbers.insert(name.to_owned(), number);
                number
            }
        };
        self.last
    }
}

impl CellSource for TableSource {
    fn n_cells(&self) -> Option<u64> {
        match &self.layout {
            Layout::Export(export) => export.table.rows(),
            Layout::Long { cells, .. } => Some(cells.n_cells()),
        }
    }

    fn features(&self) -> &[Feature] {
        &self.features
    }

    fn obs_columns(&self) -> &[ObsColumn] {
        &self.columns
    }

    fn matrix(&self) -> &str {
        match self.layout {
            Layout::Export(_) => cells::EXPR,
            Layout::Long { .. } => "long form",
        }
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn exported_gene_ids(&self) -> Result<Option<Vec<u32>>> {
        Ok(match &self.layout {
            Layout::Export(export) => Some(export.gene_ids.clone()),
            Layout::Long { .. } => None,
        })
    }

    fn next_block(&mut self) -> Result<Option<Block>> {
        match self.layout {
            Layout::Export(_) => self.exported_block(),
            Layout::Long { .. } => self.long_block(),
        }
    }

    fn rewind(&mut self) -> Result<()> {
        match &mut self.layout {
            Layout::Export(export) => {
                export.batches = export_batches(&self.path, export.table.as_ref(), &self.columns, self.features.len())?;
            }
            Layout::Long { cells, next, .. } => {
                cells.rewind();
                *next = 0;
            }
        }
        Ok(())
    }
}
