//! The row of a job in the table `jobs`.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, Float64Array, StringArray, UInt64Array};
use arrow::record_batch::RecordBatch;
use cellql_schemas::jobs as table;
use chrono::Utc;

use super::Shard;
use crate::error::{Error, Result};
use cellql_store::sql::quote_literal;
use cellql_store::{Store, Transaction};

/// Cells that are finished with the version of the store in which the row is written.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FinishedCells {
    pub(super) cells: u64,
    /// Of these, cells without a vector.
    pub(super) without_vector: u64,
}

/// One run of a job, as its row in `jobs` describes it.
#[derive(Debug)]
pub(super) struct JobRecord {
    name: String,
    kind: &'static str,
    recipe: String,
    shard: Shard,
    condition: Option<String>,
    started_at: String,
    start: Instant,
    /// Number of cells of the job.
    pub(super) cells: u64,
    /// Number of cells that are finished.
    pub(super) done: u64,
    /// Number of finished cells without a vector, of this run.
    pub(super) without_vector: u64,
}

impl JobRecord {
    /// A run of `embed genes` that starts now. `by` is the column by which cells are grouped.
    pub(super) fn begin_genes(recipe: &str, by: Option<&str>) -> Self {
        let by = by.map_or(String::new(), |by| format!(" by {by}"));
        let kind = "embed genes";
        Self { name: format!("{kind} {recipe}{by}"), kind, ..Self::begin(recipe, Shard::default(), None) }
    }

    /// A run of `embed` that starts now.
    pub(super) fn begin(recipe: &str, shard: Shard, condition: Option<&str>) -> Self {
        let kind = "embed";
        let parts = [Some(format!("{kind} {recipe}")), shard.condition().map(|_| shard.to_string())];
        let condition = condition.map(str::to_owned);
        let named = condition.as_ref().map(|c| format!("where {c}"));
        Self {
            name: parts.into_iter().flatten().chain(named).collect::<Vec<_>>().join(" "),
            kind,
            recipe: recipe.to_owned(),
            shard,
            condition,
            started_at: Utc::now().to_rfc3339(),
            start: Instant::now(),
            cells: 0,
            done: 0,
            without_vector: 0,
        }
    }

    /// Whether an earlier run recorded that all cells of this job are finished.
    pub(super) async fn is_done(&self, store: &Store) -> Result<bool> {
        if !store.tables().any(|t| t == table::TABLE) {
            return Ok(false);
        }
        let (name, cells) = (quote_literal(&self.name), self.cells);
        let same = format!(
            "{} = {name} AND {} = '{}' AND {} = {cells} AND {} = {cells}",
            table::NAME,
            table::STATE,
            table::DONE,
            table::CELLS,
            table::CELLS_DONE
        );
        Ok(store.read(table::TABLE, &[table::NAME], Some(&same)).await?.iter().any(|b| b.num_rows() > 0))
    }

    /// Replaces the row of an earlier run of the same job. `finished` are the cells of the same transaction.
    pub(super) async fn write(
        &self,
        transaction: &mut Transaction,
        finished: FinishedCells,
        state: &str,
    ) -> Result<()> {
        let row = self.row(finished, state).map_err(Error::internal(format!("recording job '{}'", self.name)))?;
        Ok(transaction.replace_row(table::TABLE, table::NAME, row).await?)
    }

    fn row(&self, finished: FinishedCells, state: &str) -> Result<RecordBatch, arrow::error::ArrowError> {
        let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value])) };
        let number = |value: u64| -> ArrayRef { Arc::new(UInt64Array::from(vec![value])) };
        let columns = vec![
            text(&self.name),
            text(self.kind),
            text(&self.recipe),
            text(&self.shard.to_string()),
            Arc::new(StringArray::from(vec![self.condition.as_deref()])),
            text(state),
            number(self.cells),
            number(self.done + finished.cells),
            number(self.without_vector + finished.without_vector),
            Arc::new(Float64Array::from(vec![self.start.elapsed().as_secs_f64()])),
            text(&self.started_at),
            text(&Utc::now().to_rfc3339()),
        ];
        RecordBatch::try_new(Arc::new(table::schema()), columns)
    }
}
