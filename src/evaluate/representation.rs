//! How well representations of cells keep labels together and batches mixed.
//!
//! Definitions follow scib (Luecken et al. 2022, Nat. Methods 19:41): NMI and ARI of Leiden clusters, silhouettes
//! scaled to 0 to 1, graph LISI. Beside them: how often the majority of a cell's nearest neighbours has its label,
//! among all other cells and among the cells of other batches.

use std::collections::HashMap;

use cellql_analysis::connectivities::connectivities;
use cellql_analysis::knn::{KnnGraph, nearest_in_other_groups, nearest_neighbours};
use cellql_analysis::knn_labels::{accuracy_and_macro_f1, majority_labels};
use cellql_analysis::lisi::median_lisi;
use cellql_analysis::pca::{SparseRows, principal_components};
use cellql_analysis::silhouette::{silhouette, silhouette_samples};
use cellql_analysis::variable_genes::{ColumnMoments, most_variable};
use cellql_schemas::expr::{TARGET_SUM, log_normalise};

use super::cells::LabelledCell;
use super::clustering::{ClusterAgreement, cluster_agreement};
use crate::error::{Error, Result};

/// Neighbours of a cell in the graph, without itself; scanpy counts the cell, 15.
const GRAPH_NEIGHBOURS: usize = 14;
/// Highly variable genes of the representations that are fitted to the cells.
const VARIABLE_GENES: usize = 2000;
/// Principal components of the representation that is fitted to the cells.
const COMPONENTS: usize = 50;

/// By what distance neighbours are nearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeighbourMetric {
    /// The angle between vectors, as indexes search.
    Cosine,
    /// Euclidean distance.
    Euclidean,
}

/// Vectors of cells.
#[derive(Debug, Clone, PartialEq)]
pub struct Representation {
    /// Its name.
    pub name: String,
    /// `[cells, dim]`.
    pub vectors: Vec<f32>,
    /// Dimensions.
    pub dim: usize,
}

/// Scores of a representation. All are better the higher they are.
#[derive(Debug, Clone, PartialEq)]
pub struct RepresentationScores {
    /// Name of the representation.
    pub name: String,
    /// Dimensions.
    pub dim: usize,
    /// Share of cells whose label is that of most of their nearest neighbours.
    pub knn_accuracy: f64,
    /// Macro-F1 of these labels.
    pub knn_macro_f1: f64,
    /// The same among neighbours of other batches.
    pub across_batches: Option<(f64, f64)>,
    /// Normalised mutual information of Leiden clusters, about as many as labels, and labels.
    pub nmi: f64,
    /// Adjusted Rand index of them.
    pub ari: f64,
    /// Mean silhouette of the labels by Euclidean distance, scaled from -1..1 to 0..1.
    pub silhouette: f64,
    /// Graph cLISI, scaled: 1 where all cells of a neighbourhood have one label; `None` for 90 cells or fewer.
    pub clisi: Option<f64>,
    /// Scores of batches that are mixed: 1 minus the absolute batch silhouette within labels, and scaled graph iLISI.
    pub batches: Option<BatchScores>,
}

/// How well batches are mixed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchScores {
    /// 1 minus the absolute silhouette of batches within each label, averaged over labels; `None` where no label has
    /// cells of two batches.
    pub silhouette: Option<f64>,
    /// Graph iLISI, scaled: 1 where the batches of a neighbourhood are mixed evenly; `None` for 90 cells or fewer.
    pub ilisi: Option<f64>,
}

impl RepresentationScores {
    /// The mean of all scores.
    pub fn overall(&self) -> f64 {
        let mut all = vec![self.knn_accuracy, self.knn_macro_f1, self.nmi, self.ari, self.silhouette];
        all.extend(self.clisi);
        all.extend(self.across_batches.into_iter().flat_map(|(accuracy, f1)| [accuracy, f1]));
        if let Some(batches) = self.batches {
            all.extend(batches.ilisi);
            all.extend(batches.silhouette);
        }
        all.iter().sum::<f64>() / all.len() as f64
    }
}

/// What representations are judged by.
#[derive(Debug, Clone)]
pub struct Judge {
    /// `[cells]`: labels as numbers from 0.
    pub labels: Vec<u32>,
    /// `[cells]`: batches as numbers from 0, if there are any.
    pub batches: Option<Vec<u32>>,
    /// Neighbours that vote for a label.
    pub neighbours: usize,
    /// By what neighbours are nearest.
    pub metric: NeighbourMetric,
    /// Seed of the clustering.
    pub seed: u64,
}

/// Batches as numbers from 0, in order of appearance; `None` if no cell has one.
///
/// # Errors
/// All cells are of one batch.
pub fn batches(cells: &[LabelledCell]) -> Result<Option<Vec<u32>>> {
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    let mut of_cells = Vec::with_capacity(cells.len());
    for cell in cells {
        let Some(batch) = cell.batch.as_deref() else { return Ok(None) };
        let next = numbers.len() as u32;
        of_cells.push(*numbers.entry(batch).or_insert(next));
    }
    match numbers.len() {
        0 | 1 => {
            Err(Error::Request("--batch: all cells are of one batch; choose another column or other cells".into()))
        }
        _ => Ok(Some(of_cells)),
    }
}

