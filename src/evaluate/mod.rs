//! Evaluates models: how well they recover downsampled cells ([`mod@enhancement`]), and whether their embeddings keep
//! cells of one label together ([`clustering`]). Scores are computed by `cellql_analysis`.
//!
//! Depends on the crate of models, on the store for cells, and on `pretrain` for which cells a model held out. Knows
//! nothing of SQL or the terminal.

pub mod bar_chart;
pub mod cells;
pub mod clustering;
pub mod enhancement;
pub mod representation;
pub mod scatter;
