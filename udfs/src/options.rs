//! Constant arguments of functions: read at plan time, so that a wrong one is an error before any work.

use std::fmt::Display;
use std::str::FromStr;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef};
use cellql_schemas::recipe::{Dtype, Input, Recipe, dtype};
use datafusion::common::{DataFusionError, Result, ScalarValue, plan_err};
use datafusion::prelude::Expr;

use crate::description::Description;
use crate::engine::{Engine, EngineError};
use crate::parameters::{self, TOTAL_NAME};

/// Parses an option, or gives its default where it was left out.
fn parsed<T>(function: &str, given: Option<&str>) -> Result<T>
where
    T: FromStr + Default,
    T::Err: Display,
{
    match given {
        None => Ok(T::default()),
        Some(text) => text.parse().map_err(|e: T::Err| wrong_option(function, text, e)),
    }
}

fn wrong_option(function: &str, value: &str, error: impl Display) -> DataFusionError {
    EngineError::Request(format!("{function}: {error}")).about(value).into()
}

/// What a list of strings holds; `None` for any other value.
fn strings(value: &ScalarValue) -> Option<Vec<Option<String>>> {
    let items = list_items(value)?;
    if items.is_empty() {
        return Some(Vec::new());
    }
    if !matches!(items.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null) {
        return None;
    }
    let items = cast(&items, &DataType::Utf8).ok()?;
    Some(items.as_string_opt::<i32>()?.iter().map(|text| text.map(str::to_owned)).collect())
}

/// The items of a constant array; `None` for any other value.
pub(crate) fn list_items(value: &ScalarValue) -> Option<ArrayRef> {
    match value {
        ScalarValue::List(list) if list.is_valid(0) => Some(list.value(0)),
        ScalarValue::LargeList(list) if list.is_valid(0) => Some(list.value(0)),
        ScalarValue::FixedSizeList(list) if list.is_valid(0) => Some(list.value(0)),
        _ => None,
    }
}

/// The whole number of a value, where it is one and not below zero.
pub(crate) fn whole_number(value: &ScalarValue) -> Option<u64> {
    if !value.data_type().is_integer() {
        return None;
    }
    match value.cast_to(&DataType::UInt64) {
        Ok(ScalarValue::UInt64(number)) => number,
        _ => None,
    }
}

/// The arguments of a call, by the names of its parameters: constants as far as they are known.
pub(crate) struct Arguments<'a> {
    pub(crate) function: &'static Description,
    pub(crate) constants: &'a [Option<&'a ScalarValue>],
    /// Types of the arguments; empty where the planner does not say them.
    pub(crate) fields: &'a [FieldRef],
}

