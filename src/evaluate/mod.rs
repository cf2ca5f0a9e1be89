//! How good a model is: how well it recovers downsampled cells ([`enhancement`]), and whether its embeddings keep labelled cells
//! together ([`clustering`]). Scores are those of `cellql_analysis`.
//!
//! Depends on `model`, on `store` for cells, and on `pretrain` for which cells a model never saw. Knows nothing of SQL or the
//! terminal.

pub mod cells;
pub mod clustering;
pub mod enhancement;
