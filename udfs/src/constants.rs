//! Arrays of names, checked as soon as a statement is planned.
//!
//! A function sees constants when a plan is built, but `['INS', 'GCG']` is a call of `make_array` then, a constant only
//! after the optimizer folded it; and an error of the optimizer is no error of EXPLAIN, which shows it as a plan.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::LogicalPlan;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::prelude::Expr;

use crate::FUNCTIONS;
use crate::parameters::Parameter;

/// Checks the constant arrays in every call of our functions, also in subqueries and under EXPLAIN.
///
/// # Errors
/// A plan error: an array that is no constant, is empty, or holds a name of no gene.
pub fn check_arrays(plan: &LogicalPlan) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                if let Expr::ScalarFunction(call) = part {
                    check_call(call)?;
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(())
}

fn check_call(call: &ScalarFunction) -> Result<()> {
    let Some(function) = FUNCTIONS.iter().find(|function| function.name == call.name()) else {
        return Ok(());
    };
    if !function.parameters.iter().any(Parameter::takes_arrays) {
        return Ok(());
    }
    let argument = |(arg, parameter): (&Expr, &Parameter)| match parameter.takes_arrays() {
        true => fold(arg.clone()),
        false => Ok(arg.clone()),
    };
    let args = call.args.iter().zip(function.parameters).map(argument).collect::<Result<Vec<_>>>()?;
    // Where the function itself looks at its arrays; nothing is simplified.
    call.func.simplify(args, &SimplifyContext::default())?;
    Ok(())
}

/// Folds `[1, 2]`, `-3` or `4 + 1` to a constant; what depends on a row stays as it is.
pub(crate) fn fold(expr: Expr) -> Result<Expr> {
    if matches!(expr, Expr::Literal(..)) || expr.any_column_refs() {
        return Ok(expr);
    }
    let simplifier = ExprSimplifier::new(SimplifyContext::default());
    simplifier.simplify(simplifier.coerce(expr, &DFSchema::empty())?)
}
