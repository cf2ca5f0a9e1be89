//! Whether cells of one label lie together: neighbours, Leiden communities, and their agreement with the labels.
//!
//! As scanpy's users do it: each cell's 14 nearest others (scanpy counts the cell itself, 15), UMAP's connectivities, Leiden
//! by modularity. The resolution is searched so that there are as many communities as labels, or nearly: with one fixed, a
//! representation would be judged by how many it happens to give. Silhouettes are those of the labels, euclidean, in the
//! representation itself.

use std::collections::HashMap;

use cellql_schemas::recipe::{Depth, Recipe};
use cellql_schemas::vocabulary::Placement;

use super::cells::{Cell, log_normalised};
use crate::error::{Error, Result};
use cellql_analysis::agreement::{adjusted_rand_index, normalised_mutual_information};
use cellql_analysis::connectivities::connectivities;
use cellql_analysis::knn::nearest_neighbours;
use cellql_analysis::leiden::leiden;
use cellql_analysis::pca::{SparseRows, principal_components};
use cellql_analysis::silhouette::silhouette;
use cellql_model::{DEFAULT_TOKEN_BUDGET, Model, Sample};

/// Other cells a cell is joined to.
const NEIGHBOURS: usize = 14;
/// Principal components.
const COMPONENTS: usize = 50;
/// Halvings of the interval that resolutions are searched in.
const SEARCH: usize = 12;
/// Resolutions between which they are searched.
const RESOLUTIONS: (f64, f64) = (0.01, 8.0);

/// How well a representation keeps labels together.
#[derive(Debug, Clone, PartialEq)]
pub struct Clustered {
    /// What it is.
    pub representation: String,
    /// Numbers of a cell.
    pub dim: usize,
    /// Communities found.
    pub clusters: usize,
    /// Resolution at which.
    pub resolution: f64,
    /// Normalised mutual information of communities and labels.
    pub nmi: f64,
    /// Adjusted Rand index of both.
    pub ari: f64,
    /// Mean silhouette of the labels.
    pub silhouette: f64,
}

/// Labels as numbers, in the order they come.
///
/// # Errors
/// Fewer than two different labels.
pub fn labels(cells: &[Cell]) -> Result<Vec<u32>> {
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    let mut of_cells = Vec::with_capacity(cells.len());
    for cell in cells {
        let next = numbers.len() as u32;
        of_cells.push(*numbers.entry(cell.label.as_deref().unwrap_or_default()).or_insert(next));
    }
    match numbers.len() < 2 || numbers.len() == cells.len() {
        true => Err(Error::Request(format!(
            "{} labels of {} cells: there is nothing to compare with",
            numbers.len(),
            cells.len()
        ))),
        false => Ok(of_cells),
    }
}

/// Judges vectors, `[cells, dim]`.
///
/// # Errors
/// Labels that no silhouette can be taken of.
pub fn judge(representation: &str, vectors: &[f32], dim: usize, labels: &[u32], seed: u64) -> Result<Clustered> {
    let graph = connectivities(&nearest_neighbours(vectors, dim, NEIGHBOURS.min(labels.len() - 1)));
    let wanted = labels.iter().max().map_or(0, |most| *most as usize + 1);
    let count = |found: &[u32]| found.iter().max().map_or(0, |most| *most as usize + 1);
    let (mut low, mut high) = RESOLUTIONS;
    let mut best: Option<(usize, f64, Vec<u32>)> = None;
    for _ in 0..SEARCH {
        let resolution = (low * high).sqrt();
        let found = leiden(&graph, resolution, seed);
        let clusters = count(&found);
        if best.as_ref().is_none_or(|(apart, ..)| clusters.abs_diff(wanted) < *apart) {
            best = Some((clusters.abs_diff(wanted), resolution, found));
        }
        match clusters.cmp(&wanted) {
            std::cmp::Ordering::Equal => break,
            std::cmp::Ordering::Less => low = resolution,
            std::cmp::Ordering::Greater => high = resolution,
        }
    }
    let no_silhouette = || Error::Request(format!("{representation}: no silhouette can be taken of these labels"));
    let (_, resolution, found) = best.ok_or_else(no_silhouette)?;
    Ok(Clustered {
        representation: representation.to_owned(),
        dim,
        clusters: count(&found),
        resolution,
        nmi: normalised_mutual_information(labels, &found),
        ari: adjusted_rand_index(labels, &found),
        silhouette: silhouette(vectors, dim, labels).ok_or_else(no_silhouette)?,
    })
}

/// A model's embeddings with the depth asked for `fold` times that of the cell, `[cells, dim]`; cells without one are zeros.
///
/// # Errors
/// As [`Model::embed`].
pub fn embeddings(model: &Model, placement: &Placement, cells: &[Cell], fold: f64) -> Result<Vec<f32>> {
    let recipe = Recipe { depth: Depth::Fold(fold), ..Recipe::of_model(model.name()) };
    let samples = cells.iter().map(|cell| Some(Sample { profile: cell.profile(), total: None }));
    Ok(model.embed(&recipe, samples, placement, DEFAULT_TOKEN_BUDGET)?.vectors)
}

/// Scores of log-normalised counts over every gene on their first principal components, and how many those are.
pub fn components(cells: &[Cell], seed: u64) -> (Vec<f32>, usize) {
    let (mut offsets, mut columns, mut values) = (vec![0], Vec::new(), Vec::new());
    for cell in cells {
        let total: f64 = cell.values.iter().map(|v| f64::from(*v)).sum();
        columns.extend_from_slice(&cell.gene_ids);
        values.extend(cell.values.iter().map(|v| log_normalised(f64::from(*v), total)));
        offsets.push(columns.len());
    }
    let dim = columns.iter().max().map_or(1, |most| *most as usize + 1);
    let rows = SparseRows { dim, offsets: &offsets, columns: &columns, values: &values };
    let found = principal_components(rows, COMPONENTS.min(cells.len()), seed);
    (found.scores, found.count)
}

/// Counts of the genes that any cell expresses, `[cells, genes]`, and how many those are.
pub fn counts(cells: &[Cell]) -> (Vec<f32>, usize) {
    let genes: std::collections::BTreeSet<u32> = cells.iter().flat_map(|cell| cell.gene_ids.iter().copied()).collect();
    let at: HashMap<u32, usize> = genes.iter().enumerate().map(|(i, gene)| (*gene, i)).collect();
    let mut dense = vec![0f32; cells.len() * at.len()];
    for (row, cell) in dense.chunks_exact_mut(at.len().max(1)).zip(cells) {
        cell.gene_ids.iter().zip(&cell.values).for_each(|(gene, value)| row[at[gene]] = *value);
    }
    (dense, at.len())
}
