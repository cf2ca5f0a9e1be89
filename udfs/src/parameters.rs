//! Parameters of functions: their names, what they mean and which types they take. One meaning per name.

use arrow::datatypes::DataType;
use datafusion::common::{Result, plan_err};

use crate::description::Description;

/// Which types an argument may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Accepts {
    /// The expression of a cell.
    Expr,
    /// A constant string.
    Text,
    /// A constant array of strings.
    Texts,
    /// Either of them.
    TextOrTexts,
    /// A constant whole number.
    WholeNumber,
    /// A number of any row.
    Number,
    /// Read by the function itself.
    Anything,
}

/// A parameter of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Parameter {
    /// Name, as in `name => value`.
    pub name: &'static str,
    /// What is to be given.
    pub what: &'static str,
    /// Whether it must be given.
    pub required: bool,
    pub(crate) accepts: Accepts,
    values: &'static [&'static str],
}

impl Parameter {
    pub(crate) const fn required(name: &'static str, what: &'static str, accepts: Accepts) -> Self {
        Self { name, what, required: true, accepts, values: &[] }
    }

    pub(crate) const fn optional(name: &'static str, what: &'static str, accepts: Accepts) -> Self {
        Self { name, what, required: false, accepts, values: &[] }
    }

    /// With the strings that can be given for it.
    pub(crate) const fn with_values(self, values: &'static [&'static str]) -> Self {
        Self { values, ..self }
    }

    /// Strings that can be given, for completion: all of them where they are few, examples where the parameter has a
    /// form such as `'t4'`. Empty for numbers, arrays and names that a store decides.
    pub fn values(&self) -> &'static [&'static str] {
        self.values
    }

    /// True where a constant array can be given.
    pub(crate) fn takes_arrays(&self) -> bool {
        matches!(self.accepts, Accepts::Texts | Accepts::TextOrTexts)
    }
}

/// The number beside `expr`, of any row: see `Input::needs_total`.
pub(crate) const TOTAL_NAME: &str = "total";

pub(crate) const EXPR: Parameter = Parameter::required(
    "expr",
    "expression of a cell: column `expr` of `cells`, or what was made of it",
    Accepts::Expr,
);
pub(crate) const MODEL: Parameter = Parameter::optional(
    "model",
    "name of a model; left out, the only one beside the shipped models, else a shipped one",
    Accepts::Text,
);
pub(crate) const POOL: Parameter = Parameter::optional(
    "pool",
    "`'all'` (S and T tokens, maximum and mean over genes, end to end; the default) or `'max'` (maximum over all \
         tokens)",
    Accepts::Text,
)
.with_values(&["all", "max"]);
pub(crate) const DEPTH: Parameter = Parameter::optional(
    "depth",
    "target depth T: `'t4'` (10⁴ counts, the default), `'f2'` (twice the cell's own) or `'a0.5'` (its log10 plus 0.5)",
    Accepts::Text,
)
.with_values(&["t4", "f2", "a0.5"]);
pub(crate) const INPUT: Parameter = Parameter::optional(
    "input",
    "what the values are: `'counts'` (the default), `'log'`, `'log+total'`, `'linear'`, `'bulk'` or `'bulk-log'`",
    Accepts::Text,
)
.with_values(&["counts", "log", "log+total", "linear", "bulk", "bulk-log"]);
pub(crate) const PRECISION: Parameter = Parameter::optional(
    "precision",
    "numbers of the model's products: `'f32'` (the default), `'bf16'` or `'int8'`",
    Accepts::Text,
)
.with_values(&["f32", "bf16", "int8"]);
pub(crate) const TOTAL: Parameter = Parameter::optional(
    TOTAL_NAME,
    "the cell's total count, for input `'log+total'`; the data set's median total, for `'bulk'`",
    Accepts::Number,
);
pub(crate) const GENES: Parameter =
    Parameter::required("genes", "array of genes by any of their names: `['INS', 'GCG']`", Accepts::Texts);

/// The arguments of an aggregate over expressions.
pub(crate) const ONLY_EXPR: &[Parameter] = &[EXPR];

fn is_text(given: &DataType) -> bool {
    matches!(given, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null)
}

/// True for arrays.
pub(crate) fn is_list(given: &DataType) -> bool {
    matches!(given, DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..))
}

fn is_texts(given: &DataType) -> bool {
    match given {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            is_text(item.data_type()) || *item.data_type() == DataType::Int64 // the type of `[]`
        }
        _ => false,
    }
}

/// Checks the types of a call and gives those its arguments are to be cast to.
///
/// # Errors
/// Too few or too many arguments, or one of another type than its parameter takes.
pub(crate) fn check_types(function: &Description, types: &[DataType]) -> Result<Vec<DataType>> {
    let (required, all) = (function.required(), function.parameters.len());
    if types.len() < required || types.len() > all {
        let count = if required == all { required.to_string() } else { format!("{required} to {all}") };
        let s = if all == 1 { "" } else { "s" };
        return plan_err!("{} takes {count} argument{s}, not {}", function.usage(), types.len());
    }
    types.iter().zip(function.parameters).map(|(given, parameter)| check_type(function, parameter, given)).collect()
}

fn check_type(function: &Description, parameter: &Parameter, given: &DataType) -> Result<DataType> {
    let wanted = match parameter.accepts {
        Accepts::Anything => return Ok(given.clone()),
        Accepts::Expr if cellql_schemas::expr::is_expr(given) => return Ok(given.clone()),
        Accepts::Expr => "the expression of a cell (column expr of cells)",
        Accepts::Text if is_text(given) => return Ok(given.clone()),
        Accepts::Text => "a string",
        Accepts::Texts if is_texts(given) => return Ok(given.clone()),
        Accepts::Texts => "an array of strings",
        Accepts::TextOrTexts if is_text(given) || is_texts(given) => return Ok(given.clone()),
        Accepts::TextOrTexts => "a string or an array of strings",
        Accepts::WholeNumber if given.is_integer() || given.is_null() => return Ok(given.clone()),
        Accepts::WholeNumber => "a whole number",
        Accepts::Number if given.is_numeric() || given.is_null() => return Ok(DataType::Float64),
        Accepts::Number => "a number",
    };
    plan_err!("{}: '{}' must be {wanted}, not {given}", function.usage(), parameter.name)
}

#[cfg(test)]
mod tests {
    use cellql_schemas::recipe::{Depth, Dtype, Input, Pool};

    use super::*;

    #[test]
    fn the_values_of_an_option_are_those_that_it_accepts() {
        assert_eq!(POOL.values(), Pool::ALL.map(Pool::name));
        assert_eq!(INPUT.values(), Input::ALL.map(Input::name));
        assert_eq!(PRECISION.values(), Dtype::ALL.map(Dtype::name));
        assert!(DEPTH.values().iter().all(|value| value.parse::<Depth>().is_ok()));
        assert!(MODEL.values().is_empty() && TOTAL.values().is_empty() && GENES.values().is_empty());
    }
}
