//! One error for the whole program: what was being done, to what, and whose fault it is.

use std::path::{Path, PathBuf};

use datafusion::error::DataFusionError;

/// Result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure. [`Error::exit_code`] says whose it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file holds something else than it should.
    #[error("{}: {object}: {problem}", file.display())]
    Input {
        /// The file.
        file: PathBuf,
        /// What inside it: `obs`, `X`, `line 7`.
        object: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The request names something that is not there or cannot be done.
    #[error("{0}")]
    Request(String),
    /// Another writer was faster; nothing was changed.
    #[error("{store}: another writer changed the store meanwhile, so {doing} was not done; run it again")]
    Conflict {
        /// The store.
        store: String,
        /// What was being done.
        doing: String,
    },
    /// Another process of this machine is writing to the store; nothing was changed.
    #[error("{store}: another cellql process is writing to this store; wait for it and run the command again")]
    Busy {
        /// The store.
        store: String,
    },
    /// The store could not be read or written.
    #[error("{doing}: {cause}")]
    Store {
        /// What was being done, to which table or file.
        doing: String,
        /// Why it failed.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The model could not run.
    #[error("model '{model}': {doing}: {cause}")]
    Model {
        /// Name of the model.
        model: String,
        /// What was being done.
        doing: String,
        /// Why it failed.
        #[source]
        cause: Box<candle_core::Error>,
    },
    /// A query failed.
    #[error("{}", query_message(.0))]
    Query(Box<DataFusionError>),
}

impl From<cellql_formats::FormatError> for Error {
    fn from(error: cellql_formats::FormatError) -> Self {
        Error::Input { file: error.file, object: error.object, problem: error.problem }
    }
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        Error::Query(Box::new(error))
    }
}

/// DataFusion wraps its errors in their kind and in contexts; the reader wants the sentence.
fn query_message(error: &DataFusionError) -> String {
    match error.find_root() {
        DataFusionError::Plan(text) | DataFusionError::Execution(text) => text.clone(),
        other => other.strip_backtrace(),
    }
}

impl Error {
    /// For [`Error::Input`].
    pub fn input(file: impl AsRef<Path>, object: impl Into<String>, problem: impl ToString) -> Self {
        Error::Input { file: file.as_ref().to_owned(), object: object.into(), problem: problem.to_string() }
    }

    /// For [`Error::Store`], to be used with `map_err`.
    pub fn store<E>(doing: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let doing = doing.into();
        move |cause| Error::Store { doing, cause: cause.into() }
    }

    /// For [`Error::Model`], to be used with `map_err`.
    pub fn model(model: &str, doing: &str) -> impl FnOnce(candle_core::Error) -> Self {
        let (model, doing) = (model.to_owned(), doing.to_owned());
        move |cause| Error::Model { model, doing, cause: Box::new(cause) }
    }

    /// 1 where the input or the request is wrong, 3 where we or the machine are.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Input { .. } | Error::Request(_) | Error::Conflict { .. } | Error::Busy { .. } => 1,
            Error::Store { .. } | Error::Model { .. } => 3,
            Error::Query(error) => match error.find_root() {
                DataFusionError::Plan(_)
                | DataFusionError::SQL(_, _)
                | DataFusionError::SchemaError(_, _)
                | DataFusionError::Execution(_)
                | DataFusionError::ArrowError(_, _)
                | DataFusionError::NotImplemented(_)
                | DataFusionError::Configuration(_) => 1,
                _ => 3,
            },
        }
    }
}
