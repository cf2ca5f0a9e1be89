//! Transactions: changes to any number of tables and files, published together.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, new_null_array};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{Field, Schema, SchemaRef, UInt64Type};
use arrow::record_batch::RecordBatch;
use chrono::Utc;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, stream};
use lance::Dataset;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance::dataset::{InsertBuilder, NewColumnTransform, UpdateBuilder, WriteMode, WriteParams};
use lance::index::DatasetIndexExt;
use lance::index::vector::VectorIndexParams;
use lance_index::IndexType;

use crate::checksums::{Checksum, Checksums};
use crate::error::{Result, StoreError, causes};
use crate::store::{OnWait, Store};
use crate::version::{self, StoreVersion};

/// Rows of a data file. Lance buffers narrow columns until a page is full, which for its default of a million rows
/// takes hundreds of megabytes. A quarter of a million rows hold about 800 MB of expression.
const ROWS_PER_FILE: usize = 1 << 18;
/// Rows that compaction reads at once. It is small because the expression of a cell has thousands of values.
const BATCH_ROWS: usize = 1024;

/// A transaction on a store. Nothing is visible before [`Transaction::publish`]; dropping it discards the changes.
#[derive(Debug)]
pub struct Transaction {
    store: Store,
    doing: String,
    next: StoreVersion,
    /// Tables that were written to, whether or not that succeeded.
    touched: BTreeSet<String>,
    /// Files that are no part of a table.
    files: Checksums,
    // Held but never read: the system releases the lock when the process ends, in whatever way.
    _lock: Option<File>,
}

impl Store {
    /// Begins a transaction on the newest version. `doing` names it in errors and in the version file.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if another process on this machine is writing to the store. A [`Store::patient`] store
    /// waits for that process instead.
    pub async fn begin(&self, doing: &str) -> Result<Transaction> {
        Transaction::begin(self.clone(), doing).await
    }
}

impl Transaction {
    pub(crate) async fn begin(store: Store, doing: &str) -> Result<Self> {
        let lock = wait_for_lock(&store).await?;
        // The store may have been opened at an older version; a transaction starts from the newest.
        let base = version::latest(&store.objects, &store.base).await?.unwrap_or_else(StoreVersion::empty);
        let mut next = base.clone();
        next.version += 1;
        next.made_by = format!("{doing}, cellql {}", env!("CARGO_PKG_VERSION"));
        let (touched, files) = (BTreeSet::new(), Checksums::new());
        Ok(Self { store: Store { version: base, ..store }, doing: doing.to_owned(), next, touched, files, _lock: lock })
    }

    /// The store at the version on which the transaction is based.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Allocates the next data set id.
    pub fn take_dataset_id(&mut self) -> u32 {
        let id = self.next.next_dataset_id;
        self.next.next_dataset_id += 1;
        id
    }

    /// The first free cell id.
    pub fn next_cell_id(&self) -> u64 {
        self.next.next_cell_id
    }

    /// Allocates cell ids below `end`.
    pub fn take_cell_ids(&mut self, end: u64) {
        self.next.next_cell_id = self.next.next_cell_id.max(end);
    }

    /// Creates an empty table.
    ///
    /// # Errors
    /// The table cannot be written.
    pub async fn create(&mut self, table: &str, schema: Schema) -> Result<()> {
        self.replace(table, RecordBatch::new_empty(Arc::new(schema))).await
    }

    /// Replaces all rows of a table, or creates it.
    ///
    /// # Errors
    /// The table cannot be written.
    pub async fn replace(&mut self, table: &str, rows: RecordBatch) -> Result<()> {
        let schema = rows.schema();
        let rows = RecordBatchStreamAdapter::new(schema, stream::iter([Ok(rows)]));
        self.write(table, WriteMode::Overwrite, Box::pin(rows)).await
    }

