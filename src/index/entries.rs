//! The rows of the table `indexes`.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, StringArray, UInt64Array};
use arrow::datatypes::UInt64Type;
use arrow::record_batch::RecordBatch;
use cellql_schemas::indexes as table;
use chrono::Utc;

use super::kind::IndexKind;
use super::metric::Metric;
use crate::error::{Error, Result};
use cellql_store::{Store, Transaction};

/// A row of `indexes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// Name of the index.
    pub name: String,
    /// Recipe of the embedding table whose vectors it holds.
    pub recipe: String,
    /// Version of that table from which the index was built.
    pub table_version: u64,
    /// Kind of the index.
    pub kind: IndexKind,
    /// Number of vectors in it.
    pub n_vectors: u64,
    /// Folder of its files in the store; empty if the index is part of its table.
    pub path: String,
    /// BLAKE3 of its manifest in hexadecimal; empty if the index is part of its table.
    pub checksum: String,
}

/// What a build made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuiltIndex {
    /// Kind of the index.
    pub kind: IndexKind,
    /// Number of vectors in it.
    pub n_vectors: usize,
    /// Dimension of the vectors.
    pub dim: usize,
}

/// Writes a row of `indexes` and removes any row of the same name.
///
/// # Errors
/// The table cannot be written.
pub(super) async fn record(transaction: &mut Transaction, entry: &IndexEntry) -> Result<()> {
    let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from_iter_values([value])) };
    let number = |value: u64| -> ArrayRef { Arc::new(UInt64Array::from(vec![value])) };
    let columns = vec![
        text(&entry.name),
        text(&entry.recipe),
        number(entry.table_version),
        text(entry.kind.name()),
        text(Metric::Cosine.name()),
        number(entry.n_vectors),
        text(&entry.path),
        text(&entry.checksum),
        text(&Utc::now().to_rfc3339()),
    ];
    let row = RecordBatch::try_new(Arc::new(table::schema()), columns);
    let row = row.map_err(Error::internal(format!("recording index {}", entry.name)))?;
    Ok(transaction.replace_row(table::TABLE, table::NAME, row).await?)
}

/// Lists the indexes of a store. Those of a kind that this program does not know are left out.
///
/// # Errors
/// The table cannot be read.
pub async fn list(store: &Store) -> Result<Vec<IndexEntry>> {
    let mut entries = Vec::new();
    for batch in store.read(table::TABLE, &[], None).await? {
        entries.extend(entries_of(&batch).unwrap_or_default());
    }
    Ok(entries)
}

fn entries_of(batch: &RecordBatch) -> Option<Vec<IndexEntry>> {
    let text = |name: &str| batch.column_by_name(name).and_then(|c| c.as_string_opt::<i32>());
    let number = |name: &str| batch.column_by_name(name).and_then(|c| c.as_primitive_opt::<UInt64Type>());
    let (names, recipes, kinds) = (text(table::NAME)?, text(table::RECIPE)?, text(table::KIND)?);
    let (paths, checksums) = (text(table::PATH)?, text(table::SHA256)?);
    let (versions, counts) = (number(table::TABLE_VERSION)?, number(table::N_VECTORS)?);
    let entries = (0..batch.num_rows()).filter_map(|i| {
        Some(IndexEntry {
            name: names.value(i).to_owned(),
            recipe: recipes.value(i).to_owned(),
            table_version: versions.value(i),
            kind: kinds.value(i).parse().ok()?,
            n_vectors: counts.value(i),
            path: paths.value(i).to_owned(),
            checksum: checksums.value(i).to_owned(),
        })
    });
    Some(entries.collect())
}
