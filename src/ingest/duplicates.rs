//! Finds cells that the store holds already by the hash of their expression.

use arrow::array::AsArray;
use arrow::datatypes::UInt64Type;
use cellql_schemas::cells as table;
use futures::TryStreamExt;

use crate::error::{Error, Result};
use cellql_store::Store;

/// Content hashes of the cells of a store and the first cell of each. Takes 16 bytes of memory per cell.
#[derive(Debug, Default)]
pub(super) struct ContentIndex(Vec<(u64, u64)>);

impl ContentIndex {
    /// Reads the hashes of every cell.
    pub(super) async fn read(store: &Store) -> Result<Self> {
        let doing = || format!("reading the hashes of the cells of {}", store.uri());
        let cells = store.table(table::TABLE).await?;
        let mut scan = cells.scan();
        scan.project(&[table::CELL_ID, table::CONTENT_HASH]).map_err(Error::internal(doing()))?;
        let mut batches = scan.try_into_stream().await.map_err(Error::internal(doing()))?;
        let mut cells_by_hash = Vec::new();
        while let Some(batch) = batches.try_next().await.map_err(Error::internal(doing()))? {
            let (ids, hashes) = (batch.column(0).as_primitive::<UInt64Type>(), batch.column(1).as_string::<i32>());
            cells_by_hash.extend(hashes.iter().flatten().map(fingerprint).zip(ids.values().iter().copied()));
        }
        cells_by_hash.sort_unstable();
        // Of cells with equal content, the first is kept.
        cells_by_hash.dedup_by_key(|(hash, _)| *hash);
        Ok(Self(cells_by_hash))
    }

    /// `cell_id` of the first cell with this content hash (hex).
    pub(super) fn find(&self, hash: &str) -> Option<u64> {
        let fingerprint = fingerprint(hash);
        let place = self.0.binary_search_by_key(&fingerprint, |(hash, _)| *hash).ok()?;
        Some(self.0[place].1)
    }
}

/// The first 64 bits of a hash. Among 50 million cells, two different ones share them with a probability of 1 in
/// 15,000.
fn fingerprint(hash: &str) -> u64 {
    u64::from_str_radix(hash.get(..16).unwrap_or_default(), 16).unwrap_or_default()
}
