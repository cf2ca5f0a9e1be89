//! `cellql dataset`, `cellql versions` and `cellql compact`: what becomes of a store over time.

use super::args::DatasetVerb;
use super::output::{self, Format};
use super::talk::Talk;
use crate::error::Result;
use crate::ingest::remove;
use crate::query::Session;
use cellql_store::Store;

const LIST: &str = "SELECT dataset_id, name, cells_kept AS cells, cells_read, cells_duplicate, value_kind, input, matrix, \
                    cardinality(measured_genes) AS genes, source_uri, ingested_at FROM datasets ORDER BY dataset_id";

pub(super) async fn run(verb: DatasetVerb, talk: &Talk) -> Result<()> {
    match verb {
        DatasetVerb::List { store, format } => {
            let session = Session::open(super::open(&store).await?).await?;
            output::write(session.sql(LIST).await?, format).await
        }
        DatasetVerb::Remove { store, dataset } => {
            let store = super::open_to_write(&store, talk).await?;
            let (store, report) = remove(&store, &dataset).await?;
            talk.say(&format!(
                "data set {} '{}' with {} cells is removed; version {} of the store still has it",
                report.dataset_id,
                report.name,
                report.cells,
                store.version().version - 1
            ));
            Ok(())
        }
    }
}

pub(super) async fn versions(uri: &str, format: Format) -> Result<()> {
    let session = Session::open(Store::open(uri).await?).await?;
    output::write(session.versions().await?, format).await
}

pub(super) async fn compact(uri: &str, keep: Option<usize>, talk: &Talk) -> Result<()> {
    let store = super::open_to_write(uri, talk).await?;
    let (_, done) = store.compact(keep).await?;
    let mut text = format!("{uri}: {} data files became {}", done.files_before, done.files_after);
    if done.versions_forgotten > 0 {
        text.push_str(&format!(", {} versions forgotten", done.versions_forgotten));
    }
    if done.bytes_freed > 0 {
        text.push_str(&format!(", {:.1} MB freed", done.bytes_freed as f64 / 1e6));
    }
    talk.say(&text);
    Ok(())
}
