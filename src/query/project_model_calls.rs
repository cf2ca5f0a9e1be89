//! Planner rule: calls of models in sort keys and aggregates become columns of a projection below.
//!
//! ```text
//! Sort [cosine_distance(embed(expr), q)] ← input Projection [input's columns] ← Sort [cosine_distance(__model_0, q)] ←
//! Projection [*, embed(expr) AS __model_0] ← input
//!
//! Aggregate [centroid(embed(expr))] ← input
//! Aggregate [centroid(__model_0)] ← Projection [*, embed(expr) AS __model_0] ← input
//! ```
//!
//! So that `gather_model_calls` finds them: batches full of tokens, counted in EXPLAIN ANALYZE, and over when the query
//! is cancelled. A sort or an aggregate of DataFusion would evaluate them itself, on the threads that everything else
//! needs.
//!
//! It fires on sorts and aggregates (keys, groups, arguments, conditions) with a call of a model. It must not fire for
//! a call inside CASE, which is for some rows only, nor on grouping sets, whose columns are distinguished by their
//! expressions.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, LogicalPlanBuilder, Sort, SortExpr};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};

/// What the new columns are called, before their number.
const PREFIX: &str = "__model_";

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct ProjectModelCalls;

impl OptimizerRule for ProjectModelCalls {
    fn name(&self) -> &str {
        "project_model_calls"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let better = match &plan {
            LogicalPlan::Sort(sort) => below_sort(sort)?,
            LogicalPlan::Aggregate(aggregate) => below_aggregate(&plan, aggregate)?,
            _ => None,
        };
        Ok(better.map_or(Transformed::no(plan), Transformed::yes))
    }
}

fn below_sort(sort: &Sort) -> Result<Option<LogicalPlan>> {
    let mut calls = Calls::default();
    let keys = sort.expr.iter().map(|key| Ok(SortExpr { expr: calls.lift(&key.expr)?, ..key.clone() }));
    let keys = keys.collect::<Result<Vec<_>>>()?;
    let Some(input) = calls.project(&sort.input)? else { return Ok(None) };
    let sorted = LogicalPlan::Sort(Sort { expr: keys, input: Arc::new(input), fetch: sort.fetch });
    let before = sort.input.schema().columns().into_iter().map(Expr::Column);
    Ok(Some(LogicalPlanBuilder::from(sorted).project(before)?.build()?))
}

fn below_aggregate(plan: &LogicalPlan, aggregate: &Aggregate) -> Result<Option<LogicalPlan>> {
    if aggregate.group_expr.iter().any(|e| matches!(e, Expr::GroupingSet(_))) {
        return Ok(None);
    }
    let names = NamePreserver::new(plan);
    let mut calls = Calls::default();
    let mut lifted =
        |exprs: &[Expr]| exprs.iter().map(|e| Ok(names.save(e).restore(calls.lift(e)?))).collect::<Result<Vec<_>>>();
    let (groups, aggregates) = (lifted(&aggregate.group_expr)?, lifted(&aggregate.aggr_expr)?);
    let Some(input) = calls.project(&aggregate.input)? else { return Ok(None) };
    Ok(Some(LogicalPlan::Aggregate(Aggregate::try_new(Arc::new(input), groups, aggregates)?)))
}

/// Calls that were taken out of expressions, each once.
#[derive(Default)]
struct Calls(Vec<Expr>);

impl Calls {
    /// An expression with columns in place of its calls.
    fn lift(&mut self, expr: &Expr) -> Result<Expr> {
        if !cellql_udfs::calls_model(expr) {
            return Ok(expr.clone());
        }
        let lifted = expr.clone().transform_down(|e| {
            if matches!(e, Expr::Case(_)) {
                return Ok(Transformed::new(e, false, TreeNodeRecursion::Jump));
            }
            let is_call = matches!(&e, Expr::ScalarFunction(f) if cellql_udfs::MODEL_FUNCTIONS.contains(&f.name()));
            if !is_call {
                return Ok(Transformed::no(e));
            }
            let at = self.0.iter().position(|call| *call == e).unwrap_or_else(|| {
                self.0.push(e);
                self.0.len() - 1
            });
            let column = Expr::Column(Column::new_unqualified(format!("{PREFIX}{at}")));
            Ok(Transformed::new(column, true, TreeNodeRecursion::Jump))
        })?;
        Ok(lifted.data)
    }

    /// The input with the calls as columns beside its own; `None` where there was none.
    fn project(self, input: &LogicalPlan) -> Result<Option<LogicalPlan>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let all = input.schema().columns().into_iter().map(Expr::Column);
        let calls = self.0.into_iter().enumerate().map(|(i, call)| call.alias(format!("{PREFIX}{i}")));
        let projected = LogicalPlanBuilder::from(input.clone()).project(all.chain(calls))?;
        Ok(Some(projected.build()?))
    }
}
