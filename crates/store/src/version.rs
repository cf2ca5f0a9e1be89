//! Version files of a store: `_versions/00000000000000000007.json`.

use std::collections::BTreeMap;

use lance::io::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::error::{Result, StoreError};

/// Format of a store that this program reads and writes.
const FORMAT: u32 = 4;
const FOLDER: &str = "_versions";

/// A version of a store: the Lance version of each table, and counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreVersion {
    /// Format of the store.
    pub format: u32,
    /// Number of the version, starting at 1.
    pub version: u64,
    /// Lance version of each table.
    pub tables: BTreeMap<String, u64>,
    /// Id of the next cell. Ids are never reused.
    pub next_cell_id: u64,
    /// Id of the next data set.
    pub next_dataset_id: u32,
    /// The operation and program that made this version.
    pub made_by: String,
    /// When it was made, RFC 3339, UTC.
    pub made_at: String,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

impl StoreVersion {
    pub(crate) fn empty() -> Self {
        Self {
            format: FORMAT,
            version: 0,
            tables: BTreeMap::new(),
            next_cell_id: 0,
            next_dataset_id: 0,
            made_by: String::new(),
            made_at: String::new(),
        }
    }
}

pub(crate) fn path(base: &Path, number: u64) -> Path {
    base.clone().join(FOLDER).join(format!("{number:020}.json"))
}

/// The newest version, or `None` if there is no store.
pub(crate) async fn latest(objects: &ObjectStore, base: &Path) -> Result<Option<StoreVersion>> {
    match numbers(objects, base).await?.last() {
        Some(number) => read(objects, base, *number).await.map(Some),
        None => Ok(None),
    }
}

/// Numbers of all versions, ascending.
pub(crate) async fn numbers(objects: &ObjectStore, base: &Path) -> Result<Vec<u64>> {
    let folder = base.clone().join(FOLDER);
    let listed = match objects.list_with_delimiter(Some(&folder)).await {
        Ok(listed) => listed,
        Err(lance::Error::NotFound { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::storage(format!("reading the versions of the store in {folder}"))(error)),
    };
    let names = listed.objects.iter().filter_map(|o| o.location.filename());
    let number = |n: &str| n.strip_suffix(".json").filter(|n| n.len() == 20)?.parse().ok();
    let mut numbers: Vec<u64> = names.filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads a version by its number.
pub(crate) async fn read(objects: &ObjectStore, base: &Path, number: u64) -> Result<StoreVersion> {
    let path = path(base, number);
    let bytes = objects.read_one_all(&path).await.map_err(StoreError::storage(format!("reading {path}")))?;
    // Paths of objects on this machine lack their first slash.
    let shown = if objects.is_local() { format!("/{path}") } else { path.to_string() };
    let damaged = |e: serde_json::Error| {
        StoreError::damaged(shown.as_str(), format!("{e}; move it aside to fall back to the version before"))
    };
    // The format is checked first: a file of a newer program may not parse, and is not damaged.
    let Format { format } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if format != FORMAT {
        return Err(StoreError::Format { path: shown, found: format, reads: FORMAT });
    }
    serde_json::from_slice(&bytes).map_err(damaged)
}

/// Writes a version file and so makes the version the newest. Returns false if another writer used the number first.
pub(crate) async fn publish(objects: &ObjectStore, base: &Path, version: &StoreVersion) -> Result<bool> {
    let path = path(base, version.version);
    let json = serde_json::to_vec_pretty(version).map_err(StoreError::storage(format!("writing {path}")))?;
    match objects.put_if_absent(&path, json.into()).await {
        Ok(()) => Ok(true),
        Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
        Err(error) => Err(StoreError::storage(format!("writing {path}"))(error)),
    }
}
