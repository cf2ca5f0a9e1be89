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

/// Rows per batch of scans that read expressions or vectors: thousands of numbers each, so lance's default of 8,192
/// rows would be 100 MB and more.
const WIDE_ROWS: usize = 1024;
/// Rows per batch of other scans: every batch costs the same, however small it is.
const NARROW_ROWS: usize = 8192;

/// Like lance's own provider, which claims to apply any filter exactly; filters that call our functions stay above it,
/// where the planner can see and order them.
#[derive(Debug)]
pub(super) struct StoreTable {
    /// The same table twice, for scans with columns of lists and for those without.
    wide: LanceTableProvider,
    narrow: LanceTableProvider,
    recipe: Option<String>,
}

impl StoreTable {
    pub(super) fn new(dataset: Arc<Dataset>) -> Self {
        let table = |rows| LanceTableProvider::new(Arc::clone(&dataset), false, false).with_batch_size(rows);
        Self { wide: table(WIDE_ROWS), narrow: table(NARROW_ROWS), recipe: None }
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
        self.wide.schema()
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
        let schema = self.schema();
        let mut projected = 0..projection.map_or(schema.fields().len(), Vec::len);
        let mut names = filters.iter().flat_map(Expr::column_refs).map(|column| column.name.as_str());
        let lists = projected.any(|i| schema.field(projection.map_or(i, |p| p[i])).data_type().is_nested())
            || names.any(|name| schema.field_with_name(name).is_ok_and(|f| f.data_type().is_nested()));
        let table = if lists { &self.wide } else { &self.narrow };
        table.scan(state, projection, filters, limit).await
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let answer = |filter: &&Expr| match cellql_udfs::calls_our_functions(filter) {
            true => TableProviderFilterPushDown::Unsupported,
            false => TableProviderFilterPushDown::Exact,
        };
        Ok(filters.iter().map(answer).collect())
    }
}
