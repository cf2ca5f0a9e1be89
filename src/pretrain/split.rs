//! Divides the cells of a store into those to train on and those held out.
//!
//! A cell is held out if the first 64 bits of its content hash, as a fraction of 2^64, are below the share to hold out.
//! So the same cells are held out in every run, whatever is ingested later, and cells with equal content are on the
//! same side. This holds in every store, because content hashes do not depend on the store. A condition can hold out
//! more cells, and with them all cells with the same content. Of cells with equal content that are not held out, one is
//! trained on.
//!
//! Depends on the store. Rows are kept as compressed sets of row addresses, which take a few bits per cell.

use std::collections::{BinaryHeap, HashSet};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use cellql_schemas::{cells, datasets};
use cellql_training::HoldOut;
use futures::TryStreamExt;
use roaring::RoaringTreemap;

use crate::error::{Error, Result};
use crate::query::condition;
use cellql_store::{ContentHash, Store, is_one_of};

/// Cells to train on and cells held out, as row addresses of `cells`.
#[derive(Debug, Clone, Default)]
pub struct Split {
    /// Cells to train on.
    pub train: RoaringTreemap,
    /// Cells held out.
    pub held_out: RoaringTreemap,
    /// The held-out cells on which the validation loss is computed: those with the smallest hashes, ascending by hash.
    pub validation: Vec<u64>,
    /// Number of cells left out because a cell with the same content is trained on.
    pub duplicates: u64,
    /// BLAKE3 digest (hex) of the row addresses and content hashes of the cells to train on.
    pub digest: String,
}

/// Numbers of cells of a [`Split`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitCounts {
    /// Cells to train on.
    pub train: u64,
    /// Cells held out.
    pub held_out: u64,
    /// Cells left out because a cell with the same content is trained on.
    pub duplicates: u64,
}

impl Split {
    /// The numbers of cells.
    pub fn counts(&self) -> SplitCounts {
        SplitCounts { train: self.train.len(), held_out: self.held_out.len(), duplicates: self.duplicates }
    }
}

/// Whether the first 64 bits of a hash, as a fraction of 2^64, are below a share.
fn is_below(hash: ContentHash, share: f64) -> bool {
    let first = u64::from_be_bytes(*hash.bytes().first_chunk().unwrap_or(&[0; 8]));
    (first as f64) < share * 2f64.powi(64)
}

/// Divides the cells that have counts and satisfy a condition. At most `validation` of the held-out cells are chosen
/// for the validation loss.
///
/// # Errors
/// A condition that does not fit `cells`, a share that is not from 0 to 1, or a store that cannot be read.
pub async fn split(store: &Store, condition: Option<&str>, hold_out: &HoldOut, validation: usize) -> Result<Split> {
    if !(0.0..=1.0).contains(&hold_out.share) {
        return Err(Error::Request(format!(
            "--hold-out {}: the share of cells to hold out must be from 0 to 1",
            hold_out.share
        )));
    }
    let eligible = eligible(store, condition).await?;
    let mut hashes = HashSet::new();
    if let Some(condition) = &hold_out.condition {
        // Among all cells of the store: a held-out cell may have a duplicate among the cells to train on.
        let held = condition::on_cells(store, condition).await?;
        let both = format!("({}) AND {held}", self::eligible(store, None).await?);
        each(store, &both, &[cells::CONTENT_HASH], |_, batch, i| hashes.extend(content_hash(batch, i))).await?;
        if hashes.is_empty() {
            return Err(Error::Request(format!(
                "--hold-out-where {condition}: no cell with counts satisfies the condition"
            )));
        }
    }
    let mut split = Split::default();
    let mut digest = blake3::Hasher::new();
    let mut copies: Vec<(u64, u64)> = Vec::new();
    let (mut trained_on, mut smallest) = (RoaringTreemap::new(), BinaryHeap::new());
    let columns = [cells::CELL_ID, cells::DUPLICATE_OF, cells::CONTENT_HASH];
    // Hashes are most of the bytes to read, and are not needed if no cell is held out.
    let is_divided = hold_out.share > 0.0 || !hashes.is_empty();
    let columns = if is_divided { &columns[..] } else { &columns[..2] };
    each(store, &eligible, columns, |row, batch, i| {
        let hash = if is_divided { content_hash(batch, i) } else { None };
        if hash.is_some_and(|hash| is_below(hash, hold_out.share) || hashes.contains(&hash)) {
            split.held_out.insert(row);
            smallest.push((hash, row));
            if smallest.len() > validation {
                smallest.pop();
            }
            return;
        }
        split.train.insert(row);
        digest.update(&row.to_le_bytes());
        digest.update(&hash.map_or([0; 16], |hash| *hash.bytes()));
        trained_on.insert(batch.column(0).as_primitive::<UInt64Type>().value(i));
        let first = batch.column(1).as_primitive::<UInt64Type>();
        if first.is_valid(i) {
            copies.push((row, first.value(i)));
        }
    })
    .await?;
    split.validation = smallest.into_sorted_vec().into_iter().map(|(_, row)| row).collect();
    // If the first of several copies is not trained on, another one is.
    for (row, first) in copies {
        if !trained_on.insert(first) && split.train.remove(row) {
            split.duplicates += 1;
        }
    }
    split.digest = digest.finalize().to_hex().to_string();
    Ok(split)
}

