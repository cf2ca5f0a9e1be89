//! Building an index of the kind that is asked for or fits the memory.

use super::entries::BuiltIndex;
use super::hnsw::HnswOptions;
use super::kind::IndexKind;
use super::{files, ivf, vectors};
use crate::error::{Error, Result};
use cellql_store::progress::OnProgress;
use cellql_store::{Store, embedding_table};

/// Builds an index over the embedding table of a recipe and replaces any index of the same name. Without a `kind`,
/// builds the one that fits the memory ([`IndexKind::fitting`]). `on_progress` gets the number of vectors linked, for
/// HNSW only.
///
/// # Errors
/// The table does not exist or holds no vector, or the index cannot be written.
pub async fn build(
    store: &Store,
    name: &str,
    recipe: &str,
    kind: Option<IndexKind>,
    on_progress: OnProgress,
) -> Result<(Store, BuiltIndex)> {
    let name_of_table = embedding_table(recipe);
    if !store.version().tables.contains_key(&name_of_table) {
        return Err(Error::Request(format!(
            "there is nothing to index: {} has no cell that is embedded with '{recipe}'; add cells with cellql ingest",
            store.uri()
        )));
    }
    let table = store.table(&name_of_table).await?;
    let dim = vectors::dimension(&table, &name_of_table)?;
    let rows = table.count_rows(None).await.map_err(Error::internal(format!("counting {name_of_table}")))?;
    match kind.unwrap_or_else(|| IndexKind::fitting(rows, dim)) {
        IndexKind::Hnsw => files::build(store, name, recipe, HnswOptions::default(), on_progress).await,
        IndexKind::Ivf => ivf::build(store, name, recipe).await,
    }
}
