//! From blocks of a file to rows of `cells`: values checked, genes mapped, poor cells dropped and counted.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, StringArray, UInt32Array, UInt64Array};
use arrow::compute::{cast, filter};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use cellql_schemas::cells::{self as table, ValueKind};
use cellql_schemas::expr::ProfileBuilder;

use super::block::Block;
use super::{Dropped, ObsFields};
use crate::error::{Error, Result};

/// What a cell must be to be kept, and what its values are taken for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quality {
    pub(super) min_genes: u32,
    pub(super) kind: ValueKind,
}

/// An obs column of the file and what it is in the table.
#[derive(Debug, Clone)]
pub(super) struct ObsColumn {
    target: Field,
}

/// Names and types under which a file's obs columns enter the table: their own, except where that name is one of
/// ours (`n_genes` becomes `obs_n_genes`) or the table has it with a type these values do not fit (`age` as text
/// beside numbers becomes `age_text`).
pub(super) fn obs_columns(source: ObsFields, existing: &Schema) -> Vec<ObsColumn> {
    let mut taken: Vec<String> = Vec::new();
    source
        .into_iter()
        .map(|field| {
            let mut name = field.name().replace(['.', '`', '"'], "_");
            if name.is_empty() || table::is_reserved(&name) || name.starts_with('_') {
                name = format!("obs_{name}");
            }
            let of = field.data_type();
            let clashes = |n: &str| existing.field_with_name(n).is_ok_and(|there| !fits(of, there.data_type()));
            if clashes(&name) {
                name = format!("{name}_{}", suffix(of));
            }
            while clashes(&name) || taken.contains(&name) {
                name.push('_');
            }
            let target = existing.field_with_name(&name).map_or(of, |there| there.data_type()).clone();
            taken.push(name.clone());
            ObsColumn { target: Field::new(name, target, true) }
        })
        .collect()
}

fn fits(from: &DataType, to: &DataType) -> bool {
    from == to || *to == DataType::Utf8 || (*from == DataType::Int64 && *to == DataType::Float64)
}

fn suffix(of: &DataType) -> &'static str {
    match of {
        DataType::Utf8 => "text",
        DataType::Boolean => "flag",
        _ => "number",
    }
}

/// Builds the rows of one data set.
#[derive(Debug)]
pub(super) struct Cells {
    dataset_id: u32,
    next_cell_id: u64,
    first_cell_id: u64,
    gene_ids: Vec<u32>,
    obs: Vec<ObsColumn>,
    quality: Quality,
    schema: SchemaRef,
    read: u64,
    few_genes: u64,
    sorted: Vec<(u32, f32)>,
}

impl Cells {
    pub(super) fn new(
        dataset_id: u32,
        first_cell_id: u64,
        gene_ids: Vec<u32>,
        obs: Vec<ObsColumn>,
        quality: Quality,
    ) -> Self {
        let fields: Vec<Field> = obs.iter().map(|o| o.target.clone()).collect();
        Self {
            dataset_id,
            next_cell_id: first_cell_id,
            first_cell_id,
            gene_ids,
            obs,
            quality,
            schema: Arc::new(table::schema_with_obs(&fields)),
            read: 0,
            few_genes: 0,
            sorted: Vec::new(),
        }
    }

    pub(super) fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    pub(super) fn read(&self) -> u64 {
        self.read
    }

    pub(super) fn kept(&self) -> u64 {
        self.next_cell_id - self.first_cell_id
    }

    pub(super) fn next_cell_id(&self) -> u64 {
        self.next_cell_id
    }

    pub(super) fn dropped(&self) -> Dropped {
        let reason = format!("{} genes or fewer", self.quality.min_genes);
        Dropped::from_iter((self.few_genes > 0).then_some((reason, self.few_genes)))
    }

    pub(super) fn obs_names(&self) -> Vec<String> {
        self.obs.iter().map(|o| o.target.name().clone()).collect()
    }