fn content_hash(batch: &RecordBatch, row: usize) -> Option<ContentHash> {
    let hashes = batch.column_by_name(cells::CONTENT_HASH)?;
    ContentHash::from_hex(hashes.as_string::<i32>().value(row))
}

/// SQL condition on `cells` of single cells that have counts.
async fn eligible(store: &Store, condition: Option<&str>) -> Result<String> {
    let of_counts = format!("{} = 'counts'", datasets::INPUT);
    let found = store.read(datasets::TABLE, &[datasets::DATASET_ID], Some(&of_counts)).await?;
    let ids: Vec<u64> = found
        .iter()
        .flat_map(|b| b.column(0).as_primitive::<UInt32Type>().values().iter().map(|id| u64::from(*id)))
        .collect();
    let counts = format!("{} IN ('counts', 'recovered')", cells::VALUE_KIND);
    let mut all = format!("{counts} AND {}", is_one_of(cells::DATASET_ID, ids));
    if let Some(text) = condition {
        all = format!("{all} AND {}", condition::on_cells(store, text).await?);
    }
    Ok(all)
}

/// Calls `take` with the row address, batch and place in the batch of each row that satisfies a condition.
async fn each(
    store: &Store,
    filter: &str,
    columns: &[&str],
    mut take: impl FnMut(u64, &RecordBatch, usize),
) -> Result<()> {
    let doing = || Error::internal(format!("choosing cells to train on in {}", store.uri()));
    let mut scan = store.table(cells::TABLE).await?.scan();
    scan.project(columns).map_err(doing())?;
    let unfit = |e: lance::Error| condition::failed(filter, &e);
    scan.filter(filter).map_err(unfit)?;
    scan.with_row_id();
    let mut batches = scan.try_into_stream().await.map_err(unfit)?;
    while let Some(batch) = batches.try_next().await.map_err(doing())? {
        let Some(rows) = batch.column_by_name("_rowid") else { continue };
        let rows = rows.as_primitive::<UInt64Type>();
        (0..batch.num_rows()).for_each(|i| take(rows.value(i), &batch, i));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellql_schemas::expr::Profile;
    use cellql_store::CellHasher;

    #[test]
    fn the_share_of_hashes_below_a_share_is_that_share() {
        let hasher = CellHasher::new(["HGNC:1"].into_iter());
        let hash = |n: u32| hasher.hash(Profile { gene_ids: &[0], values: &[n as f32] });
        let below = (0..20_000).filter(|n| is_below(hash(*n), 0.1)).count();
        assert!((1800..2200).contains(&below), "{below}");
        assert!((0..100).all(|n| !is_below(hash(n), 0.0) && is_below(hash(n), 1.0)));
        // Once held out, a cell stays so in any larger share.
        assert!((0..1000).all(|n| !is_below(hash(n), 0.1) || is_below(hash(n), 0.2)));
    }
}
