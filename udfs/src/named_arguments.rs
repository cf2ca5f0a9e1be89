//! `name => value` in calls of our functions, in any selection and order.
//!
//! DataFusion 54 resolves named arguments of scalar functions only without gaps (`embed(expr, pool => 'max')` leaves
//! out `model`, which stands before `pool`) and drops the names in table functions. So names are turned into
//! positions here, on the parsed statement, with NULL for what was left out.

use std::ops::ControlFlow;

use cellql_schemas::suggest::did_you_mean;
use datafusion::common::{DataFusionError, Diagnostic, Result, Span as StatementSpan};
use datafusion::sql::sqlparser::ast::Spanned;
use datafusion::sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectName, Statement, TableFactor, Value, VisitMut,
    VisitorMut,
};
use datafusion::sql::sqlparser::tokenizer::Span;

use crate::description::Description;

/// Rewrites every call of one of `functions` to positional arguments.
///
/// # Errors
/// A plan error for a name the function does not have, one given twice, or a positional argument after a named one.
pub fn to_positional(statement: &mut Statement, functions: &[Description]) -> Result<()> {
    match statement.visit(&mut Rewrite { functions }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

struct Rewrite<'a> {
    functions: &'a [Description],
}

impl Rewrite<'_> {
    fn rewrite(&self, function: &ObjectName, args: &mut Vec<FunctionArg>) -> Result<()> {
        let name = function.to_string().to_lowercase();
        match self.functions.iter().find(|known| known.name == name) {
            Some(function) => positional(function, args),
            None => Ok(()),
        }
    }
}

impl VisitorMut for Rewrite<'_> {
    type Break = DataFusionError;

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        if let Expr::Function(call) = expr
            && let FunctionArguments::List(list) = &mut call.args
            && let Err(error) = self.rewrite(&call.name, &mut list.args)
        {
            return ControlFlow::Break(error);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<Self::Break> {
        if let TableFactor::Table { name, args: Some(args), .. } = factor
            && let Err(error) = self.rewrite(name, &mut args.args)
        {
            return ControlFlow::Break(error);
        }
        ControlFlow::Continue(())
    }
}

/// A statement that cannot be planned, with the place in it that is wrong, if that is known.
pub fn plan_error(text: String, at: Option<StatementSpan>) -> DataFusionError {
    DataFusionError::Plan(text.clone()).with_diagnostic(Diagnostic::new_error(text, at))
}

fn positional(function: &Description, args: &mut Vec<FunctionArg>) -> Result<()> {
    let wrong = |text: String, at: Span| {
        let text = format!("{}: {text}", function.name);
        Err(plan_error(text, StatementSpan::try_from_sqlparser_span(at)))
    };
    let mut places: Vec<Option<FunctionArgExpr>> = Vec::new();
    let mut named = false;
    for arg in args.drain(..) {
        let at = arg.span();
        let (name, value) = match arg {
            FunctionArg::Unnamed(value) if named => {
                return wrong(format!("the argument {value} has no name but follows a named one"), value.span());
            }
            FunctionArg::Unnamed(value) => {
                places.push(Some(value));
                continue;
            }
            FunctionArg::Named { name, arg, .. } => (name.value, arg),
            FunctionArg::ExprNamed { name, arg, .. } => (name.to_string(), arg),
        };
        named = true;
        let Some(place) = function.position(&name) else {
            let hint = did_you_mean(&name, function.parameters.iter().map(|p| p.name));
            return wrong(format!("there is no option '{name}'; call it as {}.{hint}", function.usage()), at);
        };
        places.resize(places.len().max(place + 1), None);
        if places[place].replace(value).is_some() {
            return wrong(format!("'{name}' is given twice"), at);
        }
    }
    let null = || FunctionArgExpr::Expr(Expr::value(Value::Null));
    args.extend(places.into_iter().map(|p| FunctionArg::Unnamed(p.unwrap_or_else(null))));
    Ok(())
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::{dialect::GenericDialect, parser::Parser};

    use super::*;

    fn rewritten(sql: &str) -> Result<String> {
        let mut statement = Parser::parse_sql(&GenericDialect {}, sql).unwrap().remove(0);
        to_positional(&mut statement, crate::FUNCTIONS)?;
        Ok(statement.to_string())
    }

    #[test]
    fn gaps_become_null_and_order_does_not_matter() {
        assert_eq!(
            rewritten("SELECT embed(expr, depth => 'f2', model => 'm') FROM cells").unwrap(),
            "SELECT embed(expr, 'm', NULL, 'f2') FROM cells"
        );
        assert_eq!(
            rewritten("SELECT * FROM vector_search('cells', 3, where => 'a = 1')").unwrap(),
            "SELECT * FROM vector_search('cells', 3, NULL, 'a = 1')"
        );
    }

    #[test]
    fn calls_are_found_wherever_they_stand() {
        let sql = "WITH x AS (SELECT embed(expr, pool => 'max') AS v FROM cells WHERE embed(expr, pool => 'max') \
                   IS NOT NULL) SELECT count(*) FROM x JOIN vector_search('cells', 1, k => 3) USING (cell_id)";
        let out = rewritten(sql).unwrap();
        assert_eq!(out.matches("embed(expr, NULL, 'max')").count(), 2);
        assert!(out.contains("vector_search('cells', 1, 3)"));
    }

    #[test]
    fn other_functions_are_left_alone() {
        let sql = "SELECT power(base => 2, exponent => 3)";
        assert_eq!(rewritten(sql).unwrap(), sql);
    }

    #[test]
    fn wrong_names_are_answered_with_the_right_ones() {
        let error = rewritten("SELECT embed(expr, modl => 'm')").unwrap_err().to_string();
        assert!(error.contains("no option 'modl'") && error.contains("Did you mean 'model'"), "{error}");
        let error = rewritten("SELECT * FROM list_functions(kind => 'scalar')").unwrap_err().to_string();
        assert!(error.contains("no option 'kind'; call it as list_functions()"), "{error}");
        assert!(rewritten("SELECT embed(expr, pool => 'a', pool => 'b')").is_err());
        assert!(rewritten("SELECT embed(pool => 'a', expr)").is_err());
    }
}
