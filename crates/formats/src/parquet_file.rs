//! Parquet files as tables, in memory that the file cannot choose.
//!
//! A few bytes of Parquet can stand for a column of any size: levels and dictionary indices are run-length encoded. So
//! lists are counted before they are unpacked ([`ListPages`]), text is read as views into the pages and its length is
//! checked before it is copied, and columns that nobody asked for are not read.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Fields, SchemaRef};
use arrow::record_batch::RecordBatch;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, RowGroups};
use parquet::arrow::{FieldLevels, ProjectionMask, parquet_to_arrow_field_levels};
use parquet::basic::Encoding;
use parquet::column::page::{Page, PageIterator, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::error::{FormatError, Result};
use crate::table::{Batches, TableReader};

/// Rows in a batch. It is small because the expression of a cell has thousands of values.
const BATCH_ROWS: usize = 1024;
/// Longest text in a field, in bytes.
const LONGEST_TEXT: u32 = 1 << 16;

/// A Parquet file.
pub(crate) struct Parquet {
    path: PathBuf,
    metadata: ArrowReaderMetadata,
}

impl Parquet {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let wrong = |e: String| FormatError::new(path, "file", e);
        let file = File::open(path).map_err(|e| wrong(format!("cannot be opened: {e}")))?;
        let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())
            .map_err(|e| wrong(format!("is not a readable Parquet file, perhaps cut short: {e}")))?;
        Ok(Self { path: path.to_owned(), metadata })
    }

    /// The named columns, text as views.
    fn field_levels(&self, columns: &[&str]) -> ParquetResult<FieldLevels> {
        let descriptor = self.metadata.metadata().file_metadata().schema_descr();
        let roots = self.metadata.schema().fields().iter().enumerate();
        let wanted = roots.filter(|(_, field)| columns.contains(&field.name().as_str())).map(|(i, _)| i);
        let mask = ProjectionMask::roots(descriptor, wanted);
        let fields: Fields = self.metadata.schema().fields().iter().map(viewed).collect();
        parquet_to_arrow_field_levels(descriptor, mask, Some(&fields))
    }
}

/// A text field as one of views, any other as it is.
fn viewed(field: &Arc<Field>) -> Arc<Field> {
    match field.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8View)),
        _ => Arc::clone(field),
    }
}

impl TableReader for Parquet {
    fn schema(&self) -> SchemaRef {
        self.metadata.schema().clone()
    }

    fn rows(&self) -> Option<u64> {
        u64::try_from(self.metadata.metadata().file_metadata().num_rows()).ok()
    }

    fn batches(&self, columns: &[&str], most_values: usize) -> Result<Batches, String> {
        let file = File::open(&self.path).map_err(|e| format!("cannot be opened: {e}"))?;
        let reader = SerializedFileReader::new(file).map_err(|e| e.to_string())?;
        let levels = self.field_levels(columns).map_err(|e| e.to_string())?;
        let pages = ListPages { reader: Arc::new(reader), most_values: most_values.max(1) };
        let rows = self.rows().unwrap_or_default();
        let batch_rows = BATCH_ROWS.min(usize::try_from(rows).unwrap_or(BATCH_ROWS)).max(1);
        let batches = ParquetRecordBatchReader::try_new_with_row_groups(&levels, &pages, batch_rows, None);
        let batches = batches.map_err(|e| e.to_string())?;
        Ok(Box::new(batches.map(|batch| {
            let batch = batch.map_err(|e| format!("cannot be read: {e}"))?;
            check_text(&batch).map(|()| batch)
        })))
    }
}

/// Refuses text of a length that no name or label has: it would be copied for each row.
fn check_text(batch: &RecordBatch) -> Result<(), String> {
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        // The length of a view is its lower half.
        let longest = match column.as_string_view_opt() {
            Some(text) => text.views().iter().map(|view| *view as u32).max().unwrap_or_default(),
            None => 0,
        };
        if longest > LONGEST_TEXT {
            let name = field.name();
            return Err(format!("column {name} has a text of {longest} bytes; at most {LONGEST_TEXT} are read"));
        }
    }
    Ok(())
}

/// The pages of a file, with lists of at most `most_values` entries in a row.
struct ListPages {
    reader: Arc<dyn FileReader>,
    most_values: usize,
}

impl RowGroups for ListPages {
    fn num_rows(&self) -> usize {
        self.reader.num_rows()
    }

    fn column_chunks(&self, column: usize) -> ParquetResult<Box<dyn PageIterator>> {
        let all = self.reader.column_chunks(column)?;
        let descriptor = self.metadata().file_metadata().schema_descr().column(column);
        match descriptor.max_rep_level() {
            0 => Ok(all),
            1 => Ok(Box::new(ListPageIterator {
                chunks: all,
                column: descriptor.path().string(),
                most: self.most_values,
            })),
            _ => Err(ParquetError::General(format!("column {} holds lists in lists", descriptor.path().string()))),
        }
    }

    fn row_groups(&self) -> Box<dyn Iterator<Item = &RowGroupMetaData> + '_> {
        self.reader.row_groups()
    }

    fn metadata(&self) -> &ParquetMetaData {
        FileReader::metadata(self.reader.as_ref())
    }
}

/// Column chunks of lists.
struct ListPageIterator {
    chunks: Box<dyn PageIterator>,
    column: String,
    most: usize,
}

