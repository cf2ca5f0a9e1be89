//! cellql: a store for single-cell transcriptomes, a foundation model inside it, and SQL over both.
//!
//! This crate connects the others: files to tables ([`ingest`], [`export`]), tables to models ([`query`], [`jobs`],
//! [`pretrain`], [`evaluate`]), vectors to neighbours ([`index`]), and all of it to a person ([`cli`]).
//! `ARCHITECTURE.md` walks through.

pub mod cli;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod fit;
pub mod index;
pub mod ingest;
pub mod jobs;
mod memory;
pub mod model_registry;
pub mod pretrain;
pub mod query;
pub mod shipped_models;
