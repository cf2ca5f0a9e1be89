//! Which cells a model learns from, and which it never sees.
//!
//! A cell is held out by its content: the first bits of its hash, as a number below 1, against a share. So the same
//! cells are held out in every run, whatever is added later, and equal cells of two data sets fall on one side; in
//! every store that numbers genes alike ([`numbering`]). A condition can hold out more; cells with the content of one
//! of those are held out with them. Of cells that a store holds twice, one is learned from.
//!
//! Depends on `store`. Rows are kept as compressed sets of addresses: some bits a cell.

use std::collections::{BTreeSet, BinaryHeap, HashSet};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use cellql_schemas::{cells, datasets};
use cellql_training::HoldOut;
use futures::TryStreamExt;
use roaring::RoaringTreemap;

use crate::error::{Error, Result};
use crate::query::condition;
use cellql_store::genes::Catalogue;
use cellql_store::{ContentHash, Store, is_one_of};

/// Addresses of rows of `cells`.
#[derive(Debug, Clone, Default)]
pub struct Split {
    /// To learn from.
    pub train: RoaringTreemap,
    /// Held out.
    pub held: RoaringTreemap,
    /// Of these the ones with the smallest hashes, ascending by hash: what a loss is watched on.
    pub watched: Vec<u64>,
    /// Cells left out of the first because another with the same content is in it.
    pub duplicates: u64,
    /// Of the cells to learn from and what is known of their content: equal where a run reads the same cells.
    pub digest: String,
}

/// True for a content whose hash falls below a share.
fn is_below(hash: ContentHash, share: f64) -> bool {
    let first = u64::from_be_bytes(*hash.bytes().first_chunk().unwrap_or(&[0; 8]));
    (first as f64) < share * 2f64.powi(64)
}

/// Divides the cells that have counts and satisfy a condition; `watched` of those held out are named.
///
/// # Errors
/// A condition that does not fit `cells`, a share that is none, or a store that cannot be read.
pub async fn split(store: &Store, condition: Option<&str>, hold_out: &HoldOut, watched: usize) -> Result<Split> {
    if !(0.0..=1.0).contains(&hold_out.share) {
        return Err(Error::Request(format!("hold-out {}: it must be a share, 0 to 1", hold_out.share)));
    }
    let eligible = eligible(store, condition).await?;
    let mut hashes = HashSet::new();
    if let Some(condition) = &hold_out.condition {
        // Of all the store's, whatever is to be learned from: a cell may have a copy there.
        let held = condition::on_cells(store, condition).await?;
        let both = format!("({}) AND {held}", self::eligible(store, None).await?);
        each(store, &both, &[cells::CONTENT_HASH], |_, batch, i| hashes.extend(content_hash(batch, i))).await?;
        if hashes.is_empty() {
            return Err(Error::Request(format!(
                "no cell with counts satisfies the condition to hold out by: {condition}"
            )));
        }
    }
    let mut split = Split::default();
    let mut digest = blake3::Hasher::new();
    let mut twice: Vec<(u64, u64)> = Vec::new();
    let (mut learned, mut smallest) = (RoaringTreemap::new(), BinaryHeap::new());
    let columns = [cells::CELL_ID, cells::DUPLICATE_OF, cells::CONTENT_HASH];
    // Hashes are most of what is read, and say nothing where no cell is held out.
    let is_divided = hold_out.share > 0.0 || !hashes.is_empty();
    let columns = if is_divided { &columns[..] } else { &columns[..2] };
    each(store, &eligible, columns, |row, batch, i| {
        let hash = if is_divided { content_hash(batch, i) } else { None };
        if hash.is_some_and(|hash| is_below(hash, hold_out.share) || hashes.contains(&hash)) {
            split.held.insert(row);
            smallest.push((hash, row));
            if smallest.len() > watched {
                smallest.pop();
            }
            return;
        }
        split.train.insert(row);
        digest.update(&row.to_le_bytes());
        digest.update(&hash.map_or([0; 16], |hash| *hash.bytes()));
        learned.insert(batch.column(0).as_primitive::<UInt64Type>().value(i));
        let first = batch.column(1).as_primitive::<UInt64Type>();
        if first.is_valid(i) {
            twice.push((row, first.value(i)));
        }
    })
    .await?;
    split.watched = smallest.into_sorted_vec().into_iter().map(|(_, row)| row).collect();
    // Of copies whose first is not learned from, one is.
    for (row, first) in twice {
        if !learned.insert(first) && split.train.remove(row) {
            split.duplicates += 1;
        }
    }
    split.digest = digest.finalize().to_hex().to_string();
    Ok(split)
}

/// How genes are numbered in a store: how many there were once each data set was taken in, ascending, and
/// [`Catalogue::numbering`] of so many. Contents hash to the same, and the same are held out, where two stores agree on
/// it: genes of the nomenclature have one number everywhere, features that resolve to none are numbered as they come.
///
/// # Errors
/// A table cannot be read.
pub async fn numbering(store: &Store) -> Result<Vec<(usize, String)>> {
    let (genes, identified) = (store.genes().await?, Catalogue::from_nomenclature().len());
    let mut counts = BTreeSet::from([genes.len()]);
    for batch in store.read(datasets::TABLE, &[datasets::MEASURED_GENES], None).await? {
        for list in batch.column(0).as_list::<i32>().iter().flatten() {
            let last = list.as_primitive::<UInt32Type>().values().iter().max();
            counts.insert(last.map_or(0, |last| *last as usize + 1).max(identified));
        }
    }
    Ok(counts.into_iter().filter_map(|count| Some((count, genes.numbering(count)?))).collect())
}

fn content_hash(batch: &RecordBatch, row: usize) -> Option<ContentHash> {
    let hashes = batch.column_by_name(cells::CONTENT_HASH)?;
    ContentHash::from_hex(hashes.as_string::<i32>().value(row))
}

/// The condition of cells with counts, of data sets of single cells.
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

/// Calls `take` with the address of each row that satisfies a condition.
async fn each(
    store: &Store,
    filter: &str,
    columns: &[&str],
    mut take: impl FnMut(u64, &RecordBatch, usize),
) -> Result<()> {
    let doing = || Error::internal("choosing cells to learn from");
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

    #[test]
    fn a_share_of_contents_is_below_it() {
        let hash = |n: u32| ContentHash::of(Profile { gene_ids: &[n], values: &[1.0] });
        let below = (0..20_000).filter(|n| is_below(hash(*n), 0.1)).count();
        assert!((1800..2200).contains(&below), "{below}");
        assert!((0..100).all(|n| !is_below(hash(n), 0.0) && is_below(hash(n), 1.0)));
        // Once held out, a cell stays so in any larger share.
        assert!((0..1000).all(|n| !is_below(hash(n), 0.1) || is_below(hash(n), 0.2)));
    }
}
