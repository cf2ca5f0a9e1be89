//! Labels by the majority of nearest neighbours, and how often they are right.

use std::collections::BTreeMap;

use crate::knn::KnnGraph;

/// The label of most neighbours of each vector, `[n]`; of several with equally many neighbours that of the nearest one.
/// `None` for a vector without neighbours.
///
/// # Panics
/// If there is not a label for every vector.
pub fn majority_labels(graph: &KnnGraph, labels: &[u32]) -> Vec<Option<u32>> {
    assert_eq!(labels.len(), graph.n, "a label for every vector");
    let vote = |i: usize| {
        let of = &graph.indices[i * graph.k..(i + 1) * graph.k];
        let mut votes: Vec<(u32, usize)> = Vec::new();
        for neighbour in of.iter().filter(|neighbour| **neighbour != u32::MAX) {
            let label = labels[*neighbour as usize];
            match votes.iter_mut().find(|(other, _)| *other == label) {
                Some((_, count)) => *count += 1,
                None => votes.push((label, 1)),
            }
        }
        // Labels stand in the order of their nearest neighbours; the first of the largest counts wins.
        votes.iter().rev().max_by_key(|(_, count)| *count).map(|(label, _)| *label)
    };
    (0..graph.n).map(vote).collect()
}

/// Accuracy and macro-F1 of predicted labels; those that are `None` count as wrong. Macro-F1 is the mean over true
/// labels of the harmonic mean of precision and recall (`f1_score(average="macro")` of scikit-learn over the true
/// labels).
///
/// # Panics
/// If the slices differ in length.
pub fn accuracy_and_macro_f1(truth: &[u32], predicted: &[Option<u32>]) -> (f64, f64) {
    assert_eq!(truth.len(), predicted.len(), "a prediction for every label");
    // Of each label: right, true, predicted.
    let mut counts: BTreeMap<u32, [u64; 3]> = truth.iter().map(|label| (*label, [0; 3])).collect();
    let mut right = 0u64;
    for (truth, predicted) in truth.iter().zip(predicted) {
        let is_right = *predicted == Some(*truth);
        right += u64::from(is_right);
        if let Some(counts) = counts.get_mut(truth) {
            counts[0] += u64::from(is_right);
            counts[1] += 1;
        }
        if let Some(counts) = predicted.and_then(|predicted| counts.get_mut(&predicted)) {
            counts[2] += 1;
        }
    }
    let f1 = |[right, truth, predicted]: &[u64; 3]| 2.0 * *right as f64 / (truth + predicted).max(1) as f64;
    let labels = counts.len().max(1) as f64;
    (right as f64 / truth.len().max(1) as f64, counts.values().map(f1).sum::<f64>() / labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::knn::nearest_neighbours;

    #[test]
    fn most_neighbours_decide_and_the_nearest_breaks_ties() {
        let graph = nearest_neighbours(&[0.0, 1.0, 2.1, 3.3, 9.0], 1, 2);
        assert_eq!(majority_labels(&graph, &[7, 8, 8, 9, 9])[..2], [Some(8), Some(7)]);
        assert_eq!(majority_labels(&nearest_neighbours(&[1.0], 1, 3), &[4]), [None]);
    }

    /// scikit-learn 1.9.1: `t = i*i % 7, p = np.where(i % 3 == 0, i % 5, t)` for i below 100, `accuracy_score(t, p)`,
    /// `f1_score(t, p, average="macro", labels=np.unique(t))`.
    #[test]
    fn scores_are_those_of_scikit_learn() {
        let truth: Vec<u32> = (0..100).map(|i| i * i % 7).collect();
        let predicted: Vec<Option<u32>> = (0..100).map(|i| Some(if i % 3 == 0 { i % 5 } else { i * i % 7 })).collect();
        let (accuracy, f1) = accuracy_and_macro_f1(&truth, &predicted);
        assert!((accuracy - 0.72).abs() < 1e-12 && (f1 - 0.7401425814751286).abs() < 1e-12, "{accuracy} {f1}");
    }
}
