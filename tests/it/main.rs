//! Integration tests: one binary, one module per subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

mod bad_input;
mod baron;
mod command_line;
mod crash;
mod evaluate;
mod fixtures;
mod formats;
mod interpretation;
mod mutations;
mod nearest;
mod plans;
mod pretrain;
mod reference;
mod search;
mod sql;
mod stores;
