//! Constant arguments of functions: read at plan time, so that a wrong one is an error before any work.

use std::fmt::Display;
use std::str::FromStr;

use cellql_schemas::recipe::Recipe;
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

/// Reads `model, pool, depth, input` from the constants that follow `expr`.
pub(crate) fn recipe(function: &str, constants: &[Option<&ScalarValue>], engine: &dyn Engine) -> Result<Recipe> {
    let option = |i: usize, name: &str| text(function, name, constants.get(i));
    let model = option(1, "model")?;
    Ok(Recipe {
        pool: parsed(function, option(2, "pool")?)?,
        depth: parsed(function, option(3, "depth")?)?,
        input: parsed(function, option(4, "input")?)?,
        model: engine.model(model)?,
    })
}

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
