//! Choice of the genes of a linear model.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which genes a linear model reads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum GeneSelection {
    /// Genes that at least this share of the cells express.
    MinCells(f64),
    /// So many highly variable genes, chosen as scanpy's flavor `seurat` does, over the groups that are weighted alike.
    HighlyVariable(usize),
}

impl Default for GeneSelection {
    fn default() -> Self {
        GeneSelection::MinCells(0.005)
    }
}

impl fmt::Display for GeneSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GeneSelection::MinCells(share) => write!(f, "min-cells:{share}"),
            GeneSelection::HighlyVariable(genes) => write!(f, "hvg:{genes}"),
        }
    }
}

impl FromStr for GeneSelection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "unknown selection of genes '{text}'; write hvg:2000 (number of highly variable genes) or \
                 min-cells:0.005 (share of cells that express a gene, from 0 to 1)"
            )
        };
        match text.split_once(':') {
            Some(("hvg", genes)) => match genes.parse() {
                Ok(genes) if genes > 0 => Ok(GeneSelection::HighlyVariable(genes)),
                _ => Err(wrong()),
            },
            Some(("min-cells", share)) => match share.parse() {
                Ok(share) if (0.0..=1.0).contains(&share) => Ok(GeneSelection::MinCells(share)),
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }
}

impl From<GeneSelection> for String {
    fn from(selection: GeneSelection) -> Self {
        selection.to_string()
    }
}

impl TryFrom<String> for GeneSelection {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_are_read_and_written_alike() {
        for text in ["hvg:2000", "min-cells:0.005", "min-cells:0"] {
            assert_eq!(text.parse::<GeneSelection>().unwrap().to_string(), text);
        }
        for text in ["hvg:0", "hvg", "min-cells:2", "min-cells:NaN", "all"] {
            assert!(text.parse::<GeneSelection>().unwrap_err().contains("hvg:2000"));
        }
    }
}
