//! Errors of resolving a name to a gene.

/// A name in a query could not be resolved to one gene of the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeneError {
    /// The nomenclature has the gene, but the store was created with an older nomenclature and no file measured the
    /// gene.
    #[error("gene '{name}' is in the nomenclature but not in this store, which is older; no data set measured it")]
    Newer {
        /// The name in the query.
        name: String,
    },
    /// The name belongs to several genes.
    #[error("gene '{name}' is ambiguous: it is a current or previous name of {}; use one of these", symbols.join(", "))]
    Ambiguous {
        /// The name in the query.
        name: String,
        /// Approved symbols of the genes.
        symbols: Vec<String>,
    },
    /// Several features without identity have the name.
    #[error(
        "gene '{name}' is ambiguous: {} features of this store that resolve to no gene have the name; use an \
             Ensembl id: {}",
        ensembl_ids.len(), ensembl_ids.join(", ")
    )]
    SeveralFeatures {
        /// The name in the query.
        name: String,
        /// Ensembl ids of the features.
        ensembl_ids: Vec<String>,
    },
    /// No gene and no feature has the name.
    #[error("unknown gene '{name}'.{hint}")]
    Unknown {
        /// The name in the query.
        name: String,
        /// Similar names as a sentence that begins with a space, or empty.
        hint: String,
    },
}
