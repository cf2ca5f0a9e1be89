//! What can go wrong in training.

use std::path::{Path, PathBuf};

use cellql_kernels::Dtype;
use cellql_model::ModelError;

/// Result of everything in this crate.
pub type Result<T, E = TrainingError> = std::result::Result<T, E>;

/// Training could not begin, go on or be kept.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// A setting has a value that makes no sense.
    #[error("{name} {value}: it must be {must_be}")]
    Setting {
        /// Name of the setting.
        name: String,
        /// Its value.
        value: String,
        /// What it must be: `above 0`.
        must_be: String,
    },
    /// Values of a cell are not counts at positions of the vocabulary.
    #[error("pretraining needs counts at the model's genes, not {value} at position {position} of {genes}")]
    NotCounts {
        /// The value.
        value: f32,
        /// Its position in the vocabulary.
        position: u32,
        /// Genes of the vocabulary.
        genes: usize,
    },
    /// The model lacks a weight, or it has another shape than the configuration says.
    #[error("the model to be trained: weight '{weight}' {problem}")]
    Weight {
        /// Name of the weight.
        weight: String,
        /// What is wrong.
        problem: String,
    },
    /// A checkpoint is not what was written.
    #[error("{}: checkpoint: {problem}", file.display())]
    Checkpoint {
        /// The file.
        file: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// There is nothing to draw or compute from.
    #[error("{0}")]
    Nothing(&'static str),
    /// The model could not be read or run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A file could not be read or written.
    #[error("{doing}: {source}")]
    File {
        /// What was being done, to which file.
        doing: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl TrainingError {
    /// Refuses number formats that training does not compute in.
    ///
    /// # Errors
    /// [`TrainingError::Setting`] for int8.
    pub(crate) fn check_dtype(dtype: Dtype) -> Result<()> {
        match dtype {
            Dtype::F32 | Dtype::Bf16 => Ok(()),
            Dtype::Int8 => Err(Self::setting("precision", dtype.name(), "f32 or bf16")),
        }
    }

    /// For [`TrainingError::Setting`].
    pub fn setting(name: &str, value: impl ToString, must_be: impl Into<String>) -> Self {
        TrainingError::Setting { name: name.to_owned(), value: value.to_string(), must_be: must_be.into() }
    }

    /// A failed computation, to be used with `map_err`.
    pub fn compute(doing: &str) -> impl FnOnce(candle_core::Error) -> Self {
        let compute = ModelError::compute("in training", doing);
        move |source| TrainingError::Model(compute(source))
    }

    /// For [`TrainingError::Checkpoint`].
    pub fn checkpoint(file: impl AsRef<Path>, problem: impl ToString) -> Self {
        TrainingError::Checkpoint { file: file.as_ref().to_owned(), problem: problem.to_string() }
    }

    /// For [`TrainingError::File`], to be used with `map_err`.
    pub fn file<E>(doing: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let doing = doing.into();
        move |source| TrainingError::File { doing, source: source.into() }
    }
}
