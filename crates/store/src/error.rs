//! Errors of a store.

use crate::genes::error::GeneError;

/// Result of everything in this crate.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A store could not be opened, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A store was to be created where there is one already.
    #[error("creating a store: {uri} already holds a cellql store; choose another location")]
    Exists {
        /// Location of the store.
        uri: String,
    },
    /// There is no store at the location.
    #[error("opening a store: {uri} holds no cellql store; create one with: cellql init {uri}")]
    Missing {
        /// Location of the store.
        uri: String,
    },
    /// The clock of the machine stands before 1970, where the times of Lance and DataFusion begin.
    #[error("opening {uri}: the clock of this machine is {days} days before 1970; set it and try again")]
    Clock {
        /// URI of the store.
        uri: String,
        /// Days before 1970.
        days: u64,
    },
    /// The location is not a directory or object-store URI that can be used.
    #[error("opening {uri}: not a usable location for a store ({problem}); give a directory")]
    Place {
        /// Location of the store.
        uri: String,
        /// Why it cannot be used.
        problem: String,
    },
    /// The store does not have the version, or compaction has deleted it.
    #[error("opening {uri}: there is no version {version}; {count} versions remain, from {first} to {last}")]
    NoVersion {
        /// URI of the store.
        uri: String,
        /// The requested version.
        version: u64,
        /// Number of versions that remain.
        count: usize,
        /// The oldest of them.
        first: u64,
        /// The newest of them.
        last: u64,
    },
    /// The store does not have the table.
    #[error("opening a table of {store}: there is no table '{table}' in this version")]
    NoTable {
        /// URI of the store.
        store: String,
        /// Name of the table.
        table: String,
    },
    /// A table does not have the rows.
    #[error(
        "reading rows by address: the table has no rows {first} to {end}; open the store again, it may have been \
             compacted"
    )]
    NoRows {
        /// The first row address.
        first: u64,
        /// The address after the last.
        end: u64,
    },
    /// The store has a format that this program does not read.
    #[error(
        "reading {path}: the store has format {found}, but this cellql reads format {reads}; use the cellql that \
             wrote it"
    )]
    Format {
        /// The version file.
        path: String,
        /// Format of the store.
        found: u32,
        /// The format that this program reads.
        reads: u32,
    },
    /// A name could not be resolved to one gene.
    #[error(transparent)]
    Gene(#[from] GeneError),
    /// Another writer published a version first. Nothing was changed.
    #[error("{doing}: another writer changed {store} meanwhile, so nothing was written; run the command again")]
    Conflict {
        /// URI of the store.
        store: String,
        /// The operation.
        doing: String,
    },
    /// Another process on this machine is writing to the store. Nothing was changed.
    #[error(
        "writing to {store}: another cellql process is writing to this store; wait for it and run the command again"
    )]
    Busy {
        /// URI of the store.
        store: String,
    },
    /// A table or file of the store differs from what was written.
    #[error("{object} is damaged: {problem}")]
    Damaged {
        /// The table or file.
        object: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The store could not be read or written.
    #[error("{doing}: {}", innermost(source.as_ref()))]
    Storage {
        /// The operation, and the table or file it was done to.
        doing: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The first cause of a failure. What Lance adds to it on the way are its own source files and lines.
pub fn innermost<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    causes(error).last().unwrap_or(error)
}

/// An error, what caused it, what caused that, and so on.
pub fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

impl StoreError {
    /// Makes a [`StoreError::Storage`], for `map_err`. `doing` names the operation and the table or file.
    pub fn storage<E>(doing: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let doing = doing.into();
        move |source| StoreError::Storage { doing, source: source.into() }
    }

    /// Makes a [`StoreError::Damaged`].
    pub fn damaged(object: impl Into<String>, problem: impl ToString) -> Self {
        StoreError::Damaged { object: object.into(), problem: problem.to_string() }
    }
}
