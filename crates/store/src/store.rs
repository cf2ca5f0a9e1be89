//! A store, open at one version.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use cellql_schemas as schemas;
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::io::ObjectStore;
use lance::session::Session;
use object_store::path::Path;

use crate::error::{Result, StoreError};
use crate::genes::Catalogue;
use crate::transaction::Transaction;
use crate::version::{self, StoreVersion};

/// A store, open at one version.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) uri: String,
    pub(crate) objects: Arc<ObjectStore>,
    pub(crate) base: Path,
    pub(crate) session: Arc<Session>,
    pub(crate) version: StoreVersion,
    pub(crate) waiting: Option<OnWait>,
}

/// Called once where a change has to wait for another process.
#[derive(Clone)]
pub struct OnWait(pub Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for OnWait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnWait")
    }
}

impl Store {
    /// Makes an empty store: the tables, and in `genes` every gene of the nomenclature.
    ///
    /// # Errors
    /// The place already holds a store, or cannot be written.
    pub async fn init(uri: &str) -> Result<Self> {
        let store = Self::connect(uri).await?;
        if version::latest(&store.objects, &store.base).await?.is_some() {
            return Err(StoreError::Exists { uri: uri.to_owned() });
        }
        let mut transaction = store.begin("init").await?;
        // Asked again under the lock: another may have been faster.
        if transaction.store().version.version != 0 {
            return Err(StoreError::Exists { uri: uri.to_owned() });
        }
        transaction.replace(schemas::genes::TABLE, Catalogue::from_nomenclature().to_batch()?).await?;
        transaction.create(schemas::cells::TABLE, schemas::cells::schema()).await?;
        transaction.create(schemas::datasets::TABLE, schemas::datasets::schema()).await?;
        transaction.create(schemas::models::TABLE, schemas::models::schema()).await?;
        transaction.create(schemas::indexes::TABLE, schemas::indexes::schema()).await?;
        transaction.create(schemas::jobs::TABLE, schemas::jobs::schema()).await?;
        transaction.publish().await
    }

    /// Opens a store at its newest version.
    ///
    /// # Errors
    /// There is no store, or a newer cellql wrote it.
    pub async fn open(uri: &str) -> Result<Self> {
        let mut store = Self::connect(uri).await?;
        store.version = version::latest(&store.objects, &store.base)
            .await?
            .ok_or_else(|| StoreError::Missing { uri: uri.to_owned() })?;
        Ok(store)
    }

    /// Opens a store as it was at a version.
    ///
    /// # Errors
    /// There is no store, or no such version any more.
    pub async fn open_at(uri: &str, number: u64) -> Result<Self> {
        let mut store = Self::open(uri).await?;
        let numbers = version::numbers(&store.objects, &store.base).await?;
        if !numbers.contains(&number) {
            let (first, last) = (numbers.first().unwrap_or(&0), numbers.last().unwrap_or(&0));
            return Err(StoreError::NoVersion {
                uri: uri.to_owned(),
                version: number,
                count: numbers.len(),
                first: *first,
                last: *last,
            });
        }
        store.version = version::read(&store.objects, &store.base, number).await?;
        Ok(store)
    }

    /// Every version there is, oldest first.
    ///
    /// # Errors
    /// One cannot be read.
    pub async fn versions(&self) -> Result<Vec<StoreVersion>> {
        let numbers = version::numbers(&self.objects, &self.base).await?;
        let read = numbers.into_iter().map(|number| version::read(&self.objects, &self.base, number));
        futures::future::try_join_all(read).await
    }

    async fn connect(uri: &str) -> Result<Self> {
        let (objects, base) = ObjectStore::from_uri(uri)
            .await
            .map_err(|e| StoreError::Place { uri: uri.to_owned(), problem: e.to_string() })?;
        Ok(Self {
            uri: uri.trim_end_matches('/').to_owned(),
            objects,
            base,
            session: Arc::new(Session::default()),
            version: StoreVersion::empty(),
            waiting: None,
        })
    }

