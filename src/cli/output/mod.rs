//! Results on stdout: a table for people, or data for programs.

mod json;
mod stdout;
mod table;

use std::io::{ErrorKind, Write};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::writer::StreamWriter;
use arrow::json::LineDelimitedWriter;
use arrow::json::writer::{JsonArray, LineDelimited};
use arrow::record_batch::RecordBatch;
use clap::{Args, ValueEnum};
use datafusion::common::runtime::SpawnedTask;
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use datafusion::parquet::arrow::ArrowWriter;
use futures::StreamExt;
use tokio::sync::mpsc;

use stdout::Stdout;
pub(super) use stdout::{TerminalSize, is_terminal, terminal_size};

use crate::error::{Error, Result};

/// Format of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Table for people; long lists are shortened
    Table,
    /// Comma-separated values; lists are written as JSON
    Csv,
    /// One JSON object per line; NaN and infinities are strings
    Ndjson,
    /// Apache Parquet file
    Parquet,
    /// Arrow IPC stream
    Arrow,
}

/// The option that chooses the format of a result.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct FormatArgs {
    /// Format of the result
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(super) format: Format,
}

impl Format {
    /// True for a format whose files hold one result: a second one behind it would not be read, or spoil the file.
    pub(super) fn holds_one_result(self) -> bool {
        matches!(self, Format::Parquet | Format::Arrow)
    }

    /// Its name on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Format::Table => "table",
            Format::Csv => "csv",
            Format::Ndjson => "ndjson",
            Format::Parquet => "parquet",
            Format::Arrow => "arrow",
        }
    }
}

/// Maximum number of rows of a table on a terminal.
const MAX_ROWS: usize = 1000;
/// Width of tables in characters where stdout is not a terminal.
pub(super) const TEXT_WIDTH: u16 = 100;
/// Number of batches that a query may be ahead of the writer.
const AHEAD: usize = 2;

fn fail<E: Into<Box<dyn std::error::Error + Send + Sync>>>(error: E) -> Error {
    Error::internal("writing the result")(error)
}

/// How and where results are shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sheet {
    pub(super) format: Format,
    /// Show each row of a table as a block of lines.
    pub(super) expanded: bool,
    /// Size of the terminal that is stdout; `None` if stdout is not a terminal.
    pub(super) terminal: Option<TerminalSize>,
}

/// Number of rows of a result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// All rows.
    pub(super) rows: usize,
    /// Those that a table on a terminal does not show.
    pub(super) left_out: usize,
}

/// Runs a query and writes its result to stdout.
///
/// # Errors
/// The query fails, or stdout cannot be written.
pub(super) async fn write(frame: DataFrame, format: Format) -> Result<()> {
    Sheet { format, expanded: false, terminal: terminal_size() }.write(frame).await.map(drop)
}

impl Sheet {
    /// Runs a query and writes its result to stdout. Dropping the future stops the query.
    ///
    /// # Errors
    /// The query fails, or stdout cannot be written. If its reader has closed stdout, a source of the error is a
    /// [`std::io::Error`] of kind [`ErrorKind::BrokenPipe`].
    pub(super) async fn write(&self, frame: DataFrame) -> Result<Written> {
        if self.format.holds_one_result() && is_terminal() {
            let name = self.format.name();
            return Err(Error::Request(format!(
                "{name} cannot be shown on a terminal: redirect it to a file, as in cellql sql ... > rows.{name}"
            )));
        }
        let schema: SchemaRef = Arc::new(frame.schema().as_arrow().clone());
        let mut rows = Rows::of(frame);
        if schema.fields().is_empty() {
            // Statements such as SET have no result.
            while rows.next().await?.is_some() {}
            return Ok(Written::default());
        }
        let out = Stdout::new(self.terminal.map(|size| size.rows));
        let closed = out.closed();
        let written = match self.format {
            Format::Table => self.table(out, &schema, &mut rows).await,
            _ => self.data(out, &schema, &mut rows).await,
        };
        match written {
            Err(_) if closed.get() => Err(fail(std::io::Error::from(ErrorKind::BrokenPipe))),
            written => written,
        }
    }

    async fn data(&self, out: Stdout, schema: &SchemaRef, rows: &mut Rows) -> Result<Written> {
        let mut sink = Sink::new(out, self.format, schema)?;
        let mut written = Written::default();
        while let Some(batch) = rows.next().await? {
            written.rows += batch.num_rows();
            sink.write(&batch)?;
        }
        sink.finish()?;
        Ok(written)
    }

    async fn table(&self, mut out: Stdout, schema: &SchemaRef, rows: &mut Rows) -> Result<Written> {
        let most = self.terminal.map_or(usize::MAX, |_| MAX_ROWS);
        let mut shown = Vec::new();
        let mut written = Written::default();
        while let Some(batch) = rows.next().await? {
            let room = most.saturating_sub(written.rows);
            written.rows += batch.num_rows();
            if room > 0 {
                shown.push(batch.slice(0, room.min(batch.num_rows())));
            }
        }
        written.left_out = written.rows.saturating_sub(most);
        let width = self.terminal.map_or(TEXT_WIDTH, |size| size.columns);
        let table = table::Text::of(schema, &shown)?;
        if self.expanded || !table.fits(width) {
            table.write_expanded(&mut out, width).map_err(fail)?;
        } else {
            table.write_framed(&mut out, width).map_err(fail)?;
        }
        out.finish().map_err(fail)?;
        Ok(written)
    }
}

