//! What the functions ask of the rest of the program: genes by name, embeddings, nearest neighbours.

use std::fmt::Debug;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use cellql_schemas::expr::Profiles;
use cellql_schemas::recipe::Recipe;
use datafusion::error::DataFusionError;

use crate::over_cells::Cells;

/// A failure, by whose it is.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The query asks for something that is not there; the message names it and what is.
    #[error("{0}")]
    Request(String),
    /// A constant argument is not what its parameter takes.
    #[error("{problem}")]
    Argument {
        /// The argument as it was given, without quotes.
        value: String,
        /// What is wrong with it; names the value and what there is instead.
        problem: String,
    },
    /// The query is right but the data cannot be treated so.
    #[error("{0}")]
    Data(String),
    /// Neither: our fault, or the machine's.
    #[error("{0}")]
    Internal(String),
}

impl EngineError {
    /// A wrong request is a wrong argument of this value; other failures stay what they are.
    pub fn about(self, value: &str) -> Self {
        match self {
            EngineError::Request(problem) => EngineError::Argument { value: value.to_owned(), problem },
            other => other,
        }
    }
}

impl From<EngineError> for DataFusionError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Request(_) => DataFusionError::Plan(error.to_string()),
            EngineError::Data(_) => DataFusionError::Execution(error.to_string()),
            EngineError::Argument { .. } | EngineError::Internal(_) => DataFusionError::External(Box::new(error)),
        }
    }
}

/// Embeddings of a batch of cells.
#[derive(Debug, Clone, Default)]
pub struct Embedded {
    /// `[cells, dim]`, row after row; rows of cells that could not be embedded hold zeros.
    pub vectors: Vec<f32>,
    /// Vocabulary genes expressed in each cell, `[cells]`.
    pub genes_seen: Vec<u32>,
    /// False for cells without an embedding, `[cells]`.
    pub valid: Vec<bool>,
}

/// Predicted expression of a batch of cells.
#[derive(Debug, Clone, Default)]
pub struct Enhanced {
    /// Genes of the store that have a place in the vocabulary, ascending.
    pub gene_ids: Vec<u32>,
    /// `[cells, genes]`, log-normalised; zeros for cells without a prediction.
    pub values: Vec<f32>,
    /// False for cells without a prediction, `[cells]`.
    pub valid: Vec<bool>,
}

/// What a search starts from.
#[derive(Debug, Clone, PartialEq)]
pub enum Query {
    /// A cell of the store; it is not among its own neighbours.
    Cell(u64),
    /// A gene by any of its names; it is not among its own neighbours.
    Gene(String),
    /// A vector of the recipe's dimension.
    Vector(Vec<f32>),
}

/// A nearest-neighbour question.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchRequest {
    /// What is searched: `cells` or `genes`.
    pub target: String,
    /// From where.
    pub query: Query,
    /// How many rows.
    pub k: usize,
    /// SQL condition on the target that every answer satisfies.
    pub filter: Option<String>,
    /// Embedding table; `None` where the store has just one.
    pub recipe: Option<String>,
    /// What near means: `cosine` where left out.
    pub metric: Option<String>,
    /// Of genes, the group of cells they were embedded in; `None` where there is just one.
    pub group: Option<String>,
}

/// The side of the program that holds a store and its models.
#[async_trait]
pub trait Engine: Debug + Send + Sync {
    /// The gene meant by any of its names.
    ///
    /// # Errors
    /// [`EngineError::Request`] for a name of no gene or of several.
    fn gene(&self, name: &str) -> Result<u32, EngineError>;

    /// Whether a data set measured a gene: whether a value that is absent is 0 and not unknown.
    ///
    /// # Errors
    /// [`EngineError::Internal`] where the store cannot be read.
    fn is_measured(&self, dataset_id: u32, gene_id: u32) -> Result<bool, EngineError>;

    /// Symbol of a gene; `None` for an id of no gene.
    fn symbol(&self, gene_id: u32) -> Option<String>;

    /// The model of that name, or the one meant by none.
    ///
    /// # Errors
    /// [`EngineError::Request`] for an unknown name, or none where it is not clear which.
    fn model(&self, name: Option<&str>) -> Result<String, EngineError>;

    /// The transformer of that name, or the one meant by none, for what linear models cannot do: `what`.
    ///
    /// # Errors
    /// As [`Engine::model`], and for the name of a linear model.
    fn transformer(&self, name: Option<&str>, what: &str) -> Result<String, EngineError>;

    /// Dimensions of an embedding of this recipe.
    ///
    /// # Errors
    /// [`EngineError::Request`] for an unknown model, or an option that its kind of model does not have.
    fn dim(&self, recipe: &Recipe) -> Result<usize, EngineError>;

    /// Embeds cells. The result of a cell depends on that cell alone.
    ///
    /// # Errors
    /// [`EngineError::Data`] for values the recipe's input does not allow.
    fn embed(&self, recipe: &Recipe, cells: Cells) -> Result<Embedded, EngineError>;

    /// Position in a model's vocabulary of the gene meant by any of its names.
    ///
    /// # Errors
    /// [`EngineError::Request`] for an unknown name, or a gene the model does not have.
    fn gene_of_model(&self, model: &str, gene: &str) -> Result<u32, EngineError>;

    /// Numbers in a context embedding of a gene.
    ///
    /// # Errors
    /// [`EngineError::Request`] for an unknown model.
    fn context_dim(&self, model: &str) -> Result<usize, EngineError>;

    /// Context embeddings, `[cells, context_dim]`, of the gene at a position of the vocabulary.
    ///
    /// # Errors
    /// As [`Engine::embed`].
    fn embed_gene(&self, recipe: &Recipe, position: u32, cells: Cells) -> Result<Embedded, EngineError>;

    /// Predicts the expression of every vocabulary gene.
    ///
    /// # Errors
    /// As [`Engine::embed`].
    fn enhance(&self, recipe: &Recipe, cells: Cells) -> Result<Enhanced, EngineError>;

    /// Vocabulary genes expressed in each cell; `None` for a NULL expression.
    ///
    /// # Errors
    /// [`EngineError::Request`] for an unknown model.
    fn genes_seen(&self, model: &str, cells: &Profiles) -> Result<Vec<Option<u32>>, EngineError>;

    /// Columns that a search returns: the key of its target, `_distance`, then what describes the rows.
    ///
    /// # Errors
    /// [`EngineError::Request`] for something that cannot be searched, or a filter that does not fit it.
    fn search_schema(&self, request: &SearchRequest) -> Result<SchemaRef, EngineError>;

    /// How a search will be answered, for EXPLAIN.
    ///
    /// # Errors
    /// As [`Engine::search`].
    async fn plan_search(&self, request: &SearchRequest) -> Result<String, EngineError>;

    /// Answers a search, nearest first.
    ///
    /// # Errors
    /// [`EngineError::Request`] for an unknown cell, recipe or filter column.
    async fn search(&self, request: SearchRequest) -> Result<RecordBatch, EngineError>;
}
