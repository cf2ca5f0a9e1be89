//! `cellql info`.

use cellql_store::sql::quote_literal;

use super::args::ReadArgs;
use super::output::{self, Format};
use crate::error::Result;
use crate::query::Session;

/// One row per thing a person asks about a store, itself made with SQL.
const DATASETS: &str = "SELECT dataset_id, name, cells_kept, cells_read, value_kind, \
                        cardinality(measured_genes) AS genes, ingested_at FROM datasets ORDER BY dataset_id";

pub(super) async fn run(args: &ReadArgs) -> Result<()> {
    let store = super::open(args).await?;
    let session = Session::open(store.clone()).await?;
    let (cells, genes) = (session.count("cells").await?, session.measured_genes().await?);
    let summary = format!(
        "SELECT {} AS store, {} AS version, {cells} AS cells, {genes} AS genes_measured",
        quote_literal(store.uri()),
        store.version().version
    );
    output::write(session.sql(&summary).await?, Format::Table).await?;
    output::write(session.sql(DATASETS).await?, Format::Table).await?;
    for table in ["models", "indexes"] {
        if session.count(table).await? > 0 {
            output::write(session.sql(&format!("SELECT * FROM {table}")).await?, Format::Table).await?;
        }
    }
    Ok(())
}
