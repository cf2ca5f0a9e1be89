//! What a file says of one feature it measures.

/// A feature as a file names it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Feature {
    /// Symbol, or whatever stands in its place.
    pub name: String,
    /// Ensembl gene id, where the file gives one beside the name.
    pub ensembl_id: Option<String>,
}

impl Feature {
    /// A feature with nothing but a name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ensembl_id: None }
    }
}
