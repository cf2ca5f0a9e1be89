//! Names that mean no gene, or several.

/// A name of a query could not be brought to one gene of the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeneError {
    /// The nomenclature knows the gene, the store was made before that.
    #[error("gene '{name}' is newer than this store and not measured in it")]
    Newer {
        /// The name.
        name: String,
    },
    /// The name is one of several genes.
    #[error("gene '{name}' is ambiguous: it was or is a name of {}; use one of these", symbols.join(", "))]
    Ambiguous {
        /// The name.
        name: String,
        /// Approved symbols of the genes.
        symbols: Vec<String>,
    },
    /// Several features of the store without identity have the name.
    #[error(
        "'{name}' names {} features of this store without a gene of their own; use an Ensembl id: {}",
        ensembl_ids.len(), ensembl_ids.join(", ")
    )]
    SeveralFeatures {
        /// The name.
        name: String,
        /// Their Ensembl ids.
        ensembl_ids: Vec<String>,
    },
    /// The name is one of no gene and no feature.
    #[error("unknown gene '{name}'.{hint}")]
    Unknown {
        /// The name.
        name: String,
        /// Near names, as a sentence; empty for none.
        hint: String,
    },
}
