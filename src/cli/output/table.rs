//! Results as text for people: a table, or a block of lines per row. Long lists are shortened, control characters
//! escaped.

use std::borrow::Cow;
use std::io::Write;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use comfy_table::{ContentArrangement, Table};

use super::{fail, map_nested};
use crate::error::Result;

/// Number of values of a list that are shown.
const SHOWN: usize = 3;
/// A column of a table is not made narrower than this, in characters, or than its longest text.
const NARROWEST: usize = 12;
/// Characters of the frame, in the order of comfy-table.
const FRAME: &str = "||--+-++|    ++++++";

/// Stands for a space at the start of a line until the table is laid out: a character for private use.
const INDENT: char = '\u{e000}';

/// A result as text.
pub(super) struct Text {
    names: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Text {
    /// The text of all values of batches of a schema.
    ///
    /// # Errors
    /// A value has no text form.
    pub(super) fn of(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Self> {
        let names = schema.fields().iter().map(|field| printable(field.name()).into_owned()).collect();
        let options = FormatOptions::default();
        let mut rows = Vec::new();
        for batch in batches {
            let short = map_nested(batch, preview)?;
            let columns = short.columns().iter().map(|column| ArrayFormatter::try_new(column, &options));
            let columns = columns.collect::<Result<Vec<_>, _>>().map_err(fail)?;
            for row in 0..short.num_rows() {
                let value = |column: &ArrayFormatter| Ok(printable(&column.value(row).try_to_string()?).into_owned());
                rows.push(columns.iter().map(value).collect::<Result<Vec<_>, _>>().map_err(fail::<ArrowError>)?);
            }
        }
        Ok(Self { names, rows })
    }

    /// True if a table of this width, in characters, has room for all columns.
    pub(super) fn fits(&self, width: u16) -> bool {
        let narrowest = |(i, name): (usize, &String)| {
            let longest = self.rows.iter().map(|row| longest_line(&row[i])).max().unwrap_or(0);
            longest.max(longest_line(name)).min(NARROWEST)
        };
        let columns: usize = self.names.iter().enumerate().map(narrowest).sum();
        columns + 3 * self.names.len() < usize::from(width)
    }

    /// Writes a table with the names of the columns above. Text that is too long is wrapped.
    ///
    /// # Errors
    /// The text cannot be written.
    pub(super) fn write_framed(&self, mut out: impl Write, width: u16) -> std::io::Result<()> {
        let mut table = Table::new();
        table.load_preset(FRAME).set_content_arrangement(ContentArrangement::Dynamic);
        let indented = self.rows.iter().map(|row| row.iter().map(|text| keep_indent(text)));
        table.set_width(width).set_header(&self.names).add_rows(indented);
        writeln!(out, "{}", table.to_string().replace(INDENT, " "))
    }

    /// Writes a block per row with a line per column, for rows that are wider than the screen. Text that is too long is
    /// wrapped.
    ///
    /// # Errors
    /// The text cannot be written.
    pub(super) fn write_expanded(&self, mut out: impl Write, width: u16) -> std::io::Result<()> {
        let indent = self.names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let room = usize::from(width).saturating_sub(indent + 3).max(NARROWEST);
        for (number, row) in self.rows.iter().enumerate() {
            writeln!(out, "-[ row {} ]-", number + 1)?;
            for (name, value) in self.names.iter().zip(row) {
                for (i, line) in wrapped(value, room).enumerate() {
                    writeln!(out, "{:indent$} | {line}", if i == 0 { name } else { "" })?;
                }
            }
        }
        Ok(())
    }
}

/// Text with control characters escaped, which could change the state of a terminal. Line breaks are kept.
fn printable(text: &str) -> Cow<'_, str> {
    let is_bad = |c: char| c.is_control() && c != '\n';
    if !text.contains(is_bad) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_bad(c) { escaped.extend(c.escape_default()) } else { escaped.push(c) }
    }
    Cow::Owned(escaped)
}

