//! The error of this crate: which file, which object in it, what is wrong.

use std::path::{Path, PathBuf};

/// Result of everything in this crate.
pub type Result<T, E = FormatError> = std::result::Result<T, E>;

/// A file could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {object}: {problem}", file.display())]
pub struct FormatError {
    /// Path of the file.
    pub file: PathBuf,
    /// The object inside the file: `obs`, `X`, `line 7`; `file` for the file as a whole.
    pub object: String,
    /// What is wrong with the object, and what to do about it.
    pub problem: String,
}

impl FormatError {
    /// An error about an object of a file.
    pub fn new(file: impl AsRef<Path>, object: impl Into<String>, problem: impl ToString) -> Self {
        Self { file: file.as_ref().to_owned(), object: object.into(), problem: problem.to_string() }
    }
}
