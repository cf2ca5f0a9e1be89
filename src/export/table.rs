//! Writes a Parquet file or a Lance table: the rows of `cells` unchanged, with the genes of their ids and the
//! provenance in the metadata of the schema.

use std::collections::HashMap;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use cellql_formats::write::PartialFile;
use cellql_schemas::{cells, exported};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic::{Compression, ZstdLevel};
use datafusion::parquet::file::properties::WriterProperties;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use lance::dataset::{InsertBuilder, WriteParams};
use tokio::task::JoinSet;

use super::Selection;
use crate::error::{Error, Result};
use crate::query::Session;
use cellql_store::progress::OnProgress;

/// Rows of a Parquet row group, which have some tens of megabytes of expression.
const GROUP_ROWS: usize = 8192;

async fn schema(session: &Session, selection: &Selection) -> Result<SchemaRef> {
    let table = selection.store.table(cells::TABLE).await?;
    let genes: Vec<_> = selection.genes.iter().filter_map(|(g, _)| session.engine().genes().exported(*g)).collect();
    let json = |value: serde_json::Result<String>| value.map_err(Error::internal("describing the export"));
    let metadata = HashMap::from([
        (exported::GENES.to_owned(), json(serde_json::to_string(&genes))?),
        (exported::PROVENANCE.to_owned(), json(serde_json::to_string(&selection.provenance))?),
    ]);
    Ok(Arc::new(Schema::from(table.schema()).with_metadata(metadata)))
}

fn described(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    batch.with_schema(Arc::clone(schema)).map_err(Error::internal("describing the export"))
}

/// Writes one Parquet file.
pub(super) async fn parquet(
    session: &Session,
    selection: &Selection,
    path: &Path,
    on_progress: &OnProgress,
) -> Result<()> {
    let doing = || format!("writing {}", path.display());
    let schema = schema(session, selection).await?;
    let partial = PartialFile::new(path)?;
    let file = std::fs::File::create(partial.path())
        .map_err(|e| Error::input(path, "file", format!("cannot be written: {e}")))?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .build();
    let mut writer =
        ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties)).map_err(Error::internal(doing()))?;
    let (mut done, total) = (0, selection.cell_ids.len() as u64);
    let mut batches = pin!(selection.rows(cells::TABLE).await?);
    while let Some(batch) = batches.next().await {
        let batch = described(batch?, &schema)?;
        writer.write(&batch).map_err(Error::internal(doing()))?;
        done += batch.num_rows() as u64;
        on_progress(done, Some(total));
    }
    let file = writer.into_inner().map_err(Error::internal(doing()))?;
    file.sync_all().map_err(Error::internal(doing()))?;
    Ok(partial.finish()?)
}

/// Writes one Lance table.
pub(super) async fn lance(
    session: &Session,
    selection: &Selection,
    path: &Path,
    on_progress: &OnProgress,
) -> Result<()> {
    let doing = || format!("writing {}", path.display());
    let schema = schema(session, selection).await?;
    let partial = PartialFile::new(path)?;
    let (mut done, total) = (0, selection.cell_ids.len() as u64);
    let (send, receive) = tokio::sync::mpsc::channel::<Result<RecordBatch, DataFusionError>>(2);
    let stream = futures::stream::unfold(receive, |mut receive| async { receive.recv().await.map(|b| (b, receive)) });
    let stream: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), stream));
    let uri = partial.path().to_string_lossy().into_owned();
    // Ends with this function, also where that is dropped before its end.
    let mut writing = JoinSet::new();
    writing.spawn(async move {
        let params = WriteParams::default();
        InsertBuilder::new(uri.as_str()).with_params(&params).execute_stream(stream).await
    });
    let mut batches = pin!(selection.rows(cells::TABLE).await?);
    while let Some(batch) = batches.next().await {
        let batch = described(batch?, &schema)?;
        done += batch.num_rows() as u64;
        // A closed channel means that the table could not be written; the writer returns the reason.
        if batch.num_rows() > 0 && send.send(Ok(batch)).await.is_err() {
            break;
        }
        on_progress(done, Some(total));
    }
    drop(send);
    while let Some(written) = writing.join_next().await {
        written.map_err(Error::internal(doing()))?.map_err(Error::internal(doing()))?;
    }
    Ok(partial.finish()?)
}
