//! The `jobs` table: long operations over a store and their progress.

use arrow::datatypes::{DataType, Field, Schema};

/// Name of the table.
pub const TABLE: &str = "jobs";

/// Primary key: operation, recipe, shard and condition. Running the same again continues the same job.
pub const NAME: &str = "name";
/// `embed`, or `embed genes`.
pub const KIND: &str = "kind";
/// The embedding table, or table of gene embeddings, that is filled.
pub const RECIPE: &str = "recipe";
/// `2/8`: the second of eight parts; `1/1` for the whole.
pub const SHARD: &str = "shard";
/// SQL condition on `cells`, NULL for all.
pub const CONDITION: &str = "condition";
/// [`RUNNING`] or [`DONE`]. A killed job remains `running` with an old `updated_at`; running it again continues it.
pub const STATE: &str = "state";
/// Number of cells of the job, embedded earlier or not.
pub const CELLS: &str = "cells";
/// Number of these cells that are done.
pub const CELLS_DONE: &str = "cells_done";
/// Number of cells of the last run that have no vector.
pub const WITHOUT_VECTOR: &str = "without_vector";
/// Duration of the last run so far, in seconds.
pub const SECONDS: &str = "seconds";
/// When the last run began, UTC.
pub const STARTED_AT: &str = "started_at";
/// When its latest cells were published, UTC.
pub const UPDATED_AT: &str = "updated_at";

/// State of a job that is running or was killed.
pub const RUNNING: &str = "running";
/// State of a job whose cells are all done.
pub const DONE: &str = "done";

/// Schema of the table.
pub fn schema() -> Schema {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    let number = |name: &str| Field::new(name, DataType::UInt64, false);
    Schema::new(vec![
        text(NAME),
        text(KIND),
        text(RECIPE),
        text(SHARD),
        Field::new(CONDITION, DataType::Utf8, true),
        text(STATE),
        number(CELLS),
        number(CELLS_DONE),
        number(WITHOUT_VECTOR),
        Field::new(SECONDS, DataType::Float64, false),
        text(STARTED_AT),
        text(UPDATED_AT),
    ])
}
