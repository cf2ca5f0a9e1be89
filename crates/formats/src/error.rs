//! The one way a file fails: which file, what in it, why.

use std::path::{Path, PathBuf};

/// What is wrong with a file.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {object}: {problem}", file.display())]
pub struct FormatError {
    /// The file.
    pub file: PathBuf,
    /// What inside it: `obs`, `X`, `line 7`.
    pub object: String,
    /// What is wrong, and what to do.
    pub problem: String,
}

impl FormatError {
    /// An error about an object of a file.
    pub fn new(file: impl AsRef<Path>, object: impl Into<String>, problem: impl ToString) -> Self {
        Self { file: file.as_ref().to_owned(), object: object.into(), problem: problem.to_string() }
    }
}
