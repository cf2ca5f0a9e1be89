//! `cellql dataset`.

use clap::Subcommand;

use super::console::Console;
use super::output::{self, Format, FormatArgs};
use super::shared_args::{ReadArgs, open_to_write};
use crate::error::Result;
use crate::ingest::remove;
use crate::query::Session;

#[derive(Debug, Subcommand)]
pub(super) enum DatasetVerb {
    /// List the data sets of a store
    List {
        #[command(flatten)]
        store: ReadArgs,
        #[command(flatten)]
        output: FormatArgs,
    },
    /// Remove a data set with its cells and their embeddings
    Remove {
        /// Store: a directory
        store: String,
        /// Name or id of the data set
        dataset: String,
    },
}

/// What a person asks about data sets. Other formats than the table have all columns but the long reports.
pub(super) const SUMMARY: &str = "SELECT dataset_id AS id, name, cells_kept AS cells, cells_read AS read, \
                                  cardinality(measured_genes) AS genes, input, source_uri AS source, \
                                  substr(ingested_at, 1, 10) AS ingested FROM datasets \
                                  ORDER BY dataset_id";
const FULL: &str = "SELECT dataset_id, name, cells_kept AS cells, cells_read, cells_duplicate, value_kind, input, \
                    matrix, cardinality(measured_genes) AS genes, source_uri, ingested_at \
                    FROM datasets ORDER BY dataset_id";

pub(super) async fn run(verb: DatasetVerb, console: &Console) -> Result<()> {
    match verb {
        DatasetVerb::List { store, output: FormatArgs { format } } => {
            let session = Session::open(store.open().await?).await?;
            let query = if format == Format::Table { SUMMARY } else { FULL };
            output::write(session.sql(query).await?, format).await
        }
        DatasetVerb::Remove { store, dataset } => {
            let store = open_to_write(&store, console).await?;
            let (store, report) = remove(&store, &dataset).await?;
            console.say(&format!(
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
