//! Planner rule: `ORDER BY cosine_distance(vector, […]) LIMIT k` reads the rows that an index finds instead of all
//! rows.
//!
//! ```text
//! Sort [cosine_distance(vector, literal)] fetch=k ← … ← TableScan embeddings
//! Sort [cosine_distance(vector, literal)] fetch=k ← … ← IndexSearch ← TableScan embeddings
//!                                                                   ← plans of the cell_ids to keep
//! ```
//!
//! Only the scan changes. Joins, filters, the sort and the limit above it stay as they are and get fewer rows. The rule
//! executes nothing: `index_search_exec` searches when the query is executed, among the rows that the scan's own
//! filters and inner joins on `cell_id` keep, and scans where an index cannot give the exact answer.
//!
//! It fires where the store has an index of the table, the table has enough vectors for it and the limit is small
//! enough. It must not fire
//! - without a limit, in descending order, with NULLs first, or with a query vector that is not a constant;
//! - through nodes other than projections, aliases and inner joins on `cell_id` alone: they could drop rows that were
//!   found;
//! - where the other side of a join, which is executed a second time for its `cell_id`s, could give other rows then: a
//!   volatile function such as `random()`, a limit, a window, an aggregate function, a table that is not of the store;
//! - where the other side of a join calls a model.

use std::sync::Arc;

use cellql_schemas::embeddings;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{JoinType, Result};
use datafusion::datasource::source_as_provider;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{
    Distinct, Expr, Extension, Join, LogicalPlan, LogicalPlanBuilder, Sort, SortExpr, TableScan,
};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};

use super::StoreEngine;
use super::cells_table::CellsTable;
use super::index_search::{IndexSearch, query_vector};
use super::index_search_exec::SPARE;
use super::table::StoreTable;
use crate::index::Metric;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct NearestByIndex {
    engine: Arc<StoreEngine>,
}

impl NearestByIndex {
    pub(super) fn new(engine: Arc<StoreEngine>) -> Self {
        Self { engine }
    }
}

impl OptimizerRule for NearestByIndex {
    fn name(&self) -> &str {
        "nearest_by_index"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Sort(Sort { expr, input, fetch: Some(fetch) }) = &plan else {
            return Ok(Transformed::no(plan));
        };
        let Some(SortExpr { expr: key, asc: true, nulls_first: false }) = expr.first() else {
            return Ok(Transformed::no(plan));
        };
        let wanted = Nearest { distance: key.clone().unalias_nested().data, joined: Vec::new(), k: *fetch };
        match self.rewritten(input, wanted)? {
            None => Ok(Transformed::no(plan)),
            Some(input) => {
                let sort = Sort { expr: expr.clone(), input: Arc::new(input), fetch: Some(*fetch) };
                Ok(Transformed::yes(LogicalPlan::Sort(sort)))
            }
        }
    }
}

/// The question, with its columns named as the plan at hand names them.
struct Nearest {
    /// The sort key.
    distance: Expr,
    /// Columns that equal the only column of another plan, and that plan.
    joined: Vec<(Expr, LogicalPlan)>,
    k: usize,
}

impl Nearest {
    /// The same question of the plan's input; `below` gives the expression of the input that a column stands for.
    fn below(self, below: impl Fn(&datafusion::common::Column) -> Option<Expr>) -> Result<Self> {
        let map = |expr: Expr| -> Result<Expr> {
            let mapped = expr.transform_up(|e| match &e {
                Expr::Column(column) => Ok(below(column).map_or(Transformed::no(e), Transformed::yes)),
                _ => Ok(Transformed::no(e)),
            })?;
            Ok(mapped.data)
        };
        let joined = self.joined.into_iter().map(|(column, plan)| Ok((map(column)?, plan)));
        Ok(Self { distance: map(self.distance)?, joined: joined.collect::<Result<_>>()?, k: self.k })
    }
}

impl NearestByIndex {
    /// The plan with an index search in place of its scan of embeddings; `None` where the rule must not fire.
    fn rewritten(&self, plan: &LogicalPlan, wanted: Nearest) -> Result<Option<LogicalPlan>> {
        match plan {
            LogicalPlan::Projection(projection) => {
                let schema = &projection.schema;
                let meaning = |column: &datafusion::common::Column| {
                    let at = schema.maybe_index_of_column(column)?;
                    Some(projection.expr[at].clone().unalias_nested().data)
                };
                self.rebuilt(plan, &projection.input, wanted.below(meaning)?)
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let (outer, inner) = (&alias.schema, alias.input.schema());
                let meaning = |column: &datafusion::common::Column| {
                    let at = outer.maybe_index_of_column(column)?;
                    Some(Expr::Column(inner.qualified_field(at).into()))
                };
                self.rebuilt(plan, &alias.input, wanted.below(meaning)?)
            }
            LogicalPlan::Join(join) => self.through_join(plan, join, wanted),
            LogicalPlan::TableScan(scan) => self.search_instead_of(scan, &wanted),
            _ => Ok(None),
        }
    }

