//! The table `cells` as queries see it: each expression carries the data set it comes from, so that functions can tell
//! a gene with the value 0 from one that was not measured.

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, UInt32Type};
use async_trait::async_trait;
use cellql_schemas::cells;
use cellql_schemas::expr::{as_query_type, with_dataset_ids};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, exec_err, internal_err};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    TableProviderFilterPushDown, TableType, Volatility,
};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::prelude::Expr;

use super::table::StoreTable;

/// `cells` with [`cellql_schemas::expr::DATASET_IDS`] in `expr`.
#[derive(Debug)]
pub(super) struct CellsTable {
    stored: StoreTable,
    schema: SchemaRef,
}

impl CellsTable {
    pub(super) fn new(stored: StoreTable) -> Self {
        let given = |field: &FieldRef| match field.name() == cells::EXPR {
            true => Arc::new(field.as_ref().clone().with_data_type(as_query_type(field.data_type()))),
            false => Arc::clone(field),
        };
        let old = stored.schema();
        let fields: Vec<FieldRef> = old.fields().iter().map(given).collect();
        let schema = Arc::new(Schema::new_with_metadata(fields, old.metadata().clone()));
        Self { stored, schema }
    }
}

#[async_trait]
impl TableProvider for CellsTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
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
        let (expr, dataset_id) = (self.schema.index_of(cells::EXPR)?, self.schema.index_of(cells::DATASET_ID)?);
        let wanted = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        if !wanted.contains(&expr) {
            return self.stored.scan(state, projection, filters, limit).await;
        }
        let mut read = wanted.clone();
        if !read.contains(&dataset_id) {
            read.push(dataset_id);
        }
        let scan = self.stored.scan(state, Some(&read), filters, limit).await?;
        let place = |column: usize| read.iter().position(|read| *read == column).unwrap_or_default();
        let column =
            |i: usize| -> Arc<dyn PhysicalExpr> { Arc::new(Column::new(self.schema.field(i).name(), place(i))) };
        let attach = Arc::new(ScalarUDF::from(AttachDatasetIds::new()));
        let project = |i: &usize| -> Result<(Arc<dyn PhysicalExpr>, String)> {
            let field = self.schema.field(*i);
            if *i != expr {
                return Ok((column(*i), field.name().clone()));
            }
            let (args, options) = (vec![column(expr), column(dataset_id)], Arc::new(state.config_options().clone()));
            let attached = ScalarFunctionExpr::new(NAME, Arc::clone(&attach), args, Arc::new(field.clone()), options);
            Ok((Arc::new(attached), field.name().clone()))
        };
        let columns = wanted.iter().map(project).collect::<Result<Vec<_>>>()?;
        Ok(Arc::new(ProjectionExec::try_new(columns, scan)?))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let mut answers = self.stored.supports_filters_pushdown(filters)?;
        for (answer, filter) in answers.iter_mut().zip(filters) {
            // The stored column has another type.
            if filter.column_refs().iter().any(|column| column.name == cells::EXPR) {
                *answer = TableProviderFilterPushDown::Unsupported;
            }
        }
        Ok(answers)
    }
}

const NAME: &str = "with_dataset_ids";

/// `with_dataset_ids(expr, dataset_id)`: an expression with its data set. It is not registered: only scans call it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct AttachDatasetIds {
    signature: Signature,
}

impl AttachDatasetIds {
    fn new() -> Self {
        Self { signature: Signature::any(2, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for AttachDatasetIds {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        internal_err!("{NAME}: the type is that of its field")
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let Some(expr) = args.arg_fields.first() else { return internal_err!("{NAME}: an argument is missing") };
        Ok(Arc::new(Field::new(expr.name(), as_query_type(expr.data_type()), expr.is_nullable())))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [expr, dataset_id] = &args.args[..] else { return exec_err!("{NAME}: takes two arguments") };
        let (expr, ids) = (expr.to_array(args.number_rows)?, dataset_id.to_array(args.number_rows)?);
        let Some(ids) = ids.as_primitive_opt::<UInt32Type>() else {
            return exec_err!("{NAME}: dataset_id is of type {}", ids.data_type());
        };
        let lists = ids.values().chunks(1).map(Some);
        let attached = with_dataset_ids(&expr, lists);
        Ok(ColumnarValue::Array(attached.map_err(|e| DataFusionError::Execution(format!("{NAME}: {e}")))?))
    }
}
