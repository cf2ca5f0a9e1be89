//! Metadata of an exported table of cells: the genes of its ids, and provenance.

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
