//! Integration tests: one binary, one module per subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

#[path = "it/bad_input.rs"]
mod bad_input;
#[path = "it/baron.rs"]
mod baron;
#[path = "it/command_line.rs"]
mod command_line;
#[path = "it/crash.rs"]
mod crash;
#[path = "it/evaluate.rs"]
mod evaluate;
#[path = "it/fixtures.rs"]
mod fixtures;
#[path = "it/formats.rs"]
mod formats;
#[path = "it/meaning.rs"]
mod meaning;
#[path = "it/mutations.rs"]
mod mutations;
#[path = "it/nearest.rs"]
mod nearest;
#[path = "it/plans.rs"]
mod plans;
#[path = "it/pretrain.rs"]
mod pretrain;
#[path = "it/reference.rs"]
mod reference;
#[path = "it/search.rs"]
mod search;
#[path = "it/sql.rs"]
mod sql;
#[path = "it/stores.rs"]
mod stores;
