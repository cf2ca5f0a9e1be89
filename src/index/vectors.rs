//! Vectors of a table in memory, prepared for a metric, and the exact search over them.

use std::collections::{BinaryHeap, HashSet};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float32Type, Schema, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use cellql_schemas::embeddings;
use lance::Dataset;
use rayon::prelude::*;

use super::Metric;
use super::search::Neighbour;
use crate::error::{Error, Result};
use cellql_store::Store;

/// Numbers per vector of an embedding table.
///
/// # Errors
/// It has no column of vectors.
pub(super) fn dimension(rows: &Dataset, table: &str) -> Result<usize> {
    let schema = Schema::from(rows.schema());
    match schema.field_with_name(embeddings::VECTOR).map(|f| f.data_type()) {
        Ok(DataType::FixedSizeList(_, dim)) => Ok(*dim as usize),
        _ => Err(Error::Request(format!("table {table} holds no vectors"))),
    }
}

/// Prepared vectors and the rows they belong to. Rows without a vector, or with one that the metric says nothing about, are
/// left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vectors {
    /// What they are prepared for.
    pub metric: Metric,
    /// Numbers per vector.
    pub dim: usize,
    /// `[n]`: `cell_id`s, or `gene_id`s.
    pub ids: Vec<u64>,
    /// `[n, dim]`
    pub prepared: Vec<f32>,
}

impl Vectors {
    /// Columns of an embedding table that this reads.
    pub const COLUMNS: [&str; 2] = [embeddings::CELL_ID, embeddings::VECTOR];

    /// Reads an embedding table, whole.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn read(store: &Store, table: &str, metric: Metric) -> Result<Self> {
        Self::from_batches(&store.read(table, &Self::COLUMNS, None).await?, metric)
    }

    /// Reads rows whose first column is an id and whose second a vector.
    ///
    /// # Errors
    /// Another table's rows.
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

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// True without vectors.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The vector of a position.
    pub fn at(&self, position: usize) -> &[f32] {
        &self.prepared[position * self.dim..(position + 1) * self.dim]
    }
}

/// The `k` nearest to a prepared vector among the rows `among` allows, nearest first, ties by id. Exact: every vector is looked
/// at.
pub fn exact(
    vectors: &Vectors,
    query: &[f32],
    k: usize,
    among: Option<&HashSet<u64>>,
    not: Option<u64>,
) -> Vec<Neighbour> {
    const ROWS: usize = 4096;
    let starts: Vec<usize> = (0..vectors.len()).step_by(ROWS).collect();
    let best = starts.into_par_iter().map(|start| {
        let mut heap = BinaryHeap::new();
        for i in start..vectors.len().min(start + ROWS) {
            let cell_id = vectors.ids[i];
            if Some(cell_id) == not || among.is_some_and(|set| !set.contains(&cell_id)) {
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
