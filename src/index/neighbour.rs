//! A neighbour: the row that was found and its distance.

use std::cmp::Ordering;

/// A row and its distance from the query. Sorts by distance, then by id.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Distance by the metric of the search.
    pub distance: f32,
    /// `cell_id` of the row, or its `gene_id` where genes are searched.
    pub cell_id: u64,
}

impl Eq for Neighbour {}

impl Ord for Neighbour {
    fn cmp(&self, other: &Self) -> Ordering {
        self.distance.total_cmp(&other.distance).then(self.cell_id.cmp(&other.cell_id))
    }
}

impl PartialOrd for Neighbour {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
