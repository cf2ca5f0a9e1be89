//! The library's error: what was being done, to what, and of which [`ErrorKind`] the failure is.

mod query;

use std::path::{Path, PathBuf};

use cellql_formats::FormatError;
use cellql_model::ModelError;
use cellql_store::genes::GeneError;
use cellql_store::{StoreError, causes, innermost};
use cellql_training::TrainingError;
use cellql_udfs::engine::EngineError;
use datafusion::error::DataFusionError;

pub use query::{Place, place, pointed};

/// Result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose a failure is, and so what the user can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request names something that is not there or cannot be done.
    Request,
    /// A file of the user holds something else than it should.
    Input,
    /// Another writer was faster or is at work; nothing was changed, and the same command can succeed later.
    Conflict,
    /// A table or file of the store is not what was written.
    Damaged,
    /// The program or the machine failed.
    Internal,
}

/// A failure. [`Error::kind`] says whose it is.
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
    /// A file of the store is not what was written.
    #[error("{object} is damaged: {problem}")]
    Damaged {
        /// The file or table.
        object: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The store could not be opened, read or changed.
    #[error(transparent)]
    Store(StoreError),
    /// A model could not be read or run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A model could not be trained.
    #[error(transparent)]
    Training(TrainingError),
    /// Something failed that neither the request nor a file is the cause of.
    #[error("{doing}: {}", innermost(cause.as_ref()))]
    Internal {
        /// What was being done, to which table or file.
        doing: String,
        /// Why it failed.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
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

impl From<FormatError> for Error {
    fn from(error: FormatError) -> Self {
        Error::Input { file: error.file, object: error.object, problem: error.problem }
    }
}

impl From<StoreError> for Error {
    /// Rows that are written can fail with an error of ours, which then stands somewhere in the chain of sources.
    fn from(error: StoreError) -> Self {
        let ours = causes(&error).find_map(|cause| match cause.downcast_ref::<Error>() {
            Some(Error::Input { file, object, problem }) => Some(Error::input(file, object, problem)),
            Some(Error::Request(text)) => Some(Error::Request(text.clone())),
            _ => None,
        });
        ours.unwrap_or(Error::Store(error))
    }
}

impl From<GeneError> for Error {
    fn from(error: GeneError) -> Self {
        Error::Store(error.into())
    }
}

impl From<TrainingError> for Error {
    fn from(error: TrainingError) -> Self {
        match error {
            TrainingError::Model(error) => Error::Model(error),
            error => Error::Training(error),
        }
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

    /// For [`Error::Internal`], to be used with `map_err`.
    pub fn internal<E>(doing: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let doing = doing.into();
        move |cause| Error::Internal { doing, cause: cause.into() }
    }

    /// For [`Error::Damaged`].
    pub fn damaged(object: impl Into<String>, problem: impl ToString) -> Self {
        Error::Damaged { object: object.into(), problem: problem.to_string() }
    }

    /// Says which statement failed, and where in it.
    pub fn in_statement(self, number: Option<usize>, line: usize, statement: &str) -> Self {
        let place = match &self {
            Error::Query(error) => place(error, statement).and_then(|place| pointed(statement, place)),
            _ => None,
        };
        Error::Statement { number, line, place, source: Box::new(self) }
    }

    /// True where a file of a store was not there when it was read.
    pub fn lacks_file(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = match self {
            Error::Query(error) => Some(error.as_ref()),
            other => Some(other),
        };
        while let Some(this) = cause {
            let of_objects = this.downcast_ref::<object_store::Error>();
            let of_lance = this.downcast_ref::<lance::Error>();
            if matches!(of_objects, Some(object_store::Error::NotFound { .. }))
                || matches!(of_lance, Some(lance::Error::NotFound { .. } | lance::Error::DatasetNotFound { .. }))
                || this.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound)
            {
                return true;
            }
            cause = match this.downcast_ref::<Error>() {
                Some(Error::Query(inner)) => Some(inner.as_ref()),
                _ => this.source(),
            };
        }
        false
    }

    /// Whose the failure is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Input { .. } => ErrorKind::Input,
            Error::Request(_) => ErrorKind::Request,
            Error::Damaged { .. } => ErrorKind::Damaged,
            Error::Store(error) => kind_of_store(error),
            Error::Model(error) => kind_of_model(error),
            Error::Training(error) => kind_of_training(error),
            Error::Internal { .. } => ErrorKind::Internal,
            Error::Statement { source, .. } => source.kind(),
            Error::Query(error) => kind_of_query(error),
        }
    }

    /// 1 where the input or the request is wrong or another writer is at work, 3 where the store is damaged or we or
    /// the machine failed.
    pub fn exit_code(&self) -> u8 {
        match self.kind() {
            ErrorKind::Request | ErrorKind::Input | ErrorKind::Conflict => 1,
            ErrorKind::Damaged | ErrorKind::Internal => 3,
        }
    }
}

fn kind_of_store(error: &StoreError) -> ErrorKind {
    match error {
        StoreError::Exists { .. }
        | StoreError::Missing { .. }
        | StoreError::Place { .. }
        | StoreError::Clock { .. }
        | StoreError::NoVersion { .. }
        | StoreError::NoTable { .. }
        | StoreError::NoRows { .. }
        | StoreError::Format { .. }
        | StoreError::Gene(_) => ErrorKind::Request,
        StoreError::Conflict { .. } | StoreError::Busy { .. } => ErrorKind::Conflict,
        StoreError::Damaged { .. } => ErrorKind::Damaged,
        StoreError::Storage { .. } => ErrorKind::Internal,
    }
}

fn kind_of_model(error: &ModelError) -> ErrorKind {
    match error {
        ModelError::Input { .. } | ModelError::Config(_) | ModelError::Weight { .. } => ErrorKind::Input,
        ModelError::Values { .. } | ModelError::Device(_) | ModelError::IsLinear { .. } => ErrorKind::Request,
        ModelError::Damaged { .. } => ErrorKind::Damaged,
        ModelError::Compute { .. } | ModelError::Write { .. } => ErrorKind::Internal,
    }
}

fn kind_of_training(error: &TrainingError) -> ErrorKind {
    match error {
        TrainingError::Setting { .. } | TrainingError::NotCounts { .. } | TrainingError::Nothing(_) => {
            ErrorKind::Request
        }
        TrainingError::Weight { .. } | TrainingError::Checkpoint { .. } => ErrorKind::Input,
        TrainingError::Model(error) => kind_of_model(error),
        TrainingError::File { .. } => ErrorKind::Internal,
    }
}

fn kind_of_query(error: &DataFusionError) -> ErrorKind {
    match error.find_root() {
        DataFusionError::Plan(_)
        | DataFusionError::SQL(_, _)
        | DataFusionError::SchemaError(_, _)
        | DataFusionError::Execution(_)
        | DataFusionError::ArrowError(_, _)
        | DataFusionError::NotImplemented(_)
        | DataFusionError::ResourcesExhausted(_)
        | DataFusionError::Configuration(_) => ErrorKind::Request,
        DataFusionError::External(inner) => {
            if let Some(error) = inner.downcast_ref::<Error>() {
                return error.kind();
            }
            let is_argument = matches!(inner.downcast_ref(), Some(EngineError::Argument { .. }));
            let is_request = is_argument || query::failed_filter(inner.as_ref()).is_some();
            if is_request { ErrorKind::Request } else { ErrorKind::Internal }
        }
        _ => ErrorKind::Internal,
    }
}