/// Text with the spaces that its lines start with replaced: comfy-table drops them from lines that it wraps, and a
/// query plan is a tree by its indentation.
fn keep_indent(text: &str) -> String {
    let keep = |line: &str| {
        let rest = line.trim_start_matches(' ');
        INDENT.to_string().repeat(line.len() - rest.len()) + rest
    };
    text.split('\n').map(keep).collect::<Vec<_>>().join("\n")
}

/// Number of characters of the longest line.
fn longest_line(text: &str) -> usize {
    text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

/// Lines of a text, broken after `room` characters; one empty line for an empty text.
fn wrapped(text: &str, room: usize) -> impl Iterator<Item = String> {
    text.split('\n').flat_map(move |line| {
        let letters: Vec<char> = line.chars().collect();
        let pieces: Vec<String> = letters.chunks(room).map(|piece| piece.iter().collect()).collect();
        if pieces.is_empty() { vec![String::new()] } else { pieces }
    })
}

/// Rows of a nested column as short text: `[0.1, 0.2, 0.3, … 512 values]`.
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
    use std::sync::Arc;

    use super::super::tests::vectors;
    use super::*;
    use arrow::array::Int32Array;

    fn text(batch: &RecordBatch) -> Text {
        Text::of(&batch.schema(), std::slice::from_ref(batch)).unwrap()
    }

    fn strings(columns: &[(&str, &str)]) -> RecordBatch {
        let column = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text])) };
        RecordBatch::try_from_iter(columns.iter().map(|(name, text)| (*name, column(text)))).unwrap()
    }

    fn framed(text: &Text, width: u16) -> String {
        let mut out = Vec::new();
        text.write_framed(&mut out, width).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_table_shows_the_first_values_of_a_list_and_its_length() {
        assert!(framed(&text(&vectors()), 100).contains("[0.5, 1.0, 1.5, … 4 values]"));
    }

    #[test]
    fn a_table_keeps_to_its_width() {
        let long = "a long text ".repeat(20);
        let text = text(&strings(&[("a", &long), ("b", "short")]));
        assert!(text.fits(40));
        let framed = framed(&text, 40);
        assert!(framed.lines().all(|line| line.chars().count() <= 40), "{framed}");
        assert!(framed.contains("| short |"), "{framed}");
    }

    #[test]
    fn a_line_that_is_wrapped_keeps_its_indentation() {
        let plan = format!("Sort\n    Scan: {}", "column, ".repeat(20));
        let framed = framed(&text(&strings(&[("plan", &plan)])), 40);
        assert!(framed.contains("|     Scan: column,"), "{framed}");
    }

    #[test]
    fn many_columns_do_not_fit() {
        let names: Vec<String> = (0..10).map(|i| format!("a_long_name_{i}")).collect();
        let columns: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
        let text = text(&strings(&columns));
        assert!(!text.fits(100) && text.fits(200));
    }

    #[test]
    fn control_characters_are_escaped() {
        let text = text(&strings(&[("a\u{7}", "red \u{1b}[31m\ttab\r")]));
        let framed = framed(&text, 100);
        assert!(framed.contains(r"red \u{1b}[31m\ttab\r") && framed.contains(r"a\u{7}"), "{framed}");
        assert!(!framed.contains(['\u{1b}', '\t', '\r', '\u{7}']));
    }

    #[test]
    fn expanded_rows_have_a_line_per_column() {
        let a: ArrayRef = Arc::new(Int32Array::from(vec![1, 2]));
        let words: ArrayRef = Arc::new(StringArray::from(vec![Some("x\ny"), None]));
        let batch = RecordBatch::try_from_iter([("a", a), ("text", words)]).unwrap();
        let mut out = Vec::new();
        text(&batch).write_expanded(&mut out, 100).unwrap();
        let expected = "-[ row 1 ]-\na    | 1\ntext | x\n     | y\n-[ row 2 ]-\na    | 2\ntext | \n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
