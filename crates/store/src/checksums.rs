//! Checksums of the files of a store, recorded when they are published.
//!
//! Every transaction writes a list of the files that it made: `_checksums/<version>-<random>.json`, from path to size
//! and BLAKE3. A list is written before its version file, so a version never has files without a record. A list of a
//! transaction that was not published may name files that nobody needs; they are only checked if they are there.

use std::collections::BTreeMap;
use std::fs::File;

use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::index::DatasetIndexExt;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::error::{Result, StoreError};
use crate::store::Store;

pub(crate) const FOLDER: &str = "_checksums";

/// Size and BLAKE3 of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checksum {
    pub(crate) bytes: u64,
    /// In hexadecimal.
    pub(crate) blake3: String,
}

impl Checksum {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() }
    }
}

/// Files by their path in the store.
pub(crate) type Checksums = BTreeMap<String, Checksum>;

impl Store {
    /// The path of an object inside the store.
    pub(crate) fn relative(&self, path: &Path) -> String {
        let base = format!("{}/", self.base);
        path.as_ref().strip_prefix(&base).unwrap_or(path.as_ref()).to_owned()
    }

    /// Reads a file and computes its checksum. `None` if there is no such file.
    pub(crate) async fn checksum(&self, path: &str) -> Result<Option<Checksum>> {
        let doing = || format!("reading {path} of {}", self.uri);
        if let Some(local) = self.local_path(path) {
            // In one piece of work: object_store reads local files in parts of 8 KiB, each on another thread.
            let hashed = tokio::task::spawn_blocking(move || hash_file(&local)).await;
            return hashed.map_err(StoreError::storage(doing()))?.map_err(StoreError::storage(doing()));
        }
        let got = match self.objects.inner.get_opts(&self.path(path), Default::default()).await {
            Ok(got) => got,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(StoreError::storage(doing())(error)),
        };
        let (mut hash, mut bytes) = (blake3::Hasher::new(), 0u64);
        let mut parts = got.into_stream();
        while let Some(part) = parts.next().await {
            let part = part.map_err(StoreError::storage(doing()))?;
            bytes += part.len() as u64;
            hash.update(&part);
        }
        Ok(Some(Checksum { bytes, blake3: hash.finalize().to_hex().to_string() }))
    }

    /// Paths in the store of the files of a table at one version: data, deletions, manifest and indexes.
    pub(crate) async fn files_of(&self, name: &str, table: &Dataset) -> Result<Vec<String>> {
        let doing = || format!("listing the files of table {name} of {}", self.uri);
        let folder = format!("{name}.lance");
        let mut files = vec![self.relative(&table.manifest_location().path)];
        for fragment in table.get_fragments() {
            let fragment = fragment.metadata();
            files.extend(fragment.files.iter().map(|file| format!("{folder}/data/{}", file.path)));
            files.extend(fragment.deletion_file.as_ref().map(|of| {
                let name = format!("{}-{}-{}.{}", fragment.id, of.read_version, of.id, of.file_type.suffix());
                format!("{folder}/_deletions/{name}")
            }));
        }
        for index in table.load_indices().await.map_err(StoreError::storage(doing()))?.iter() {
            let folder = self.path(&format!("{folder}/_indices/{}", index.uuid));
            let inside = self.objects.inner.list(Some(&folder)).try_collect::<Vec<_>>().await;
            let inside = inside.map_err(StoreError::storage(doing()))?;
            files.extend(inside.iter().map(|file| self.relative(&file.location)));
        }
        Ok(files)
    }

    /// Writes a list of checksums for a version.
    pub(crate) async fn write_checksums(&self, version: u64, checksums: &Checksums) -> Result<()> {
        let random = blake3::hash(chrono::Utc::now().to_rfc3339().as_bytes()).to_hex();
        let path = format!("{FOLDER}/{version:020}-{}.json", &random[..8]);
        let doing = || format!("writing {path} of {}", self.uri);
        let json = serde_json::to_vec(checksums).map_err(StoreError::storage(doing()))?;
        self.objects.put(&self.path(&path), &json).await.map_err(StoreError::storage(doing()))?;
        Ok(())
    }

    /// The lists of checksums: their paths, and all files together.
    pub(crate) async fn read_checksums(&self) -> Result<(Vec<Path>, Checksums)> {
        let doing = || format!("reading the checksums of {}", self.uri);
        let listed = self.objects.inner.list(Some(&self.path(FOLDER)));
        let mut lists: Vec<Path> =
            listed.map_ok(|list| list.location).try_collect().await.map_err(StoreError::storage(doing()))?;
        lists.sort();
        let mut all = Checksums::new();
        for list in &lists {
            let bytes = self.objects.read_one_all(list).await.map_err(StoreError::storage(doing()))?;
            let list: Checksums = serde_json::from_slice(&bytes).map_err(|e| {
                let object = format!("{} of {}", self.relative(list), self.uri);
                StoreError::damaged(object, format!("{e}; delete it, and its files are no longer checked"))
            })?;
            all.extend(list);
        }
        Ok((lists, all))
    }
}

/// The checksum of a local file; `None` if there is none.
fn hash_file(path: &std::path::Path) -> std::io::Result<Option<Checksum>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut hash = blake3::Hasher::new();
    hash.update_reader(file)?;
    Ok(Some(Checksum { bytes: hash.count(), blake3: hash.finalize().to_hex().to_string() }))
}
