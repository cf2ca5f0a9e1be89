//! Turns blocks of a file into rows of `cells`: checks values, maps features to genes, leaves out cells and counts
//! them.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float32Array, Float64Array, StringArray, UInt32Array, UInt64Array};
use arrow::compute::filter;
use arrow::datatypes::{Field, SchemaRef};
use arrow::record_batch::RecordBatch;
use cellql_formats::counts::{CountEvidence, recover};
use cellql_formats::{Block, GeneSorter};
use cellql_schemas::cells as table;
use cellql_schemas::expr::{Profile, ProfileBuilder};

use super::Dropped;
use super::duplicates::ContentIndex;
use super::obs::{ObsTarget, fitted};
use super::values::{CountStatistics, Interpretation};
use crate::error::{Error, Result};
use cellql_store::CellHasher;

/// Which cells are kept, and how their values are interpreted.
#[derive(Debug, Clone, Copy)]
pub(super) struct CellOptions {
    /// Cells must express more genes than this.
    pub(super) min_genes: u32,
    pub(super) interpretation: Interpretation,
    /// The user says what the values are, so no statistics contradict it.
    pub(super) is_certain: bool,
    /// Leave out cells that the store holds already.
    pub(super) skip_duplicates: bool,
}

/// The genes of a file's features.
#[derive(Debug)]
pub(super) struct FileGenes {
    sorter: GeneSorter,
    /// Ids of the genes of the mitochondrial genome, ascending.
    mitochondrial: Vec<u32>,
    hasher: CellHasher,
}

impl FileGenes {
    /// For a file whose features are these genes, of a store with this hasher. Each gene occurs once.
    pub(super) fn new(gene_ids: &[u32], hasher: CellHasher, is_mitochondrial: impl Fn(u32) -> bool) -> Self {
        let sorter = GeneSorter::new(gene_ids);
        let mitochondrial = sorter.genes().iter().copied().filter(|g| is_mitochondrial(*g)).collect();
        Self { sorter, mitochondrial, hasher }
    }
}

/// Why a block was not turned into rows.
pub(super) enum BatchError {
    /// A cell's values contradict the interpretation.
    Contradicted,
    /// The file cannot be read, or holds a value that no cell can have.
    Failed(Error),
}

impl From<Error> for BatchError {
    fn from(error: Error) -> Self {
        BatchError::Failed(error)
    }
}

/// Builds the rows of one data set.
pub(super) struct CellBuilder {
    dataset_id: u32,
    next_cell_id: u64,
    first_cell_id: u64,
    genes: FileGenes,
    obs: Vec<ObsTarget>,
    options: CellOptions,
    stored: ContentIndex,
    schema: SchemaRef,
    counts: CellCounts,
}

/// Numbers of cells read so far, by what was done with them.
#[derive(Debug, Clone, Default)]
pub(super) struct CellCounts {
    pub(super) read: u64,
    /// Cells left out because they express too few genes.
    pub(super) few_genes: u64,
    /// Duplicates left out.
    pub(super) skipped_duplicates: u64,
    /// Cells whose content the store held already, left out or not.
    pub(super) duplicates: u64,
    /// Kept cells whose values support that counts were recovered.
    informative: u64,
    /// Of whole numbers, whether they are counts.
    statistics: CountStatistics,
}

/// Columns of a batch that are built cell by cell.
#[derive(Default)]
struct BatchColumns {
    profiles: ProfileBuilder,
    totals: Vec<f64>,
    n_genes: Vec<u32>,
    hashes: Vec<String>,
    mito: Vec<Option<f32>>,
    duplicate_of: Vec<Option<u64>>,
}

impl CellBuilder {
    pub(super) fn new(
        dataset_id: u32,
        first_cell_id: u64,
        genes: FileGenes,
        obs: Vec<ObsTarget>,
        options: CellOptions,
        stored: ContentIndex,
    ) -> Self {
        let fields: Vec<Field> = obs.iter().map(|o| o.field.clone()).collect();
        Self {
            dataset_id,
            next_cell_id: first_cell_id,
            first_cell_id,
            genes,
            obs,
            options,
            stored,
            schema: Arc::new(table::schema_with_obs(&fields)),
            counts: CellCounts::default(),
        }
    }

