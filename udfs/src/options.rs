//! Constant arguments of functions: read at plan time, so that a wrong one is an error before any work.

use std::fmt::Display;
use std::str::FromStr;

use cellql_schemas::recipe::{Input, Recipe};
use datafusion::common::{DataFusionError, Result, ScalarValue, plan_err};

use crate::engine::Engine;

/// The constant string given for a parameter; `None` where it was left out or is NULL.
pub(crate) fn text<'a>(
    function: &str,
    parameter: &str,
    given: Option<&Option<&'a ScalarValue>>,
) -> Result<Option<&'a str>> {
    match given {
        None => Ok(None),
        Some(None) => plan_err!("{function}: '{parameter}' must be a constant string, known before the query runs"),
        Some(Some(value)) if value.is_null() => Ok(None),
        Some(Some(value)) => match value.try_as_str() {
            Some(Some(text)) => Ok(Some(text)),
            _ => plan_err!("{function}: '{parameter}' must be a string, not {value}"),
        },
    }
}

/// Parses an option, or gives its default where it was left out.
pub(crate) fn parsed<T>(function: &str, given: Option<&str>) -> Result<T>
where
    T: FromStr + Default,
    T::Err: Display,
{
    match given {
        None => Ok(T::default()),
        Some(text) => text.parse().map_err(|e: T::Err| DataFusionError::Plan(format!("{function}: {e}"))),
    }
}

/// The arguments of a call, by the names of its parameters: constants as far as they are known.
pub(crate) struct Arguments<'a> {
    pub(crate) function: &'static str,
    pub(crate) parameters: &'static [&'static str],
    pub(crate) constants: &'a [Option<&'a ScalarValue>],
}

impl<'a> Arguments<'a> {
    /// A constant string; `None` where it was left out or the function has no such parameter.
    pub(crate) fn text(&self, parameter: &str) -> Result<Option<&'a str>> {
        match self.parameters.iter().position(|p| *p == parameter) {
            None => Ok(None),
            Some(at) => text(self.function, parameter, self.constants.get(at)),
        }
    }

    /// Reads `model`, `pool`, `depth`, `input` and `precision`, as far as the function has them.
    pub(crate) fn recipe(&self, engine: &dyn Engine) -> Result<Recipe> {
        let recipe = Recipe {
            pool: parsed(self.function, self.text("pool")?)?,
            depth: parsed(self.function, self.text("depth")?)?,
            input: parsed(self.function, self.text("input")?)?,
            precision: parsed(self.function, self.text("precision")?)?,
            model: engine.model(self.text("model")?)?,
        };
        let given = self.parameters.iter().position(|p| *p == TOTAL).and_then(|at| self.constants.get(at));
        let is_given = given.is_some_and(|total| total.is_none_or(|value| !value.is_null()));
        match (recipe.input.needs_total(), is_given) {
            (true, false) => plan_err!(
                "{}: input '{}' needs total => {}",
                self.function,
                recipe.input.name(),
                match recipe.input {
                    Input::Bulk => "the median, over the samples of the data set, of their counts of vocabulary genes",
                    _ => "the cell's total count, for example total => total_counts",
                }
            ),
            (false, true) => plan_err!(
                "{}: input '{}' takes no total; only 'log+total' and 'bulk' do",
                self.function,
                recipe.input.name()
            ),
            _ => Ok(recipe),
        }
    }
}

/// The parameter that is a number beside `expr`, of any row: see `Input::needs_total`.
pub(crate) const TOTAL: &str = "total";

/// Refuses a first argument that is no expression, and options that are no strings.
pub(crate) fn check_types(
    function: &str,
    parameters: &[&str],
    types: &[arrow::datatypes::DataType],
    required: usize,
) -> Result<Vec<arrow::datatypes::DataType>> {
    use arrow::datatypes::DataType;
    let usage = || format!("{function}({})", parameters.join(", "));
    if types.len() < required || types.len() > parameters.len() {
        return plan_err!("{} takes {required} to {} arguments, not {}", usage(), parameters.len(), types.len());
    }
    if !cellql_schemas::expr::is_expr(&types[0]) {
        return plan_err!(
            "{}: the first argument is the expression of a cell (column expr of cells), not {}",
            usage(),
            types[0]
        );
    }
    let mut wanted = vec![types[0].clone()];
    for (given, name) in types.iter().zip(parameters).skip(1) {
        match given {
            _ if *name == TOTAL && (given.is_numeric() || given.is_null()) => wanted.push(DataType::Float64),
            _ if *name == TOTAL => return plan_err!("{}: 'total' must be a number, not {given}", usage()),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => wanted.push(given.clone()),
            other => return plan_err!("{}: '{name}' must be a string, not {other}", usage()),
        }
    }
    Ok(wanted)
}

/// How a call reads in column headings and plans: options that were left out do not show.
pub(crate) fn display(
    function: &str,
    parameters: &[&str],
    args: &[datafusion::prelude::Expr],
    required: usize,
) -> String {
    use datafusion::prelude::Expr;
    let mut parts = Vec::new();
    for (i, arg) in args.iter().enumerate() {
        match arg {
            Expr::Literal(value, _) if value.is_null() => {}
            Expr::Literal(value, _) => {
                let text = value.try_as_str().flatten().map_or_else(|| value.to_string(), |t| format!("'{t}'"));
                let name = parameters.get(i).filter(|_| i >= required);
                parts.push(name.map_or_else(|| text.clone(), |n| format!("{n} => {text}")));
            }
            other => parts.push(other.schema_name().to_string()),
        }
    }
    format!("{function}({})", parts.join(", "))
}
