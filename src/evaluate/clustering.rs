//! Whether a representation keeps cells of one label together: nearest neighbours, Leiden clusters, and their agreement
//! with the labels.
//!
//! The steps are those of scanpy: the 14 nearest other cells of each cell (scanpy counts the cell itself, 15), UMAP
//! connectivities, Leiden by modularity. The resolution is searched so that there are about as many clusters as labels;
//! with a fixed resolution, the score of a representation would depend on how many clusters it happens to yield.
//! Silhouettes are those of the labels, with Euclidean distances in the representation.

use std::collections::HashMap;

use cellql_schemas::recipe::{Depth, Recipe};
use cellql_schemas::vocabulary::Placement;

use super::cells::{LabelledCell, log_normalised};
use crate::error::{Error, Result};
use cellql_analysis::agreement::{adjusted_rand_index, normalised_mutual_information};
use cellql_analysis::connectivities::connectivities;
use cellql_analysis::graph::WeightedGraph;
use cellql_analysis::knn::nearest_neighbours;
use cellql_analysis::leiden::leiden;
use cellql_analysis::pca::{SparseRows, principal_components};
use cellql_analysis::silhouette::silhouette;
use cellql_model::{DEFAULT_TOKEN_BUDGET, Model, Sample};

/// Number of nearest neighbours of a cell.
const NEIGHBOURS: usize = 14;
/// Maximum number of principal components.
const COMPONENTS: usize = 50;
/// Number of bisection steps of the search for a resolution.
const SEARCH_STEPS: usize = 12;
/// Smallest and largest resolution of the search.
const RESOLUTIONS: (f64, f64) = (0.01, 8.0);

/// How well a representation keeps cells of one label together.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusteringScores {
    /// Name of the representation.
    pub representation: String,
    /// Dimensions of the representation.
    pub dim: usize,
    /// Number of Leiden clusters.
    pub clusters: usize,
    /// Resolution at which they were found.
    pub resolution: f64,
    /// Normalised mutual information of clusters and labels, 0 to 1.
    pub nmi: f64,
    /// Adjusted Rand index of clusters and labels, at most 1; 0 is chance.
    pub ari: f64,
    /// Mean silhouette of the labels, -1 to 1.
    pub silhouette: f64,
}

/// Labels as numbers from 0, in order of appearance, `[cells]`.
///
/// # Errors
/// Fewer than two different labels, or as many as cells.
pub fn labels(cells: &[LabelledCell]) -> Result<Vec<u32>> {
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    let mut of_cells = Vec::with_capacity(cells.len());
    for cell in cells {
        let next = numbers.len() as u32;
        of_cells.push(*numbers.entry(cell.label.as_deref().unwrap_or_default()).or_insert(next));
    }
    match numbers.len() < 2 || numbers.len() == cells.len() {
        true => Err(Error::Request(format!(
            "{} different labels for {} cells: clusters cannot be compared with them; \
             choose another --label or other cells",
            numbers.len(),
            cells.len()
        ))),
        false => Ok(of_cells),
    }
}

/// Agreement of Leiden clusters, about as many as there are labels, with the labels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClusterAgreement {
    /// Number of clusters.
    pub clusters: usize,
    /// Resolution at which they were found.
    pub resolution: f64,
    /// Normalised mutual information, 0 to 1.
    pub nmi: f64,
    /// Adjusted Rand index, at most 1; 0 is chance.
    pub ari: f64,
}

/// Clusters a graph into about as many communities as there are labels, `[cells]`, and compares them.
pub fn cluster_agreement(graph: &WeightedGraph, labels: &[u32], seed: u64) -> ClusterAgreement {
    let wanted = labels.iter().max().map_or(0, |most| *most as usize + 1);
    let count = |found: &[u32]| found.iter().max().map_or(0, |most| *most as usize + 1);
    let (mut low, mut high) = RESOLUTIONS;
    let mut best: Option<(usize, f64, Vec<u32>)> = None;
    for _ in 0..SEARCH_STEPS {
        let resolution = (low * high).sqrt();
        let found = leiden(graph, resolution, seed);
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
    let (_, resolution, found) = best.unwrap_or_default();
    ClusterAgreement {
        clusters: count(&found),
        resolution,
        nmi: normalised_mutual_information(labels, &found),
        ari: adjusted_rand_index(labels, &found),
    }
}

/// Clusters vectors, `[cells, dim]`, and compares the clusters with labels, `[cells]`.
///
/// # Errors
/// Labels without a silhouette.
pub fn evaluate(
    representation: &str,
    vectors: &[f32],
    dim: usize,
    labels: &[u32],
    seed: u64,
) -> Result<ClusteringScores> {
    let graph = connectivities(&nearest_neighbours(vectors, dim, NEIGHBOURS.min(labels.len() - 1)));
    let ClusterAgreement { clusters, resolution, nmi, ari } = cluster_agreement(&graph, labels, seed);
    let no_silhouette = || {
        Error::Request(format!(
            "{representation}: these labels have no silhouette; choose another --label or other cells"
        ))
    };
    let silhouette = silhouette(vectors, dim, labels).ok_or_else(no_silhouette)?;
    Ok(ClusteringScores { representation: representation.to_owned(), dim, clusters, resolution, nmi, ari, silhouette })
}

/// A model's embeddings, `[cells, dim]`, with a target depth of `fold` times that of the cell. Cells without one are
/// zeros.
///
/// # Errors
/// As [`Model::embed`].
pub fn embeddings(model: &Model, placement: &Placement, cells: &[LabelledCell], fold: f64) -> Result<Vec<f32>> {
    let recipe = Recipe { depth: Depth::Fold(fold), ..Recipe::of_model(model.name()) };
    let samples = cells.iter().map(|cell| Some(Sample { profile: cell.profile(), total: None }));
    Ok(model.embed(&recipe, samples, placement, DEFAULT_TOKEN_BUDGET)?.vectors)
}

/// Scores of log-normalised counts of all genes on the first principal components, `[cells, components]`, and the
/// number of components.
pub fn pca_scores(cells: &[LabelledCell], seed: u64) -> (Vec<f32>, usize) {
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

/// Counts of the genes that any of the cells expresses, `[cells, genes]`, and the number of genes.
pub fn dense_counts(cells: &[LabelledCell]) -> (Vec<f32>, usize) {
    let genes: std::collections::BTreeSet<u32> = cells.iter().flat_map(|cell| cell.gene_ids.iter().copied()).collect();
    let at: HashMap<u32, usize> = genes.iter().enumerate().map(|(i, gene)| (*gene, i)).collect();
    let mut dense = vec![0f32; cells.len() * at.len()];
    for (row, cell) in dense.chunks_exact_mut(at.len().max(1)).zip(cells) {
        cell.gene_ids.iter().zip(&cell.values).for_each(|(gene, value)| row[at[gene]] = *value);
    }
    (dense, at.len())
}
