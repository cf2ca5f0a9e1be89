//! `FILTER (WHERE …)` of an aggregate takes a condition. DataFusion also plans a filter of another type, and fails
//! when it runs.

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result, plan_err};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan};

/// Refuses filters of aggregates that are neither true nor false.
///
/// # Errors
/// `DataFusionError::Plan` naming the first such filter.
pub(super) fn check(plan: &LogicalPlan) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        if let [input] = node.inputs()[..] {
            node.apply_expressions(|expr| {
                expr.apply(|part| check_call(part, input.schema()).map(|()| TreeNodeRecursion::Continue))
            })?;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

fn check_call(expr: &Expr, schema: &DFSchema) -> Result<()> {
    let filter = match expr {
        Expr::AggregateFunction(call) => call.params.filter.as_deref(),
        Expr::WindowFunction(call) => call.params.filter.as_deref(),
        _ => None,
    };
    let Some(filter) = filter else { return Ok(()) };
    // An expression without a type is refused by the planner, which says what is wrong with it.
    match filter.get_type(schema) {
        Ok(DataType::Boolean | DataType::Null) | Err(_) => Ok(()),
        Ok(other) => plan_err!("FILTER (WHERE {filter}) is not a condition: it is of type {other}"),
    }
}
