//! Brings the values of a cell from a file's feature order into the order of gene ids.

use std::fmt;

/// Sorts the values of one cell by gene without comparisons: each value is put at the rank of its gene, and a bitmap
/// marks the ranks that have one.
#[derive(Debug)]
pub struct GeneSorter {
    /// Rank of each feature's gene among the file's genes by ascending id.
    ranks: Vec<u32>,
    /// Gene ids, ascending.
    genes: Vec<u32>,
    /// Value at each rank; only those marked are meaningful.
    values: Vec<f32>,
    /// One bit per rank.
    marked: Vec<u64>,
    count: usize,
}

/// A value that a cell cannot have. Features are numbered from 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ValueError {
    /// A value below zero.
    Negative {
        /// Number of the feature.
        feature: u32,
        /// Its value.
        value: f32,
    },
    /// A value that is NaN or infinite.
    NotFinite {
        /// Number of the feature.
        feature: u32,
        /// Its value.
        value: f32,
    },
    /// A second value of one feature in a cell.
    Repeated {
        /// Number of the feature.
        feature: u32,
    },
    /// A feature number that the file does not name.
    NoFeature {
        /// Number of the feature.
        feature: u32,
        /// Number of features that the file names.
        features: usize,
    },
}

impl ValueError {
    /// Number of the feature, from 0.
    pub fn feature(&self) -> u32 {
        match self {
            Self::Negative { feature, .. }
            | Self::NotFinite { feature, .. }
            | Self::Repeated { feature }
            | Self::NoFeature { feature, .. } => *feature,
        }
    }
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Negative { value, .. } => {
                write!(f, "the value {value} is negative; scaled or centred data cannot be stored, give raw counts")
            }
            Self::NotFinite { value, .. } => write!(f, "the value is {value}; expression must be a finite number"),
            Self::Repeated { .. } => f.write_str("has two values in one cell"),
            Self::NoFeature { features, .. } => write!(f, "the file names only {features} features"),
        }
    }
}

impl GeneSorter {
    /// For a file whose features are these genes. Each gene occurs once.
    pub fn new(gene_ids: &[u32]) -> Self {
        let mut genes = gene_ids.to_vec();
        genes.sort_unstable();
        let rank = |gene: &u32| genes.binary_search(gene).unwrap_or_default() as u32;
        Self {
            ranks: gene_ids.iter().map(rank).collect(),
            values: vec![0.0; genes.len()],
            marked: vec![0; genes.len().div_ceil(64)],
            count: 0,
            genes,
        }
    }

    /// The file's genes, ascending.
    pub fn genes(&self) -> &[u32] {
        &self.genes
    }

    /// Replaces the current cell by the values above zero of another. Returns how many there are.
    ///
    /// # Errors
    /// A value that a cell cannot have; the sorter then holds no cell.
    pub fn fill(&mut self, features: &[u32], values: &[f32]) -> Result<usize, ValueError> {
        self.clear();
        self.add_all(features, values).inspect_err(|_| self.clear())?;
        Ok(self.count)
    }

    fn add_all(&mut self, features: &[u32], values: &[f32]) -> Result<(), ValueError> {
        for (&feature, &value) in features.iter().zip(values) {
            if value < 0.0 {
                return Err(ValueError::Negative { feature, value });
            }
            if !value.is_finite() {
                return Err(ValueError::NotFinite { feature, value });
            }
            if value == 0.0 {
                continue;
            }
            let Some(&rank) = self.ranks.get(feature as usize) else {
                return Err(ValueError::NoFeature { feature, features: self.ranks.len() });
            };
            let (word, bit) = (rank as usize / 64, 1u64 << (rank % 64));
            if self.marked[word] & bit != 0 {
                return Err(ValueError::Repeated { feature });
            }
            self.marked[word] |= bit;
            self.values[rank as usize] = value;
            self.count += 1;
        }
        Ok(())
    }

    fn clear(&mut self) {
        if self.count > 0 {
            self.marked.fill(0);
            self.count = 0;
        }
    }

    /// Writes the genes and values of the current cell in the order of gene ids, and removes the cell. Both slices are
    /// as long as the number that [`GeneSorter::fill`] returned.
    pub fn take(&mut self, genes: &mut [u32], values: &mut [f32]) {
        let mut out = genes.iter_mut().zip(values);
        for (i, word) in self.marked.iter_mut().enumerate() {
            let mut bits = std::mem::take(word);
            while bits != 0 {
                let rank = i * 64 + bits.trailing_zeros() as usize;
                if let Some((gene, value)) = out.next() {
                    *gene = self.genes[rank];
                    *value = self.values[rank];
                }
                bits &= bits - 1;
            }
        }
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(sorter: &mut GeneSorter, features: &[u32], values: &[f32]) -> Result<Vec<(u32, f32)>, ValueError> {
        let count = sorter.fill(features, values)?;
        let (mut genes, mut taken) = (vec![0; count], vec![0.0; count]);
        sorter.take(&mut genes, &mut taken);
        Ok(genes.into_iter().zip(taken).collect())
    }

    #[test]
    fn values_are_sorted_by_gene_and_zeros_are_left_out() {
        let gene_ids: Vec<u32> = (0..200).map(|i| i * 37 % 200).collect();
        let mut sorter = GeneSorter::new(&gene_ids);
        let features: Vec<u32> = (0..200).rev().collect();
        let values: Vec<f32> = features.iter().map(|f| (f % 3) as f32).collect();
        let mut expected: Vec<(u32, f32)> = features.iter().map(|f| (gene_ids[*f as usize], (f % 3) as f32)).collect();
        expected.retain(|(_, value)| *value > 0.0);
        expected.sort_by_key(|(gene, _)| *gene);
        for _ in 0..2 {
            assert_eq!(sorted(&mut sorter, &features, &values), Ok(expected.clone()));
        }
    }

    #[test]
    fn a_cell_that_is_refused_leaves_nothing_behind() {
        let mut sorter = GeneSorter::new(&[9, 3, 4]);
        let refused = [
            (vec![0, 1], vec![1.0, -1.0], ValueError::Negative { feature: 1, value: -1.0 }),
            (vec![0, 2], vec![1.0, f32::INFINITY], ValueError::NotFinite { feature: 2, value: f32::INFINITY }),
            (vec![2, 2], vec![1.0, 1.0], ValueError::Repeated { feature: 2 }),
            (vec![0, 3], vec![1.0, 1.0], ValueError::NoFeature { feature: 3, features: 3 }),
        ];
        for (features, values, error) in refused {
            assert_eq!(sorter.fill(&features, &values), Err(error));
            assert_eq!(sorted(&mut sorter, &[1], &[2.0]), Ok(vec![(3, 2.0)]));
        }
        // A cell that is not taken is replaced by the next one.
        assert_eq!(sorter.fill(&[0, 1], &[1.0, 1.0]), Ok(2));
        assert_eq!(sorted(&mut sorter, &[2], &[5.0]), Ok(vec![(4, 5.0)]));
    }
}
