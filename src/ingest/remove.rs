//! Removes a data set: its cells, their embeddings, its row, and the gene names that only this data set used. Ids are
//! not reused.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::{UInt32Type, UInt64Type};
use cellql_schemas::suggest::did_you_mean;
use cellql_schemas::{cells, datasets, embeddings, genes};

use crate::error::{Error, Result};
use cellql_store::{Store, Transaction, embedding_table};

/// Result of [`remove`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoveReport {
    /// Id of the data set.
    pub dataset_id: u32,
    /// Its name.
    pub name: String,
    /// Number of its cells.
    pub cells: u64,
}

/// Removes a data set, named by its name or id.
///
/// # Errors
/// No or several data sets have that name, or the store cannot be written.
pub async fn remove(store: &Store, dataset: &str) -> Result<(Store, RemoveReport)> {
    let mut transaction = store.begin(&format!("removing data set {dataset}")).await?;
    let (dataset_id, name) = find(transaction.store(), dataset).await?;
    let of_dataset = format!("{} = {dataset_id}", cells::DATASET_ID);
    let removed = ids(transaction.store(), &of_dataset).await?;
    let cells_removed = removed.len() as u64;
    transaction.delete(cells::TABLE, &of_dataset).await?;
    transaction.delete(datasets::TABLE, &of_dataset).await?;
    // Cells of a data set have consecutive ids.
    if let (Some(first), Some(last)) = (removed.iter().min(), removed.iter().max()) {
        let range = |column: &str| format!("{column} >= {first} AND {column} <= {last}");
        let tables: Vec<String> = transaction.store().recipes(embeddings::SCHEMA).map(embedding_table).collect();
        for table in &tables {
            transaction.delete(table, &range(embeddings::CELL_ID)).await?;
        }
        unmark(&mut transaction, &range(cells::DUPLICATE_OF), &of_dataset).await?;
    }
    let mut catalogue = transaction.store().genes().await?;
    catalogue
        .set_source_names(gene_names(transaction.store(), &format!("{} <> {dataset_id}", datasets::DATASET_ID)).await?);
    transaction.replace(genes::TABLE, catalogue.to_batch()?).await?;
    let store = transaction.publish().await?;
    Ok((store, RemoveReport { dataset_id, name, cells: cells_removed }))
}

async fn find(store: &Store, wanted: &str) -> Result<(u32, String)> {
    let mut all = Vec::new();
    for batch in store.read(datasets::TABLE, &[datasets::DATASET_ID, datasets::NAME], None).await? {
        let ids = batch.column(0).as_primitive::<UInt32Type>().values().iter().copied();
        let names = batch.column(1).as_string::<i32>().iter().map(|n| n.unwrap_or_default().to_owned());
        all.extend(ids.zip(names));
    }
    let found: Vec<&(u32, String)> = match wanted.parse::<u32>() {
        Ok(id) => all.iter().filter(|(i, _)| *i == id).collect(),
        Err(_) => all.iter().filter(|(_, n)| n == wanted).collect(),
    };
    match found[..] {
        [only] => Ok(only.clone()),
        [] => {
            let near = did_you_mean(wanted, all.iter().map(|(_, n)| n.as_str()));
            Err(Error::Request(format!("{} has no data set '{wanted}'.{near} {}", store.uri(), existing(&all))))
        }
        _ => {
            let ids: Vec<String> = found.iter().map(|(id, _)| id.to_string()).collect();
            Err(Error::Request(format!("'{wanted}' names {} data sets; use an id: {}", ids.len(), ids.join(", "))))
        }
    }
}

/// The ids and names of the first data sets, for a message.
fn existing(all: &[(u32, String)]) -> String {
    const SHOWN: usize = 5;
    if all.is_empty() {
        return "The store has none.".into();
    }
    let shown: Vec<String> = all.iter().take(SHOWN).map(|(id, name)| format!("{id} '{name}'")).collect();
    let more = if all.len() > SHOWN { ", …" } else { "" };
    format!("Its data sets: {}{more}", shown.join(", "))
}

async fn ids(store: &Store, filter: &str) -> Result<Vec<u64>> {
    let batches = store.read(cells::TABLE, &[cells::CELL_ID], Some(filter)).await?;
    Ok(batches.iter().flat_map(|b| b.column(0).as_primitive::<UInt64Type>().values().to_vec()).collect())
}

/// Gene ids with the names that the remaining data sets use for them.
async fn gene_names(store: &Store, filter: &str) -> Result<Vec<(u32, String)>> {
    let columns = [datasets::MEASURED_GENES, datasets::MEASURED_NAMES];
    let mut all = Vec::new();
    for batch in store.read(datasets::TABLE, &columns, Some(filter)).await? {
        for i in 0..batch.num_rows() {
            let (genes, names) = (batch.column(0).as_list::<i32>().value(i), batch.column(1).as_list::<i32>().value(i));
            let genes = genes.as_primitive::<UInt32Type>().values().iter().copied();
            all.extend(genes.zip(names.as_string::<i32>().iter().map(|n| n.unwrap_or_default().to_owned())));
        }
    }
    Ok(all)
}

/// Unmarks cells that were marked as duplicates of removed cells. Of those with equal content, all but the first are
/// marked as its duplicates.
async fn unmark(transaction: &mut Transaction, pointing: &str, of_dataset: &str) -> Result<()> {
    let filter = format!("{pointing} AND NOT ({of_dataset})");
    let columns = [cells::CELL_ID, cells::CONTENT_HASH];
    let mut groups: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for batch in transaction.store().read(cells::TABLE, &columns, Some(&filter)).await? {
        let ids = batch.column(0).as_primitive::<UInt64Type>();
        for (id, hash) in ids.values().iter().zip(batch.column(1).as_string::<i32>()) {
            groups.entry(hash.unwrap_or_default().to_owned()).or_default().push(*id);
        }
    }
    if groups.is_empty() {
        return Ok(());
    }
    transaction.update(cells::TABLE, pointing, cells::DUPLICATE_OF, "NULL").await?;
    for ids in groups.values_mut().filter(|ids| ids.len() > 1) {
        ids.sort_unstable();
        let others: Vec<String> = ids[1..].iter().map(u64::to_string).collect();
        let these = format!("{} IN ({})", cells::CELL_ID, others.join(", "));
        transaction.update(cells::TABLE, &these, cells::DUPLICATE_OF, &ids[0].to_string()).await?;
    }
    Ok(())
}