impl Judge {
    /// The scores of a representation.
    ///
    /// # Errors
    /// Labels without a silhouette.
    pub fn scores(&self, representation: &Representation) -> Result<RepresentationScores> {
        let Representation { name, vectors, dim } = representation;
        let normalised;
        let compared = match self.metric {
            NeighbourMetric::Euclidean => vectors,
            NeighbourMetric::Cosine => {
                normalised = unit_vectors(vectors, *dim);
                &normalised
            }
        };
        let nearest = nearest_neighbours(compared, *dim, self.neighbours.max(GRAPH_NEIGHBOURS));
        let vote = |graph: &KnnGraph| accuracy_and_macro_f1(&self.labels, &majority_labels(graph, &self.labels));
        let (knn_accuracy, knn_macro_f1) = vote(&first(&nearest, self.neighbours));
        let graph = connectivities(&first(&nearest, GRAPH_NEIGHBOURS));
        let ClusterAgreement { nmi, ari, .. } = cluster_agreement(&graph, &self.labels, self.seed);
        let undefined = || Error::Request(format!("{name}: these labels have no silhouette; choose others"));
        let across = |batches: &Vec<u32>| vote(&nearest_in_other_groups(compared, *dim, self.neighbours, batches));
        let lisi = |labels: &[u32]| median_lisi(&graph, labels);
        let kinds = |labels: &[u32]| f64::from(labels.iter().max().map_or(0, |most| *most) + 1);
        let mixing = |batches: &Vec<u32>| BatchScores {
            silhouette: batch_silhouette(vectors, *dim, &self.labels, batches),
            ilisi: lisi(batches).map(|lisi| (lisi - 1.0) / (kinds(batches) - 1.0)),
        };
        Ok(RepresentationScores {
            name: name.clone(),
            dim: *dim,
            knn_accuracy,
            knn_macro_f1,
            across_batches: self.batches.as_ref().map(across),
            nmi,
            ari,
            silhouette: (silhouette(vectors, *dim, &self.labels).ok_or_else(undefined)? + 1.0) / 2.0,
            clisi: lisi(&self.labels).map(|lisi| (kinds(&self.labels) - lisi) / (kinds(&self.labels) - 1.0)),
            batches: self.batches.as_ref().map(mixing),
        })
    }
}

/// 1 minus the absolute silhouette of each cell's batch among the cells of its label, averaged within labels and then
/// over labels, as scib's `silhouette_batch`.
fn batch_silhouette(vectors: &[f32], dim: usize, labels: &[u32], batches: &[u32]) -> Option<f64> {
    let mut means = Vec::new();
    for label in 0..=labels.iter().max().copied().unwrap_or(0) {
        let of_label: Vec<usize> = (0..labels.len()).filter(|i| labels[*i] == label).collect();
        let rows: Vec<f32> = of_label.iter().flat_map(|i| &vectors[i * dim..(i + 1) * dim]).copied().collect();
        let batches: Vec<u32> = of_label.iter().map(|i| batches[*i]).collect();
        if let Some(samples) = silhouette_samples(&rows, dim, &batches) {
            means.push(samples.iter().map(|s| 1.0 - s.abs()).sum::<f64>() / samples.len() as f64);
        }
    }
    (!means.is_empty()).then(|| means.iter().sum::<f64>() / means.len() as f64)
}

/// Vectors of length 1; zeros stay.
fn unit_vectors(vectors: &[f32], dim: usize) -> Vec<f32> {
    let scaled = |vector: &[f32]| {
        let length = vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
        vector.iter().map(|v| (f64::from(*v) * scale) as f32).collect::<Vec<f32>>()
    };
    vectors.chunks_exact(dim).flat_map(scaled).collect()
}

/// The graph of the first `k` neighbours.
fn first(graph: &KnnGraph, k: usize) -> KnnGraph {
    let k = k.min(graph.k);
    let rows = |i: usize| i * graph.k..i * graph.k + k;
    KnnGraph {
        n: graph.n,
        k,
        indices: (0..graph.n).flat_map(|i| graph.indices[rows(i)].iter().copied()).collect(),
        distances: (0..graph.n).flat_map(|i| graph.distances[rows(i)].iter().copied()).collect(),
    }
}

/// The representations that need no model: counts, the log-normalised counts of 2,000 highly variable genes, and 50
/// principal components of these, all of the cells themselves, as scanpy computes them by default.
pub fn baselines(cells: &[LabelledCell], seed: u64) -> Vec<Representation> {
    let (counts, dim) = super::clustering::dense_counts(cells);
    let counts = Representation { name: "counts".to_owned(), vectors: counts, dim };
    let variable = VariableGenes::of(cells);
    let rows = SparseRows {
        dim: variable.dim,
        offsets: &variable.offsets,
        columns: &variable.columns,
        values: &variable.values,
    };
    let found = principal_components(rows, COMPONENTS.min(cells.len()), seed);
    let components = Representation { name: "PCA of these cells".to_owned(), dim: found.count, vectors: found.scores };
    vec![components, variable.dense(), counts]
}

