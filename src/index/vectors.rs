//! Vectors of an embedding table in memory, scaled to unit length, and the exact search over them.

use std::collections::{BinaryHeap, HashSet};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use cellql_schemas::embeddings;
use rayon::prelude::*;

use super::search::Neighbour;
use crate::error::{Error, Result};
use crate::store::Store;
use cellql_kernels::dot;

/// Unit vectors and the cells they belong to. Cells without a vector, or with one of length zero, are left out:
/// cosine says nothing about them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vectors {
    /// Numbers per vector.
    pub dim: usize,
    /// `[n]`
    pub cell_ids: Vec<u64>,
    /// `[n, dim]`
    pub units: Vec<f32>,
}

impl Vectors {
    /// Columns of an embedding table that this reads.
    pub const COLUMNS: [&str; 2] = [embeddings::CELL_ID, embeddings::VECTOR];

    /// Reads an embedding table, whole.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn read(store: &Store, table: &str) -> Result<Self> {
        Self::from_batches(&store.read(table, &Self::COLUMNS, None).await?)
    }

    /// Reads rows of an embedding table.
    ///
    /// # Errors
    /// Another table's rows.
    pub fn from_batches(batches: &[RecordBatch]) -> Result<Self> {
        let mut vectors = Self::default();
        for batch in batches {
            vectors.extend(batch).ok_or_else(|| Error::Request("the table holds no vectors".to_owned()))?;
        }
        Ok(vectors)
    }

    fn extend(&mut self, batch: &RecordBatch) -> Option<()> {
        let ids = batch.column_by_name(embeddings::CELL_ID)?.as_primitive_opt::<UInt64Type>()?;
        let list = batch.column_by_name(embeddings::VECTOR)?.as_fixed_size_list_opt()?;
        self.dim = list.value_length() as usize;
        for row in (0..list.len()).filter(|r| list.is_valid(*r)) {
            if let Some(unit) = unit(list.value(row).as_primitive_opt::<Float32Type>()?.values()) {
                self.cell_ids.push(ids.value(row));
                self.units.extend(unit);
            }
        }
        Some(())
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.cell_ids.len()
    }

    /// True without vectors.
    pub fn is_empty(&self) -> bool {
        self.cell_ids.is_empty()
    }

    /// The unit vector of a position.
    pub fn at(&self, position: usize) -> &[f32] {
        &self.units[position * self.dim..(position + 1) * self.dim]
    }
}

/// Scales to length one; `None` for a vector that has no direction.
pub(super) fn unit(vector: &[f32]) -> Option<Vec<f32>> {
    let norm = vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    (norm.is_finite() && norm > 0.0).then(|| vector.iter().map(|v| (f64::from(*v) / norm) as f32).collect())
}

/// Cosine distance of unit vectors, never below zero by rounding.
pub(super) fn distance(a: &[f32], b: &[f32]) -> f32 {
    (1.0 - dot(a, b)).max(0.0)
}

/// The `k` nearest to a unit vector among the cells `among` allows, nearest first, ties by cell id. Exact: every vector
/// is looked at.
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
            let cell_id = vectors.cell_ids[i];
            if Some(cell_id) == not || among.is_some_and(|set| !set.contains(&cell_id)) {
                continue;
            }
            heap.push(Neighbour { distance: distance(query, vectors.at(i)), cell_id });
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
            vectors.cell_ids.push(id);
            vectors.units.extend([angle.cos(), angle.sin()]);
        }
        let ids = |found: Vec<Neighbour>| found.into_iter().map(|n| n.cell_id).collect::<Vec<_>>();
        let query = vectors.at(0).to_vec();
        assert_eq!(ids(exact(&vectors, &query, 3, None, Some(5))), [6, 7, 8]);
        let among = HashSet::from([5, 8]);
        assert_eq!(ids(exact(&vectors, &query, 3, Some(&among), None)), [5, 8]);
    }

    #[test]
    fn a_vector_without_direction_has_no_unit() {
        assert!(unit(&[0.0, 0.0]).is_none());
        assert!(unit(&[f32::NAN, 1.0]).is_none());
        assert_eq!(unit(&[3.0, 4.0]), Some(vec![0.6, 0.8]));
    }
}