    pub(super) fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    pub(super) fn counts(&self) -> &CellCounts {
        &self.counts
    }

    pub(super) fn kept(&self) -> u64 {
        self.next_cell_id - self.first_cell_id
    }

    pub(super) fn next_cell_id(&self) -> u64 {
        self.next_cell_id
    }

    pub(super) fn dropped(&self) -> Dropped {
        let few = (format!("{} genes or fewer", self.options.min_genes), self.counts.few_genes);
        let twice = ("in the store already".to_owned(), self.counts.skipped_duplicates);
        [few, twice].into_iter().filter(|(_, n)| *n > 0).collect()
    }

    pub(super) fn obs(&self) -> &[ObsTarget] {
        &self.obs
    }

    /// A note that says why all cells together contradict the interpretation, after every cell was read; `None` if they
    /// do not.
    pub(super) fn contradiction(&self) -> Option<String> {
        match self.options.interpretation {
            Interpretation::Counts if self.statistics_decide() => {
                let why = self.counts.statistics.contradiction()?;
                Some(format!("values are not taken for counts: {why}; if they are counts, say --input counts"))
            }
            Interpretation::Recovered(..) if self.counts.informative * 2 < self.kept() => {
                Some("values are not taken for counts: too few cells support that counts can be recovered".to_owned())
            }
            Interpretation::Counts
            | Interpretation::Recovered(..)
            | Interpretation::Log
            | Interpretation::Linear
            | Interpretation::Restored(_) => None,
        }
    }

    /// True where values are taken for counts and nobody said that they are.
    fn statistics_decide(&self) -> bool {
        matches!(self.options.interpretation, Interpretation::Counts) && !self.options.is_certain
    }

    /// The rows of a block. Cells that are left out are counted.
    pub(super) fn batch(&mut self, file: &Path, block: &Block) -> Result<RecordBatch, BatchError> {
        let mut columns = BatchColumns::default();
        let mut keep = Vec::with_capacity(block.len());
        for i in 0..block.len() {
            keep.push(self.add(file, block, i, &mut columns)?);
        }
        self.counts.read += block.len() as u64;
        Ok(self.rows(file, block, &BooleanArray::from(keep), columns)?)
    }

    /// Adds a cell, or counts why it is left out. True if it is kept.
    fn add(&mut self, file: &Path, block: &Block, i: usize, to: &mut BatchColumns) -> Result<bool, BatchError> {
        let (features, values) = block.cell(i);
        let count = self.genes.sorter.fill(features, values).map_err(|e| {
            let object = format!("matrix, cell '{}', feature number {}", block.barcodes.value(i), e.feature() + 1);
            BatchError::Failed(Error::input(file, object, e))
        })?;
        if count <= self.options.min_genes as usize {
            self.counts.few_genes += 1;
            return Ok(false);
        }
        to.profiles.push_with(count, |genes, values| self.genes.sorter.take(genes, values));
        let evidence = self.interpret(to.profiles.last_values());
        if evidence == CountEvidence::Contradicts {
            return Err(BatchError::Contradicted);
        }
        let kept = self.keep(to);
        self.counts.informative += u64::from(kept && evidence == CountEvidence::Supports);
        Ok(kept)
    }

    /// Replaces the values of a cell by its counts if counts are recovered.
    fn interpret(&self, values: &mut [f32]) -> CountEvidence {
        match self.options.interpretation {
            Interpretation::Recovered(normalisation, rounding) => recover(values, normalisation, rounding),
            as_given if as_given.is_contradicted_by(values) => CountEvidence::Contradicts,
            _ => CountEvidence::Inconclusive,
        }
    }

    /// Keeps the cell that was added last, unless it is a duplicate and duplicates are left out.
    fn keep(&mut self, to: &mut BatchColumns) -> bool {
        let cell = to.profiles.last();
        let hash = self.genes.hasher.hash(cell).to_hex();
        let duplicate_of = self.stored.find(&hash);
        self.counts.duplicates += u64::from(duplicate_of.is_some());
        if duplicate_of.is_some() && self.options.skip_duplicates {
            to.profiles.pop();
            self.counts.skipped_duplicates += 1;
            return false;
        }
        let total = cell.total();
        if self.statistics_decide() {
            self.counts.statistics.add(cell.values, total);
        }
        to.totals.push(total);
        to.n_genes.push(cell.values.len() as u32);
        to.hashes.push(hash);
        to.mito.push(self.mito_fraction(cell, total));
        to.duplicate_of.push(duplicate_of);
        true
    }