    fn rebuilt(&self, plan: &LogicalPlan, input: &LogicalPlan, wanted: Nearest) -> Result<Option<LogicalPlan>> {
        let Some(input) = self.rewritten(input, wanted)? else { return Ok(None) };
        Ok(Some(plan.with_new_exprs(plan.expressions(), vec![input])?))
    }

    fn through_join(&self, plan: &LogicalPlan, join: &Join, mut wanted: Nearest) -> Result<Option<LogicalPlan>> {
        let [(left, right)] = join.on.as_slice() else { return Ok(None) };
        if join.join_type != JoinType::Inner || join.filter.is_some() {
            return Ok(None);
        }
        let of = |side: &LogicalPlan, expr: &Expr| expr.column_refs().iter().all(|c| side.schema().has_column(c));
        let is_left = of(&join.left, &wanted.distance);
        let (side, other, here, there) = match is_left {
            true => (&join.left, &join.right, left, right),
            false if of(&join.right, &wanted.distance) => (&join.right, &join.left, right, left),
            false => return Ok(None),
        };
        let is_of_side = wanted.joined.iter().all(|(column, _)| of(side, column));
        if !is_of_side || there.is_volatile() || !is_repeatable(other)? || calls_model(other)? {
            return Ok(None);
        }
        let keys = LogicalPlanBuilder::from(other.as_ref().clone()).project([there.clone()])?.build()?;
        wanted.joined.push((here.clone(), keys));
        let Some(searched) = self.rewritten(side, wanted)? else { return Ok(None) };
        let inputs = match is_left {
            true => vec![searched, other.as_ref().clone()],
            false => vec![other.as_ref().clone(), searched],
        };
        Ok(Some(plan.with_new_exprs(plan.expressions(), inputs)?))
    }

    fn search_instead_of(&self, scan: &TableScan, wanted: &Nearest) -> Result<Option<LogicalPlan>> {
        let is_id = |e: &Expr| matches!(e, Expr::Column(c) if c.name == embeddings::CELL_ID);
        if query_vector(&wanted.distance).is_none() || !wanted.joined.iter().all(|(column, _)| is_id(column)) {
            return Ok(None);
        }
        let provider = source_as_provider(&scan.source)?;
        let recipe = provider.downcast_ref::<StoreTable>().and_then(StoreTable::recipe).map(str::to_owned);
        let (Some(recipe), None) = (recipe, scan.fetch) else { return Ok(None) };
        let Some(index) = self.engine.wait(self.index_of(&recipe, wanted.k)).map_err(external)? else {
            return Ok(None);
        };
        let mut kept: Vec<LogicalPlan> = wanted.joined.iter().map(|(_, plan)| plan.clone()).collect();
        if !scan.filters.is_empty() {
            let id = scan.source.schema().index_of(embeddings::CELL_ID)?;
            let (name, source, filters) = (scan.table_name.clone(), Arc::clone(&scan.source), scan.filters.clone());
            kept.push(LogicalPlanBuilder::scan_with_filters(name, source, Some(vec![id]), filters)?.build()?);
        }
        let (distance, k) = (wanted.distance.clone(), wanted.k);
        let node = IndexSearch { recipe, distance, k, index, scan: LogicalPlan::TableScan(scan.clone()), kept };
        Ok(Some(LogicalPlan::Extension(Extension { node: Arc::new(node) })))
    }

    /// The index that would be asked for `k` rows, as EXPLAIN shows it. Reads the table of indexes and opens none.
    async fn index_of(&self, recipe: &str, k: usize) -> crate::error::Result<Option<String>> {
        let searcher = self.engine.searcher(Some(recipe)).await?;
        Ok(searcher.candidate_index(k + SPARE, Metric::Cosine).await?.map(|method| method.to_string()))
    }
}

fn external(error: crate::error::Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// Whether executing a plan twice gives the same rows, whatever the order in which they are read.
fn is_repeatable(plan: &LogicalPlan) -> Result<bool> {
    let has_subquery =
        |e: &Expr| e.exists(|e| Ok(matches!(e, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_))));
    let changes = plan.exists(|node| {
        let is_known = match node {
            LogicalPlan::TableScan(scan) => {
                let provider = source_as_provider(&scan.source)?;
                let is_stored =
                    provider.downcast_ref::<StoreTable>().is_some() || provider.downcast_ref::<CellsTable>().is_some();
                scan.fetch.is_none() && is_stored
            }
            LogicalPlan::Aggregate(aggregate) => aggregate.aggr_expr.is_empty(),
            LogicalPlan::Sort(sort) => sort.fetch.is_none(),
            LogicalPlan::Distinct(distinct) => matches!(distinct, Distinct::All(_)),
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Join(_)
            | LogicalPlan::Union(_)
            | LogicalPlan::Values(_)
            | LogicalPlan::EmptyRelation(_) => true,
            _ => false,
        };
        let mut changes = !is_known;
        for expr in node.expressions() {
            changes |= expr.is_volatile() || has_subquery(&expr)?;
        }
        Ok(changes)
    })?;
    Ok(!changes)
}

fn calls_model(plan: &LogicalPlan) -> Result<bool> {
    plan.exists(|node| Ok(node.expressions().iter().any(cellql_udfs::calls_model)))
}
