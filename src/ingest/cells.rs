//! From blocks of a file to rows of `cells`: values checked, genes mapped, poor cells dropped and counted.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float32Array, Float64Array, StringArray, UInt32Array, UInt64Array};
use arrow::compute::filter;
use arrow::datatypes::{Field, SchemaRef};
use arrow::record_batch::RecordBatch;
use cellql_formats::Block;
use cellql_schemas::cells::{self as table, ValueKind};
use cellql_schemas::expr::{Profile, ProfileBuilder};

use super::Dropped;
use super::duplicates::Known;
use super::obs::{Target, fitted};
use super::values::{Reading, Verdict, recover};
use crate::error::{Error, Result};
use cellql_store::ContentHash;

/// What a cell must be to be kept, and what its values are taken for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quality {
    pub(super) min_genes: u32,
    pub(super) reading: Reading,
    pub(super) skip_duplicates: bool,
}

/// The genes of a file's features.
#[derive(Debug)]
pub(super) struct FileGenes {
    /// Place of each feature among the file's genes by ascending id.
    rank: Vec<u32>,
    /// Gene at each place.
    genes: Vec<u32>,
    /// Those of the mitochondrial genome.
    mitochondrial: Vec<u32>,
}

impl FileGenes {
    /// For features that are these genes, each of them once.
    pub(super) fn new(gene_ids: &[u32], is_mitochondrial: impl Fn(u32) -> bool) -> Self {
        let mut genes = gene_ids.to_vec();
        genes.sort_unstable();
        let place = |gene: &u32| genes.binary_search(gene).unwrap_or_default() as u32;
        let rank = gene_ids.iter().map(place).collect();
        let mitochondrial = genes.iter().copied().filter(|g| is_mitochondrial(*g)).collect();
        Self { rank, mitochondrial, genes }
    }
}

/// Why a batch was not made.
pub(super) enum Refusal {
    /// Values contradict the reading.
    Reading,
    /// The file is wrong.
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Failed(error)
    }
}

/// Builds the rows of one data set.
pub(super) struct Cells {
    dataset_id: u32,
    next_cell_id: u64,
    first_cell_id: u64,
    genes: FileGenes,
    obs: Vec<Target>,
    quality: Quality,
    known: Known,
    schema: SchemaRef,
    counts: Tally,
    scatter: Scatter,
}

/// What became of the cells so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub(super) read: u64,
    pub(super) few_genes: u64,
    pub(super) skipped_duplicates: u64,
    pub(super) duplicates: u64,
    /// Kept cells whose values tell that counts were recovered.
    telling: u64,
    /// Smallest and largest total of a kept cell.
    totals: Option<(f64, f64)>,
}

/// Columns of a batch that are gathered cell by cell.
#[derive(Default)]
struct Gathered {
    profiles: ProfileBuilder,
    totals: Vec<f64>,
    n_genes: Vec<u32>,
    hashes: Vec<String>,
    mito: Vec<Option<f32>>,
    duplicate_of: Vec<Option<u64>>,
}

impl Cells {
    pub(super) fn new(
        dataset_id: u32,
        first_cell_id: u64,
        genes: FileGenes,
        obs: Vec<Target>,
        quality: Quality,
        known: Known,
    ) -> Self {
        let fields: Vec<Field> = obs.iter().map(|o| o.field.clone()).collect();
        Self {
            dataset_id,
            next_cell_id: first_cell_id,
            first_cell_id,
            scatter: Scatter::new(genes.genes.len()),
            genes,
            obs,
            quality,
            known,
            schema: Arc::new(table::schema_with_obs(&fields)),
            counts: Tally::default(),
        }
    }

    pub(super) fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    pub(super) fn counts(&self) -> &Tally {
        &self.counts
    }

    pub(super) fn kept(&self) -> u64 {
        self.next_cell_id - self.first_cell_id
    }

    pub(super) fn next_cell_id(&self) -> u64 {
        self.next_cell_id
    }

    pub(super) fn dropped(&self) -> Dropped {
        let few = (format!("{} genes or fewer", self.quality.min_genes), self.counts.few_genes);
        let twice = ("in the store already".to_owned(), self.counts.skipped_duplicates);
        [few, twice].into_iter().filter(|(_, n)| *n > 0).collect()
    }

    pub(super) fn obs(&self) -> &[Target] {
        &self.obs
    }

    /// What all cells together say of the reading, once every one was read.
    pub(super) fn reading_holds(&self) -> bool {
        match self.quality.reading {
            // Whole numbers of which every cell has a million are rounded TPM or CPM.
            Reading::Counts => {
                let million = |total: f64| (total - 1e6).abs() < 1e4;
                self.kept() < 3 || !self.counts.totals.is_some_and(|(least, most)| million(least) && million(most))
            }
            Reading::Recovered(..) => self.counts.telling * 2 >= self.kept(),
            Reading::AsGiven => true,
        }
    }

