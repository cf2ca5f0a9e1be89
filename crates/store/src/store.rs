//! A store, opened at one version, and reading of its tables and files.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

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
use crate::version::{self, StoreVersion};

/// A store, opened at one version.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) uri: String,
    pub(crate) objects: Arc<ObjectStore>,
    pub(crate) base: Path,
    pub(crate) session: Arc<Session>,
    pub(crate) version: StoreVersion,
    pub(crate) waiting: Option<OnWait>,
}

/// Callback that is called once if a transaction has to wait for another process.
#[derive(Clone)]
pub struct OnWait(pub Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for OnWait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnWait")
    }
}

impl Store {
    /// Opens a store at its newest version.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if there is no store, [`StoreError::Format`] if a newer cellql wrote it.
    pub async fn open(uri: &str) -> Result<Self> {
        let mut store = Self::connect(uri).await?;
        store.version = version::latest(&store.objects, &store.base)
            .await?
            .ok_or_else(|| StoreError::Missing { uri: uri.to_owned() })?;
        Ok(store)
    }

    /// Opens a store at a given version.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if there is no store, [`StoreError::NoVersion`] if it does not have the version.
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

    /// All versions, oldest first.
    ///
    /// # Errors
    /// A version file cannot be read.
    pub async fn versions(&self) -> Result<Vec<StoreVersion>> {
        let numbers = version::numbers(&self.objects, &self.base).await?;
        let read = numbers.into_iter().map(|number| version::read(&self.objects, &self.base, number));
        futures::future::try_join_all(read).await
    }

    pub(crate) async fn connect(uri: &str) -> Result<Self> {
        check_clock(uri, SystemTime::now())?;
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

    /// This store with transactions that wait for other writers on this machine instead of failing with
    /// [`StoreError::Busy`].
    pub fn patient(self, waiting: OnWait) -> Self {
        Self { waiting: Some(waiting), ..self }
    }

    /// Directory or object-store URI of the store.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The version at which the store is open.
    pub fn version(&self) -> &StoreVersion {
        &self.version
    }

    /// Names of the tables.
    pub fn tables(&self) -> impl Iterator<Item = &str> {
        self.version.tables.keys().map(String::as_str)
    }

    /// Recipes of the tables `<schema>/<recipe>`.
    pub fn recipes(&self, schema: &str) -> impl Iterator<Item = &str> {
        self.tables().filter_map(move |table| table.strip_prefix(schema)?.strip_prefix('/'))
    }

    /// A table, at the version at which the store is open.
    ///
    /// # Errors
    /// [`StoreError::NoTable`], or the table cannot be read.
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

    /// Rows of a table that satisfy a filter, with the named columns, or all columns if none are named.
    ///
    /// # Errors
    /// The table cannot be read, or the filter does not match its columns.
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

    /// The genes of the store, with lookup by name.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn genes(&self) -> Result<Catalogue> {
        let batches = self.read(schemas::genes::TABLE, &[], None).await?;
        Catalogue::from_batches(&batches)
    }

    /// Reads a file of the store.
    ///
    /// # Errors
    /// The file is missing or cannot be read.
    pub async fn read_file(&self, path: &str) -> Result<Bytes> {
        self.objects
            .read_one_all(&self.path(path))
            .await
            .map_err(StoreError::storage(format!("reading {path} of {}", self.uri)))
    }

    /// Path of a file of the store on this machine; `None` if the store is in object storage.
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

/// SQL condition that a column has one of some values; `false` if there are none.
pub fn is_one_of(column: &str, ids: impl IntoIterator<Item = u64>) -> String {
    let listed = ids.into_iter().map(|id| id.to_string()).collect::<Vec<_>>().join(", ");
    if listed.is_empty() { "false".to_owned() } else { format!("{column} IN ({listed})") }
}

/// Name of the table with the gene embeddings of a recipe.
pub fn gene_embedding_table(recipe: &str) -> String {
    format!("{}/{recipe}", schemas::gene_embeddings::SCHEMA)
}

/// Name of the table with the embeddings of a recipe.
pub fn embedding_table(recipe: &str) -> String {
    format!("{}/{recipe}", schemas::embeddings::SCHEMA)
}

/// Refuses a time before 1970, at which Lance and DataFusion panic.
fn check_clock(uri: &str, now: SystemTime) -> Result<()> {
    now.duration_since(SystemTime::UNIX_EPOCH)
        .map(drop)
        .map_err(|early| StoreError::Clock { uri: uri.to_owned(), days: early.duration().as_secs() / 86_400 + 1 })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_before_1970_is_refused() {
        let five_years = Duration::from_secs(157_766_400);
        let refused = check_clock("atlas", SystemTime::UNIX_EPOCH - five_years).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "opening atlas: the clock of this machine is 1827 days before 1970; set it and try again"
        );
        check_clock("atlas", SystemTime::now()).unwrap();
    }
}
