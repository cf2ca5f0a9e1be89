//! Vectors of a table in memory, prepared for a metric, and exact search over them.

use std::collections::{BinaryHeap, HashSet};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float32Type, Schema, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use cellql_schemas::embeddings;
use lance::Dataset;
use rayon::prelude::*;

use super::metric::Metric;
use super::neighbour::Neighbour;
use crate::error::{Error, Result};
use cellql_store::Store;

/// Dimension of the vectors of an embedding table.
///
/// # Errors
/// The table has no column of vectors.
pub(super) fn dimension(rows: &Dataset, table: &str) -> Result<usize> {
    let schema = Schema::from(rows.schema());
    match schema.field_with_name(embeddings::VECTOR).map(|f| f.data_type()) {
        Ok(DataType::FixedSizeList(_, dim)) => Ok(*dim as usize),
        _ => Err(Error::Request(format!("table {table} holds no vectors"))),
    }
}

/// Prepared vectors and the ids of their rows. Rows without a vector are left out, and rows whose vector the metric is
/// not defined for (for cosine, one of length 0).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vectors {
    /// The metric that the vectors are prepared for.
    pub metric: Metric,
    /// Dimension of the vectors.
    pub dim: usize,
    /// `[n]`: `cell_id` of each row, or `gene_id`.
    pub ids: Vec<u64>,
    /// `[n, dim]`: the vectors.
    pub prepared: Vec<f32>,
}

impl Vectors {
    /// The columns of an embedding table that are read.
    pub const COLUMNS: [&str; 2] = [embeddings::CELL_ID, embeddings::VECTOR];

    /// Reads a whole embedding table.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn read(store: &Store, table: &str, metric: Metric) -> Result<Self> {
        Self::from_batches(&store.read(table, &Self::COLUMNS, None).await?, metric)
    }

    /// Reads batches whose first column is an id and whose second is a vector.
    ///
    /// # Errors
    /// The batches have other columns.
    pub fn from_batches(batches: &[RecordBatch], metric: Metric) -> Result<Self> {
        let mut vectors = Self { metric, ..Self::default() };
        for batch in batches {
            vectors.extend(batch).ok_or_else(|| Error::Request("the table holds no vectors".to_owned()))?;
        }
        Ok(vectors)
    }

    fn extend(&mut self, batch: &RecordBatch) -> Option<()> {
        let ids: Vec<u64> = match batch.column(0).as_primitive_opt::<UInt64Type>() {
            Some(ids) => ids.values().to_vec(),
            None => {
                batch.column(0).as_primitive_opt::<UInt32Type>()?.values().iter().map(|id| u64::from(*id)).collect()
            }
        };
        let list = batch.column(1).as_fixed_size_list_opt()?;
        self.dim = list.value_length() as usize;
        for row in (0..list.len()).filter(|r| list.is_valid(*r)) {
            if let Some(vector) = self.metric.prepare(list.value(row).as_primitive_opt::<Float32Type>()?.values()) {
                self.ids.push(ids[row]);
                self.prepared.extend(vector);
            }
        }
        Some(())
    }

    /// Sorts the vectors by id.
    pub(super) fn sort_by_id(&mut self) {
        if self.ids.is_sorted() {
            return;
        }
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_unstable_by_key(|position| self.ids[*position]);
        let mut prepared = Vec::with_capacity(self.prepared.len());
        for position in &order {
            prepared.extend_from_slice(self.at(*position));
        }
        self.prepared = prepared;
        self.ids = order.iter().map(|position| self.ids[*position]).collect();
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// True if there are no vectors.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// `[dim]`: the vector at a position.
    pub fn at(&self, position: usize) -> &[f32] {
        &self.prepared[position * self.dim..(position + 1) * self.dim]
    }
}

/// The exact `k` nearest to a prepared query `[dim]` among the rows in `filter` (`None`: all) and without the row
/// `exclude`, nearest first, ties by id. Compares the query with every such vector.
pub fn exact(
    vectors: &Vectors,
    query: &[f32],
    k: usize,
    filter: Option<&HashSet<u64>>,
    exclude: Option<u64>,
) -> Vec<Neighbour> {
    const ROWS: usize = 4096;
    let starts: Vec<usize> = (0..vectors.len()).step_by(ROWS).collect();
    let best = starts.into_par_iter().map(|start| {
        let mut heap = BinaryHeap::new();
        for i in start..vectors.len().min(start + ROWS) {
            let cell_id = vectors.ids[i];
            if Some(cell_id) == exclude || filter.is_some_and(|rows| !rows.contains(&cell_id)) {
                continue;
            }
            heap.push(Neighbour { distance: vectors.metric.distance(query, vectors.at(i)), cell_id });
            if heap.len() > k {
                heap.pop();
            }
        }
        heap.into_vec()
    });
    let mut all: Vec<Neighbour> = best.flatten().collect();
    all.sort_unstable();
    all.truncate(k);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_sorted_by_id_keep_their_ids() {
        let ids = vec![7, 2, 9];
        let mut vectors = Vectors { dim: 2, ids, prepared: vec![0.7, 0.0, 0.2, 0.0, 0.9, 0.0], ..Vectors::default() };
        vectors.sort_by_id();
        assert_eq!((vectors.ids, vectors.prepared), (vec![2, 7, 9], vec![0.2, 0.0, 0.7, 0.0, 0.9, 0.0]));
    }

    #[test]
    fn exact_search_obeys_order_filter_and_exclusion() {
        let mut vectors = Vectors { dim: 2, ..Vectors::default() };
        for (id, angle) in [(5u64, 0.0f32), (6, 0.1), (7, 0.2), (8, 3.0)] {
            vectors.ids.push(id);
            vectors.prepared.extend([angle.cos(), angle.sin()]);
        }
        let ids = |found: Vec<Neighbour>| found.into_iter().map(|n| n.cell_id).collect::<Vec<_>>();
        let query = vectors.at(0).to_vec();
        assert_eq!(ids(exact(&vectors, &query, 3, None, Some(5))), [6, 7, 8]);
        let among = HashSet::from([5, 8]);
        assert_eq!(ids(exact(&vectors, &query, 3, Some(&among), None)), [5, 8]);
    }
}
