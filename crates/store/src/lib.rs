//! A store: a directory or object-store URI of Lance tables and files, read at one version.
//!
//! Lance commits one table at a time, but an ingest changes three. So the store has versions of its own: small
//! immutable files under `_versions/`, each naming a Lance version of every table. A reader opens the newest version
//! file and sees exactly the table versions that it names. A writer prepares new table versions, which no version file
//! names yet, and then publishes a new version file atomically. A writer that dies leaves unnamed table versions; the
//! next writer restores the named ones.
//!
//! [`genes`] holds the table `genes` in memory: it maps features of a file to rows, and names in a query to rows.
//! [`sql`] quotes values and names for SQL text.
//!
//! The crate depends on lance, and on `schemas` for the tables. It knows nothing of file formats, models or the SQL
//! engine.
//!
//! ```
//! # let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! use cellql_store::Store;
//!
//! let folder = tempfile::tempdir()?;
//! let uri = folder.path().join("store").display().to_string();
//! Store::init(&uri).await?;
//!
//! let store = Store::open(&uri).await?;
//! assert_eq!(store.version().version, 1);
//! let genes = store.genes().await?;
//! assert_eq!(genes.find("IL8")?, genes.find("CXCL8")?);
//! assert_eq!(store.table("cells").await?.count_rows(None).await?, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod checksums;
mod compact;
mod content_hash;
mod error;
pub mod genes;
mod init;
pub mod progress;
pub mod sql;
mod store;
mod take;
mod transaction;
mod verify;
mod version;

pub use compact::Compacted;
pub use content_hash::{CellHasher, ContentHash, HASH_VERSION};
pub use error::{Result, StoreError, causes, innermost};
pub use store::{OnWait, Store, embedding_table, gene_embedding_table, is_one_of};
pub use take::{RowReader, runs};
pub use transaction::Transaction;
pub use verify::{DamagedFile, Verified, changed_cells};
pub use version::StoreVersion;
