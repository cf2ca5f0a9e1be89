//! Benches of single pieces. Whole commands, beside other programs, are timed by the scripts in this folder.
//!
//! `make bench` runs them with the profile of everyday builds. Results are throughputs in units of what limits a piece
//! (FLOPs or bytes), and each group begins with what this machine does at best in that unit.

#![allow(missing_docs, clippy::unwrap_used, reason = "a program for developers")]

mod kernels;
mod sql;

criterion::criterion_main!(kernels::benches, sql::benches);
