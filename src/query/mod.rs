//! SQL over a store: its tables and views, the functions of `udfs`, and the engine behind them.
//!
//! The one place where store, model and index meet. Everything a query needs is fixed when the session opens: the
//! store's version, its genes, its models. Knows nothing of files or of how results are shown.

mod cells_table;
mod compute;
pub mod condition;
mod defer_model_calls;
mod engine;
mod filters;
mod gather_model_calls;
mod index_search;
mod index_search_exec;
mod math_order;
mod measured;
mod model_exec;
mod model_metrics;
mod names;
mod nearest_by_index;
mod nesting;
mod parameters;
mod project_model_calls;
pub mod script;
mod search;
mod session;
mod settings;
mod stored_embeddings;
mod table;
mod unsupported;
mod vector_cache;

pub use engine::{Notices, StoreEngine};
pub use names::{Function, Table, identifier};
pub(crate) use nesting::STACK;
pub use parameters::Parameters;
pub use session::Session;