    /// Replaces the rows that have the same `key` (a column of strings) as `row`, or appends it. Creates the table if
    /// there is none.
    ///
    /// # Errors
    /// The table is damaged or cannot be written.
    pub async fn replace_row(&mut self, table: &str, key: &str, row: RecordBatch) -> Result<()> {
        let doing = || StoreError::storage(self.about(table));
        let names = |batch: &RecordBatch| batch.column_by_name(key)?.as_string_opt::<i32>().cloned();
        let damaged = || {
            StoreError::damaged(
                format!("table {table} of {}", self.store.uri),
                format!("it has no column '{key}' of names"),
            )
        };
        let new = names(&row).ok_or_else(damaged)?;
        let mut rows = Vec::new();
        if self.next.tables.contains_key(table) {
            for batch in self.store.read(table, &[], None).await? {
                let others = names(&batch).ok_or_else(damaged)?;
                let others: BooleanArray = others.iter().map(|n| Some(!new.iter().any(|new| new == n))).collect();
                rows.push(filter_record_batch(&batch, &others).map_err(doing())?);
            }
        }
        rows.push(row);
        let all = concat_batches(&rows[rows.len() - 1].schema(), &rows).map_err(doing())?;
        self.replace(table, all).await
    }

    /// Appends rows to a table. Columns missing in the table are added to it; columns missing in the rows are NULL.
    ///
    /// # Errors
    /// The stream of rows fails, a column has a different type in the table, or the table cannot be written.
    pub async fn append(&mut self, table: &str, rows: SendableRecordBatchStream) -> Result<()> {
        self.touched.insert(table.to_owned());
        let rows = match self.restored(table).await? {
            None => rows,
            Some(mut current) => {
                let existing = Arc::new(Schema::from(current.schema()));
                let new: Vec<Field> = missing(&rows.schema(), &existing);
                if !new.is_empty() {
                    let before = current.version().version;
                    let nulls = NewColumnTransform::AllNulls(Arc::new(Schema::new(new)));
                    current.add_columns(nulls, None, None).await.map_err(StoreError::storage(self.about(table)))?;
                    self.record(table, before, &current)?;
                }
                conform(rows, Arc::new(Schema::from(current.schema())))
            }
        };
        self.write(table, WriteMode::Append, rows).await
    }

    /// Deletes the rows of a table that satisfy a SQL condition.
    ///
    /// # Errors
    /// The condition does not match the columns of the table, or the table cannot be written.
    pub async fn delete(&mut self, table: &str, condition: &str) -> Result<()> {
        self.touched.insert(table.to_owned());
        let Some(mut current) = self.restored(table).await? else {
            return Ok(());
        };
        let before = current.version().version;
        current.delete(condition).await.map_err(StoreError::storage(self.about(table)))?;
        match current.version().version == before {
            true => Ok(()),
            false => self.record(table, before, &current),
        }
    }

    /// Sets a column of the rows that satisfy a condition to an SQL expression.
    ///
    /// # Errors
    /// The condition or the expression does not match the columns of the table, or the table cannot be written.
    pub async fn update(&mut self, table: &str, condition: &str, column: &str, value: &str) -> Result<()> {
        self.touched.insert(table.to_owned());
        let Some(current) = self.restored(table).await? else {
            return Ok(());
        };
        let before = current.version().version;
        let about = || StoreError::storage(self.about(table));
        let update = UpdateBuilder::new(Arc::new(current)).update_where(condition).map_err(about())?;
        let job = update.set(column, value).map_err(about())?.build().map_err(about())?;
        let written = job.execute().await.map_err(about())?.new_dataset;
        match written.version().version == before {
            true => Ok(()),
            false => self.record(table, before, &written),
        }
    }

