//! Compaction: merges small files into large ones, and deletes old versions with the files that only they use.

use std::collections::{BTreeSet, HashSet};

use cellql_schemas::embeddings;
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::cleanup::CleanupPolicy;
use object_store::path::Path;

use crate::error::{Result, StoreError};
use crate::store::{Store, embedding_table};
use crate::version::{self, StoreVersion};

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
    /// What no version needs is deleted first, so that a full disk can be compacted. If the process is killed, the
    /// newest version of the store is complete: a version file is deleted before the data files that it names, and
    /// compacted tables are published before the version that they replace is deleted.
    ///
    /// # Errors
    /// Another process is writing, a file is damaged, or a table cannot be written.
    pub async fn compact(&self, keep: Option<usize>) -> Result<(Self, Compacted)> {
        let mut transaction = self.begin("compact").await?;
        let mut done = Compacted::default();
        let keep = keep.map(|keep| keep.max(1));
        if let Some(keep) = keep {
            done.versions_forgotten += transaction.store().forget_versions(keep).await?;
            done.bytes_freed += transaction.store().clean().await?;
        }
        let tables: Vec<String> = transaction.store().version.tables.keys().cloned().collect();
        let embedding_tables: Vec<String> =
            transaction.store().recipes(embeddings::SCHEMA).map(embedding_table).collect();
        let (_, recorded) = transaction.store().read_checksums().await?;
        for table in &tables {
            let opened = transaction.store().table(table).await?;
            transaction.store().check_files(table, &opened, &recorded).await?;
            if embedding_tables.contains(table) {
                transaction.remove_duplicate_rows(table, embeddings::CELL_ID).await?;
            }
            let (before, after) = transaction.compact(table).await?;
            done.files_before += before;
            done.files_after += after;
        }
        let (store, lock) = transaction.publish_locked().await?;
        if let Some(keep) = keep {
            done.versions_forgotten += store.forget_versions(keep).await?;
            done.bytes_freed += store.clean().await?;
            store.gather_checksums().await?;
        }
        drop(lock);
        Ok((store, done))
    }

    /// Deletes all but the newest `keep` version files, and returns the number deleted.
    async fn forget_versions(&self, keep: usize) -> Result<usize> {
        let numbers = version::numbers(&self.objects, &self.base).await?;
        let old = &numbers[..numbers.len().saturating_sub(keep)];
        for number in old {
            let path = version::path(&self.base, *number);
            let doing = StoreError::storage(format!("deleting version {number} of {}", self.uri));
            self.objects.delete(&path).await.map_err(doing)?;
        }
        Ok(old.len())
    }

    /// Deletes files that no remaining version names, and returns the bytes freed.
    async fn clean(&self) -> Result<u64> {
        let versions = self.versions().await?;
        let mut freed = 0;
        for table in self.tables_on_disk().await? {
            freed += self.forget_unnamed(&table, &versions).await?;
        }
        Ok(freed)
    }

    /// Names of all tables that have a folder, whether or not a version names them.
    async fn tables_on_disk(&self) -> Result<BTreeSet<String>> {
        let mut tables: BTreeSet<String> = self.version.tables.keys().cloned().collect();
        // Folders that no version names are looked for where another machine cannot be writing one.
        if !self.objects.is_local() {
            return Ok(tables);
        }
        let doing = || StoreError::storage(format!("listing the tables of {}", self.uri));
        let mut folders = vec![self.base.clone()];
        while let Some(folder) = folders.pop() {
            let listed = self.objects.list_with_delimiter(Some(&folder)).await.map_err(doing())?;
            for inside in listed.common_prefixes {
                let path = self.relative(&inside);
                match path.strip_suffix(".lance") {
                    Some(table) => {
                        tables.insert(table.to_owned());
                    }
                    // Tables are in the store's folder or in folders of it, and these have no other folders.
                    None if !path.contains('/') => folders.push(inside),
                    None => {}
                }
            }
        }
        Ok(tables)
    }

    /// Deletes the versions of a table that no version of the store names, and files that belong to none, and returns
    /// the bytes freed. A table that no version names is deleted whole.
    pub(crate) async fn forget_unnamed(&self, table: &str, versions: &[StoreVersion]) -> Result<u64> {
        let doing = || StoreError::storage(format!("cleaning table {table} of {}", self.uri));
        let named: HashSet<u64> = versions.iter().filter_map(|v| v.tables.get(table).copied()).collect();
        if named.is_empty() {
            if self.objects.is_local() {
                self.objects.remove_dir_all(self.path(&format!("{table}.lance"))).await.map_err(doing())?;
            }
            return Ok(0);
        }
        let mut newest = Dataset::open(&self.table_uri(table)).await.map_err(doing())?;
        let wanted = named.iter().max().copied().unwrap_or_default();
        if newest.version().version != wanted {
            // Lance never deletes the newest version of a table, which here is one that was not published. On a full
            // disk it stays for the next time.
            let mut restored = newest.checkout_version(wanted).await.map_err(doing())?;
            if restored.restore().await.is_ok() {
                newest = restored;
            }
        }
        let all = newest.versions().await.map_err(doing())?;
        let latest = newest.version().version;
        let unnamed = all.iter().map(|v| v.version).filter(|v| !named.contains(v) && *v != latest);
        let policy = CleanupPolicy {
            before_timestamp: None,
            versions: Some(unnamed.collect()),
            // The lock is held, so a file that belongs to no table version was left by a writer that failed or died.
            delete_unverified: self.objects.is_local(),
            error_if_tagged_old_versions: false,
            ..CleanupPolicy::default()
        };
        Ok(newest.cleanup_with_policy(policy).await.map_err(doing())?.bytes_removed)
    }

    /// Replaces the lists of checksums by one of the files that are still there.
    async fn gather_checksums(&self) -> Result<()> {
        let (lists, mut all) = self.read_checksums().await?;
        let doing = || StoreError::storage(format!("listing the files of {}", self.uri));
        let there: Vec<Path> = self
            .objects
            .inner
            .list(Some(&self.base))
            .map_ok(|file| file.location)
            .try_collect()
            .await
            .map_err(doing())?;
        let there: HashSet<String> = there.iter().map(|path| self.relative(path)).collect();
        all.retain(|path, _| there.contains(path));
        self.write_checksums(self.version.version, &all).await?;
        for list in lists {
            let doing = StoreError::storage(format!("deleting {list} of {}", self.uri));
            self.objects.delete(&list).await.map_err(doing)?;
        }
        Ok(())
    }
}
