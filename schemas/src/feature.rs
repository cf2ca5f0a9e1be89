//! A feature as a file describes it.

/// A row of `var`: a feature that a file measures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Feature {
    /// Symbol, or any other name the file gives.
    pub name: String,
    /// Ensembl gene id, if the file gives one beside the name.
    pub ensembl_id: Option<String>,
}

impl Feature {
    /// A feature without an Ensembl id.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ensembl_id: None }
    }
}
