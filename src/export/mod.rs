//! Exports cells to `.h5ad` as scanpy reads it, to Parquet or to Lance. Every export records its provenance and can be
//! ingested again.
//!
//! Depends on `query` to select cells and on the crate of formats for `.h5ad`. Knows nothing of the terminal.

mod h5ad;
mod obs;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use arrow::array::{AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use cellql_schemas::exported::{self, ExportedDataset};
use cellql_schemas::{cells, datasets};
use chrono::Utc;
use futures::{Stream, StreamExt, TryStreamExt};

use crate::error::{Error, Result};
use crate::ingest::ObsReport;
use crate::query::Session;
use crate::query::condition::check_syntax;
use cellql_store::genes::Catalogue;
use cellql_store::progress::OnProgress;
use cellql_store::{CellHasher, Store, changed_cells};

/// Rows of a batch. The expression of one row has thousands of values.
const BATCH_ROWS: usize = 1024;

/// Format of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// AnnData, encoding 0.2.0.
    H5ad,
    /// One Parquet file.
    Parquet,
    /// One Lance table.
    Lance,
}

impl FileFormat {
    /// The format of a path, by its ending.
    ///
    /// # Errors
    /// [`Error::Request`] for an unknown ending; the message lists the known ones.
    pub fn of(path: &Path) -> Result<Self> {
        let ending = path.extension().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default();
        ending.parse().map_err(|()| {
            let path = path.display();
            Error::Request(format!(
                "{path}: the format is unknown; name the file .h5ad, .parquet or .lance, or give --to"
            ))
        })
    }
}

impl FromStr for FileFormat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "h5ad" => Ok(FileFormat::H5ad),
            "parquet" => Ok(FileFormat::Parquet),
            "lance" => Ok(FileFormat::Lance),
            _ => Err(()),
        }
    }
}

/// Result of [`export`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportReport {
    /// The file or folder that was written.
    pub path: PathBuf,
    /// Number of cells.
    pub cells: u64,
    /// Number of genes that a data set of these cells measured.
    pub genes: usize,
    /// Names of the `obsm` entries with embeddings.
    pub embeddings: Vec<String>,
}

/// The cells to export, and their genes, obs columns and provenance.
struct Selection {
    store: Store,
    hasher: CellHasher,
    /// Ids of the cells, ascending.
    cell_ids: Vec<u64>,
    /// Ids of the genes that a data set of these cells measured, ascending, with the first name that a file gave each.
    genes: Vec<(u32, String)>,
    obs: Vec<ObsReport>,
    /// Data sets of the cells, by id.
    datasets: Vec<ExportedDataset>,
    provenance: BTreeMap<String, String>,
}

/// Writes the cells that satisfy an SQL condition to a file; all cells if there is no condition.
///
/// # Errors
/// The condition is wrong, no cell satisfies it, the file exists or its folder does not, or it cannot be written.
pub async fn export(
    session: &Session,
    path: &Path,
    format: FileFormat,
    condition: Option<&str>,
    on_progress: OnProgress,
) -> Result<ExportReport> {
    if path.exists() {
        return Err(Error::Request(format!("{} exists already; name another file", path.display())));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let (path, folder) = (path.display(), folder.display());
        return Err(Error::Request(format!(
            "{path} cannot be written: the folder {folder} does not exist; make it first"
        )));
    }
    let selection = Selection::of(session, condition).await?;
    let embeddings = match format {
        FileFormat::H5ad => h5ad::write(session, &selection, path, &on_progress).await?,
        FileFormat::Parquet => table::parquet(session, &selection, path, &on_progress).await.map(|()| Vec::new())?,
        FileFormat::Lance => table::lance(session, &selection, path, &on_progress).await.map(|()| Vec::new())?,
    };
    let (cells, genes) = (selection.cell_ids.len() as u64, selection.genes.len());
    Ok(ExportReport { path: path.to_owned(), cells, genes, embeddings })
}

