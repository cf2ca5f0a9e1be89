//! cellql: a store for single-cell transcriptomes, a foundation model inside it, and SQL over both.
//!
//! Data flows one way: file → block → genes → table ([`ingest`], [`genes`], [`store`]); table → batch → model →
//! column ([`model`], [`query`]); column → index → neighbours ([`index`], [`query`]). `ARCHITECTURE.md` walks through.

pub mod cli;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod files;
pub mod genes;
pub mod index;
pub mod ingest;
pub mod jobs;
pub mod model;
pub mod pretrain;
pub mod progress;
pub mod query;
pub mod store;
