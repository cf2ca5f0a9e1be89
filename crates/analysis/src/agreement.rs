//! Agreement of two labellings of the same items: normalised mutual information (NMI; Strehl and Ghosh 2002) and the
//! adjusted Rand index (ARI; Hubert and Arabie 1985). Neither depends on the names of the labels.
//!
//! Results equal those of scikit-learn. Callers must leave out items without a label.

use std::collections::BTreeMap;

/// Normalised mutual information, `I(a; b) / ((H(a) + H(b)) / 2)`, in 0..=1.
///
/// `normalized_mutual_info_score` of scikit-learn with its default, the arithmetic mean. It is one if neither labelling
/// splits the items (there are none, or a single label on both sides).
///
/// # Panics
/// If the labellings differ in length.
pub fn normalised_mutual_information(a: &[u32], b: &[u32]) -> f64 {
    let table = Contingency::new(a, b);
    if table.rows.len() < 2 && table.columns.len() < 2 {
        return 1.0;
    }
    let n = a.len() as f64;
    let mut mutual = 0.0;
    for (&(x, y), &both) in &table.cells {
        let (both, x, y) = (both as f64, table.rows[&x] as f64, table.columns[&y] as f64);
        mutual += both / n * ((both / x).ln() - (y / n).ln());
    }
    // For independent labels the sum is zero up to rounding. scikit-learn cuts it off here too.
    if mutual < f64::EPSILON {
        return 0.0;
    }
    mutual / ((entropy(&table.rows, n) + entropy(&table.columns, n)) / 2.0)
}

/// Adjusted Rand index (Hubert and Arabie 1985): 1 for the same partition, about 0 for chance, down to -0.5.
///
/// `adjusted_rand_score` of scikit-learn. It is one if both labellings agree on every pair of items, for example if
/// there are fewer than two.
///
/// # Panics
/// If the labellings differ in length.
pub fn adjusted_rand_index(a: &[u32], b: &[u32]) -> f64 {
    let table = Contingency::new(a, b);
    // Counts of ordered pairs of items, including an item with itself. These and their products are exact in 128 bits.
    let squares = |counts: &mut dyn Iterator<Item = usize>| counts.map(|c| (c as i128).pow(2)).sum::<i128>();
    let n = a.len() as i128;
    let both = squares(&mut table.cells.values().copied());
    let in_a = squares(&mut table.rows.values().copied());
    let in_b = squares(&mut table.columns.values().copied());
    let (only_a, only_b) = (in_a - both, in_b - both);
    if only_a == 0 && only_b == 0 {
        return 1.0;
    }
    let (together, apart) = (both - n, n * n + both - in_a - in_b);
    let over = 2 * (together * apart - only_a * only_b);
    let under = (together + only_a) * (only_a + apart) + (together + only_b) * (only_b + apart);
    over as f64 / under as f64
}

/// Contingency table: the count of each pair of labels, and the margins. Ordered maps make sums reproducible.
struct Contingency {
    cells: BTreeMap<(u32, u32), usize>,
    rows: BTreeMap<u32, usize>,
    columns: BTreeMap<u32, usize>,
}

impl Contingency {
    fn new(a: &[u32], b: &[u32]) -> Self {
        assert_eq!(a.len(), b.len(), "the labellings have the same length");
        let (mut cells, mut rows, mut columns) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (&x, &y) in a.iter().zip(b) {
            *cells.entry((x, y)).or_insert(0) += 1;
            *rows.entry(x).or_insert(0) += 1;
            *columns.entry(y).or_insert(0) += 1;
        }
        Self { cells, rows, columns }
    }
}

/// Entropy of counts that sum to `n`, in nats.
fn entropy(counts: &BTreeMap<u32, usize>, n: f64) -> f64 {
    counts.values().map(|&c| c as f64 / n).map(|p| -p * p.ln()).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `n` labels by a rule that Python states the same way.
    fn labels(n: u32, rule: impl Fn(u32) -> u32) -> Vec<u32> {
        (0..n).map(rule).collect()
    }

    fn scores(a: &[u32], b: &[u32]) -> (f64, f64) {
        (normalised_mutual_information(a, b), adjusted_rand_index(a, b))
    }

    fn assert_scores(found: (f64, f64), expected: (f64, f64)) {
        assert!((found.0 - expected.0).abs() < 1e-12 && (found.1 - expected.1).abs() < 1e-12, "{found:?} {expected:?}");
    }

    /// scikit-learn 1.9.1, `from sklearn.metrics import normalized_mutual_info_score as N, adjusted_rand_score as A`,
    /// `i = np.arange(100)`, then `N(a, b), A(a, b)` of the rules beside each line.
    #[test]
    fn scores_are_those_of_scikit_learn() {
        // a = i*i % 7; b = i // 20
        let (a, b) = (labels(100, |i| i * i % 7), labels(100, |i| i / 20));
        assert_scores(scores(&a, &b), (0.001946874302462748, -0.03254405061370282));
        // a = i // 20; b = np.where(i % 9 == 0, i % 5, (i + 3) // 20)
        let noisy = labels(100, |i| if i % 9 == 0 { i % 5 } else { (i + 3) / 20 });
        assert_scores(scores(&b, &noisy), (0.6139874079156299, 0.5593834451005906));
        // N([0, 0, 1, 1], [0, 1, 0, 1]), A([0, 0, 1, 1], [0, 1, 0, 1])
        assert_scores(scores(&[0, 0, 1, 1], &[0, 1, 0, 1]), (0.0, -0.5));
    }

    /// The same call of scikit-learn on each of these: `N([], [])`, `N([3], [8])`, `N([1] * 4, [2] * 4)`,
    /// `N([1] * 4, [1, 1, 2, 2])`, `N([1] * 4, [1, 2, 3, 4])`, `N([1, 2, 3, 4], [4, 3, 2, 1])`, and `A` of the same.
    #[test]
    fn edge_cases_are_those_of_scikit_learn() {
        assert_eq!(scores(&[], &[]), (1.0, 1.0));
        assert_eq!(scores(&[3], &[8]), (1.0, 1.0));
        assert_eq!(scores(&[1; 4], &[2; 4]), (1.0, 1.0));
        assert_eq!(scores(&[1; 4], &[1, 1, 2, 2]), (0.0, 0.0));
        assert_eq!(scores(&[1; 4], &[1, 2, 3, 4]), (0.0, 0.0));
        assert_eq!(scores(&[1, 2, 3, 4], &[4, 3, 2, 1]), (1.0, 1.0));
    }

    proptest! {
        #[test]
        fn names_and_sides_do_not_matter(pairs in prop::collection::vec((0u32..5, 0u32..4), 0..60)) {
            let (a, b): (Vec<u32>, Vec<u32>) = pairs.into_iter().unzip();
            let renamed: Vec<u32> = a.iter().map(|x| u32::MAX - 7 * x).collect();
            let (one, other) = (scores(&a, &b), scores(&b, &renamed));
            prop_assert!((one.0 - other.0).abs() < 1e-12 && one.1 == other.1);
            prop_assert!((-1e-12..=1.0 + 1e-12).contains(&one.0) && (-0.5..=1.0).contains(&one.1));
            let same = scores(&a, &renamed);
            prop_assert!((same.0 - 1.0).abs() < 1e-12 && same.1 == 1.0);
        }
    }
}