    fn mito_fraction(&self, cell: Profile<'_>, total: f64) -> Option<f32> {
        if !self.options.interpretation.kind().is_counts() || self.genes.mitochondrial.is_empty() {
            return None;
        }
        let mito: f64 = self.genes.mitochondrial.iter().map(|gene| f64::from(cell.value_of(*gene))).sum();
        Some(if total > 0.0 { (mito / total) as f32 } else { 0.0 })
    }

    fn rows(&mut self, file: &Path, block: &Block, keep: &BooleanArray, mut of: BatchColumns) -> Result<RecordBatch> {
        let count = of.totals.len();
        let first = self.next_cell_id;
        self.next_cell_id += count as u64;
        let wrong = |object: &str| {
            let (file, object) = (file.to_owned(), object.to_owned());
            move |e: arrow::error::ArrowError| Error::input(file, object, e)
        };
        let kind = self.options.interpretation.kind().name();
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

    fn cells(interpretation: Interpretation) -> CellBuilder {
        let genes = FileGenes::new(&[9, 3, 4], CellHasher::new(["a"; 10].into_iter()), |g| g == 4);
        let options = CellOptions { min_genes: 0, interpretation, is_certain: false, skip_duplicates: false };
        CellBuilder::new(0, 5, genes, vec![], options, ContentIndex::default())
    }

    fn batch(cells: &mut CellBuilder, values: &[f32]) -> Option<RecordBatch> {
        match cells.batch(Path::new("f.h5ad"), &block(values)) {
            Ok(batch) => Some(batch),
            Err(BatchError::Contradicted) => None,
            Err(BatchError::Failed(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn genes_ascend_zeros_vanish_and_ids_go_on() {
        let mut cells = cells(Interpretation::Counts);
        let batch = batch(&mut cells, &[2.0, 0.0, 1.0]).unwrap();
        let profiles = Profiles::new(batch.column_by_name("expr").unwrap()).unwrap();
        let cell = profiles.get(0).unwrap();
        assert_eq!((cell.gene_ids, cell.values), (&[4, 9][..], &[1.0, 2.0][..]));
        assert_eq!((cells.next_cell_id(), cells.kept(), cells.counts().read), (6, 1, 1));
        let mito = batch.column_by_name("mito_fraction").unwrap();
        assert_eq!(mito.as_any().downcast_ref::<Float32Array>().unwrap().value(0), 1.0 / 3.0);
    }

    #[test]
    fn values_that_no_cell_can_have_are_refused_with_file_and_cell() {
        for value in [f32::NAN, -1.0] {
            let mut cells = cells(Interpretation::Counts);
            let Err(BatchError::Failed(error)) = cells.batch(Path::new("f.h5ad"), &block(&[1.0, value])) else {
                panic!()
            };
            let Error::Input { file, object, .. } = &error else { panic!("{error}") };
            assert_eq!((file.as_path(), object.as_str()), (Path::new("f.h5ad"), "matrix, cell 'c', feature number 2"));
            // Nothing of the refused cell stays behind.
            assert!(batch(&mut cells, &[1.0, 1.0]).is_some());
        }
    }

    #[test]
    fn a_fraction_shows_that_values_are_no_counts() {
        assert!(batch(&mut cells(Interpretation::Counts), &[0.5]).is_none());
        assert!(batch(&mut cells(Interpretation::Log), &[0.5]).is_some());
        assert!(batch(&mut cells(Interpretation::Log), &[0.5, 300.0]).is_none(), "no logarithm is that large");
        assert!(batch(&mut cells(Interpretation::Linear), &[0.5, 300.0]).is_some());
    }

    #[test]
    fn whole_numbers_that_make_a_million_in_every_cell_are_no_counts() {
        let mut cells = cells(Interpretation::Counts);
        for values in [[500_000.0, 500_000.0, 0.0], [999_990.0, 1.0, 1.0], [400_000.0, 300_000.0, 300_001.0]] {
            batch(&mut cells, &values).unwrap();
        }
        assert!(cells.contradiction().is_some_and(|why| why.contains("million")));
    }
}