    /// Builds a Lance vector index over a column and replaces an index of the same name. Returns the new version of the
    /// table, which contains the index.
    ///
    /// # Errors
    /// [`StoreError::NoTable`], or the index cannot be written.
    pub async fn index_vectors(
        &mut self,
        table: &str,
        column: &str,
        name: &str,
        params: &VectorIndexParams,
    ) -> Result<u64> {
        self.touched.insert(table.to_owned());
        let about = format!("{}: indexing table {table} of {}", self.doing, self.store.uri);
        let Some(mut current) = self.restored(table).await? else {
            return Err(StoreError::NoTable { store: self.store.uri.clone(), table: table.to_owned() });
        };
        let before = current.version().version;
        let columns = [column];
        let build = current.create_index_builder(&columns, IndexType::Vector, params);
        build.name(name.to_owned()).replace(true).await.map_err(StoreError::storage(about))?;
        self.record(table, before, &current)?;
        Ok(current.version().version)
    }

    /// Removes all but the first of the rows of a table with equal ids, and returns the number removed. Only tables of
    /// earlier versions of the program have such rows.
    ///
    /// # Errors
    /// The table is damaged or cannot be written.
    pub async fn remove_duplicate_rows(&mut self, table: &str, key: &str) -> Result<u64> {
        let damaged = || {
            let object = format!("table {table} of {}", self.store.uri);
            StoreError::damaged(object, format!("it has no column '{key}' of ids"))
        };
        let (mut rows, mut distinct) = (0u64, HashSet::<u64>::new());
        for batch in self.store.read(table, &[key], None).await? {
            let ids = batch.column(0).as_primitive_opt::<UInt64Type>().ok_or_else(damaged)?;
            rows += ids.len() as u64;
            distinct.extend(ids.values());
        }
        let duplicates = rows - distinct.len() as u64;
        if duplicates == 0 {
            return Ok(0);
        }
        let doing = || StoreError::storage(self.about(table));
        let opened = self.store.table(table).await?;
        let mut scan = opened.scan();
        scan.batch_size(BATCH_ROWS).scan_in_order(true);
        let batches = scan.try_into_stream().await.map_err(doing())?;
        let (schema, key) = (Arc::new(Schema::from(opened.schema())), key.to_owned());
        let mut seen = HashSet::new();
        let rows = batches.map(move |batch| {
            let batch = batch.map_err(|e| DataFusionError::External(Box::new(e)))?;
            let ids = batch.column_by_name(&key).map(|ids| ids.as_primitive::<UInt64Type>().values().to_vec());
            let first: BooleanArray = ids.into_iter().flatten().map(|id| Some(seen.insert(id))).collect();
            Ok(filter_record_batch(&batch, &first)?)
        });
        let rows = RecordBatchStreamAdapter::new(schema, rows);
        self.write(table, WriteMode::Overwrite, Box::pin(rows)).await?;
        Ok(duplicates)
    }

    /// Merges small files of a table and removes deleted rows. Returns the number of files before and after.
    ///
    /// # Errors
    /// The table cannot be written, or another writer changed it meanwhile.
    pub(crate) async fn compact(&mut self, table: &str) -> Result<(usize, usize)> {
        let Some(mut current) = self.restored(table).await? else {
            return Ok((0, 0));
        };
        let about = || StoreError::storage(self.about(table));
        let (rows, files) = (current.count_rows(None).await.map_err(about())?, current.get_fragments().len());
        let options = CompactionOptions {
            target_rows_per_fragment: ROWS_PER_FILE,
            materialize_deletions_threshold: 0.0,
            batch_size: Some(BATCH_ROWS),
            num_threads: Some(1),
            ..CompactionOptions::default()
        };
        compact_files(&mut current, options, None).await.map_err(about())?;
        // Lance may make several commits. An unchanged number of rows shows that none of them was by another writer.
        if current.count_rows(None).await.map_err(about())? != rows {
            return Err(self.conflict());
        }
        self.next.tables.insert(table.to_owned(), current.version().version);
        Ok((files, current.get_fragments().len()))
    }

