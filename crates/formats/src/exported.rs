//! One data set of an export: its cells, genes and obs columns as they were in the store.

use std::path::{Path, PathBuf};

use arrow::array::{AsArray, BooleanArray, Int64Array, StringArray};
use arrow::compute::{cast, filter};
use arrow::datatypes::{DataType, Int64Type, Schema};
use cellql_schemas::cells;
use cellql_schemas::exported::{self, ExportedDataset};
use cellql_schemas::feature::Feature;

use crate::block::{Block, CellSource, ObsColumn};
use crate::error::{FormatError, Result};
use crate::h5::file::H5;
use crate::parquet_file::Parquet;
use crate::recognise::{Format, recognise};
use crate::table::TableReader;

/// Place of the provenance in an `.h5ad` file.
const H5AD_DATASETS: &str = "uns/cellql/datasets";

/// The data sets of an export; empty for any other file.
///
/// # Errors
/// The file cannot be read.
pub fn exported_datasets(path: &Path) -> Result<Vec<ExportedDataset>> {
    match recognise(path)? {
        Some(Format::Parquet) => Ok(datasets_of(&Parquet::open(path)?.schema())),
        // A compressed file is not recognised as an export: it would have to be decompressed for that.
        Some(Format::H5ad) if path.extension().is_some_and(|ending| ending == "h5ad") => {
            let h5 = H5::open(path)?;
            let text = h5.has_dataset(H5AD_DATASETS).then(|| h5.dataset(H5AD_DATASETS)?.read_text(0, 1)).transpose()?;
            Ok(text.and_then(|text| parsed(text.first()?)).unwrap_or_default())
        }
        _ => Ok(Vec::new()),
    }
}

/// The data sets that the schema of an exported table names; empty for any other table.
pub fn datasets_of(schema: &Schema) -> Vec<ExportedDataset> {
    let provenance = schema.metadata().get(exported::PROVENANCE);
    let provenance = provenance.and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    let text = provenance.as_ref().and_then(|json| json.get(exported::DATASETS)?.as_str());
    text.and_then(parsed).unwrap_or_default()
}

/// The cells of one data set of an open export. `path` is named in errors.
///
/// # Errors
/// The export no longer says which cells or genes are whose.
pub fn part_of(path: &Path, export: Box<dyn CellSource>, dataset: &ExportedDataset) -> Result<Box<dyn CellSource>> {
    Ok(Box::new(Part::open(path, export, dataset)?))
}

fn parsed(json: &str) -> Option<Vec<ExportedDataset>> {
    // Exports of earlier versions say less of their data sets.
    serde_json::from_str(json).ok()
}

/// The cells of one data set of an export.
pub(crate) struct Part {
    path: PathBuf,
    export: Box<dyn CellSource>,
    dataset: ExportedDataset,
    features: Vec<Feature>,
    /// Index among the features of each feature of the export; `None` for a gene that the data set did not measure.
    positions: Vec<Option<u32>>,
    columns: Vec<ObsColumn>,
    /// Places among the export's columns: those of the data set, `dataset_id`, and `barcode` if the names of the cells
    /// had to be changed.
    places: Vec<usize>,
    dataset_id: usize,
    barcode: Option<usize>,
}

impl Part {
    /// Restricts an export to one of its data sets.
    ///
    /// # Errors
    /// The export no longer says which cells or genes are whose.
    pub(crate) fn open(path: &Path, export: Box<dyn CellSource>, dataset: &ExportedDataset) -> Result<Self> {
        let missing = |object: &str| {
            let problem = format!(
                "is missing, so the cells of data set '{}' cannot be told; export the store again",
                dataset.name
            );
            FormatError::new(path, object, problem)
        };
        let gene_ids = export.exported_gene_ids()?.ok_or_else(|| missing("var/gene_id"))?;
        let place = |name: &str| export.obs_columns().iter().position(|column| column.name == name);
        let dataset_id = place(cells::DATASET_ID).ok_or_else(|| missing("obs/dataset_id"))?;
        let (mut features, mut positions) = (Vec::new(), Vec::with_capacity(gene_ids.len()));
        for (gene, feature) in gene_ids.iter().zip(export.features()) {
            if !dataset.has_measured(*gene) {
                positions.push(None);
                continue;
            }
            positions.push(Some(features.len() as u32));
            let name = dataset.names.get(gene).cloned().unwrap_or_else(|| feature.name.clone());
            features.push(Feature { name, ensembl_id: feature.ensembl_id.clone() });
        }
        let places: Vec<usize> = dataset.obs.iter().filter_map(|name| place(name)).collect();
        let columns = places.iter().map(|at| export.obs_columns()[*at].clone()).collect();
        let (barcode, dataset) = (place(cells::BARCODE), dataset.clone());
        Ok(Self { path: path.to_owned(), export, dataset, features, positions, columns, places, dataset_id, barcode })
    }

    /// The rows of a block that belong to the data set.
    fn select(&self, block: &Block) -> Result<Block> {
        let wrong = |e: arrow::error::ArrowError| FormatError::new(&self.path, "obs/dataset_id", e);
        let ids = cast(&block.obs[self.dataset_id], &DataType::Int64).map_err(wrong)?;
        let ids: &Int64Array = ids.as_primitive::<Int64Type>();
        let wanted = i64::from(self.dataset.dataset_id);
        let keep: BooleanArray = ids.iter().map(|id| Some(id == Some(wanted))).collect();
        let rows = |column| filter(column, &keep).map_err(wrong);
        let names = match self.barcode {
            Some(at) => cast(&rows(&block.obs[at])?, &DataType::Utf8).map_err(wrong)?,
            None => rows(&block.barcodes)?,
        };
        let barcodes: StringArray = names.as_string::<i32>().clone();
        let obs = self.places.iter().map(|at| rows(&block.obs[*at])).collect::<Result<Vec<_>>>()?;
        let (mut starts, mut features, mut values) = (vec![0], Vec::new(), Vec::new());
        for row in (0..block.len()).filter(|row| keep.value(*row)) {
            let (of, with) = block.cell(row);
            for (feature, value) in of.iter().zip(with) {
                if let Some(position) = self.positions[*feature as usize] {
                    features.push(position);
                    values.push(*value);
                }
            }
            starts.push(values.len());
        }
        Ok(Block { barcodes, obs, starts, features, values })
    }
}

impl CellSource for Part {
    fn n_cells(&self) -> Option<u64> {
        None
    }

    fn features(&self) -> &[Feature] {
        &self.features
    }

    fn obs_columns(&self) -> &[ObsColumn] {
        &self.columns
    }

    fn matrix(&self) -> &str {
        &self.dataset.matrix
    }

    fn notes(&self) -> &[String] {
        &[]
    }

    fn next_block(&mut self) -> Result<Option<Block>> {
        while let Some(block) = self.export.next_block()? {
            let selected = self.select(&block)?;
            if !selected.is_empty() {
                return Ok(Some(selected));
            }
        }
        Ok(None)
    }

    fn rewind(&mut self) -> Result<()> {
        self.export.rewind()
    }
}
