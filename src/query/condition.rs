//! Conditions on a table that are given as text: `--where` of the command line and `where =>` of `vector_search`.
//!
//! A condition is parsed and planned here before a storage engine sees it, so a wrong one is an error of the request
//! that names the column, and text that is more than one expression (`cell_id = 5) OR (1 = 1`) cannot change what it is
//! put into. What [`on_table`] returns is written for Lance's parser, which takes double quotes for strings: names are
//! in backticks.

use std::error::Error as StdError;
use std::ops::ControlFlow;
use std::sync::LazyLock;

use arrow::datatypes::{DataType, Schema};
use arrow::error::ArrowError;
use cellql_schemas::cells;
use cellql_store::sql::quote_literal;
use cellql_store::{Store, causes};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, plan_err};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, ExprSchemable};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::sqlparser::ast::{self, Ident, VisitMut, VisitorMut};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;

use super::nesting;
use crate::error::{Error, Result};

/// DataFusion's functions and types, without tables.
static FUNCTIONS: LazyLock<SessionState> = LazyLock::new(|| SessionStateBuilder::new().with_default_features().build());

/// A condition on `cells`, checked and written for Lance.
///
/// # Errors
/// As [`on_table`], or the table cannot be read.
pub async fn on_cells(store: &Store, text: &str) -> Result<String> {
    let table = store.table(cells::TABLE).await?;
    on_table(cells::TABLE, &Schema::from(table.schema()), text)
}

/// A condition on a table, checked and written for Lance, in parentheses.
///
/// # Errors
/// [`Error::Request`] for text that is no single expression, an unknown column or function, a value that the column
/// cannot have, or an expression that is not true or false.
pub fn on_table(table: &str, schema: &Schema, text: &str) -> Result<String> {
    let mut condition = parse(text)?;
    if let ControlFlow::Break(construct) = VisitMut::visit(&mut condition, &mut RefuseConstructs) {
        return Err(Error::Request(format!(
            "the condition {text} uses {construct}, which conditions cannot; choose the cells with a query instead"
        )));
    }
    let _: ControlFlow<()> = VisitMut::visit(&mut condition, &mut QuoteNames { table, schema });
    let wrong = |error: DataFusionError| {
        Error::Request(format!("the condition {text} does not fit the table {table}: {}", Error::from(error)))
    };
    let columns = DFSchema::try_from(schema.clone()).map_err(wrong)?;
    let unaliased = ast::ExprWithAlias { expr: condition.clone(), alias: None };
    let planned = FUNCTIONS.create_logical_expr_from_sql_expr(unaliased, &columns).map_err(wrong)?;
    if planned.exists(|e| Ok(is_subquery(e))).map_err(wrong)? {
        return Err(Error::Request(format!("the condition {text} has a subquery; it can only use columns of {table}")));
    }
    check_values(&planned, schema).map_err(wrong)?;
    let simplifier = ExprSimplifier::new(SimplifyContext::default());
    let coerced = simplifier.coerce(planned, &columns).map_err(wrong)?;
    match coerced.get_type(&columns).map_err(wrong)? {
        DataType::Boolean => Ok(format!("({})", written(condition))),
        other => {
            let problem = format!("the condition {text} is of type {other}; it must be true or false for each row");
            Err(Error::Request(problem))
        }
    }
}

/// Checks that a text is one expression, and no more. Says nothing of columns and functions.
///
/// # Errors
/// [`Error::Request`] with the place in the text.
pub fn check_syntax(text: &str) -> Result<()> {
    parse(text).map(drop)
}

fn parse(text: &str) -> Result<ast::Expr> {
    let wrong = |error: ParserError| {
        Error::Request(format!(
            "the condition {text} is not an SQL expression: {}",
            Error::from(DataFusionError::from(error))
        ))
    };
    let dialect = GenericDialect {};
    let mut parser = Parser::new(&dialect).try_with_sql(text).map_err(wrong)?;
    let condition = parser.parse_expr().map_err(wrong)?;
    let next = parser.peek_token();
    if next.token != Token::EOF {
        let (token, at) = (&next.token, next.span.start.column);
        let problem =
            format!("the condition {text} goes on after its end: '{token}' at character {at} is not part of it");
        return Err(Error::Request(problem));
    }
    if nesting::is_expression_too_deep(&condition) {
        return Err(nesting::refused(condition, "condition", "operators; write a list of values as IN (…)"));
    }
    Ok(condition)
}

