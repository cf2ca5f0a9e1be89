//! A store: a directory or object-store URI of Lance tables and files, read at one version.
//!
//! Lance commits one table at a time, but an ingest changes three. So the store has versions of its own: small
//! immutable files under `_versions/`, each naming a version of every table. A reader opens the newest and sees
//! exactly the tables it names; a writer prepares new table versions that nobody sees and then publishes one new
//! file, which either exists whole or does not. A writer that dies leaves table versions no file names; the next
//! writer starts again from the named ones.
//!
//! [`genes`] is the store's table of genes in memory: which rows the features of a file are, and which row a name means.
//!
//! Depends on lance and on `schemas` for what the tables are. Knows nothing of file formats, models or SQL.

mod compact;
mod content;
mod error;
pub mod genes;
pub mod progress;
mod store;
mod take;
mod transaction;
mod version;

pub use compact::Compacted;
pub use content::ContentHash;
pub use error::{Result, StoreError};
pub use store::{OnWait, Store, embedding_table, gene_embedding_table, is_one_of};
pub use take::{RowReader, runs};
pub use transaction::Transaction;
pub use version::StoreVersion;
