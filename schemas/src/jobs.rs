//! The `jobs` table: long work over a store, and how far each piece of it is.

use arrow::datatypes::{DataType, Field, Schema};

/// Name of the table.
pub const TABLE: &str = "jobs";

/// Key: what is done, to which recipe, shard and condition. Running the same again is the same job.
pub const NAME: &str = "name";
/// `embed`, or `embed genes`.
pub const KIND: &str = "kind";
/// Embedding table that is filled, or table of gene embeddings.
pub const RECIPE: &str = "recipe";
/// `2/8`: the second of eight parts; `1/1` for the whole.
pub const SHARD: &str = "shard";
/// SQL condition on `cells`, NULL for all.
pub const CONDITION: &str = "condition";
/// [`RUNNING`] or [`DONE`]. A job that died stays `running` and its `updated_at` stands still; running it again goes on.
pub const STATE: &str = "state";
/// Cells that the job is about, embedded before or not.
pub const CELLS: &str = "cells";
/// Of these, cells that are done.
pub const CELLS_DONE: &str = "cells_done";
/// Of these, cells without a vector, among those of the last run.
pub const WITHOUT_VECTOR: &str = "without_vector";
/// Seconds the last run took so far.
pub const SECONDS: &str = "seconds";
/// When the last run began, UTC.
pub const STARTED_AT: &str = "started_at";
/// When its latest cells were published, UTC.
pub const UPDATED_AT: &str = "updated_at";

/// Work goes on, or was cut off.
pub const RUNNING: &str = "running";
/// Every cell is done.
pub const DONE: &str = "done";

/// The table.
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