/// The rows of a running query. The query runs in a task of its own, so that a busy model does not delay the reaction
/// to Ctrl-C. Dropping this stops the task.
struct Rows {
    batches: mpsc::Receiver<Result<RecordBatch, DataFusionError>>,
    task: Option<SpawnedTask<()>>,
}

impl Rows {
    fn of(frame: DataFrame) -> Self {
        let (send, batches) = mpsc::channel(AHEAD);
        let task = SpawnedTask::spawn(async move {
            let mut stream = match frame.execute_stream().await {
                Ok(stream) => stream,
                Err(error) => {
                    // The receiver is gone if this fails.
                    let _ = send.send(Err(error)).await;
                    return;
                }
            };
            while let Some(batch) = stream.next().await {
                if send.send(batch).await.is_err() {
                    return;
                }
            }
        });
        Self { batches, task: Some(task) }
    }

    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        if let Some(batch) = self.batches.recv().await {
            return Ok(Some(batch?));
        }
        match self.task.take() {
            Some(task) => task.join().await.map(|()| None).map_err(Error::internal("running the query")),
            None => Ok(None),
        }
    }
}

/// Writes text for people to stdout.
///
/// # Errors
/// Stdout cannot be written.
pub(super) fn text(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").map_err(Error::internal("writing to stdout"))
}

enum Sink {
    Csv(Box<arrow::csv::Writer<Stdout>>),
    Ndjson(Box<LineDelimitedWriter<Stdout>>),
    Parquet(Box<ArrowWriter<Stdout>>),
    Arrow(Box<StreamWriter<Stdout>>),
}

impl Sink {
    fn new(out: Stdout, format: Format, schema: &SchemaRef) -> Result<Self> {
        Ok(match format {
            Format::Table | Format::Csv => {
                let mut sink = Sink::Csv(Box::new(arrow::csv::Writer::new(out)));
                // The header is written also for a result without rows.
                sink.write(&RecordBatch::new_empty(Arc::clone(schema)))?;
                sink
            }
            Format::Ndjson => Sink::Ndjson(Box::new(json::writer::<_, LineDelimited>(out))),
            Format::Parquet => {
                Sink::Parquet(Box::new(ArrowWriter::try_new(out, Arc::clone(schema), None).map_err(fail)?))
            }
            Format::Arrow => Sink::Arrow(Box::new(StreamWriter::try_new(out, schema).map_err(fail)?)),
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        match self {
            Sink::Csv(writer) => writer.write(&map_nested(batch, json_text)?).map_err(fail),
            Sink::Ndjson(writer) => writer.write(batch).map_err(fail),
            Sink::Parquet(writer) => writer.write(batch).map_err(fail),
            Sink::Arrow(writer) => writer.write(batch).map_err(fail),
        }
    }

    fn finish(self) -> Result<()> {
        let out = match self {
            Sink::Csv(writer) => writer.into_inner(),
            Sink::Ndjson(mut writer) => {
                writer.finish().map_err(fail)?;
                writer.into_inner()
            }
            Sink::Parquet(writer) => writer.into_inner().map_err(fail)?,
            Sink::Arrow(writer) => writer.into_inner().map_err(fail)?,
        };
        out.finish().map_err(fail)
    }
}

/// Replaces lists and structs by text.
fn map_nested(batch: &RecordBatch, text: fn(&ArrayRef) -> Result<StringArray>) -> Result<RecordBatch> {
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if field.data_type().is_nested() {
            fields.push(Field::new(field.name(), DataType::Utf8, true));
            columns.push(Arc::new(text(column)?));
        } else {
            fields.push(field.as_ref().clone());
            columns.push(Arc::clone(column));
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(fail)
}

/// Rows of a nested column as JSON.
fn json_text(column: &ArrayRef) -> Result<StringArray> {
    let schema = Arc::new(Schema::new(vec![Field::new("v", column.data_type().clone(), true)]));
    let row = |i: usize| -> Result<Option<String>> {
        if column.is_null(i) {
            return Ok(None);
        }
        let one = RecordBatch::try_new(Arc::clone(&schema), vec![column.slice(i, 1)]).map_err(fail)?;
        let mut writer = json::writer::<_, JsonArray>(Vec::new());
        writer.write(&one).map_err(fail)?;
        writer.finish().map_err(fail)?;
        let text = String::from_utf8(writer.into_inner()).map_err(fail)?;
        Ok(text.strip_prefix("[{\"v\":").and_then(|t| t.strip_suffix("}]")).map(str::to_owned))
    };
    (0..column.len()).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{AsArray, Float32Array};
    use cellql_schemas::embeddings::vector_type;

    pub(super) fn vectors() -> RecordBatch {
        let values: ArrayRef = Arc::new(Float32Array::from(vec![0.5, 1.0, 1.5, 2.0]));
        let DataType::FixedSizeList(item, dim) = vector_type(4) else { panic!() };
        let list: ArrayRef = Arc::new(arrow::array::FixedSizeListArray::new(item, dim, values, None));
        RecordBatch::try_from_iter([("vector", list)]).unwrap()
    }

    #[test]
    fn csv_holds_whole_vectors() {
        let batch = map_nested(&vectors(), json_text).unwrap();
        assert_eq!(batch.column(0).as_string::<i32>().value(0), "[0.5,1.0,1.5,2.0]");
    }
}