impl<'a> Arguments<'a> {
    /// A constant; `None` where it was left out, is NULL, or the function has no such parameter.
    fn constant(&self, parameter: &str, what: &str) -> Result<Option<&'a ScalarValue>> {
        match self.function.position(parameter).and_then(|at| self.constants.get(at)) {
            None => Ok(None),
            Some(None) => {
                plan_err!(
                    "{}: '{parameter}' must be a constant {what}, known before the query runs",
                    self.function.name
                )
            }
            Some(Some(value)) => Ok(Some(*value).filter(|v| !v.is_null())),
        }
    }

    /// A constant string; `None` where it was left out or the function has no such parameter.
    pub(crate) fn text(&self, parameter: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.constant(parameter, "string")? else {
            return Ok(None);
        };
        match value.try_as_str() {
            Some(Some(text)) => Ok(Some(text)),
            _ => plan_err!("{}: '{parameter}' must be a string, not {value}", self.function.name),
        }
    }

    /// A constant whole number from one on; `None` where it was left out.
    pub(crate) fn count(&self, parameter: &str) -> Result<Option<usize>> {
        let Some(value) = self.constant(parameter, "whole number")? else {
            return Ok(None);
        };
        match whole_number(value) {
            Some(number) if number > 0 => Ok(Some(usize::try_from(number).unwrap_or(usize::MAX))),
            _ => plan_err!("{}: '{parameter}' must be a whole number above 0, not {value}", self.function.name),
        }
    }

    /// True for an array that the planner has not folded to a constant yet: `['INS', 'GCG']` is a call of `make_array`
    /// until the optimizer ran.
    pub(crate) fn is_list_to_come(&self, parameter: &str) -> bool {
        let at = self.function.position(parameter);
        at.is_some_and(|at| {
            matches!(self.constants.get(at), Some(None))
                && self.fields.get(at).is_some_and(|field| parameters::is_list(field.data_type()))
        })
    }

    /// The gene ids of a constant array of names, in its order; `None` where the argument is no array.
    pub(crate) fn genes(&self, engine: &dyn Engine, parameter: &str) -> Result<Option<Vec<u32>>> {
        let function = self.function.name;
        let Some(names) = self.constant(parameter, "array of gene names")?.and_then(strings) else {
            return Ok(None);
        };
        if names.is_empty() {
            return plan_err!("{function}: '{parameter}' is an empty array; name one gene at least");
        }
        let find = |name: Option<String>| match name {
            Some(name) => Ok(engine.gene(&name).map_err(|e| e.about(&name))?),
            None => plan_err!("{function}: '{parameter}' holds a NULL; every item must be the name of a gene"),
        };
        names.into_iter().map(find).collect::<Result<Vec<_>>>().map(Some)
    }

    /// The model that `model` names, or the one meant by none.
    pub(crate) fn model(&self, engine: &dyn Engine) -> Result<String> {
        let name = self.text("model")?;
        Ok(engine.model(name).map_err(|e| e.about(name.unwrap_or_default()))?)
    }

    /// Reads `model`, `pool`, `depth`, `input` and `precision`, as far as the function has them.
    pub(crate) fn recipe(&self, engine: &dyn Engine) -> Result<Recipe> {
        self.recipe_of(self.model(engine)?)
    }

    /// The same where the model must be a transformer: linear models have no `what`.
    pub(crate) fn transformer_recipe(&self, engine: &dyn Engine, what: &str) -> Result<Recipe> {
        let name = self.text("model")?;
        self.recipe_of(engine.transformer(name, what).map_err(|e| e.about(name.unwrap_or_default()))?)
    }

    fn recipe_of(&self, model: String) -> Result<Recipe> {
        let function = self.function.name;
        let recipe = Recipe {
            pool: parsed(function, self.text("pool")?)?,
            depth: parsed(function, self.text("depth")?)?,
            input: parsed(function, self.text("input")?)?,
            precision: match self.text("precision")? {
                None => Dtype::default(),
                Some(text) => dtype(text).map_err(|e| wrong_option(function, text, e))?,
            },
            model,
        };
        let given = self.function.position(TOTAL_NAME).and_then(|at| self.constants.get(at));
        let is_given = given.is_some_and(|total| total.is_none_or(|value| !value.is_null()));
        match (recipe.input.needs_total(), is_given) {
            (true, false) => plan_err!(
                "{function}: input '{}' needs total => {}",
                recipe.input.name(),
                match recipe.input {
                    Input::Bulk => "the median, over the samples of the data set, of their counts of vocabulary genes",
                    _ => "the cell's total count, for example total => total_counts",
                }
            ),
            (false, true) => {
                plan_err!("{function}: input '{}' takes no total; only 'log+total' and 'bulk' do", recipe.input.name())
            }
            _ => Ok(recipe),
        }
    }
}

/// How a constant reads in a call; `None` for what is no constant.
fn shown(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Literal(value, _) => Some(match (value.try_as_str(), strings(value)) {
            (Some(Some(text)), _) => format!("'{text}'"),
            (_, Some(items)) => format!(
                "[{}]",
                items
                    .iter()
                    .map(|i| i.as_ref().map_or("NULL".into(), |i| format!("'{i}'")))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            _ => value.to_string(),
        }),
        // An array before the optimizer folded it: it is to read the same.
        Expr::ScalarFunction(call) if call.name() == "make_array" => {
            Some(format!("[{}]", call.args.iter().map(shown).collect::<Option<Vec<_>>>()?.join(", ")))
        }
        _ => None,
    }
}

/// How a call reads in column headings and plans: options that were left out do not show.
pub(crate) fn display(function: &Description, args: &[Expr]) -> String {
    let mut parts = Vec::new();
    for (arg, i) in args.iter().zip(0..) {
        if matches!(arg, Expr::Literal(value, _) if value.is_null()) {
            continue;
        }
        let option = function.parameters.get(i).filter(|p| !p.required);
        parts.push(match (shown(arg), option) {
            (Some(text), Some(option)) => format!("{} => {text}", option.name),
            (Some(text), None) => text,
            (None, _) => arg.schema_name().to_string(),
        });
    }
    format!("{}({})", function.name, parts.join(", "))
}
