//! Comparison of a store with what was written: every file with the checksum recorded when it was published, and every
//! cell with the checksum of its expression.

use std::collections::BTreeSet;

use arrow::array::AsArray;
use cellql_schemas::expr::Profiles;
use cellql_schemas::{cells, genes};
use futures::TryStreamExt;
use lance::Dataset;

use crate::checksums::Checksums;
use crate::content_hash::{CellHasher, ContentHash};
use crate::error::{Result, StoreError};
use crate::progress::OnProgress;
use crate::store::Store;

/// Cells that are read at a time.
const BATCH_CELLS: usize = 1024;
/// Damaged cells of a report that are named.
const NAMED_CELLS: usize = 100;

/// A file that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedFile {
    /// Path in the store.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Result of [`Store::verify`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Files that were compared with their checksums.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files without a recorded checksum, which an earlier version of the program wrote.
    pub unrecorded: u64,
    /// Files that are missing or changed.
    pub damaged_files: Vec<DamagedFile>,
    /// Cells that were compared with their checksums.
    pub cells: u64,
    /// Cells whose expression is not what was written.
    pub damaged_cells: u64,
    /// The first of them.
    pub named_cells: Vec<u64>,
}

impl Verified {
    /// True if nothing is damaged.
    pub fn is_whole(&self) -> bool {
        self.damaged_files.is_empty() && self.damaged_cells == 0
    }
}

impl Store {
    /// Checks every file of every version, and every cell of this version. `on_files` and `on_cells` are called with
    /// files and cells done.
    ///
    /// # Errors
    /// The store cannot be read at all. Damage is part of the report.
    pub async fn verify(&self, on_files: &OnProgress, on_cells: &OnProgress) -> Result<Verified> {
        let mut report = Verified::default();
        let (_, recorded) = self.read_checksums().await?;
        let mut needed: BTreeSet<String> = BTreeSet::new();
        for version in self.versions().await? {
            let store = Self { version, ..self.clone() };
            for name in store.version.tables.keys() {
                match store.table(name).await {
                    Ok(table) => needed.extend(store.files_of(name, &table).await?),
                    Err(error) => report.damage(format!("{name}.lance"), first_line(&error)),
                }
            }
        }
        // Models, indexes and other files that no table names are checked where they are recorded.
        let others = recorded.keys().filter(|path| !path.contains(".lance/"));
        let files: BTreeSet<&String> = needed.iter().chain(others).collect();
        let total = files.len() as u64;
        for (done, path) in (1..).zip(files) {
            self.verify_file(path, &recorded, needed.contains(path), &mut report).await?;
            on_files(done, Some(total));
        }
        self.verify_cells(&mut report, on_cells).await?;
        Ok(report)
    }

    /// Compares a file with its checksum.
    async fn verify_file(&self, path: &str, recorded: &Checksums, is_needed: bool, to: &mut Verified) -> Result<()> {
        match (self.checksum(path).await?, recorded.get(path)) {
            (None, _) if is_needed => to.damage(path.to_owned(), "it is missing".to_owned()),
            (None, _) => {}
            (Some(_), None) => to.unrecorded += 1,
            (Some(found), Some(written)) => {
                to.files += 1;
                to.bytes += found.bytes;
                if found.bytes != written.bytes {
                    to.damage(path.to_owned(), format!("it has {} bytes of {}", found.bytes, written.bytes));
                } else if found != *written {
                    to.damage(path.to_owned(), "its content has changed".to_owned());
                }
            }
        }
        Ok(())
    }

    /// Compares the expression of each cell with its checksum.
    async fn verify_cells(&self, report: &mut Verified, on_progress: &OnProgress) -> Result<()> {
        let Ok(table) = self.table(cells::TABLE).await else { return Ok(()) };
        let hasher = match self.genes().await {
            Ok(genes) => genes.hasher(),
            Err(error) => {
                report.damage(format!("{}.lance", genes::TABLE), first_line(&error));
                return Ok(());
            }
        };
        let total = table.count_rows(None).await.ok().map(|rows| rows as u64);
        for fragment in table.get_fragments() {
            let read = async {
                let mut scan = fragment.scan();
                scan.project(&[cells::CELL_ID, cells::EXPR, cells::CONTENT_HASH])?.batch_size(BATCH_CELLS);
                let mut batches = scan.try_into_stream().await?;
                while let Some(batch) = batches.try_next().await? {
                    report.cells += batch.num_rows() as u64;
                    for cell in changed_cells(&batch, &hasher) {
                        report.damaged_cells += 1;
                        if report.named_cells.len() < NAMED_CELLS {
                            report.named_cells.push(cell);
                        }
                    }
                    on_progress(report.cells, total);
                }
                Ok::<(), lance::Error>(())
            };
            if let Err(error) = read.await {
                let files = fragment.metadata().files.iter().map(|file| format!("cells.lance/data/{}", file.path));
                let error = StoreError::storage("reading cells")(error);
                report.damage(files.collect::<Vec<_>>().join(", "), first_line(&error));
            }
        }
        Ok(())
    }

    /// Fails if a file of a table is not what was written. Files without a record pass.
    pub(crate) async fn check_files(&self, name: &str, table: &Dataset, recorded: &Checksums) -> Result<()> {
        let mut report = Verified::default();
        for path in self.files_of(name, table).await? {
            self.verify_file(&path, recorded, true, &mut report).await?;
        }
        match report.damaged_files.into_iter().next() {
            None => Ok(()),
            Some(DamagedFile { path, problem }) => Err(StoreError::damaged(
                format!("{path} of {}", self.uri),
                format!("{problem}; get it back from a copy, or remove its data set and ingest it again"),
            )),
        }
    }
}

impl Verified {
    fn damage(&mut self, path: String, problem: String) {
        if !self.damaged_files.iter().any(|file| file.path == path) {
            self.damaged_files.push(DamagedFile { path, problem });
        }
    }
}

/// Ids of the cells of a batch (`cell_id`, `expr`, `content_hash`) whose expression does not have its checksum.
pub fn changed_cells(batch: &arrow::record_batch::RecordBatch, hasher: &CellHasher) -> Vec<u64> {
    let ids = batch.column_by_name(cells::CELL_ID).and_then(|c| c.as_primitive_opt::<arrow::datatypes::UInt64Type>());
    let hashes = batch.column_by_name(cells::CONTENT_HASH).and_then(|c| c.as_string_opt::<i32>());
    let profiles = batch.column_by_name(cells::EXPR).and_then(|c| Profiles::new(c).ok());
    let (Some(ids), Some(hashes), Some(profiles)) = (ids, hashes, profiles) else { return Vec::new() };
    let is_changed = |row: &usize| {
        let found = profiles.get(*row).map(|cell| hasher.hash(cell));
        found.is_none() || found != ContentHash::from_hex(hashes.value(*row))
    };
    (0..batch.num_rows()).filter(is_changed).map(|row| ids.value(row)).collect()
}

fn first_line(error: &StoreError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