    /// The rows of a block.
    pub(super) fn batch(&mut self, file: &Path, block: &Block) -> Result<RecordBatch, Refusal> {
        let mut gathered = Gathered::default();
        let mut keep = Vec::with_capacity(block.len());
        for i in 0..block.len() {
            keep.push(self.add(file, block, i, &mut gathered)?);
        }
        self.counts.read += block.len() as u64;
        Ok(self.rows(file, block, &BooleanArray::from(keep), gathered)?)
    }

    /// Adds a cell, or counts why it is not kept.
    fn add(&mut self, file: &Path, block: &Block, i: usize, to: &mut Gathered) -> Result<bool, Refusal> {
        let (features, values) = block.cell(i);
        if let Err(wrong) = self.scatter.fill(&self.genes.rank, features, values) {
            self.scatter.clear();
            return Err(Refusal::Failed(wrong.tell(file, block, i)));
        }
        let count = self.scatter.count;
        if count <= self.quality.min_genes as usize {
            self.scatter.clear();
            self.counts.few_genes += 1;
            return Ok(false);
        }
        to.profiles.push_with(count, |genes, values| self.scatter.drain(&self.genes.genes, genes, values));
        let verdict = self.read_as(to.profiles.last_values());
        if verdict == Verdict::Against {
            return Err(Refusal::Reading);
        }
        let kept = self.keep(to);
        self.counts.telling += u64::from(kept && verdict == Verdict::For);
        Ok(kept)
    }

    fn read_as(&self, values: &mut [f32]) -> Verdict {
        match self.quality.reading {
            Reading::Counts if !values.iter().all(|v| is_whole(*v)) => Verdict::Against,
            Reading::Counts | Reading::AsGiven => Verdict::Silent,
            Reading::Recovered(undo, precision) => recover(values, undo, precision),
        }
    }

    /// Keeps the cell that was added last, unless it is a duplicate that is not wanted.
    fn keep(&mut self, to: &mut Gathered) -> bool {
        let cell = to.profiles.last();
        let hash = ContentHash::of(cell).to_hex();
        let duplicate_of = self.known.find(&hash);
        self.counts.duplicates += u64::from(duplicate_of.is_some());
        if duplicate_of.is_some() && self.quality.skip_duplicates {
            to.profiles.pop();
            self.counts.skipped_duplicates += 1;
            return false;
        }
        let total = cell.total();
        let (least, most) = self.counts.totals.unwrap_or((total, total));
        self.counts.totals = Some((least.min(total), most.max(total)));
        to.totals.push(total);
        to.n_genes.push(cell.values.len() as u32);
        to.hashes.push(hash);
        to.mito.push(self.mito_fraction(cell, total));
        to.duplicate_of.push(duplicate_of);
        true
    }

    fn mito_fraction(&self, cell: Profile<'_>, total: f64) -> Option<f32> {
        if self.quality.reading.kind() == ValueKind::Normalised || self.genes.mitochondrial.is_empty() {
            return None;
        }
        let mito: f64 = self.genes.mitochondrial.iter().map(|gene| f64::from(cell.value_of(*gene))).sum();
        Some(if total > 0.0 { (mito / total) as f32 } else { 0.0 })
    }

    fn rows(&mut self, file: &Path, block: &Block, keep: &BooleanArray, mut of: Gathered) -> Result<RecordBatch> {
        let count = of.totals.len();
        let first = self.next_cell_id;
        self.next_cell_id += count as u64;
        let wrong = |object: &str| {
            let (file, object) = (file.to_owned(), object.to_owned());
            move |e: arrow::error::ArrowError| Error::input(file, object, e)
        };
        let kind = self.quality.reading.kind().name();
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from_iter_values(first..self.next_cell_id)),
            Arc::new(UInt32Array::from(vec![self.dataset_id; count])),
            filter(&block.barcodes, keep).map_err(wrong("obs"))?,
            Arc::new(of.profiles.finish()),
            Arc::new(Float64Array::from(of.totals)),
            Arc::new(UInt32Array::from(of.n_genes)),
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(kind, count))),
            Arc::new(StringArray::from(of.hashes)),
            Arc::new(Float32Array::from(of.mito)),
            Arc::new(UInt64Array::from(of.duplicate_of)),
        ];
        for (target, given) in self.obs.iter().zip(&block.obs) {
            let object = format!("obs/{}", target.report.source);
            let given = filter(given, keep).map_err(wrong(&object))?;
            columns.push(fitted(&given, target.field.data_type()).map_err(wrong(&object))?);
        }
        RecordBatch::try_new(self.schema(), columns).map_err(wrong("cells"))
    }
}

/// Sorts a cell's values by gene without comparing: each falls to its gene's place, and a bitmap tells which are there.
#[derive(Debug)]
struct Scatter {
    values: Vec<f32>,
    there: Vec<u64>,
    count: usize,
}

/// A value that cannot be stored.
enum Wrong {
    Value(u32, f32),
    Twice(u32),
    NoFeature(u32, usize),
}

