//! How deeply a statement is nested, and the limit of it.
//!
//! Planner, optimizer and storage engine recurse once for each nested operator, join and `UNION`, and a deep enough
//! statement would overflow their stack. So statements beyond [`LIMIT`] are refused before they are planned, and
//! threads that plan have [`STACK`] bytes, which is enough for any statement within it.
//!
//! Depends on the SQL parser's tree. Knows nothing of what a statement means.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{Expr, Query, Select, SetExpr, Statement, Visit, Visitor};

use crate::error::Error;

/// Levels of nesting that a statement may have: operators, function calls, joins, subqueries, and parts of a `UNION`.
pub(crate) const LIMIT: usize = 500;
/// Bytes of stack of a thread that plans statements. A join takes the most of a level: 70 kB in a development build.
pub(crate) const STACK: usize = 64 << 20;

/// True for a statement beyond [`LIMIT`].
pub(super) fn is_too_deep(statement: &DfStatement) -> bool {
    match statement {
        DfStatement::Statement(inner) => depth(inner) > LIMIT,
        DfStatement::Explain(explain) => is_too_deep(&explain.statement),
        _ => false,
    }
}

/// True for an expression beyond [`LIMIT`].
pub(super) fn is_expression_too_deep(expression: &Expr) -> bool {
    let mut depth = Depth { now: 0, deepest: 0 };
    let _: ControlFlow<()> = expression.visit(&mut depth);
    depth.deepest > LIMIT
}

/// The error of a statement or condition beyond [`LIMIT`]. The tree is leaked, because dropping it would recurse as
/// deeply as planning it.
pub(super) fn refused<T>(tree: T, what: &str, levels: &str) -> Error {
    std::mem::forget(tree);
    Error::Request(format!("the {what} is nested too deeply: more than {LIMIT} levels of {levels}"))
}

/// Levels of nesting of a statement, the longest way from its root to a leaf; where that is beyond [`LIMIT`], a number
/// beyond it.
fn depth(statement: &Statement) -> usize {
    let mut depth = Depth { now: 0, deepest: 0 };
    let _: ControlFlow<()> = statement.visit(&mut depth);
    depth.deepest
}

struct Depth {
    now: usize,
    deepest: usize,
}

impl Depth {
    fn enter(&mut self, levels: usize) -> ControlFlow<()> {
        self.now += levels;
        self.deepest = self.deepest.max(self.now);
        // Deeper than can be planned is deep enough to know.
        if self.now > LIMIT { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn leave(&mut self, levels: usize) -> ControlFlow<()> {
        self.now -= levels;
        ControlFlow::Continue(())
    }
}

impl Visitor for Depth {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.enter(levels_of(query))
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.leave(levels_of(query))
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        self.enter(joins_of(select))
    }

    fn post_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        self.leave(joins_of(select))
    }

    fn pre_visit_expr(&mut self, _: &Expr) -> ControlFlow<()> {
        self.enter(1)
    }

    fn post_visit_expr(&mut self, _: &Expr) -> ControlFlow<()> {
        self.leave(1)
    }
}

/// A query, and the parts of its `UNION`s: `a UNION b UNION c` is `(a UNION b) UNION c`.
fn levels_of(query: &Query) -> usize {
    let (mut levels, mut body) = (1, query.body.as_ref());
    while let SetExpr::SetOperation { left, .. } = body {
        levels += 1;
        body = left;
    }
    levels
}

/// Tables that a `FROM` joins: each is a level above the one before it.
fn joins_of(select: &Select) -> usize {
    select.from.iter().map(|table| table.joins.len() + 1).sum()
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::GenericDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    use super::*;

    fn depth_of(sql: &str) -> usize {
        depth(&Parser::parse_sql(&GenericDialect {}, sql).unwrap()[0])
    }

    #[test]
    fn operators_unions_and_joins_count() {
        let plain = depth_of("SELECT a FROM t");
        assert_eq!(depth_of("SELECT a + b + c + d FROM t"), plain + 3);
        assert_eq!(depth_of("SELECT a FROM t WHERE a IN (1, 2, 3, 4, 5, 6, 7, 8)"), plain + 1);
        assert!(depth_of("SELECT a FROM t UNION ALL SELECT a FROM t UNION ALL SELECT a FROM t") >= plain + 2);
        assert_eq!(depth_of("SELECT a FROM t JOIN u USING (a) JOIN v USING (a)"), plain + 2);
    }

    #[test]
    fn a_statement_beyond_the_limit_is_known_without_being_walked_to_its_end() {
        let terms = vec!["a = 1"; 20_000].join(" OR ");
        let run = move || depth_of(&format!("SELECT a FROM t WHERE {terms}")) > LIMIT;
        assert!(std::thread::Builder::new().stack_size(STACK).spawn(run).unwrap().join().unwrap());
    }
}
