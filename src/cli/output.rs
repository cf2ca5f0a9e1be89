//! Results on stdout: a table for people, or data for programs.

use std::io::{BufWriter, Write};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::writer::StreamWriter;
use arrow::json::{ArrayWriter, LineDelimitedWriter};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches;
use clap::ValueEnum;
use datafusion::dataframe::DataFrame;
use datafusion::parquet::arrow::ArrowWriter;
use futures::StreamExt;

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

/// Numbers of a list that a table shows.
const SHOWN: usize = 3;

fn fail<E: Into<Box<dyn std::error::Error + Send + Sync>>>(error: E) -> Error {
    Error::store("writing the result")(error)
}

/// Runs a query and writes its result to stdout.
///
/// # Errors
/// The query fails, or stdout cannot be written.
pub(super) async fn write(frame: DataFrame, format: Format) -> Result<()> {
    let out = BufWriter::new(std::io::stdout());
    let schema: SchemaRef = Arc::new(frame.schema().as_arrow().clone());
    if format == Format::Table {
        return table(out, &schema, frame.collect().await?);
    }
    let mut sink = Sink::new(out, format, &schema)?;
    let mut stream = frame.execute_stream().await?;
    while let Some(batch) = stream.next().await {
        sink.write(&batch?)?;
    }
    sink.finish()
}

/// Writes text for people to stdout.
///
/// # Errors
/// Stdout cannot be written.
pub(super) fn text(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").map_err(Error::store("writing to stdout"))
}

type Out = BufWriter<std::io::Stdout>;

enum Sink {
    Csv(Box<arrow::csv::Writer<Out>>),
    Ndjson(LineDelimitedWriter<Out>),
    Parquet(Box<ArrowWriter<Out>>),
    Arrow(Box<StreamWriter<Out>>),
}

impl Sink {
    fn new(out: Out, format: Format, schema: &SchemaRef) -> Result<Self> {
        Ok(match format {
            Format::Table | Format::Csv => Sink::Csv(Box::new(arrow::csv::Writer::new(out))),
            Format::Ndjson => Sink::Ndjson(LineDelimitedWriter::new(out)),
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
        match self {
            Sink::Csv(writer) => writer.into_inner().flush().map_err(fail),
            Sink::Ndjson(mut writer) => {
                writer.finish().map_err(fail)?;
                writer.into_inner().flush().map_err(fail)
            }
            Sink::Parquet(writer) => writer.into_inner().map_err(fail)?.flush().map_err(fail),
            Sink::Arrow(writer) => writer.into_inner().map_err(fail)?.flush().map_err(fail),
        }
    }
}

fn table(mut out: impl Write, schema: &SchemaRef, batches: Vec<RecordBatch>) -> Result<()> {
    let batches = match batches.is_empty() {
        true => vec![RecordBatch::new_empty(Arc::clone(schema))],
        false => batches,
    };
    let short = batches.iter().map(|b| map_nested(b, preview)).collect::<Result<Vec<_>>>()?;
    let text = pretty_format_batches(&short).map_err(fail)?;
    writeln!(out, "{text}").map_err(fail)?;
    out.flush().map_err(fail)
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

/// Rows of a nested column, cut short: `[0.1, 0.2, 0.3, … 512]`.
fn preview(column: &ArrayRef) -> Result<StringArray> {
    if let Some(parts) = column.as_struct_opt() {
        let texts = parts.columns().iter().map(preview_or_text).collect::<Result<Vec<_>>>()?;
        let names: Vec<&String> = parts.fields().iter().map(|f| f.name()).collect();
        let row = |i: usize| {
            let inside: Vec<String> = names
                .iter()
                .zip(&texts)
                .map(|(n, t)| format!("{n}: {}", if t.is_null(i) { "" } else { t.value(i) }))
                .collect();
            parts.is_valid(i).then(|| format!("{{{}}}", inside.join(", ")))
        };
        return Ok((0..column.len()).map(row).collect());
    }
    let item = |i: usize| -> Option<ArrayRef> {
        if column.is_null(i) {
            return None;
        }
        match column.data_type() {
            DataType::List(_) => Some(column.as_list::<i32>().value(i)),
            DataType::LargeList(_) => Some(column.as_list::<i64>().value(i)),
            DataType::FixedSizeList(_, _) => Some(column.as_fixed_size_list().value(i)),
            _ => Some(column.slice(i, 1)),
        }
    };
    let row = |i: usize| item(i).map(|list| first_of(&list)).transpose();
    (0..column.len()).map(row).collect()
}

fn preview_or_text(column: &ArrayRef) -> Result<StringArray> {
    if column.data_type().is_nested() {
        return preview(column);
    }
    let cast = arrow::compute::cast(column, &DataType::Utf8).map_err(fail)?;
    Ok(cast.as_string::<i32>().clone())
}

fn first_of(list: &ArrayRef) -> Result<String> {
    let shown = list.slice(0, list.len().min(SHOWN));
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(&shown, &options).map_err(fail)?;
    let mut parts: Vec<String> = (0..shown.len()).map(|i| formatter.value(i).to_string()).collect();
    if list.len() > SHOWN {
        parts.push(format!("… {}", list.len()));
    }
    Ok(format!("[{}]", parts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::Float32Array;
    use cellql_schemas::embeddings::vector_type;

    fn vectors() -> RecordBatch {
        let values: ArrayRef = Arc::new(Float32Array::from(vec![0.5, 1.0, 1.5, 2.0]));
        let DataType::FixedSizeList(item, dim) = vector_type(4) else { panic!() };
        let list: ArrayRef = Arc::new(arrow::array::FixedSizeListArray::new(item, dim, values, None));
        RecordBatch::try_from_iter([("vector", list)]).unwrap()
    }

    #[test]
    fn a_table_shows_the_first_numbers_and_how_many_there_are() {
        let mut out = Vec::new();
        table(&mut out, &vectors().schema(), vec![vectors()]).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("[0.5, 1.0, 1.5, … 4]"));
    }

    #[test]
    fn csv_holds_whole_vectors() {
        let batch = map_nested(&vectors(), json_text).unwrap();
        assert_eq!(batch.column(0).as_string::<i32>().value(0), "[0.5,1.0,1.5,2.0]");
    }
}