    /// Writes a file. Files are immutable, so different contents need different names.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn put_file(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let doing = StoreError::storage(format!("writing {path} of {}", self.store.uri));
        self.files.insert(path.to_owned(), Checksum::of(bytes));
        self.store.objects.put(&self.store.path(path), bytes).await.map_err(doing)?;
        Ok(())
    }

    /// Gives the transaction up and deletes what it has written to tables, which no version names.
    ///
    /// # Errors
    /// Something cannot be deleted. The store is as it was before, and the next compaction deletes the rest.
    pub async fn discard(self) -> Result<()> {
        let named = self.store.versions().await?;
        for table in &self.touched {
            self.store.forget_unnamed(table, &named).await?;
        }
        Ok(())
    }

    /// Records the checksums of the files that the transaction made.
    async fn record_checksums(&self) -> Result<()> {
        let mut checksums = self.files.clone();
        let next = Store { version: self.next.clone(), ..self.store.clone() };
        for (name, version) in &self.next.tables {
            let before = self.store.version.tables.get(name);
            if before == Some(version) {
                continue;
            }
            let old: BTreeSet<String> = match before {
                Some(_) => self.store.files_of(name, &*self.store.table(name).await?).await?.into_iter().collect(),
                None => BTreeSet::new(),
            };
            for path in next.files_of(name, &*next.table(name).await?).await?.into_iter().filter(|f| !old.contains(f)) {
                if let Some(checksum) = next.checksum(&path).await? {
                    checksums.insert(path, checksum);
                }
            }
        }
        next.write_checksums(self.next.version, &checksums).await
    }

    /// Publishes the transaction: flushes it to disk and makes all of its changes visible at once.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if another writer published first.
    pub async fn publish(self) -> Result<Store> {
        self.publish_locked().await.map(|(store, _)| store)
    }

    /// Like [`Transaction::publish`], but returns the lock, which excludes other writers until it is dropped.
    pub(crate) async fn publish_locked(mut self) -> Result<(Store, Option<File>)> {
        self.next.made_at = Utc::now().to_rfc3339();
        self.record_checksums().await?;
        sync(&self.store)?;
        if !version::publish(&self.store.objects, &self.store.base, &self.next).await? {
            return Err(self.conflict());
        }
        sync(&self.store)?;
        Ok((Store { version: self.next, ..self.store }, self._lock))
    }

    async fn write(&mut self, table: &str, mode: WriteMode, rows: SendableRecordBatchStream) -> Result<()> {
        self.touched.insert(table.to_owned());
        let current = self.restored(table).await?;
        let before = current.as_ref().map_or(0, |t| t.version().version);
        // A folder that no version names was left by a writer that died before publishing.
        let mode = if current.is_none() { WriteMode::Overwrite } else { mode };
        let params = WriteParams {
            mode,
            session: Some(Arc::clone(&self.store.session)),
            max_rows_per_file: ROWS_PER_FILE,
            ..WriteParams::default()
        };
        let uri = self.store.table_uri(table);
        let written = match current {
            Some(current) => InsertBuilder::new(Arc::new(current)).with_params(&params).execute_stream(rows).await,
            None => InsertBuilder::new(uri.as_str()).with_params(&params).execute_stream(rows).await,
        };
        let written = written.map_err(|e| self.write_error(table, e))?;
        if before == 0 {
            self.next.tables.insert(table.to_owned(), written.version().version);
            return Ok(());
        }
        self.record(table, before, &written)
    }

    /// The table at the version on which this transaction is based. That version is restored as the newest one if a
    /// writer that died left newer ones. `None` if there is no such table.
    async fn restored(&self, table: &str) -> Result<Option<Dataset>> {
        let Some(&version) = self.next.tables.get(table) else {
            return Ok(None);
        };
        let about = || StoreError::storage(self.about(table));
        let mut current = Dataset::open(&self.store.table_uri(table)).await.map_err(about())?;
        if current.version().version != version {
            current = current.checkout_version(version).await.map_err(about())?;
            current.restore().await.map_err(about())?;
        }
        Ok(Some(current))
    }

    /// Records the new version of a table if it directly follows `before`. A commit in between is by another writer,
    /// whose rows would be published too.
    fn record(&mut self, table: &str, before: u64, written: &Dataset) -> Result<()> {
        if written.version().version != before + 1 {
            return Err(self.conflict());
        }
        self.next.tables.insert(table.to_owned(), written.version().version);
        Ok(())
    }

    fn conflict(&self) -> StoreError {
        StoreError::Conflict { store: self.store.uri.clone(), doing: self.doing.clone() }
    }

    fn about(&self, table: &str) -> String {
        format!("{}: writing table {table} of {}", self.doing, self.store.uri)
    }

    /// Maps a commit conflict to [`StoreError::Conflict`]. An error of the stream of rows stays in the chain of
    /// sources.
    fn write_error(&self, table: &str, error: lance::Error) -> StoreError {
        let is_conflict = |e: &lance::Error| matches!(e, lance::Error::CommitConflict { .. });
        if causes(&error).any(|cause| cause.downcast_ref().is_some_and(is_conflict)) {
            return self.conflict();
        }
        StoreError::storage(self.about(table))(error)
    }
}