    /// Rows for the cells of a block that are kept; `None` where a value shows that the file holds no counts.
    ///
    /// # Errors
    /// A value that no expression can have, with its cell and feature.
    pub(super) fn batch(&mut self, file: &Path, block: &Block) -> Result<Option<RecordBatch>> {
        let mut profiles = ProfileBuilder::default();
        let (mut keep, mut totals, mut n_genes, mut hashes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut gene_ids, mut values) = (Vec::new(), Vec::new());
        for i in 0..block.barcodes.len() {
            if !self.sort_cell(file, block, i)? {
                return Ok(None);
            }
            let kept = self.sorted.len() > self.quality.min_genes as usize;
            keep.push(kept);
            if !kept {
                self.few_genes += 1;
                continue;
            }
            (gene_ids, values) = unzip_into(&self.sorted, gene_ids, values);
            totals.push(values.iter().map(|&v| f64::from(v)).sum::<f64>());
            n_genes.push(values.len() as u32);
            hashes.push(content_hash(&self.sorted));
            profiles.push(&gene_ids, &values);
        }
        self.read += block.barcodes.len() as u64;
        let count = totals.len();
        let first = self.next_cell_id;
        self.next_cell_id += count as u64;
        let keep = BooleanArray::from(keep);
        let barcodes = StringArray::from_iter_values(&block.barcodes);
        let same =
            |text: &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(std::iter::repeat_n(text, count))) };
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from_iter_values(first..self.next_cell_id)),
            Arc::new(UInt32Array::from(vec![self.dataset_id; count])),
            self.filtered(file, &barcodes, &keep)?,
            Arc::new(profiles.finish()),
            Arc::new(Float64Array::from(totals)),
            Arc::new(UInt32Array::from(n_genes)),
            same(self.quality.kind.name()),
            Arc::new(StringArray::from(hashes)),
        ];
        for (column, given) in self.obs.iter().zip(&block.obs) {
            let given = self.filtered(file, given, &keep)?;
            let fitted = cast(&given, column.target.data_type())
                .map_err(|e| Error::input(file, format!("obs/{}", column.target.name()), e))?;
            columns.push(fitted);
        }
        let batch = RecordBatch::try_new(self.schema(), columns).map_err(|e| Error::input(file, "cells", e))?;
        Ok(Some(batch))
    }

    fn filtered(&self, file: &Path, column: &dyn Array, keep: &BooleanArray) -> Result<ArrayRef> {
        filter(column, keep).map_err(|e| Error::input(file, "obs", e))
    }

    /// Fills `sorted` with the cell's non-zero values by gene id; false where a value is no count but should be.
    fn sort_cell(&mut self, file: &Path, block: &Block, i: usize) -> Result<bool> {
        let (features, values) = block.cell(i);
        let wrong = |feature: u32, what: String| {
            let object = format!("matrix, cell '{}', feature number {}", block.barcodes[i], feature + 1);
            Err(Error::input(file, object, what))
        };
        self.sorted.clear();
        for (&feature, &value) in features.iter().zip(values) {
            if !value.is_finite() {
                return wrong(feature, format!("the value is {value}; expression must be a finite number"));
            }
            if value < 0.0 {
                return wrong(
                    feature,
                    format!("the value {value} is negative; scaled or centred data cannot be stored, give raw counts"),
                );
            }
            if value == 0.0 {
                continue;
            }
            let stored = value as f32;
            if !stored.is_finite() {
                return wrong(feature, format!("the value {value} is too large to be stored"));
            }
            if stored == 0.0 {
                // Smoothed matrices hold values below what f32 can tell from zero; zeros are absent.
                continue;
            }
            if self.quality.kind == ValueKind::Counts {
                if value.fract() != 0.0 {
                    return Ok(false);
                }
                if f64::from(stored) != value {
                    return wrong(feature, format!("the count {value} is too large to be stored exactly"));
                }
            }
            let Some(&gene) = self.gene_ids.get(feature as usize) else {
                return wrong(feature, format!("the file names only {} features", self.gene_ids.len()));
            };
            self.sorted.push((gene, stored));
        }
        self.sorted.sort_unstable_by_key(|(gene, _)| *gene);
        if let Some(twice) = self.sorted.windows(2).find(|w| w[0].0 == w[1].0) {
            let feature = self.gene_ids.iter().position(|g| *g == twice[0].0).unwrap_or_default();
            return wrong(feature as u32, "has two values in one cell".to_owned());
        }
        Ok(true)
    }
}

