//! Results on stdout: a table for people, or data for programs.

mod screen;
mod table;

use std::io::{IsTerminal, Write};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::writer::StreamWriter;
use arrow::json::{ArrayWriter, LineDelimitedWriter};
use arrow::record_batch::RecordBatch;
use clap::ValueEnum;
use datafusion::common::runtime::SpawnedTask;
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use datafusion::parquet::arrow::ArrowWriter;
use futures::StreamExt;
use tokio::sync::mpsc;

use screen::Screen;
pub(super) use screen::height;

use crate::error::{Error, Result};

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people; long vectors are cut short
    Table,
    /// Comma-separated, lists as JSON
    Csv,
    /// A JSON object a line
    Ndjson,
    /// Apache Parquet
    Parquet,
    /// Arrow IPC stream
    Arrow,
}

impl Format {
    /// The word that names it.
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

/// Rows of a table that a terminal shows.
const ROWS: usize = 1000;
/// Batches that a query may be ahead of what is written.
const AHEAD: usize = 2;

fn fail<E: Into<Box<dyn std::error::Error + Send + Sync>>>(error: E) -> Error {
    Error::internal("writing the result")(error)
}

/// How and where results are shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sheet {
    pub(super) format: Format,
    /// A table's rows as blocks of lines.
    pub(super) expanded: bool,
    /// Rows of the terminal that stdout is, if it is one.
    pub(super) height: Option<usize>,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// Rows of the result.
    pub(super) rows: usize,
    /// Of these, rows that a table on a terminal does not show.
    pub(super) left_out: usize,
}

/// Runs a query and writes its result to stdout.
///
/// # Errors
/// The query fails, or stdout cannot be written.
pub(super) async fn write(frame: DataFrame, format: Format) -> Result<()> {
    Sheet { format, expanded: false, height: height() }.write(frame).await.map(drop)
}

impl Sheet {
    /// Runs a query and writes its result to stdout. Dropping the future stops the query.
    ///
    /// # Errors
    /// The query fails, or stdout cannot be written.
    pub(super) async fn write(&self, frame: DataFrame) -> Result<Written> {
        if matches!(self.format, Format::Parquet | Format::Arrow) && is_terminal() {
            let name = self.format.name();
            return Err(Error::Request(format!(
                "{name} is no text for a terminal: send it to a file, as in … > rows.{name}"
            )));
        }
        let schema: SchemaRef = Arc::new(frame.schema().as_arrow().clone());
        let mut rows = Rows::of(frame);
        if schema.fields().is_empty() {
            // SET and the like: nothing to show.
            while rows.next().await?.is_some() {}
            return Ok(Written::default());
        }
        let screen = Screen::new(self.height);
        if self.format == Format::Table {
            return self.table(screen, &schema, &mut rows).await;
        }
        let mut sink = Sink::new(screen, self.format, &schema)?;
        let mut written = Written::default();
        while let Some(batch) = rows.next().await? {
            written.rows += batch.num_rows();
            sink.write(&batch)?;
        }
        sink.finish()?;
        Ok(written)
    }

    async fn table(&self, mut screen: Screen, schema: &SchemaRef, rows: &mut Rows) -> Result<Written> {
        let most = self.height.map_or(usize::MAX, |_| ROWS);
        let (mut shown, mut written) = (Vec::new(), Written::default());
        while let Some(batch) = rows.next().await? {
            let room = most.saturating_sub(written.rows);
            written.rows += batch.num_rows();
            if room > 0 {
                shown.push(batch.slice(0, room.min(batch.num_rows())));
            }
        }
        written.left_out = written.rows.saturating_sub(most);
        match self.expanded {
            true => table::expanded(&mut screen, schema, &shown)?,
            false => table::framed(&mut screen, schema, shown)?,
        }
        screen.finish().map_err(fail)?;
        Ok(written)
    }
}

/// The rows of a running query. It runs in a task of its own, so that a model at work does not keep the writer from
/// hearing Ctrl-C; the task ends with this.
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
                    // Nobody asks any more where this fails.
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

/// True where results go to a terminal.
pub(super) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Writes text for people to stdout.
///
/// # Errors
/// Stdout cannot be written.
pub(super) fn text(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").map_err(Error::internal("writing to stdout"))
}

enum Sink {
    Csv(Box<arrow::csv::Writer<Screen>>),
    Ndjson(Box<LineDelimitedWriter<Screen>>),
    Parquet(Box<ArrowWriter<Screen>>),
    Arrow(Box<StreamWriter<Screen>>),
}

impl Sink {
    fn new(out: Screen, format: Format, schema: &SchemaRef) -> Result<Self> {
        Ok(match format {
            Format::Table | Format::Csv => {
                let mut sink = Sink::Csv(Box::new(arrow::csv::Writer::new(out)));
                // Names of columns, also above no rows.
                sink.write(&RecordBatch::new_empty(Arc::clone(schema)))?;
                sink
            }
            Format::Ndjson => Sink::Ndjson(Box::new(LineDelimitedWriter::new(out))),
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
        let screen = match self {
            Sink::Csv(writer) => writer.into_inner(),
            Sink::Ndjson(mut writer) => {
                writer.finish().map_err(fail)?;
                writer.into_inner()
            }
            Sink::Parquet(writer) => writer.into_inner().map_err(fail)?,
            Sink::Arrow(writer) => writer.into_inner().map_err(fail)?,
        };
        screen.finish().map_err(fail)
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
        let mut writer = ArrayWriter::new(Vec::new());
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
