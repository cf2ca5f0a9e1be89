//! Integration tests: one binary, one module per subject.
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

mod bad_input;
mod baron;
mod command_line;
mod crash;
mod damage;
mod evaluate;
mod fixtures;
mod formats;
mod interpretation;
mod linear;
mod mutations;
mod nearest;
mod oracle;
mod plans;
mod pretrain;
mod reference;
mod search;
mod sql;
mod statements;
mod stores;
mod values;
