//! What can go wrong with a store.

use crate::genes::GeneError;

/// Result of everything in this crate.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A store could not be opened, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A store was to be made where there is one.
    #[error("{uri} already holds a cellql store")]
    Exists {
        /// The place.
        uri: String,
    },
    /// There is no store.
    #[error("{uri} holds no cellql store; make one with: cellql init {uri}")]
    Missing {
        /// The place.
        uri: String,
    },
    /// The place cannot hold a store.
    #[error("{uri} is not a place for a store: {problem}")]
    Place {
        /// The place.
        uri: String,
        /// Why not.
        problem: String,
    },
    /// The store has no such version, or has it no more.
    #[error("{uri} has no version {version}; there are {count} from {first} to {last}")]
    NoVersion {
        /// The store.
        uri: String,
        /// The version that was asked for.
        version: u64,
        /// Versions there are.
        count: usize,
        /// The oldest.
        first: u64,
        /// The newest.
        last: u64,
    },
    /// The store has no such table.
    #[error("{store}: there is no table '{table}'")]
    NoTable {
        /// The store.
        store: String,
        /// The table.
        table: String,
    },
    /// A table has no such rows.
    #[error("the table has no rows {first} to {end}")]
    NoRows {
        /// The first address.
        first: u64,
        /// The one after the last.
        end: u64,
    },
    /// A newer program wrote the store.
    #[error("{path}: the store has format {found}, this cellql reads {reads}; use the cellql that wrote it")]
    Format {
        /// The version file.
        path: String,
        /// Its format.
        found: u32,
        /// The format that this program reads.
        reads: u32,
    },
    /// A name that means no gene, or several.
    #[error(transparent)]
    Gene(#[from] GeneError),
    /// Another writer published first; nothing was changed.
    #[error("{store}: another writer changed the store meanwhile, so {doing} was not done; run it again")]
    Conflict {
        /// The store.
        store: String,
        /// What was being done.
        doing: String,
    },
    /// Another process of this machine is writing to the store; nothing was changed.
    #[error("{store}: another cellql process is writing to this store; wait for it and run the command again")]
    Busy {
        /// The store.
        store: String,
    },
    /// A table or file of the store is not what was written.
    #[error("{object} is damaged: {problem}")]
    Damaged {
        /// The table or file.
        object: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The store could not be read or written.
    #[error("{doing}: {source}")]
    Storage {
        /// What was being done, to which table or file.
        doing: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// For [`StoreError::Storage`], to be used with `map_err`.
    pub fn storage<E>(doing: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let doing = doing.into();
        move |source| StoreError::Storage { doing, source: source.into() }
    }

    /// For [`StoreError::Damaged`].
    pub fn damaged(object: impl Into<String>, problem: impl ToString) -> Self {
        StoreError::Damaged { object: object.into(), problem: problem.to_string() }
    }
}
