//! One error for the whole program: what was being done, to what, and whose fault it is.

mod query;

use std::path::{Path, PathBuf};

use datafusion::error::DataFusionError;

pub use query::{Place, place, pointed};

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
    #[error("{}", query::message(.0))]
    Query(Box<DataFusionError>),
    /// A statement of a script or of the shell failed.
    #[error("{}{source}{}", prefix(*number, *line), place.as_ref().map_or_else(String::new, |p| format!("\n{p}")))]
    Statement {
        /// Its number in the script, from 1; `None` where there is only one.
        number: Option<usize>,
        /// Line of the script where it begins, from 1.
        line: usize,
        /// The line of the statement with a caret under the place, where the place is known.
        place: Option<String>,
        /// What failed.
        #[source]
        source: Box<Error>,
    },
}

fn prefix(number: Option<usize>, line: usize) -> String {
    number.map_or_else(String::new, |n| format!("statement {n} (line {line}): "))
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

    /// Says which statement failed, and where in it.
    pub fn in_statement(self, number: Option<usize>, line: usize, statement: &str) -> Self {
        let place = match &self {
            Error::Query(error) => place(error, statement).and_then(|place| pointed(statement, place)),
            _ => None,
        };
        Error::Statement { number, line, place, source: Box::new(self) }
    }

    /// 1 where the input or the request is wrong, 3 where we or the machine are.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Input { .. } | Error::Request(_) | Error::Conflict { .. } | Error::Busy { .. } => 1,
            Error::Store { .. } | Error::Model { .. } => 3,
            Error::Statement { source, .. } => source.exit_code(),
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