/// Log-normalised counts of highly variable genes, by rows.
struct VariableGenes {
    dim: usize,
    offsets: Vec<usize>,
    columns: Vec<u32>,
    values: Vec<f32>,
}

impl VariableGenes {
    fn of(cells: &[LabelledCell]) -> Self {
        let genes = cells.iter().flat_map(|cell| &cell.gene_ids).max().map_or(0, |most| *most as usize + 1);
        let (mut sums, mut squares) = (vec![0f64; genes], vec![0f64; genes]);
        let total = |cell: &LabelledCell| cell.values.iter().map(|v| f64::from(*v)).sum::<f64>();
        for cell in cells {
            let scale = TARGET_SUM / total(cell);
            for (gene, value) in cell.gene_ids.iter().zip(&cell.values) {
                let value = f64::from(*value) * scale;
                sums[*gene as usize] += value;
                squares[*gene as usize] += value * value;
            }
        }
        let n = cells.len() as f64;
        let mean: Vec<f64> = sums.iter().map(|sum| sum / n).collect();
        let variance = |(squares, mean): (&f64, &f64)| (squares - n * mean * mean).max(0.0) / (n - 1.0).max(1.0);
        let moments = ColumnMoments { variance: squares.iter().zip(&mean).map(variance).collect(), mean };
        let chosen = most_variable(&[moments], VARIABLE_GENES);
        let mut all = Self { dim: chosen.len().max(1), offsets: vec![0], columns: Vec::new(), values: Vec::new() };
        for cell in cells {
            let total = total(cell);
            for (gene, value) in cell.gene_ids.iter().zip(&cell.values) {
                if let Ok(column) = chosen.binary_search(gene) {
                    all.columns.push(column as u32);
                    all.values.push(log_normalise(*value, total, TARGET_SUM) as f32);
                }
            }
            all.offsets.push(all.columns.len());
        }
        all
    }

    fn dense(&self) -> Representation {
        let mut vectors = vec![0f32; (self.offsets.len() - 1) * self.dim];
        for (row, ends) in vectors.chunks_exact_mut(self.dim).zip(self.offsets.windows(2)) {
            (ends[0]..ends[1]).for_each(|at| row[self.columns[at] as usize] = self.values[at]);
        }
        Representation { name: "variable genes".to_owned(), vectors, dim: self.dim }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two groups of labels far apart; batches lie mixed in one and apart in the other.
    fn judge() -> (Judge, Representation) {
        let n = 240usize;
        let labels: Vec<u32> = (0..n as u32).map(|i| i % 2).collect();
        let batches: Vec<u32> = (0..n as u32).map(|i| (i / 2) % 2).collect();
        let noise = |i: usize, d: usize| ((i * 7919 + d * 104_729 + i * i * 31) % 1000) as f32 / 1000.0;
        let value = |i: usize, d: usize| {
            let label = if d == 0 { 20.0 * labels[i] as f32 } else { 0.0 };
            let batch = if d == 1 && labels[i] == 1 { 5.0 * batches[i] as f32 } else { 0.0 };
            10.0 + label + batch + noise(i, d)
        };
        let vectors = (0..n).flat_map(|i| (0..3).map(move |d| value(i, d))).collect();
        let judge =
            Judge { labels, batches: Some(batches), neighbours: 15, metric: NeighbourMetric::Euclidean, seed: 0 };
        (judge, Representation { name: "r".into(), vectors, dim: 3 })
    }

    #[test]
    fn labels_apart_score_high_and_batches_apart_lower() {
        let (judge, representation) = judge();
        let scores = judge.scores(&representation).unwrap();
        assert_eq!((scores.knn_accuracy, scores.knn_macro_f1, scores.across_batches), (1.0, 1.0, Some((1.0, 1.0))));
        assert!(scores.clisi.unwrap() > 0.99 && scores.silhouette > 0.8, "{scores:?}");
        let mixed = scores.batches.unwrap();
        assert!((0.4..0.8).contains(&mixed.silhouette.unwrap()), "{mixed:?}");
        assert!(scores.overall() < 1.0 && scores.overall() > 0.5);
        // Labels at random are not kept together.
        let random = Judge { labels: (0..240).map(|i| (i * i * 7 / 3) % 3).collect(), ..judge };
        let scores = random.scores(&representation).unwrap();
        assert!(scores.knn_accuracy < 0.6 && scores.nmi < 0.3, "{scores:?}");
    }

    #[test]
    fn one_batch_is_an_error_and_no_batch_is_none() {
        let cell = |batch: Option<&str>| LabelledCell {
            gene_ids: vec![],
            values: vec![],
            label: None,
            batch: batch.map(str::to_owned),
        };
        assert!(batches(&[cell(Some("a")), cell(Some("a"))]).is_err());
        assert_eq!(batches(&[cell(Some("a")), cell(Some("b"))]).unwrap(), Some(vec![0, 1]));
        assert_eq!(batches(&[cell(None)]).unwrap(), None);
    }
}
