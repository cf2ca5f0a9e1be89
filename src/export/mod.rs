//! Cells out of a store: to `.h5ad` as scanpy reads it, to Parquet, to Lance. What goes out says where it comes from and
//! can be taken in again.
//!
//! Depends on `query` for which cells are meant and on the crate of formats for `.h5ad`. Knows nothing of the terminal.

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
use cellql_schemas::{cells, datasets};
use chrono::Utc;
use futures::{Stream, StreamExt, TryStreamExt};

use crate::error::{Error, Result};
use crate::ingest::ObsReport;
use crate::query::Session;
use crate::query::condition::check_syntax;
use cellql_store::Store;
use cellql_store::progress::OnProgress;

/// Rows read at a time: an expression has thousands of values.
const BATCH_ROWS: usize = 1024;

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// AnnData, encoding 0.2.0.
    H5ad,
    /// One Parquet file.
    Parquet,
    /// One Lance table.
    Lance,
}

impl Target {
    /// By the ending of a file's name.
    ///
    /// # Errors
    /// Another ending, with those there are.
    pub fn of(path: &Path) -> Result<Self> {
        let ending = path.extension().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default();
        ending.parse().map_err(|()| {
            let path = path.display();
            Error::Request(format!("{path}: to which format? Name it .h5ad, .parquet or .lance, or say --to"))
        })
    }
}

impl FromStr for Target {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "h5ad" => Ok(Target::H5ad),
            "parquet" => Ok(Target::Parquet),
            "lance" => Ok(Target::Lance),
            _ => Err(()),
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportReport {
    /// Where.
    pub path: PathBuf,
    /// Cells.
    pub cells: u64,
    /// Genes that a data set of these cells measured.
    pub genes: usize,
    /// Embedding tables that went along.
    pub embeddings: Vec<String>,
}

/// The cells that are meant, and what is known of where they come from.
struct Selection {
    store: Store,
    /// Ascending.
    cell_ids: Vec<u64>,
    /// Genes that a data set of these cells measured, ascending, with the first name a file gave each.
    genes: Vec<(u32, String)>,
    obs: Vec<ObsReport>,
    provenance: BTreeMap<String, String>,
}

/// Writes the cells that satisfy an SQL condition (all where there is none).
///
/// # Errors
/// The condition is wrong, no cell satisfies it, there is a file of that name, or it cannot be written.
pub async fn export(
    session: &Session,
    path: &Path,
    target: Target,
    condition: Option<&str>,
    on_progress: OnProgress,
) -> Result<ExportReport> {
    if path.exists() {
        return Err(Error::Request(format!("{} is there already; name another file", path.display())));
    }
    let selection = Selection::of(session, condition).await?;
    let embeddings = match target {
        Target::H5ad => h5ad::write(session, &selection, path, &on_progress).await?,
        Target::Parquet => table::parquet(session, &selection, path, &on_progress).await.map(|()| Vec::new())?,
        Target::Lance => table::lance(session, &selection, path, &on_progress).await.map(|()| Vec::new())?,
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
        let mut selection = Self { store, cell_ids, genes: vec![], obs: vec![], provenance: BTreeMap::new() };
        selection.read_datasets(&dataset_ids).await?;
        selection.provenance.insert("store".into(), selection.store.uri().to_owned());
        selection.provenance.insert("store_version".into(), selection.store.version().version.to_string());
        selection.provenance.insert("where".into(), condition.unwrap_or("true").to_owned());
        selection.provenance.insert("exported_at".into(), Utc::now().to_rfc3339());
        selection.provenance.insert("program".into(), format!("cellql {}", env!("CARGO_PKG_VERSION")));
        Ok(selection)
    }

    /// Genes, obs columns and origins of these data sets.
    async fn read_datasets(&mut self, ids: &[u32]) -> Result<()> {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        let filter = format!("{} IN ({})", datasets::DATASET_ID, ids.join(", "));
        let columns = [
            datasets::MEASURED_GENES,
            datasets::MEASURED_NAMES,
            datasets::OBS_COLUMNS,
            datasets::NAME,
            datasets::SOURCE_URI,
            datasets::FILE_SHA256,
        ];
        let (mut genes, mut origins) = (BTreeMap::new(), Vec::new());
        for batch in self.store.read(datasets::TABLE, &columns, Some(&filter)).await? {
            for i in 0..batch.num_rows() {
                let list = |c: usize| batch.column(c).as_list::<i32>().value(i);
                let text = |c: usize| batch.column(c).as_string::<i32>().value(i).to_owned();
                let names = list(1);
                for (gene, name) in list(0).as_primitive::<UInt32Type>().values().iter().zip(names.as_string::<i32>()) {
                    genes.entry(*gene).or_insert_with(|| name.unwrap_or_default().to_owned());
                }
                let obs: Vec<ObsReport> =
                    serde_json::from_str(&text(2)).map_err(Error::internal("reading the obs columns of a data set"))?;
                obs::merge(&mut self.obs, obs);
                origins.push(serde_json::json!({ "name": text(3), "source_uri": text(4), "sha256": text(5) }));
            }
        }
        self.genes = genes.into_iter().collect();
        self.provenance.insert("datasets".into(), serde_json::Value::from(origins).to_string());
        Ok(())
    }

    /// Rows of a table that belong to these cells, in the table's order.
    async fn rows(&self, name: &str) -> Result<impl Stream<Item = Result<RecordBatch>>> {
        let doing = format!("reading table {name} of {}", self.store.uri());
        let table = self.store.table(name).await?;
        let mut scan = table.scan();
        scan.batch_size(BATCH_ROWS).scan_in_order(true);
        let batches = scan.try_into_stream().await.map_err(Error::internal(doing.clone()))?;
        Ok(batches.map_err(move |e| Error::internal(doing.clone())(e)).map(move |batch| self.chosen(&batch?)))
    }

    fn chosen(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let missing = || Error::Request(format!("the table has no column {}", cells::CELL_ID));
        let ids = batch.column_by_name(cells::CELL_ID).ok_or_else(missing)?.as_primitive::<UInt64Type>();
        let keep: BooleanArray = ids.values().iter().map(|id| Some(self.cell_ids.binary_search(id).is_ok())).collect();
        filter_record_batch(batch, &keep).map_err(Error::internal("choosing cells"))
    }
}