    /// This store, whose changes wait for other writers on this machine instead of failing with [`StoreError::Busy`].
    pub fn patient(self, waiting: OnWait) -> Self {
        Self { waiting: Some(waiting), ..self }
    }

    /// Where it is.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The version it is open at.
    pub fn version(&self) -> &StoreVersion {
        &self.version
    }

    /// Names of its tables.
    pub fn tables(&self) -> impl Iterator<Item = &str> {
        self.version.tables.keys().map(String::as_str)
    }

    /// A table, at the version the store is open at.
    ///
    /// # Errors
    /// No such table, or it cannot be read.
    pub async fn table(&self, name: &str) -> Result<Arc<Dataset>> {
        let version = *self
            .version
            .tables
            .get(name)
            .ok_or_else(|| StoreError::NoTable { store: self.uri.clone(), table: name.to_owned() })?;
        let table = DatasetBuilder::from_uri(self.table_uri(name))
            .with_version(version)
            .with_session(Arc::clone(&self.session))
            .load()
            .await
            .map_err(StoreError::storage(format!("opening table {name} of {}", self.uri)))?;
        Ok(Arc::new(table))
    }

    /// Rows of a table that satisfy a filter, with the named columns (all where none are named).
    ///
    /// # Errors
    /// The table cannot be read or the filter does not fit it.
    pub async fn read(&self, name: &str, columns: &[&str], filter: Option<&str>) -> Result<Vec<RecordBatch>> {
        let doing = || format!("reading table {name} of {}", self.uri);
        let table = self.table(name).await?;
        let mut scan = table.scan();
        if !columns.is_empty() {
            scan.project(columns).map_err(StoreError::storage(doing()))?;
        }
        if let Some(filter) = filter {
            scan.filter(filter).map_err(StoreError::storage(doing()))?;
        }
        let stream = scan.try_into_stream().await.map_err(StoreError::storage(doing()))?;
        stream.try_collect().await.map_err(StoreError::storage(doing()))
    }

    /// Every gene the store knows, by all its names.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn genes(&self) -> Result<Catalogue> {
        let batches = self.read(schemas::genes::TABLE, &[], None).await?;
        Catalogue::from_batches(&batches)
    }

    /// Starts a change. `doing` names it in errors and in the version file.
    ///
    /// # Errors
    /// [`StoreError::Busy`] where another process on this machine is writing to the store, which a [`Store::patient`] one waits
    /// for.
    pub async fn begin(&self, doing: &str) -> Result<Transaction> {
        Transaction::begin(self.clone(), doing).await
    }

    /// Reads a file of the store.
    ///
    /// # Errors
    /// It is missing or unreadable.
    pub async fn read_file(&self, path: &str) -> Result<Bytes> {
        self.objects
            .read_one_all(&self.path(path))
            .await
            .map_err(StoreError::storage(format!("reading {path} of {}", self.uri)))
    }

    /// The path of a file of the store on this machine, where the store is on it.
    pub fn local_path(&self, path: &str) -> Option<PathBuf> {
        self.objects.is_local().then(|| PathBuf::from(format!("/{}", self.path(path))))
    }

    pub(crate) fn path(&self, relative: &str) -> Path {
        relative.split('/').fold(self.base.clone(), |path, part| path.join(part))
    }

    pub(crate) fn table_uri(&self, name: &str) -> String {
        format!("{}/{name}.lance", self.uri)
    }
}

/// Condition that a column is one of some numbers; none of them is no row.
pub fn is_one_of(column: &str, ids: impl IntoIterator<Item = u64>) -> String {
    let listed = ids.into_iter().map(|id| id.to_string()).collect::<Vec<_>>().join(", ");
    if listed.is_empty() { "false".to_owned() } else { format!("{column} IN ({listed})") }
}

/// Name of the table that holds the gene embeddings of a recipe.
pub fn gene_embedding_table(recipe: &str) -> String {
    format!("{}/{recipe}", schemas::gene_embeddings::SCHEMA)
}

/// Name of the table that holds the embeddings of a recipe.
pub fn embedding_table(recipe: &str) -> String {
    format!("{}/{recipe}", schemas::embeddings::SCHEMA)
}