/// Puts names of columns in backticks: in the case they are written in where there is such a column, else in lower case
/// as SQL reads them. A qualifier that is the table's name is left out.
struct QuoteNames<'a> {
    table: &'a str,
    schema: &'a Schema,
}

impl QuoteNames<'_> {
    fn quote(&self, name: &mut Ident) {
        if name.quote_style.is_none() && self.schema.field_with_name(&name.value).is_err() {
            name.value = name.value.to_lowercase();
        }
        name.quote_style = Some('`');
    }
}

impl VisitorMut for QuoteNames<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut ast::Expr) -> ControlFlow<()> {
        if let ast::Expr::CompoundIdentifier(names) = expr
            && let [qualifier, name] = names.as_slice()
            && qualifier.value.eq_ignore_ascii_case(self.table)
        {
            *expr = ast::Expr::Identifier(name.clone());
        }
        match expr {
            ast::Expr::Identifier(name) => self.quote(name),
            ast::Expr::CompoundIdentifier(names) => names.iter_mut().for_each(|name| self.quote(name)),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// Finds what Lance's parser of filters does not read.
struct RefuseConstructs;

impl VisitorMut for RefuseConstructs {
    type Break = &'static str;

    fn pre_visit_expr(&mut self, expr: &mut ast::Expr) -> ControlFlow<&'static str> {
        use ast::Expr;
        let construct = match expr {
            Expr::Case { .. } => "CASE",
            Expr::Substring { .. } => "substring",
            Expr::Trim { .. } => "trim",
            Expr::Ceil { .. } => "ceil",
            Expr::Floor { .. } => "floor",
            Expr::Position { .. } => "position",
            Expr::Extract { .. } => "extract",
            Expr::IsUnknown(_) | Expr::IsNotUnknown(_) => "IS UNKNOWN",
            Expr::SimilarTo { .. } => "SIMILAR TO",
            Expr::Cast { kind: ast::CastKind::DoubleColon, .. } => "'::' (write CAST(… AS …))",
            Expr::BinaryOp { op: ast::BinaryOperator::PGRegexMatch, .. } => "'~' (write regexp_like(…, …))",
            _ => return ControlFlow::Continue(()),
        };
        ControlFlow::Break(construct)
    }
}

/// A condition as text. The parser's own text doubles quotes in strings only where it thinks that they are not doubled
/// yet, so strings are written here.
fn written(mut condition: ast::Expr) -> String {
    let mut strings = TakeStrings(Vec::new());
    let _: ControlFlow<()> = VisitMut::visit(&mut condition, &mut strings);
    let text = condition.to_string();
    let mut parts = text.split(MARK);
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for (string, rest) in strings.0.iter().zip(parts) {
        // The marks stand in quotes of the parser.
        whole.pop();
        whole.push_str(&quote_literal(string));
        whole.push_str(rest.strip_prefix('\'').unwrap_or(rest));
    }
    whole
}

/// Stands for a string in a condition; no name or number contains it.
const MARK: char = '\u{1}';

/// Takes the strings out of a condition, in the order in which it is written.
struct TakeStrings(Vec<String>);

impl VisitorMut for TakeStrings {
    type Break = ();

    fn pre_visit_value(&mut self, value: &mut ast::ValueWithSpan) -> ControlFlow<()> {
        if let Some(string) = value.value.clone().into_string() {
            value.value = ast::Value::SingleQuotedString(MARK.to_string());
            self.0.push(string);
        }
        ControlFlow::Continue(())
    }
}

fn is_subquery(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_))
}

