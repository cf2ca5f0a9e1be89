//! Metadata of an exported table of cells: the genes of its ids, its data sets, and provenance.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Metadata key of an exported table: its genes as a JSON list of [`ExportedGene`].
pub const GENES: &str = "cellql.genes";
/// Metadata key of an exported table: provenance, as a JSON object.
pub const PROVENANCE: &str = "cellql.provenance";

/// A gene of an exported table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedGene {
    /// Its id in `expr`.
    pub gene_id: u32,
    /// Approved symbol, or the name in a file.
    pub symbol: String,
    /// `HGNC:5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hgnc_id: Option<String>,
    /// `ENSG…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ensembl_id: Option<String>,
}

/// Provenance key of an export: its data sets, as a JSON list of [`ExportedDataset`].
pub const DATASETS: &str = "datasets";

/// A data set of an exported table, with what an ingest needs to make the same data set again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedDataset {
    /// Its id in the store, and in the column `dataset_id` of the table.
    pub dataset_id: u32,
    /// Name.
    pub name: String,
    /// Where it was read from.
    pub source_uri: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// The matrix that was read: `X`, `raw/X`.
    pub matrix: String,
    /// Kind of the values, as in `cells`.
    pub value_kind: String,
    /// How values are converted to model input.
    pub input: String,
    /// Columns of obs by their names in the table.
    pub obs: Vec<String>,
    /// The measured genes as ranges of their ids in `expr`: first and number.
    pub measured: Vec<(u32, u32)>,
    /// Names in the file, of genes whose name is not their symbol.
    pub names: BTreeMap<u32, String>,
}

impl ExportedDataset {
    /// Sets the measured genes, ascending, with their names in the file and their symbols.
    pub fn set_measured<'a>(&mut self, genes: impl IntoIterator<Item = (u32, &'a str, &'a str)>) {
        for (gene, name, symbol) in genes {
            match self.measured.last_mut() {
                Some((first, count)) if *first + *count == gene => *count += 1,
                _ => self.measured.push((gene, 1)),
            }
            if name != symbol {
                self.names.insert(gene, name.to_owned());
            }
        }
    }

    /// True for a measured gene.
    pub fn has_measured(&self, gene: u32) -> bool {
        let after = self.measured.partition_point(|(first, _)| *first <= gene);
        after.checked_sub(1).is_some_and(|i| gene - self.measured[i].0 < self.measured[i].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_genes_are_kept_as_ranges() {
        let mut dataset = ExportedDataset::default();
        dataset.set_measured([(3, "a", "a"), (4, "old", "new"), (9, "b", "b")]);
        assert_eq!(dataset.measured, [(3, 2), (9, 1)]);
        assert_eq!(dataset.names, BTreeMap::from([(4, "old".to_owned())]));
        let measured: Vec<u32> = (0..12).filter(|gene| dataset.has_measured(*gene)).collect();
        assert_eq!(measured, [3, 4, 9]);
    }
}
