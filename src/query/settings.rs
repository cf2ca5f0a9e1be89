//! Settings that a statement `SET` may change: those that neither change an answer nor keep a query from ending.

use datafusion::error::DataFusionError;
use datafusion::logical_expr::{LogicalPlan, Statement};

/// Settings of DataFusion that may be set, and what their values are.
const ALLOWED: &[(&str, &str)] = &[
    ("datafusion.execution.target_partitions", "threads of a query, 1 to 1024"),
    ("datafusion.execution.time_zone", "time zone of timestamps, for example +01:00"),
    ("datafusion.explain.format", "indent, tree, pgjson or graphviz"),
    ("datafusion.explain.logical_plan_only", "true or false"),
    ("datafusion.explain.physical_plan_only", "true or false"),
    ("datafusion.explain.show_sizes", "true or false"),
    ("datafusion.explain.show_schema", "true or false"),
    ("datafusion.explain.show_statistics", "true or false"),
    ("datafusion.explain.tree_maximum_render_width", "characters"),
];
const MAX_PARTITIONS: usize = 1024;

/// Refuses `SET` and `RESET` of other settings, and of values that a query cannot run with.
///
/// # Errors
/// [`DataFusionError::Plan`] that lists the settings.
pub(super) fn check(plan: &LogicalPlan) -> Result<(), DataFusionError> {
    let (name, value) = match plan {
        LogicalPlan::Statement(Statement::SetVariable(set)) => (set.variable.as_str(), Some(set.value.as_str())),
        LogicalPlan::Statement(Statement::ResetVariable(reset)) => (reset.variable.as_str(), None),
        _ => return Ok(()),
    };
    let lower = name.to_lowercase();
    if !ALLOWED.iter().any(|(allowed, _)| *allowed == lower) {
        let all: Vec<String> = ALLOWED.iter().map(|(name, what)| format!("  {name}: {what}")).collect();
        return Err(DataFusionError::Plan(format!("'{name}' cannot be set; these can:\n{}", all.join("\n"))));
    }
    let is_partitions = lower.ends_with("target_partitions");
    match value.filter(|_| is_partitions).map(str::parse::<usize>) {
        Some(Ok(1..=MAX_PARTITIONS)) | None => Ok(()),
        Some(_) => Err(DataFusionError::Plan(format!("{name} must be a whole number from 1 to {MAX_PARTITIONS}"))),
    }
}
