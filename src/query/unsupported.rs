//! Clauses that the SQL parser accepts and the planner would ignore. A statement with one of them is refused, because
//! its answer would be that of another statement.
//!
//! Every field of the parser's tree that DataFusion 54 does not read is named here. Patterns name all fields, so that a
//! new one of a later parser does not compile until it is decided about.

use std::ops::ControlFlow;

use cellql_udfs::named_arguments::plan_error;
use datafusion::common::Span;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArguments, GroupByExpr, OrderByExpr, OrderByKind, Query, Select, SelectFlavor, SelectItem,
    Spanned, Statement, TableAlias, TableFactor, VisitMut, VisitorMut, WildcardAdditionalOptions,
};

/// Refuses clauses that would be ignored, and completes `FROM t` to `SELECT * FROM t`.
///
/// # Errors
/// [`DataFusionError::Plan`] naming the first such clause.
pub(super) fn refuse(statement: &mut Statement, is_scalar: &dyn Fn(&str) -> bool) -> Result<(), DataFusionError> {
    match statement.visit(&mut Refuse { is_scalar }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

struct Refuse<'a> {
    /// Whether a function is only a scalar function: neither an aggregate nor a window function.
    is_scalar: &'a dyn Fn(&str) -> bool,
}

/// The first clause of a list that is there.
fn first(clauses: &[(bool, &'static str)]) -> Option<&'static str> {
    clauses.iter().find(|(is_there, _)| *is_there).map(|(_, name)| *name)
}

fn checked(clause: Option<&str>) -> ControlFlow<DataFusionError> {
    match clause {
        None => ControlFlow::Continue(()),
        Some(clause) => ControlFlow::Break(DataFusionError::Plan(format!("{clause} is not supported"))),
    }
}

fn in_query(query: &Query) -> Option<&'static str> {
    let Query {
        with: _,
        body: _,
        order_by,
        limit_clause: _,
        // The planner refuses it.
        fetch: _,
        locks,
        for_clause,
        settings,
        format_clause,
        pipe_operators: _,
    } = query;
    let expressions = order_by.as_ref().map_or(&[][..], |order| match &order.kind {
        OrderByKind::Expressions(expressions) => expressions,
        OrderByKind::All(_) => &[],
    });
    first(&[
        (!locks.is_empty(), "FOR UPDATE or FOR SHARE"),
        (for_clause.is_some(), "FOR XML, FOR JSON or FOR BROWSE"),
        (settings.is_some(), "SETTINGS"),
        (format_clause.is_some(), "FORMAT"),
        (expressions.iter().any(has_fill), "WITH FILL"),
    ])
}

fn has_fill(order: &OrderByExpr) -> bool {
    order.with_fill.is_some()
}

fn in_select(select: &Select) -> Option<&'static str> {
    let Select {
        select_token: _,
        optimizer_hints: _,
        distinct: _,
        select_modifiers,
        top: _,
        top_before_distinct: _,
        projection: _,
        exclude,
        into: _,
        from: _,
        lateral_views: _,
        prewhere,
        selection: _,
        connect_by,
        group_by,
        cluster_by: _,
        distribute_by,
        sort_by: _,
        having: _,
        named_window: _,
        qualify: _,
        window_before_qualify: _,
        value_table_mode,
        flavor: _,
    } = select;
    let (GroupByExpr::All(modifiers) | GroupByExpr::Expressions(_, modifiers)) = group_by;
    first(&[
        (select_modifiers.as_ref().is_some_and(|modifiers| *modifiers != Default::default()), "a modifier of SELECT"),
        (exclude.is_some(), "EXCLUDE after the columns of SELECT (write * EXCLUDE (…))"),
        (prewhere.is_some(), "PREWHERE"),
        (!connect_by.is_empty(), "CONNECT BY"),
        (!modifiers.is_empty(), "WITH ROLLUP, WITH CUBE or WITH TOTALS (write GROUP BY ROLLUP (…) or CUBE (…))"),
        (!distribute_by.is_empty(), "DISTRIBUTE BY"),
        (value_table_mode.is_some(), "AS VALUE or AS STRUCT"),
    ])
}

fn in_table(table: &TableFactor) -> Option<&'static str> {
    match table {
        TableFactor::Table {
            name: _,
            alias,
            args,
            with_hints,
            version,
            with_ordinality,
            partitions,
            json_path,
            sample,
            index_hints,
        } => first(&[
            (has_index(alias.as_ref()), "AT after the name of a table"),
            (args.as_ref().is_some_and(|args| args.settings.is_some()), "SETTINGS"),
            (!with_hints.is_empty(), "WITH (…) after a table"),
            (version.is_some(), "a version of a table in FROM (open the version with --at-version)"),
            (*with_ordinality, "WITH ORDINALITY"),
            (!partitions.is_empty(), "PARTITION after a table"),
            (json_path.is_some(), "a JSON path after a table"),
            (sample.is_some(), "TABLESAMPLE (write ORDER BY random() LIMIT n)"),
            (!index_hints.is_empty(), "an index hint"),
        ]),
        TableFactor::Derived { lateral: _, subquery: _, alias, sample } => first(&[
            (has_index(alias.as_ref()), "AT after a subquery"),
            (sample.is_some(), "TABLESAMPLE (write ORDER BY random() LIMIT n)"),
        ]),
        TableFactor::Function { with_ordinality, .. } => first(&[(*with_ordinality, "WITH ORDINALITY")]),
        TableFactor::UNNEST { with_offset, with_ordinality, .. } => {
            first(&[(*with_offset, "WITH OFFSET"), (*with_ordinality, "WITH ORDINALITY")])
        }
        // The planner refuses the others.
        _ => None,
    }
}

fn has_index(alias: Option<&TableAlias>) -> bool {
    alias.is_some_and(|alias| alias.at.is_some())
}

fn in_call(call: &Function, is_scalar: bool) -> Option<&'static str> {
    let Function { name: _, uses_odbc_syntax: _, parameters, args, filter, null_treatment, over, within_group } = call;
    let list = match args {
        FunctionArguments::List(list) => Some(list),
        FunctionArguments::None | FunctionArguments::Subquery(_) => None,
    };
    first(&[
        (*parameters != FunctionArguments::None, "a second list of arguments"),
        (matches!(args, FunctionArguments::Subquery(_)), "a subquery as the arguments"),
        (is_scalar && filter.is_some(), "FILTER"),
        (is_scalar && null_treatment.is_some(), "IGNORE NULLS or RESPECT NULLS"),
        (is_scalar && over.is_some(), "OVER"),
        (is_scalar && !within_group.is_empty(), "WITHIN GROUP"),
        (is_scalar && list.is_some_and(|list| list.duplicate_treatment.is_some()), "DISTINCT or ALL"),
        (is_scalar && list.is_some_and(|list| !list.clauses.is_empty()), "a clause in the arguments"),
    ])
}

