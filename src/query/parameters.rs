//! Values for `$name` in a statement.
//!
//! They are put into the parsed statement, not into its text and not into its plan: not into the text, so that no value
//! can be read as SQL; not into the plan, since options of functions (`embed(expr, model => $model)`) and arguments of
//! `vector_search` must be known before there is one.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use cellql_schemas::suggest::did_you_mean;
use cellql_udfs::named_arguments::plan_error;
use datafusion::common::{DataFusionError, Span};
use datafusion::sql::sqlparser::ast::{Statement, Value, ValueWithSpan, VisitMut, VisitorMut};

use crate::error::{Error, Result};

/// A value, of the type its spelling has.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Parameter {
    Null,
    Boolean(bool),
    /// As it was written.
    Number(String),
    Text(String),
}

impl Parameter {
    /// Numbers, `true`, `false` and `null` are what they look like, everything else is a string. Single quotes around
    /// the whole make a string of anything.
    fn read(text: &str) -> Self {
        if let Some(quoted) = text.strip_prefix('\'').and_then(|t| t.strip_suffix('\'')) {
            return Parameter::Text(quoted.replace("''", "'"));
        }
        match text.to_ascii_lowercase().as_str() {
            "null" => Parameter::Null,
            "true" => Parameter::Boolean(true),
            "false" => Parameter::Boolean(false),
            _ if is_number(text) => Parameter::Number(text.strip_prefix('+').unwrap_or(text).to_owned()),
            _ => Parameter::Text(text.to_owned()),
        }
    }

    fn literal(&self) -> Value {
        match self {
            Parameter::Null => Value::Null,
            Parameter::Boolean(value) => Value::Boolean(*value),
            Parameter::Number(text) => Value::Number(text.clone(), false),
            Parameter::Text(text) => Value::SingleQuotedString(text.clone()),
        }
    }
}

/// Not what Rust alone calls a number: `inf`, `nan`.
fn is_number(text: &str) -> bool {
    let begins = text.trim_start_matches(['+', '-']).starts_with(|c: char| c.is_ascii_digit() || c == '.');
    begins && text.parse::<f64>().is_ok_and(f64::is_finite)
}

/// Values by name.
#[derive(Debug, Clone, Default)]
pub struct Parameters(BTreeMap<String, Parameter>);

impl Parameters {
    /// Gives a name a value; the last one given holds.
    ///
    /// # Errors
    /// [`Error::Request`] for what `$name` cannot spell.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let name = name.strip_prefix('$').unwrap_or(name);
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(Error::Request(format!("'{name}' cannot name a parameter: use letters, digits and _")));
        }
        self.0.insert(name.to_owned(), Parameter::read(value));
        Ok(())
    }

    /// Names and values as SQL writes them, by name.
    pub fn list(&self) -> impl Iterator<Item = (&str, String)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.literal().to_string()))
    }

    /// Puts the values into a statement. `PREPARE` keeps its placeholders, which `EXECUTE` fills.
    ///
    /// # Errors
    /// A plan error that names a placeholder without a value.
    pub(super) fn bind(&self, statement: &mut Statement) -> Result<(), DataFusionError> {
        if matches!(statement, Statement::Prepare { .. }) {
            return Ok(());
        }
        match statement.visit(&mut Bind(self)) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(error) => Err(error),
        }
    }

    fn missing(&self, placeholder: &str, span: Option<Span>) -> DataFusionError {
        let text = match placeholder.strip_prefix('$') {
            Some(name) => {
                let known = did_you_mean(name, self.0.keys().map(String::as_str));
                format!(
                    "{placeholder} has no value: give it with --param {name}=VALUE, in the shell with \\set {name} \
                         VALUE.{known}"
                )
            }
            None => {
                format!("the placeholder {placeholder} has no name: write $name, and give it with --param name=VALUE")
            }
        };
        plan_error(text, span)
    }
}

struct Bind<'a>(&'a Parameters);

impl VisitorMut for Bind<'_> {
    type Break = DataFusionError;

    fn pre_visit_value(&mut self, value: &mut ValueWithSpan) -> ControlFlow<Self::Break> {
        let Value::Placeholder(placeholder) = &value.value else {
            return ControlFlow::Continue(());
        };
        match placeholder.strip_prefix('$').and_then(|name| self.0.0.get(name)) {
            Some(parameter) => value.value = parameter.literal(),
            None => return ControlFlow::Break(self.0.missing(placeholder, Span::try_from_sqlparser_span(value.span))),
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::{dialect::GenericDialect, parser::Parser};

    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> Parameters {
        let mut parameters = Parameters::default();
        pairs.iter().for_each(|(name, value)| parameters.set(name, value).unwrap());
        parameters
    }

    fn bound(sql: &str, pairs: &[(&str, &str)]) -> Result<String, DataFusionError> {
        let mut statement = Parser::parse_sql(&GenericDialect {}, sql).unwrap().remove(0);
        parameters(pairs).bind(&mut statement)?;
        Ok(statement.to_string())
    }

    #[test]
    fn a_value_has_the_type_of_its_spelling() {
        let given =
            [("a", "3"), ("b", "-2.5e3"), ("c", "TRUE"), ("d", "null"), ("e", "beta"), ("f", "'7'"), ("g", "nan")];
        let sql = "SELECT $a, $b, $c, $d, $e, $f, $g";
        assert_eq!(bound(sql, &given).unwrap(), "SELECT 3, -2.5e3, true, NULL, 'beta', '7', 'nan'");
        for text in ["007x", "1e999", "-", ".", "infinity", "+"] {
            assert_eq!(Parameter::read(text), Parameter::Text(text.to_owned()));
        }
    }

    #[test]
    fn values_go_wherever_a_value_may_stand() {
        let given = [("k", "3"), ("where", "donor_id = 'd1'"), ("n", "10"), ("m", "tiny")];
        let sql = "SELECT embed(expr, model => $m) FROM vector_search('cells', 1, k => $k, where => $where) LIMIT $n";
        let expected = "SELECT embed(expr, model => 'tiny') FROM vector_search('cells', 1, k => 3, where => \
             'donor_id = ''d1''') LIMIT 10";
        assert_eq!(bound(sql, &given).unwrap(), expected);
    }

    #[test]
    fn a_value_is_never_read_as_sql() {
        assert_eq!(bound("SELECT $a", &[("a", "1; DROP TABLE x")]).unwrap(), "SELECT '1; DROP TABLE x'");
        assert_eq!(bound("SELECT '$a', \"$a\"", &[("a", "1")]).unwrap(), "SELECT '$a', \"$a\"");
    }

    #[test]
    fn what_has_no_value_is_named_with_the_way_to_give_it() {
        let error = bound("SELECT $tisue", &[("tissue", "1")]).unwrap_err();
        let text = error.find_root().to_string();
        assert!(text.contains("$tisue has no value") && text.contains("--param tisue=VALUE"), "{text}");
        assert!(text.contains("Did you mean 'tissue'?"), "{text}");
        assert_eq!(error.diagnostic().unwrap().span.unwrap().start.column, 8);
        assert!(Parameters::default().set("a b", "1").is_err());
    }
}
