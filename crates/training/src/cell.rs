//! A training cell: counts at ascending positions of a vocabulary.
//!
//! Every count of every cell passes here, so this is compiled with full optimisation in development builds too.

use cellql_model::sort_by_position;
use cellql_schemas::expr::Profile;
use cellql_schemas::vocabulary::Placement;

/// A cell as a model reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Row id of the cell in the table `cells`.
    pub row: u64,
    /// Id of its data set.
    pub dataset_id: u32,
    /// Counts at ascending positions of the vocabulary. Genes that the vocabulary lacks are left out.
    pub counts: Vec<(u32, f32)>,
    /// Its embedding by the linear model that is predicted; empty where none is.
    pub target: Vec<f32>,
}

/// Counts of a cell at ascending positions of a vocabulary. Genes that the vocabulary lacks are left out.
pub fn counts_by_position(placement: &Placement, profile: &Profile) -> Vec<(u32, f32)> {
    let mut counts = vec![(0, 0.0); profile.gene_ids.len()];
    // Every gene is written, and overwritten by the next one where it has no position: no branch to mispredict.
    let mut placed = 0;
    for (gene, value) in profile.gene_ids.iter().zip(profile.values) {
        let position = placement.position(*gene);
        counts[placed] = (position.unwrap_or_default(), *value);
        placed += usize::from(position.is_some());
    }
    counts.truncate(placed);
    sort_by_position(&mut counts, placement.len());
    counts
}