fn missing(rows: &Schema, table: &Schema) -> Vec<Field> {
    let absent = rows.fields().iter().filter(|f| table.field_with_name(f.name()).is_err());
    absent.map(|f| f.as_ref().clone().with_nullable(true)).collect()
}

/// Reorders the columns of rows to those of the table and fills missing columns with NULL.
fn conform(rows: SendableRecordBatchStream, schema: SchemaRef) -> SendableRecordBatchStream {
    let target = Arc::clone(&schema);
    let rows = rows.map(move |batch| {
        let batch = batch?;
        let columns = target.fields().iter().map(|field| {
            let column = batch.column_by_name(field.name());
            column.cloned().unwrap_or_else(|| new_null_array(field.data_type(), batch.num_rows()))
        });
        RecordBatch::try_new(Arc::clone(&target), columns.collect()).map_err(DataFusionError::from)
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, rows))
}

fn local_folder(store: &Store) -> Option<PathBuf> {
    store.objects.is_local().then(|| PathBuf::from(format!("/{}", store.base)))
}

/// Acquires the lock; waits for it if the store is patient.
async fn wait_for_lock(store: &Store) -> Result<Option<File>> {
    const POLL: std::time::Duration = std::time::Duration::from_millis(50);
    let mut notified = false;
    loop {
        match (lock(store), &store.waiting) {
            (Err(StoreError::Busy { .. }), Some(OnWait(notify))) => {
                if !std::mem::replace(&mut notified, true) {
                    notify();
                }
                tokio::time::sleep(POLL).await;
            }
            (locked, _) => return locked,
        }
    }
}

/// Locks the store against other writers on this machine. Object stores have no lock: there, publishing detects
/// conflicts.
fn lock(store: &Store) -> Result<Option<File>> {
    let Some(folder) = local_folder(store) else {
        return Ok(None);
    };
    let doing = || format!("locking {} for writing", store.uri);
    std::fs::create_dir_all(&folder).map_err(StoreError::storage(doing()))?;
    let file = File::create(folder.join("_lock")).map_err(StoreError::storage(doing()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::Busy { store: store.uri.clone() }),
        Err(std::fs::TryLockError::Error(error)) => Err(StoreError::storage(doing())(error)),
    }
}

/// Flushes all writes to disk, because lance does not.
fn sync(store: &Store) -> Result<()> {
    #[cfg(target_os = "linux")]
    if let Some(folder) = local_folder(store) {
        let doing = || format!("flushing {} to disk", store.uri);
        let folder = File::open(folder).map_err(StoreError::storage(doing()))?;
        rustix::fs::syncfs(&folder).map_err(StoreError::storage(doing()))?;
    }
    #[cfg(not(target_os = "linux"))]
    let _ = store;
    Ok(())
}
