//! A Lance table for DataFusion, which keeps model calls out of Lance's scan.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::logical_expr::{TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::Expr;
use lance::Dataset;
use lance::datafusion::LanceTableProvider;

/// Rows per batch: an expression has thousands of values, so lance's default of 8,192 rows would be 100 MB and more.
const BATCH_ROWS: usize = 1024;

/// Like lance's own provider, which claims to apply any filter exactly; filters that call our functions stay above it,
/// where the planner can see and order them.
#[derive(Debug)]
pub(super) struct StoreTable {
    lance: LanceTableProvider,
    recipe: Option<String>,
}

impl StoreTable {
    pub(super) fn new(dataset: Arc<Dataset>) -> Self {
        let lance = LanceTableProvider::new(dataset, false, false).with_batch_size(BATCH_ROWS);
        Self { lance, recipe: None }
    }

    /// Says that these are the embeddings of a recipe.
    pub(super) fn of_recipe(self, recipe: String) -> Self {
        Self { recipe: Some(recipe), ..self }
    }

    /// The recipe whose embeddings these are, if any.
    pub(super) fn recipe(&self) -> Option<&str> {
        self.recipe.as_deref()
    }
}

#[async_trait]
impl TableProvider for StoreTable {
    fn schema(&self) -> SchemaRef {
        self.lance.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.lance.scan(state, projection, filters, limit).await
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let answer = |filter: &&Expr| match cellql_udfs::calls_our_functions(filter) {
            true => TableProviderFilterPushDown::Unsupported,
            false => TableProviderFilterPushDown::Exact,
        };
        Ok(filters.iter().map(answer).collect())
    }
}