impl Selection {
    async fn of(session: &Session, condition: Option<&str>) -> Result<Self> {
        let store = session.engine().store().clone();
        condition.map_or(Ok(()), check_syntax)?;
        let filter = condition.map_or_else(String::new, |c| format!(" WHERE ({c})"));
        let query = format!("SELECT {}, {} FROM {}{filter}", cells::CELL_ID, cells::DATASET_ID, cells::TABLE);
        let (mut cell_ids, mut dataset_ids) = (Vec::new(), Vec::new());
        let mut batches = session.sql(&query).await?.execute_stream().await?;
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            cell_ids.extend_from_slice(batch.column(0).as_primitive::<UInt64Type>().values());
            dataset_ids.extend_from_slice(batch.column(1).as_primitive::<UInt32Type>().values());
            dataset_ids.sort_unstable();
            dataset_ids.dedup();
        }
        if cell_ids.is_empty() {
            let of =
                condition.map_or_else(|| "the store holds no cells".to_owned(), |c| format!("no cell satisfies {c}"));
            return Err(Error::Request(format!("there is nothing to export: {of}")));
        }
        cell_ids.sort_unstable();
        let hasher = session.engine().genes().hasher();
        let provenance = BTreeMap::new();
        let mut selection = Self { store, hasher, cell_ids, genes: vec![], obs: vec![], datasets: vec![], provenance };
        selection.read_datasets(session.engine().genes(), &dataset_ids).await?;
        selection.provenance.insert("store".into(), selection.store.uri().to_owned());
        selection.provenance.insert("store_version".into(), selection.store.version().version.to_string());
        selection.provenance.insert("where".into(), condition.unwrap_or("true").to_owned());
        selection.provenance.insert("exported_at".into(), Utc::now().to_rfc3339());
        selection.provenance.insert("program".into(), format!("cellql {}", env!("CARGO_PKG_VERSION")));
        Ok(selection)
    }

    /// Reads the genes, obs columns and descriptions of data sets.
    async fn read_datasets(&mut self, catalogue: &Catalogue, ids: &[u32]) -> Result<()> {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        let filter = format!("{} IN ({})", datasets::DATASET_ID, ids.join(", "));
        let repeated = catalogue.repeated_symbols();
        let mut genes = BTreeMap::new();
        for batch in self.store.read(datasets::TABLE, &DATASET_COLUMNS, Some(&filter)).await? {
            let list = |row: usize, name: &str| Some(batch.column_by_name(name)?.as_list_opt::<i32>()?.value(row));
            for row in 0..batch.num_rows() {
                let (mut dataset, obs) = described(&batch, row)?;
                let (ids, names) = list(row, datasets::MEASURED_GENES).zip(list(row, datasets::MEASURED_NAMES)).unzip();
                let ids = ids.as_ref().map_or(&[][..], |ids| ids.as_primitive::<UInt32Type>().values());
                let names =
                    names.iter().flat_map(|names| names.as_string::<i32>().iter().map(Option::unwrap_or_default));
                let measured: Vec<(u32, &str)> = ids.iter().copied().zip(names).collect();
                for (gene, name) in &measured {
                    genes.entry(*gene).or_insert_with(|| (*name).to_owned());
                }
                // A symbol that several genes have is changed in files that need unique names.
                let symbol = |gene: u32| catalogue.symbol(gene).filter(|s| !repeated.contains(s)).unwrap_or_default();
                dataset.set_measured(measured.into_iter().map(|(gene, name)| (gene, name, symbol(gene))));
                obs::merge(&mut self.obs, obs);
                self.datasets.push(dataset);
            }
        }
        self.genes = genes.into_iter().collect();
        self.datasets.sort_by_key(|dataset| dataset.dataset_id);
        let json = serde_json::to_string(&self.datasets).map_err(Error::internal("describing the export"))?;
        self.provenance.insert(exported::DATASETS.into(), json);
        Ok(())
    }

    /// The rows of a table that belong to the selected cells, in the order of the table.
    async fn rows(&self, name: &str) -> Result<impl Stream<Item = Result<RecordBatch>>> {
        let doing = format!("reading table {name} of {}", self.store.uri());
        let mut scan = self.store.table(name).await?.scan();
        let table = name.to_owned();
        scan.batch_size(BATCH_ROWS).scan_in_order(true);
        let batches = scan.try_into_stream().await.map_err(Error::internal(doing.clone()))?;
        Ok(batches
            .map_err(move |e| Error::internal(doing.clone())(e))
            .map(move |batch| self.selected_rows(&table, &batch?)))
    }

    fn selected_rows(&self, table: &str, batch: &RecordBatch) -> Result<RecordBatch> {
        if table == cells::TABLE
            && let Some(cell) = changed_cells(batch, &self.hasher).first()
        {
            let problem = format!(
                "the expression of cell {cell} has changed since it was ingested; see what is damaged with: cellql \
                 verify {}",
                self.store.uri()
            );
            return Err(Error::damaged(format!("table {table} of {}", self.store.uri()), problem));
        }
        let missing = || no_column(&self.store, table, cells::CELL_ID);
        let ids = batch.column_by_name(cells::CELL_ID).ok_or_else(missing)?.as_primitive::<UInt64Type>();
        let keep: BooleanArray = ids.values().iter().map(|id| Some(self.cell_ids.binary_search(id).is_ok())).collect();
        filter_record_batch(batch, &keep).map_err(Error::internal(format!("selecting cells of table {table}")))
    }
}

/// Columns of `datasets` that an export records.
const DATASET_COLUMNS: [&str; 10] = [
    datasets::DATASET_ID,
    datasets::MEASURED_GENES,
    datasets::MEASURED_NAMES,
    datasets::OBS_COLUMNS,
    datasets::NAME,
    datasets::SOURCE_URI,
    datasets::FILE_SHA256,
    datasets::MATRIX,
    datasets::VALUE_KIND,
    datasets::INPUT,
];

/// A data set by its row in `datasets`, without its measured genes, and its obs columns.
fn described(batch: &RecordBatch, row: usize) -> Result<(ExportedDataset, Vec<ObsReport>)> {
    let text = |name: &str| {
        let column = batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        column.map_or("", |column| column.value(row)).to_owned()
    };
    let name = text(datasets::NAME);
    let unreadable = |e| {
        let object = format!("the row of data set '{name}' in the table datasets");
        Error::damaged(object, format!("its obs_columns cannot be parsed: {e}; ingest its file again"))
    };
    let obs: Vec<ObsReport> = serde_json::from_str(&text(datasets::OBS_COLUMNS)).map_err(unreadable)?;
    let dataset = ExportedDataset {
        dataset_id: batch.column(0).as_primitive::<UInt32Type>().value(row),
        source_uri: text(datasets::SOURCE_URI),
        sha256: text(datasets::FILE_SHA256),
        matrix: text(datasets::MATRIX),
        value_kind: text(datasets::VALUE_KIND),
        input: text(datasets::INPUT),
        obs: obs.iter().map(|column| column.name.clone()).collect(),
        measured: Vec::new(),
        names: BTreeMap::new(),
        name,
    };
    Ok((dataset, obs))
}

/// The error of a table that lacks one of its columns.
fn no_column(store: &Store, table: &str, column: &str) -> Error {
    let problem = format!("it has no column {column}; ingest its data sets into a new store");
    Error::damaged(format!("table {table} of {}", store.uri()), problem)
}
