//! Planner rule: `ORDER BY … LIMIT n` embeds n cells, not the table.
//!
//! DataFusion plans `SELECT embed(expr) … ORDER BY total_counts LIMIT 3` as a sort over a projection, so the model runs
//! over every row before three are kept. This rule turns
//!
//! ```text
//! Sort [fetch n] ← Projection [embed(expr), …] ← input
//! Projection [embed(expr), …] ← Sort [fetch n] ← input
//! ```
//!
//! It fires when the sort keeps a limited number of rows and the projection under it calls a model. It must not fire
//! without a limit (nothing would be saved), nor when a sort key itself needs the model (then every row must be
//! embedded), nor when a key is volatile (it would be evaluated at another place).

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, Projection, Sort, SortExpr};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct DeferModelCalls;

impl OptimizerRule for DeferModelCalls {
    fn name(&self) -> &str {
        "defer_model_calls"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        match deferred(&plan)? {
            Some(better) => Ok(Transformed::yes(better)),
            None => Ok(Transformed::no(plan)),
        }
    }
}

fn deferred(plan: &LogicalPlan) -> Result<Option<LogicalPlan>> {
    let LogicalPlan::Sort(Sort { expr: keys, input, fetch: Some(fetch) }) = plan else {
        return Ok(None);
    };
    let LogicalPlan::Projection(projection) = input.as_ref() else {
        return Ok(None);
    };
    if !projection.expr.iter().any(cellql_udfs::calls_model) {
        return Ok(None);
    }
    let columns = projection.schema.columns();
    let meaning: HashMap<&Column, &Expr> = columns.iter().zip(&projection.expr).collect();
    let keys = keys.iter().map(|key| below(key, &meaning)).collect::<Result<Vec<_>>>()?;
    if keys.iter().any(|key| cellql_udfs::calls_model(&key.expr) || key.expr.is_volatile()) {
        return Ok(None);
    }
    let sort = Sort { expr: keys, input: Arc::clone(&projection.input), fetch: Some(*fetch) };
    let over = Projection::try_new_with_schema(
        projection.expr.clone(),
        Arc::new(LogicalPlan::Sort(sort)),
        Arc::clone(&projection.schema),
    )?;
    Ok(Some(LogicalPlan::Projection(over)))
}

/// A sort key in terms of the projection's input.
fn below(key: &SortExpr, meaning: &HashMap<&Column, &Expr>) -> Result<SortExpr> {
    let expr = key.expr.clone().transform(|e| {
        let Expr::Column(column) = &e else {
            return Ok(Transformed::no(e));
        };
        Ok(match meaning.get(column) {
            Some(expr) => Transformed::yes((*expr).clone().unalias_nested().data),
            None => Transformed::no(e),
        })
    })?;
    Ok(SortExpr { expr: expr.data, ..key.clone() })
}
