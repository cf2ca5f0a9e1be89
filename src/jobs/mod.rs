//! Long work over a store: embedding its cells into a table.
//!
//! Depends on `query` for the engine and on `store`. Knows nothing of SQL text or of the command line.

mod embed;

pub use embed::{EmbedReport, embed_cells};