impl VisitorMut for Refuse<'_> {
    type Break = DataFusionError;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<DataFusionError> {
        checked(in_query(query))
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<DataFusionError> {
        if select.flavor == SelectFlavor::FromFirstNoSelect && select.projection.is_empty() {
            select.projection = vec![SelectItem::Wildcard(WildcardAdditionalOptions::default())];
        }
        checked(in_select(select))
    }

    fn pre_visit_table_factor(&mut self, table: &mut TableFactor) -> ControlFlow<DataFusionError> {
        checked(in_table(table))
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<DataFusionError> {
        let Expr::Function(call) = expr else { return ControlFlow::Continue(()) };
        let name = call.name.to_string();
        match in_call(call, (self.is_scalar)(&name.to_lowercase())) {
            None => ControlFlow::Continue(()),
            Some(clause) => {
                let text = format!("{name}() takes no such clause: {clause} is not supported there");
                ControlFlow::Break(plan_error(text, Span::try_from_sqlparser_span(call.name.span())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::GenericDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    use super::*;

    fn refused(sql: &str) -> Result<String, DataFusionError> {
        let mut statement =
            Parser::parse_sql(&GenericDialect {}, sql).unwrap_or_else(|e| panic!("{sql}: {e}")).remove(0);
        refuse(&mut statement, &|name| name == "abs")?;
        Ok(statement.to_string())
    }

    #[test]
    fn clauses_that_the_planner_ignores_are_refused_by_name() {
        for (sql, named) in [
            ("SELECT * FROM t TABLESAMPLE BERNOULLI (10)", "TABLESAMPLE"),
            ("SELECT * FROM (SELECT 1) AS x TABLESAMPLE (10 ROWS)", "TABLESAMPLE"),
            ("SELECT * FROM t FOR UPDATE", "FOR UPDATE"),
            ("SELECT * FROM t PREWHERE a = 1", "PREWHERE"),
            ("SELECT a FROM t GROUP BY a WITH ROLLUP", "ROLLUP"),
            ("SELECT * FROM t SETTINGS a = 1", "SETTINGS"),
            ("SELECT * FROM t FORMAT JSON", "FORMAT"),
            ("SELECT a FROM t DISTRIBUTE BY a", "DISTRIBUTE BY"),
            ("SELECT a FROM t ORDER BY a WITH FILL", "WITH FILL"),
            ("SELECT abs(DISTINCT a) FROM t", "DISTINCT"),
            ("SELECT abs(a) FILTER (WHERE a > 1) FROM t", "FILTER"),
            ("SELECT 1 WHERE EXISTS (SELECT * FROM t TABLESAMPLE (10))", "TABLESAMPLE"),
        ] {
            let error = refused(sql).unwrap_err().to_string();
            assert!(error.contains(named), "{sql}: {error}");
        }
    }

    #[test]
    fn other_statements_stay_and_from_alone_selects_everything() {
        for sql in [
            "SELECT DISTINCT a FROM t AS x WHERE b = 1 GROUP BY ALL ORDER BY a LIMIT 3",
            "SELECT sum(DISTINCT a) FILTER (WHERE a > 1) FROM t",
            "FROM t SELECT a",
        ] {
            assert_eq!(refused(sql).unwrap(), sql);
        }
        let completed = refused("FROM t LIMIT 5").unwrap();
        assert!(completed.contains('*'), "{completed}");
    }
}