impl Iterator for ListPageIterator {
    type Item = ParquetResult<Box<dyn PageReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        let chunk = self.chunks.next()?;
        let counted = |pages| -> Box<dyn PageReader> {
            Box::new(ListPageReader { pages, column: self.column.clone(), lists: ListLengths::new(self.most) })
        };
        Some(chunk.map(counted))
    }
}

impl PageIterator for ListPageIterator {}

/// Pages of lists, each counted before it is given away.
struct ListPageReader {
    pages: Box<dyn PageReader>,
    column: String,
    lists: ListLengths,
}

impl ListPageReader {
    fn check(&mut self, page: &Page) -> ParquetResult<()> {
        let checked = match page {
            Page::DictionaryPage { .. } => Ok(()),
            Page::DataPage { buf, num_values, rep_level_encoding: Encoding::RLE, .. } => {
                length_prefixed(buf).and_then(|levels| self.lists.add(levels, *num_values))
            }
            Page::DataPage { .. } => Err("its repetition levels have a deprecated encoding".to_owned()),
            Page::DataPageV2 { buf, num_values, rep_levels_byte_len, .. } => buf
                .get(..*rep_levels_byte_len as usize)
                .ok_or_else(cut_short)
                .and_then(|levels| self.lists.add(levels, *num_values)),
        };
        checked.map_err(|problem| ParquetError::General(format!("column {}: {problem}", self.column)))
    }
}

impl PageReader for ListPageReader {
    fn get_next_page(&mut self) -> ParquetResult<Option<Page>> {
        let page = self.pages.get_next_page()?;
        page.iter().try_for_each(|page| self.check(page))?;
        Ok(page)
    }

    fn peek_next_page(&mut self) -> ParquetResult<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> ParquetResult<()> {
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> ParquetResult<bool> {
        self.pages.at_record_boundary()
    }
}

impl Iterator for ListPageReader {
    type Item = ParquetResult<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

fn cut_short() -> String {
    "its repetition levels are cut short".into()
}

/// Levels behind their length in four bytes.
fn length_prefixed(page: &[u8]) -> Result<&[u8], String> {
    let (length, rest) = page.split_first_chunk::<4>().ok_or_else(cut_short)?;
    rest.get(..u32::from_le_bytes(*length) as usize).ok_or_else(cut_short)
}

/// Lengths of lists, from repetition levels of 0 (a row begins) and 1 (its list goes on). Runs are not unpacked.
struct ListLengths {
    /// Entries of the list that the last level belongs to.
    entries: u64,
    most: u64,
}

impl ListLengths {
    fn new(most: usize) -> Self {
        Self { entries: 0, most: most as u64 }
    }

    /// Counts the levels of a page: runs and groups of eight bits, each behind a varint
    /// (<https://parquet.apache.org/docs/file-format/data-pages/encodings/>).
    fn add(&mut self, mut levels: &[u8], count: u32) -> Result<(), String> {
        let mut left = u64::from(count);
        while left > 0 {
            let header = varint(&mut levels)?;
            if header >> 1 == 0 {
                return Err("a run of its repetition levels is empty".into());
            }
            if header & 1 == 0 {
                let run = (header >> 1).min(left);
                match *levels.split_off_first().ok_or_else(cut_short)? & 1 {
                    0 => self.entries = 1,
                    _ => self.go_on(run)?,
                }
                left -= run;
                continue;
            }
            for _ in 0..header >> 1 {
                let Some(bits) = levels.split_off_first() else { return Err(cut_short()) };
                for bit in 0..left.min(8) {
                    match bits >> bit & 1 {
                        0 => self.entries = 1,
                        _ => self.go_on(1)?,
                    }
                }
                left -= left.min(8);
                if left == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    fn go_on(&mut self, entries: u64) -> Result<(), String> {
        self.entries = self.entries.saturating_add(entries);
        match self.entries > self.most {
            true => Err(format!("a cell has {} values or more, but the file lists {} genes", self.entries, self.most)),
            false => Ok(()),
        }
    }
}

/// A number in base 128, lowest digit first.
fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut number = 0u64;
    for digit in 0..9 {
        let byte = *bytes.split_off_first().ok_or_else(cut_short)?;
        number |= u64::from(byte & 0x7f) << (7 * digit);
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err("a length among its repetition levels is too large".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_counted_without_unpacking_runs() {
        // A row, then a run of 2^40 entries of it.
        let mut run = vec![2, 0];
        run.extend([0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 1]);
        let problem = ListLengths::new(1000).add(&run, u32::MAX).unwrap_err();
        assert!(problem.contains("4294967295 values or more, but the file lists 1000 genes"), "{problem}");
        // Bits: rows of 1, 3 and 4 entries, the last going on in the next page.
        let mut lists = ListLengths::new(6);
        lists.add(&[3, 0b1110_1100], 8).unwrap();
        assert_eq!(lists.entries, 4);
        lists.add(&[4, 1], 2).unwrap();
        assert_eq!(lists.entries, 6);
        assert!(lists.add(&[2, 1], 1).is_err());
    }

    #[test]
    fn damaged_levels_are_refused() {
        for damaged in [&[][..], &[2], &[0, 0], &[1], &[3], &[0xff; 12]] {
            assert!(ListLengths::new(10).add(damaged, 5).is_err(), "{damaged:?}");
        }
        ListLengths::new(10).add(&[], 0).unwrap();
        assert!(length_prefixed(&[9, 0, 0, 0, 1]).is_err() && length_prefixed(&[1]).is_err());
    }
}
