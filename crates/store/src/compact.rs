//! Compaction: merges small files into large ones, and deletes old versions with the files that only they use.

use lance::dataset::cleanup::CleanupPolicy;

use crate::error::{Result, StoreError};
use crate::store::Store;
use crate::version;

/// Result of a compaction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Number of data files before.
    pub files_before: usize,
    /// Number of data files after.
    pub files_after: usize,
    /// Number of versions deleted.
    pub versions_forgotten: usize,
    /// Bytes freed.
    pub bytes_freed: u64,
}

impl Store {
    /// Compacts every table and, if `keep` is given, deletes all but the newest `keep` versions.
    ///
    /// If the process is killed, the newest version of the store is complete: compacted tables are published before any
    /// version is deleted, and a version file is deleted before the data files that it names.
    ///
    /// # Errors
    /// Another process is writing, or a table cannot be written.
    pub async fn compact(&self, keep: Option<usize>) -> Result<(Self, Compacted)> {
        let mut transaction = self.begin("compact").await?;
        let tables: Vec<String> = transaction.store().version.tables.keys().cloned().collect();
        let mut done = Compacted::default();
        for table in &tables {
            let (before, after) = transaction.compact(table).await?;
            done.files_before += before;
            done.files_after += after;
        }
        let (store, lock) = transaction.publish_locked().await?;
        if let Some(keep) = keep {
            let numbers = version::numbers(&store.objects, &store.base).await?;
            let old = &numbers[..numbers.len().saturating_sub(keep.max(1))];
            for number in old {
                let path = version::path(&store.base, *number);
                store
                    .objects
                    .delete(&path)
                    .await
                    .map_err(StoreError::storage(format!("deleting version {number} of {}", store.uri)))?;
            }
            done.versions_forgotten = old.len();
            done.bytes_freed = store.clean().await?;
        }
        drop(lock);
        Ok((store, done))
    }

    /// Deletes data files that no remaining version names, and returns the bytes freed.
    async fn clean(&self) -> Result<u64> {
        let versions = self.versions().await?;
        let mut freed = 0;
        for table in self.version.tables.keys() {
            let oldest = versions.iter().filter_map(|v| v.tables.get(table)).min();
            let policy = CleanupPolicy {
                before_timestamp: None,
                before_version: oldest.copied(),
                // The lock is held, so a file that belongs to no table version was left by a writer that died.
                delete_unverified: self.objects.is_local(),
                error_if_tagged_old_versions: false,
                ..CleanupPolicy::default()
            };
            let dataset = self.table(table).await?;
            let doing = format!("cleaning table {table} of {}", self.uri);
            freed += dataset.cleanup_with_policy(policy).await.map_err(StoreError::storage(doing))?.bytes_removed;
        }
        Ok(freed)
    }
}