fn unzip_into(pairs: &[(u32, f32)], mut genes: Vec<u32>, mut values: Vec<f32>) -> (Vec<u32>, Vec<f32>) {
    genes.clear();
    values.clear();
    genes.extend(pairs.iter().map(|(g, _)| g));
    values.extend(pairs.iter().map(|(_, v)| v));
    (genes, values)
}

/// First 128 bits of BLAKE3 over gene ids and values, as hex.
fn content_hash(sorted: &[(u32, f32)]) -> String {
    let mut hash = blake3::Hasher::new();
    for (gene, value) in sorted {
        hash.update(&gene.to_le_bytes());
        hash.update(&value.to_le_bytes());
    }
    hash.finalize().to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, data_type: DataType) -> Field {
        Field::new(name, data_type, true)
    }

    #[test]
    fn obs_columns_never_take_our_names_nor_break_an_existing_type() {
        let existing = table::schema_with_obs(&[column("age", DataType::Int64), column("note", DataType::Utf8)]);
        let source = vec![
            column("n_genes", DataType::Int64),
            column("age", DataType::Utf8),
            column("note", DataType::Float64),
            column("a.b", DataType::Utf8),
            column("a_b", DataType::Utf8),
        ];
        let names: Vec<(String, DataType)> = obs_columns(source, &existing)
            .into_iter()
            .map(|c| (c.target.name().clone(), c.target.data_type().clone()))
            .collect();
        let expected = [
            ("obs_n_genes", DataType::Int64),
            ("age_text", DataType::Utf8),
            ("note", DataType::Utf8),
            ("a_b", DataType::Utf8),
            ("a_b_", DataType::Utf8),
        ];
        assert_eq!(names, expected.map(|(n, t)| (n.to_owned(), t)));
    }

    fn block(values: &[f64]) -> Block {
        Block {
            barcodes: vec!["c".into()],
            obs: vec![],
            starts: vec![0, values.len()],
            features: (0..values.len() as u32).collect(),
            values: values.to_vec(),
        }
    }

    fn cells(kind: ValueKind) -> Cells {
        Cells::new(0, 5, vec![9, 3, 4], vec![], Quality { min_genes: 0, kind })
    }

    #[test]
    fn genes_ascend_zeros_vanish_and_ids_go_on() {
        let mut cells = cells(ValueKind::Counts);
        let batch = cells.batch(Path::new("f"), &block(&[2.0, 0.0, 1.0])).unwrap().unwrap();
        let profiles = cellql_schemas::expr::Profiles::new(batch.column_by_name("expr").unwrap()).unwrap();
        let cell = profiles.get(0).unwrap();
        assert_eq!((cell.gene_ids, cell.values), (&[4, 9][..], &[1.0, 2.0][..]));
        assert_eq!((cells.next_cell_id(), cells.kept(), cells.read()), (6, 1, 1));
    }

    #[test]
    fn impossible_values_are_told_with_their_place() {
        for (value, word) in [(f64::NAN, "finite"), (-1.0, "negative"), (16_777_217.0, "too large")] {
            let error = cells(ValueKind::Counts).batch(Path::new("f.h5ad"), &block(&[1.0, value])).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(word) && text.contains("f.h5ad") && text.contains("cell 'c'"), "{text}");
        }
    }

    #[test]
    fn a_fraction_shows_that_values_are_no_counts() {
        assert!(cells(ValueKind::Counts).batch(Path::new("f"), &block(&[0.5])).unwrap().is_none());
        assert!(cells(ValueKind::Normalised).batch(Path::new("f"), &block(&[0.5])).unwrap().is_some());
    }
}
