//! Compaction: few large files instead of many small ones, and old versions forgotten with what only they name.

use lance::dataset::cleanup::CleanupPolicy;

use crate::Store;
use crate::error::{Result, StoreError};
use crate::version;

/// What a compaction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Data files before.
    pub files_before: usize,
    /// Data files after.
    pub files_after: usize,
    /// Versions that can no longer be opened.
    pub versions_forgotten: usize,
    /// Bytes given back to the disk.
    pub bytes_freed: u64,
}

impl Store {
    /// Compacts every table and, where `keep` is given, forgets all but the newest so many versions.
    ///
    /// Killed anywhere it leaves a store whose newest version is whole: the compacted tables are published before anything
    /// is forgotten, and a version is forgotten before its files are.
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
                    .map_err(StoreError::storage(format!("forgetting version {number}")))?;
            }
            done.versions_forgotten = old.len();
            done.bytes_freed = store.clean().await?;
        }
        drop(lock);
        Ok((store, done))
    }

    /// Deletes what no version of the store names any more.
    async fn clean(&self) -> Result<u64> {
        let versions = self.versions().await?;
        let mut freed = 0;
        for table in self.version.tables.keys() {
            let oldest = versions.iter().filter_map(|v| v.tables.get(table)).min();
            let policy = CleanupPolicy {
                before_timestamp: None,
                before_version: oldest.copied(),
                // The lock is held, so files that no table version knows are a dead writer's.
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