impl Wrong {
    fn tell(&self, file: &Path, block: &Block, i: usize) -> Error {
        let (feature, problem) = match self {
            Wrong::Value(feature, value) if *value < 0.0 => (
                feature,
                format!("the value {value} is negative; scaled or centred data cannot be stored, give raw counts"),
            ),
            Wrong::Value(feature, value) => {
                (feature, format!("the value is {value}; expression must be a finite number"))
            }
            Wrong::Twice(feature) => (feature, "has two values in one cell".to_owned()),
            Wrong::NoFeature(feature, count) => (feature, format!("the file names only {count} features")),
        };
        let object = format!("matrix, cell '{}', feature number {}", block.barcodes.value(i), feature + 1);
        Error::input(file, object, problem)
    }
}

impl Scatter {
    fn new(genes: usize) -> Self {
        Self { values: vec![0.0; genes], there: vec![0; genes.div_ceil(64)], count: 0 }
    }

    /// Puts every value above zero in its place.
    fn fill(&mut self, rank: &[u32], features: &[u32], values: &[f32]) -> Result<(), Wrong> {
        for (&feature, &value) in features.iter().zip(values) {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Wrong::Value(feature, value));
            }
            if value == 0.0 {
                continue;
            }
            let Some(&rank) = rank.get(feature as usize) else {
                return Err(Wrong::NoFeature(feature, rank.len()));
            };
            let (word, bit) = (rank as usize / 64, 1u64 << (rank % 64));
            if self.there[word] & bit != 0 {
                return Err(Wrong::Twice(feature));
            }
            self.there[word] |= bit;
            self.values[rank as usize] = value;
            self.count += 1;
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.there.fill(0);
        self.count = 0;
    }

    /// Takes the values out, in order, with the genes at their places.
    fn drain(&mut self, genes: &[u32], to_genes: &mut [u32], to_values: &mut [f32]) {
        let mut out = to_genes.iter_mut().zip(to_values);
        for (i, word) in self.there.iter_mut().enumerate() {
            let mut bits = std::mem::take(word);
            while bits != 0 {
                let rank = i * 64 + bits.trailing_zeros() as usize;
                if let Some((gene, value)) = out.next() {
                    *gene = genes[rank];
                    *value = self.values[rank];
                }
                bits &= bits - 1;
            }
        }
        self.count = 0;
    }
}

/// True for a whole number. Large ones have no fraction in f32; `fract` would call a function for each.
fn is_whole(value: f32) -> bool {
    value >= 16_777_216.0 || (value as i32) as f32 == value
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellql_schemas::expr::Profiles;

    fn block(values: &[f32]) -> Block {
        Block {
            barcodes: StringArray::from(vec!["c"]),
            obs: vec![],
            starts: vec![0, values.len()],
            features: (0..values.len() as u32).collect(),
            values: values.to_vec(),
        }
    }

    fn cells(reading: Reading) -> Cells {
        let genes = FileGenes::new(&[9, 3, 4], |g| g == 4);
        let quality = Quality { min_genes: 0, reading, skip_duplicates: false };
        Cells::new(0, 5, genes, vec![], quality, Known::default())
    }

    fn batch(cells: &mut Cells, values: &[f32]) -> Option<RecordBatch> {
        match cells.batch(Path::new("f.h5ad"), &block(values)) {
            Ok(batch) => Some(batch),
            Err(Refusal::Reading) => None,
            Err(Refusal::Failed(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn genes_ascend_zeros_vanish_and_ids_go_on() {
        let mut cells = cells(Reading::Counts);
        let batch = batch(&mut cells, &[2.0, 0.0, 1.0]).unwrap();
        let profiles = Profiles::new(batch.column_by_name("expr").unwrap()).unwrap();
        let cell = profiles.get(0).unwrap();
        assert_eq!((cell.gene_ids, cell.values), (&[4, 9][..], &[1.0, 2.0][..]));
        assert_eq!((cells.next_cell_id(), cells.kept(), cells.counts().read), (6, 1, 1));
        let mito = batch.column_by_name("mito_fraction").unwrap();
        assert_eq!(mito.as_any().downcast_ref::<Float32Array>().unwrap().value(0), 1.0 / 3.0);
    }

    #[test]
    fn impossible_values_are_told_with_their_place() {
        for (value, word) in [(f32::NAN, "finite"), (-1.0, "negative")] {
            let mut cells = cells(Reading::Counts);
            let Err(Refusal::Failed(error)) = cells.batch(Path::new("f.h5ad"), &block(&[1.0, value])) else { panic!() };
            let text = error.to_string();
            assert!(text.contains(word) && text.contains("f.h5ad") && text.contains("cell 'c'"), "{text}");
            // Nothing of the refused cell stays behind.
            assert!(batch(&mut cells, &[1.0, 1.0]).is_some());
        }
    }

    #[test]
    fn a_fraction_shows_that_values_are_no_counts() {
        assert!(batch(&mut cells(Reading::Counts), &[0.5]).is_none());
        assert!(batch(&mut cells(Reading::AsGiven), &[0.5]).is_some());
    }

    #[test]
    fn whole_numbers_that_make_a_million_in_every_cell_are_no_counts() {
        let mut cells = cells(Reading::Counts);
        for values in [[500_000.0, 500_000.0, 0.0], [999_990.0, 1.0, 1.0], [400_000.0, 300_000.0, 300_001.0]] {
            batch(&mut cells, &values).unwrap();
        }
        assert!(!cells.reading_holds());
    }
}
