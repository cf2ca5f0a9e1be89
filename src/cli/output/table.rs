//! Results as people read them: a table, or a block of lines per row. Long lists are shortened.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches;

use super::{fail, map_nested};
use crate::error::Result;

/// Numbers of a list that a table shows.
const SHOWN: usize = 3;

/// A frame of columns with names above.
pub(super) fn framed(mut out: impl Write, schema: &SchemaRef, batches: Vec<RecordBatch>) -> Result<()> {
    let batches = match batches.is_empty() {
        true => vec![RecordBatch::new_empty(Arc::clone(schema))],
        false => batches,
    };
    let short = batches.iter().map(|b| map_nested(b, preview)).collect::<Result<Vec<_>>>()?;
    let text = pretty_format_batches(&short).map_err(fail)?;
    writeln!(out, "{text}").map_err(fail)
}

/// A block per row, a line per column: for rows that are wider than the screen.
pub(super) fn expanded(mut out: impl Write, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<()> {
    let width = schema.fields().iter().map(|f| f.name().chars().count()).max().unwrap_or(0);
    let mut number = 0;
    for batch in batches {
        let short = map_nested(batch, preview)?;
        let options = FormatOptions::default();
        let columns = short.columns().iter().map(|c| ArrayFormatter::try_new(c, &options));
        let columns = columns.collect::<Result<Vec<_>, _>>().map_err(fail)?;
        for row in 0..short.num_rows() {
            number += 1;
            writeln!(out, "-[ row {number} ]-").map_err(fail)?;
            for (field, column) in schema.fields().iter().zip(&columns) {
                let value = column.value(row).to_string();
                let value = value.replace('\n', &format!("\n{} | ", " ".repeat(width)));
                writeln!(out, "{:width$} | {value}", field.name()).map_err(fail)?;
            }
        }
    }
    Ok(())
}

/// Rows of a nested column, cut short: `[0.1, 0.2, 0.3, … 512 values]`.
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
        parts.push(format!("… {} values", list.len()));
    }
    Ok(format!("[{}]", parts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::super::tests::vectors;
    use super::*;
    use arrow::array::Int32Array;

    #[test]
    fn a_table_shows_the_first_numbers_and_how_many_there_are() {
        let mut out = Vec::new();
        framed(&mut out, &vectors().schema(), vec![vectors()]).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("[0.5, 1.0, 1.5, … 4 values]"));
    }

    #[test]
    fn expanded_rows_have_a_line_per_column() {
        let (a, text): (ArrayRef, ArrayRef) =
            (Arc::new(Int32Array::from(vec![1, 2])), Arc::new(StringArray::from(vec![Some("x\ny"), None])));
        let batch = RecordBatch::try_from_iter([("a", a), ("text", text)]).unwrap();
        let mut out = Vec::new();
        expanded(&mut out, &batch.schema(), std::slice::from_ref(&batch)).unwrap();
        let expected = "-[ row 1 ]-\na    | 1\ntext | x\n     | y\n-[ row 2 ]-\na    | 2\ntext | \n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
