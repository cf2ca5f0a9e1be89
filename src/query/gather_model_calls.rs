//! Planner rule: whatever calls a model is planned as a [`ModelExec`].
//!
//! ```text
//! ProjectionExec [embed(expr), …]            → ModelExec [embed(expr), …]
//! FilterExec [donor = 'd1' AND f(embed(expr))] → ProjectionExec ← FilterExec [keep]
//!                                               ← ModelExec [f(embed(expr)) AS keep, …] ← FilterExec [donor = 'd1']
//! ```
//!
//! It fires on every projection and filter with a call of `embed`, `embed_gene` or `enhance` in it, wherever in the
//! expression. A call inside CASE stays inside: it runs for the rows that the branch is for. It must not fire on other
//! nodes (sorts and aggregates get their calls as columns of a projection from `project_model_calls`; joins and windows
//! evaluate theirs themselves, once per cell all the same), nor move a condition without a model call above one with.

use std::sync::Arc;

use cellql_schemas::expr::is_expr;
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr, conjunction, split_conjunction};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};
use datafusion::scalar::ScalarValue;

use super::StoreEngine;
use super::model_exec::ModelExec;

/// Column that says which rows a filter keeps.
const KEEP: &str = "__keep";

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct GatherModelCalls {
    engine: Arc<StoreEngine>,
}

impl GatherModelCalls {
    pub(super) fn new(engine: Arc<StoreEngine>) -> Self {
        Self { engine }
    }

    fn rewrite(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
        if let Some(projection) = plan.downcast_ref::<ProjectionExec>()
            && projection.expr().iter().any(|e| calls_model(&e.expr))
        {
            let expr = projection.expr().to_vec();
            return Ok(Transformed::yes(self.model_exec(expr, Arc::clone(projection.input()))?));
        }
        if let Some(filter) = plan.downcast_ref::<FilterExec>()
            && calls_model(filter.predicate())
        {
            return Ok(Transformed::yes(self.filter(filter)?));
        }
        Ok(Transformed::no(plan))
    }

    fn filter(&self, filter: &FilterExec) -> Result<Arc<dyn ExecutionPlan>> {
        let (with, without): (Vec<_>, Vec<_>) =
            split_conjunction(filter.predicate()).into_iter().cloned().partition(calls_model);
        let mut input = Arc::clone(filter.input());
        if !without.is_empty() {
            input = Arc::new(FilterExec::try_new(conjunction(without), input)?);
        }
        let schema = input.schema();
        let column = |i: usize| -> ProjectionExpr {
            let name = schema.field(i).name();
            ProjectionExpr::new(Arc::new(Column::new(name, i)), name.clone())
        };
        let all = schema.fields().len();
        let mut expr: Vec<ProjectionExpr> = (0..all).map(column).collect();
        expr.push(ProjectionExpr::new(conjunction(with), KEEP.to_owned()));
        let computed = self.model_exec(expr, input)?;
        let kept = FilterExec::try_new(Arc::new(Column::new(KEEP, all)), computed)?;
        let shown = match filter.projection() {
            Some(shown) => shown.iter().map(|i| column(*i)).collect::<Vec<_>>(),
            None => (0..all).map(column).collect(),
        };
        Ok(Arc::new(ProjectionExec::try_new(shown, Arc::new(kept))?))
    }

    fn model_exec(&self, expr: Vec<ProjectionExpr>, input: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        let mut sources = Vec::new();
        for call in expr.iter().flat_map(|e| model_calls(&e.expr)) {
            let source = self.source(call);
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
        let cells = input.schema().fields().iter().position(|f| is_expr(f.data_type()));
        Ok(Arc::new(ModelExec::try_new(expr, input, cells, sources)?))
    }

    /// Where a call's results come from.
    fn source(&self, call: &ScalarFunctionExpr) -> String {
        let constants: Vec<Option<&ScalarValue>> =
            call.args().iter().map(|a| a.downcast_ref::<Literal>().map(Literal::value)).collect();
        self.engine.source(call.name(), &constants)
    }
}

impl PhysicalOptimizerRule for GatherModelCalls {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(plan.transform_up(|plan| self.rewrite(plan))?.data)
    }

    fn name(&self) -> &'static str {
        "gather_model_calls"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn calls_model(expr: &Arc<dyn PhysicalExpr>) -> bool {
    !model_calls(expr).is_empty()
}

/// Calls of model functions in an expression.
fn model_calls(expr: &Arc<dyn PhysicalExpr>) -> Vec<&ScalarFunctionExpr> {
    let mut calls = Vec::new();
    let found = expr.apply(|e| {
        if let Some(call) = e.downcast_ref::<ScalarFunctionExpr>()
            && cellql_udfs::MODEL_FUNCTIONS.contains(&call.name())
        {
            calls.push(call);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    // The closure never fails.
    debug_assert!(found.is_ok());
    calls
}
