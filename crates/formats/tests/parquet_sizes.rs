//! Parquet files of a few bytes that stand for columns of any size are refused before they are unpacked.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, DictionaryArray, Float32Array, Int32Array, ListArray, StringArray, StructArray};
use arrow::array::{AsArray, UInt32Array};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use arrow::record_batch::RecordBatch;
use cellql_formats::{OpenOptions, open};
use cellql_schemas::expr;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterVersion};

/// Writes an export of two genes with these obs columns, cells of these lengths, and barcodes.
fn export(path: &Path, lengths: &[usize], barcodes: ArrayRef, more: Option<(&str, ArrayRef)>, version: WriterVersion) {
    let total = lengths.iter().sum();
    let DataType::Struct(fields) = expr::data_type() else { panic!("expr is a struct") };
    let parts: [ArrayRef; 2] =
        [Arc::new(UInt32Array::from(vec![1; total])), Arc::new(Float32Array::from(vec![1.0; total]))];
    let list = |(field, values): (&Arc<Field>, ArrayRef)| -> ArrayRef {
        let DataType::List(item) = field.data_type() else { panic!("of lists") };
        Arc::new(ListArray::new(item.clone(), OffsetBuffer::from_lengths(lengths.iter().copied()), values, None))
    };
    let lists = fields.iter().zip(parts).map(list).collect();
    let expr: ArrayRef = Arc::new(StructArray::new(fields.clone(), lists, None));
    let mut columns = vec![("barcode", barcodes), ("expr", expr)];
    columns.extend(more);
    let fields: Vec<Field> =
        columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    let genes = r#"[{"gene_id":0,"symbol":"A"},{"gene_id":1,"symbol":"B"}]"#;
    let metadata = HashMap::from([("cellql.genes".to_owned(), genes.to_owned())]);
    let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
    let batch = RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, column)| column).collect()).unwrap();
    let properties = WriterProperties::builder()
        .set_writer_version(version)
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn barcodes(count: usize) -> ArrayRef {
    Arc::new(StringArray::from_iter_values((0..count).map(|i| format!("cell{i}"))))
}

fn problem(path: &Path) -> String {
    let read = open(path, &OpenOptions::default()).and_then(|mut source| source.next_block());
    read.map(|_| panic!("{} is read", path.display())).unwrap_err().to_string()
}

#[test]
fn a_cell_has_no_more_values_than_there_are_genes() {
    let folder = tempfile::tempdir().unwrap();
    for (name, version) in [("v1", WriterVersion::PARQUET_1_0), ("v2", WriterVersion::PARQUET_2_0)] {
        let path = folder.path().join(format!("{name}.parquet"));
        export(&path, &[1, 3_000_000, 2], barcodes(3), None, version);
        assert!(path.metadata().unwrap().len() < 20_000, "the file is small: {}", path.metadata().unwrap().len());
        let problem = problem(&path);
        assert!(problem.contains("values or more, but the file lists 2 genes"), "{problem}");
        // The same file without the long cell is read.
        export(&path, &[1, 0, 1, 1], barcodes(4), None, version);
        let mut source = open(&path, &OpenOptions::default()).unwrap();
        let block = source.next_block().unwrap().unwrap();
        assert_eq!((block.starts, block.features), (vec![0, 1, 1, 2, 3], vec![1, 1, 1]));
    }
}

#[test]
fn long_text_is_not_copied_for_every_cell() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.parquet");
    let cells = 900;
    let long: ArrayRef = Arc::new(StringArray::from_iter_values((0..cells).map(|_| "x".repeat(100_000))));
    export(&path, &vec![1; cells], long.clone(), None, WriterVersion::PARQUET_1_0);
    assert!(problem(&path).contains("column barcode has a text of 100000 bytes; at most 65536 are read"));
    export(&path, &vec![1; cells], barcodes(cells), Some(("donor", long)), WriterVersion::PARQUET_1_0);
    assert!(problem(&path).contains("column donor has a text of 100000 bytes"));
}

#[test]
fn lists_that_are_no_obs_column_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lists.parquet");
    let item = Arc::new(Field::new("item", DataType::Int32, true));
    let offsets = OffsetBuffer::from_lengths([2_000_000, 0]);
    let lists: ArrayRef = Arc::new(ListArray::new(item, offsets, Arc::new(Int32Array::from(vec![7; 2_000_000])), None));
    export(&path, &[1, 1], barcodes(2), Some(("neighbours", lists)), WriterVersion::PARQUET_1_0);
    let mut source = open(&path, &OpenOptions::default()).unwrap();
    assert_eq!(source.next_block().unwrap().unwrap().barcodes.len(), 2);
    assert!(source.notes().iter().any(|note| note.contains("neighbours")));
}

#[test]
fn dictionaries_stay_dictionaries() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dictionary.parquet");
    let types: DictionaryArray<Int32Type> = ["beta", "alpha", "beta"].into_iter().collect();
    export(&path, &[1, 1, 1], barcodes(3), Some(("cell_type", Arc::new(types))), WriterVersion::PARQUET_1_0);
    let mut source = open(&path, &OpenOptions::default()).unwrap();
    let block = source.next_block().unwrap().unwrap();
    let found = block.obs[0].as_dictionary::<Int32Type>();
    let values = found.values().as_string::<i32>();
    let read: Vec<&str> = found.keys().values().iter().map(|key| values.value(*key as usize)).collect();
    assert_eq!(read, ["beta", "alpha", "beta"]);
}