/// Checks that constants which are compared with a column are values of its type.
fn check_values(condition: &Expr, schema: &Schema) -> Result<(), DataFusionError> {
    condition.apply(|expr| {
        let compared: Vec<&Expr> = match expr {
            Expr::BinaryExpr(binary) if binary.op.supports_propagation() => vec![&binary.left, &binary.right],
            Expr::Between(between) => vec![&between.expr, &between.low, &between.high],
            Expr::InList(list) => std::iter::once(list.expr.as_ref()).chain(&list.list).collect(),
            _ => Vec::new(),
        };
        for column in compared.iter().filter_map(|expr| expr.try_as_col()) {
            let Ok(field) = schema.field_with_name(&column.name) else { continue };
            for value in compared.iter().filter_map(|expr| expr.as_literal()) {
                if value.cast_to(field.data_type()).is_err() {
                    let (name, kind) = (field.name(), field.data_type());
                    return plan_err!("the column '{name}' is of type {kind}, which {value} is not");
                }
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// The error of a checked condition that failed while a table was read. What Lance says of itself is left out; the
/// cause of a value that cannot be computed, a cast for example, is said.
pub fn failed(text: &str, error: &(dyn StdError + 'static)) -> Error {
    for this in causes(error) {
        let cause = match (this.downcast_ref::<ArrowError>(), this.downcast_ref::<DataFusionError>()) {
            (Some(ArrowError::ExternalError(_)), _) | (_, Some(DataFusionError::External(_))) | (None, None) => None,
            (Some(arrow), _) => Some(arrow.to_string()),
            (_, Some(datafusion)) => match datafusion.find_root() {
                DataFusionError::External(_) => None,
                root => Some(root.strip_backtrace()),
            },
        };
        if let Some(cause) = cause {
            return Error::Request(format!("the condition {text} cannot be computed for every row: {cause}"));
        }
    }
    Error::Request(format!("the condition {text} cannot be used to choose rows of a table; write it in other words"))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Field;

    use super::*;

    fn checked(text: &str) -> Result<String> {
        let fields = [("cell_id", DataType::UInt64), ("cell_type", DataType::Utf8), ("Donor", DataType::Utf8)];
        let fields: Vec<Field> = fields.into_iter().map(|(name, kind)| Field::new(name, kind, true)).collect();
        on_table("cells", &Schema::new(fields), text)
    }

    #[test]
    fn names_are_written_for_lance() {
        for (text, expected) in [
            ("CELL_ID = 5", "(`cell_id` = 5)"),
            ("cells.cell_type = 'beta' AND \"Donor\" IS NULL", "(`cell_type` = 'beta' AND `Donor` IS NULL)"),
            (
                "Donor IN ('a', 'b') OR lower(cell_type) LIKE 'b%'",
                "(`Donor` IN ('a', 'b') OR lower(`cell_type`) LIKE 'b%')",
            ),
        ] {
            assert_eq!(checked(text).unwrap(), expected);
        }
    }

    #[test]
    fn strings_keep_their_quotes() {
        for text in ["''", "it''s", "''''", "''''''", "a\\''b", "\\", "x"] {
            assert_eq!(
                checked(&format!("cell_type = '{text}'")).unwrap(),
                format!("(`cell_type` = '{text}')"),
                "{text}"
            );
        }
        let like = "cell_type LIKE '%''%' AND \"Donor\" IN ('''', 'x')";
        assert_eq!(checked(like).unwrap(), "(`cell_type` LIKE '%''%' AND `Donor` IN ('''', 'x'))");
        // Values are visited in another order than they are written in some expressions.
        let between = "cell_type BETWEEN 'a''' AND 'b' AND 'c' = cell_type";
        assert_eq!(checked(between).unwrap(), "(`cell_type` BETWEEN 'a''' AND 'b' AND 'c' = `cell_type`)");
    }

    fn assert_refused(text: &str, named: &str) {
        let error = checked(text).unwrap_err();
        assert!(matches!(&error, Error::Request(said) if said.contains(named)), "{text}: {error}");
    }

    #[test]
    fn what_lance_cannot_read_is_refused_by_name() {
        for (text, named) in [
            ("CASE WHEN cell_id = 1 THEN true ELSE false END", "CASE"),
            ("substr(cell_type, 1, 2) = 'be'", "substring"),
            ("cell_id::text = '1'", "'::'"),
            ("cell_type SIMILAR TO 'b%'", "SIMILAR TO"),
        ] {
            assert_refused(text, named);
        }
    }

    #[test]
    fn wrong_conditions_are_errors_of_the_request_that_name_what_is_wrong() {
        for (text, named) in [
            ("cell_type='beta' garbage", "'garbage'"),
            ("cell_id = 5) OR (1=1", "')'"),
            ("cell_id = 5; DROP TABLE cells", "';'"),
            ("cell_typ = 'beta'", "'cell_type'"),
            ("cell_id = 'beta'", "'cell_id'"),
            ("cell_id IN (1, 'beta')", "'cell_id'"),
            ("cell_id", "UInt64"),
            ("nothing(cell_id)", "nothing"),
            ("cell_id IN (SELECT 1)", "cell_id IN (SELECT 1)"),
            ("", "expression"),
        ] {
            assert_refused(text, named);
        }
        let long = vec!["cell_id = 1"; 2000].join(" OR ");
        assert!(matches!(checked(&long), Err(Error::Request(_))));
    }
}
