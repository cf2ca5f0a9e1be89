//! What can go wrong with a model.

use std::path::{Path, PathBuf};

use crate::input::NotCounts;

/// Result of everything in this crate.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// A model could not be read, moved to a device or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A checkpoint, a configuration or another file is not what it should be.
    #[error("{}: {object}: {problem}", file.display())]
    Input {
        /// The file.
        file: PathBuf,
        /// What inside it: `config`, a tensor's name.
        object: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The configuration is not one of this architecture.
    #[error("the model's configuration {0}")]
    Config(String),
    /// The bytes of a stored model are not what was written.
    #[error("the file of model '{model}' is damaged: {problem}")]
    Damaged {
        /// Name of the model.
        model: String,
        /// What is wrong.
        problem: String,
    },
    /// A weight is missing or has another shape than the configuration says.
    #[error("model '{model}': weight '{weight}' {problem}")]
    Weight {
        /// Name of the model.
        model: String,
        /// Name of the weight.
        weight: String,
        /// What is wrong.
        problem: String,
    },
    /// A linear model cannot do what only a transformer can.
    #[error("model '{model}' is linear and has no {what}; name a transformer")]
    IsLinear {
        /// Name of the model.
        model: String,
        /// What was asked for.
        what: &'static str,
    },
    /// Values of a cell do not fit the input that was asked for.
    #[error("model '{model}': {source}")]
    Values {
        /// Name of the model.
        model: String,
        /// The value.
        #[source]
        source: NotCounts,
    },
    /// This build or this machine has no such device, or the device does not do what was asked.
    #[error("{0}")]
    Device(String),
    /// A computation failed.
    #[error("model '{model}': {doing}: {source}")]
    Compute {
        /// Name of the model.
        model: String,
        /// What was being done.
        doing: String,
        /// Why it failed.
        #[source]
        source: Box<candle_core::Error>,
    },
    /// A model could not be written.
    #[error("{doing}: {source}")]
    Write {
        /// What was being done, to which file.
        doing: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ModelError {
    /// For [`ModelError::Input`].
    pub fn input(file: impl AsRef<Path>, object: impl Into<String>, problem: impl ToString) -> Self {
        ModelError::Input { file: file.as_ref().to_owned(), object: object.into(), problem: problem.to_string() }
    }

    /// For [`ModelError::Compute`], to be used with `map_err`.
    pub fn compute(model: &str, doing: &str) -> impl FnOnce(candle_core::Error) -> Self {
        let (model, doing) = (model.to_owned(), doing.to_owned());
        move |source| ModelError::Compute { model, doing, source: Box::new(source) }
    }

    /// For [`ModelError::Write`], to be used with `map_err`.
    pub fn write<E>(doing: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let doing = doing.into();
        move |source| ModelError::Write { doing, source: source.into() }
    }
}
