//! Planner rule: `ORDER BY cosine_distance(vector, […]) LIMIT k` looks at the rows that an index finds, not at all.
//!
//! ```text
//! Sort [cosine_distance(vector, literal)] fetch=k ← … ← TableScan embeddings
//! Sort [cosine_distance(vector, literal)] fetch=k ← … ← TableScan embeddings, full_filters=[cell_id IN (nearest)]
//! ```
//!
//! Everything above the scan stays: the rows are joined, filtered, sorted and cut as before, only fewer go in. The index is
//! asked for more than k, so that ties and rounding change nothing, among the rows that the scan's own filters and inner
//! joins on `cell_id` keep.
//!
//! It fires where the searcher would answer by the index: a whole and fresh one, enough vectors, a filter that keeps enough
//! of them.
//! It must not fire without a limit, in descending order, with a vector that is not known at plan time, through anything but
//! projections, aliases and inner joins on `cell_id` (another node could drop rows that were found), nor where fewer rows
//! were found than asked for (then rows without a vector belong to the answer).

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, UInt64Type};
use cellql_schemas::embeddings;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{JoinType, Result, ScalarValue};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{Expr, Join, LogicalPlan, LogicalPlanBuilder, Sort, SortExpr, TableScan, col, lit};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};
use datafusion::prelude::SessionContext;

use super::StoreEngine;
use super::table::StoreTable;
use crate::error::Error;
use crate::index::{KnnRequest, Metric, QueryVector, SearchMethod};

/// Rows asked of the index beyond the limit.
const MORE: usize = 16;

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
        let Some(SortExpr { expr: key, asc: true, .. }) = expr.first() else {
            return Ok(Transformed::no(plan));
        };
        let ask = Ask { key: key.clone().unalias_nested().data, joined: Vec::new(), k: *fetch };
        match self.narrowed(input, ask)? {
            None => Ok(Transformed::no(plan)),
            Some(input) => {
                let sort = Sort { expr: expr.clone(), input: Arc::new(input), fetch: Some(*fetch) };
                Ok(Transformed::yes(LogicalPlan::Sort(sort)))
            }
        }
    }
}

/// What is looked for, in terms of the plan that is looked at.
struct Ask {
    /// The sort key.
    key: Expr,
    /// Columns that must equal one of another plan's, and that plan, which has no other column.
    joined: Vec<(Expr, LogicalPlan)>,
    k: usize,
}

impl Ask {
    /// The same in terms of a plan below, where `below` says what a column is there.
    fn below(self, below: impl Fn(&datafusion::common::Column) -> Option<Expr>) -> Result<Self> {
        let map = |expr: Expr| -> Result<Expr> {
            let mapped = expr.transform_up(|e| match &e {
                Expr::Column(column) => Ok(below(column).map_or(Transformed::no(e), Transformed::yes)),
                _ => Ok(Transformed::no(e)),
            })?;
            Ok(mapped.data)
        };
        let joined = self.joined.into_iter().map(|(column, plan)| Ok((map(column)?, plan)));
        Ok(Self { key: map(self.key)?, joined: joined.collect::<Result<_>>()?, k: self.k })
    }
}

impl NearestByIndex {
    /// The plan with its scan of embeddings narrowed to what an index finds; `None` where the rule must not fire.
    fn narrowed(&self, plan: &LogicalPlan, ask: Ask) -> Result<Option<LogicalPlan>> {
        match plan {
            LogicalPlan::Projection(projection) => {
                let schema = &projection.schema;
                let meaning = |column: &datafusion::common::Column| {
                    let at = schema.maybe_index_of_column(column)?;
                    Some(projection.expr[at].clone().unalias_nested().data)
                };
                self.rebuilt(plan, &projection.input, ask.below(meaning)?)
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let (outer, inner) = (&alias.schema, alias.input.schema());
                let meaning = |column: &datafusion::common::Column| {
                    let at = outer.maybe_index_of_column(column)?;
                    Some(Expr::Column(inner.qualified_field(at).into()))
                };
                self.rebuilt(plan, &alias.input, ask.below(meaning)?)
            }
            LogicalPlan::Join(join) => self.through_join(plan, join, ask),
            LogicalPlan::TableScan(scan) => self.narrowed_scan(scan, &ask),
            _ => Ok(None),
        }
    }

    fn rebuilt(&self, plan: &LogicalPlan, input: &LogicalPlan, ask: Ask) -> Result<Option<LogicalPlan>> {
        let Some(input) = self.narrowed(input, ask)? else { return Ok(None) };
        Ok(Some(plan.with_new_exprs(plan.expressions(), vec![input])?))
    }

    fn through_join(&self, plan: &LogicalPlan, join: &Join, mut ask: Ask) -> Result<Option<LogicalPlan>> {
        let [(left, right)] = join.on.as_slice() else { return Ok(None) };
        if join.join_type != JoinType::Inner || join.filter.is_some() {
            return Ok(None);
        }
        let of = |side: &LogicalPlan, expr: &Expr| expr.column_refs().iter().all(|c| side.schema().has_column(c));
        let is_left = of(&join.left, &ask.key);
        let (side, other, here, there) = match is_left {
            true => (&join.left, &join.right, left, right),
            false if of(&join.right, &ask.key) => (&join.right, &join.left, right, left),
            false => return Ok(None),
        };
        if ask.joined.iter().any(|(column, _)| !of(side, column)) || calls_model(other)? {
            return Ok(None);
        }
        let keys = LogicalPlanBuilder::from(other.as_ref().clone()).project([there.clone()])?.build()?;
        ask.joined.push((here.clone(), keys));
        let Some(narrow) = self.narrowed(side, ask)? else { return Ok(None) };
        let inputs = match is_left {
            true => vec![narrow, other.as_ref().clone()],
            false => vec![other.as_ref().clone(), narrow],
        };
        Ok(Some(plan.with_new_exprs(plan.expressions(), inputs)?))
    }

    fn narrowed_scan(&self, scan: &TableScan, ask: &Ask) -> Result<Option<LogicalPlan>> {
        let Some(query) = query_vector(&ask.key) else { return Ok(None) };
        let is_id = |e: &Expr| matches!(e, Expr::Column(c) if c.name == embeddings::CELL_ID);
        let narrowed_before = scan.filters.iter().any(|f| matches!(f, Expr::InList(list) if is_id(&list.expr)));
        let provider = source_as_provider(&scan.source)?;
        let recipe = provider.downcast_ref::<StoreTable>().and_then(StoreTable::recipe).map(str::to_owned);
        let (Some(recipe), false) = (recipe, narrowed_before || scan.fetch.is_some()) else { return Ok(None) };
        if !ask.joined.iter().all(|(column, _)| is_id(column)) {
            return Ok(None);
        }
        // Rows that the scan's filters and each joined plan keep.
        let mut keeping: Vec<LogicalPlan> = ask.joined.iter().map(|(_, plan)| plan.clone()).collect();
        if !scan.filters.is_empty() {
            let all = LogicalPlanBuilder::scan(scan.table_name.clone(), provider_as_source(provider), None)?;
            let kept = scan.filters.iter().cloned().try_fold(all, |plan, filter| plan.filter(filter))?;
            keeping.push(kept.project([col(embeddings::CELL_ID)])?.build()?);
        }
        let found = self.engine.wait(self.find(&recipe, query, ask.k, keeping));
        let found = found.map_err(|e| datafusion::error::DataFusionError::External(Box::new(e)))?;
        let Some(found) = found else { return Ok(None) };
        let mut narrow = scan.clone();
        let id = Expr::Column(datafusion::common::Column::new(Some(scan.table_name.clone()), embeddings::CELL_ID));
        narrow.filters.push(Expr::InList(InList::new(Box::new(id), found.into_iter().map(lit).collect(), false)));
        Ok(Some(LogicalPlan::TableScan(narrow)))
    }

    /// The nearest rows among those that every plan keeps; `None` where the index would not be used, or finds too few.
    async fn find(
        &self,
        recipe: &str,
        query: Vec<f32>,
        k: usize,
        keeping: Vec<LogicalPlan>,
    ) -> crate::error::Result<Option<Vec<u64>>> {
        let searcher = self.engine.searcher(Some(recipe)).await?;
        if !matches!(searcher.plan(k + MORE, Metric::Cosine, None).await?, SearchMethod::Index(..)) {
            return Ok(None);
        }
        let mut filter: Option<HashSet<u64>> = None;
        for plan in keeping {
            let ids = ids_of(plan).await?;
            filter = Some(match filter {
                None => ids,
                Some(before) => before.intersection(&ids).copied().collect(),
            });
        }
        let kept = filter.as_ref().map(HashSet::len);
        if !matches!(searcher.plan(k + MORE, Metric::Cosine, kept).await?, SearchMethod::Index(..)) {
            return Ok(None);
        }
        let queries = [QueryVector { vector: query, exclude: None }];
        let (metric, filter) = (Metric::Cosine, filter.as_ref());
        let Ok(mut result) = searcher.search(KnnRequest { queries: &queries, k: k + MORE, metric, filter }).await
        else {
            // If the vector has another dimension, for example, the unchanged plan reports it.
            return Ok(None);
        };
        let found = result.neighbours.pop().unwrap_or_default();
        Ok((found.len() >= k).then(|| found.into_iter().map(|n| n.cell_id).collect()))
    }
}

async fn ids_of(plan: LogicalPlan) -> crate::error::Result<HashSet<u64>> {
    let batches = SessionContext::new().execute_logical_plan(plan).await?.collect().await?;
    let mut ids = HashSet::new();
    for batch in &batches {
        let column = cast(batch.column(0), &DataType::UInt64).map_err(Error::internal("reading what a query keeps"))?;
        ids.extend(column.as_primitive::<UInt64Type>().iter().flatten());
    }
    Ok(ids)
}

fn calls_model(plan: &LogicalPlan) -> Result<bool> {
    plan.exists(|node| Ok(node.expressions().iter().any(cellql_udfs::calls_model)))
}

/// The constant in `cosine_distance(vector, constant)`, either way round.
fn query_vector(key: &Expr) -> Option<Vec<f32>> {
    let Expr::ScalarFunction(call) = key else { return None };
    let [a, b] = call.args.as_slice() else { return None };
    if call.name() != "cosine_distance" {
        return None;
    }
    let constant = match (is_vector(a), is_vector(b)) {
        (true, false) => b,
        (false, true) => a,
        _ => return None,
    };
    let Expr::Literal(value, _) = constant else { return None };
    let items = match value {
        ScalarValue::List(list) => list.value(0),
        ScalarValue::LargeList(list) => list.value(0),
        ScalarValue::FixedSizeList(list) => list.value(0),
        _ => return None,
    };
    let items = cast(&items, &DataType::Float32).ok()?;
    let items = items.as_primitive_opt::<Float32Type>()?;
    items.iter().collect()
}

fn is_vector(expr: &Expr) -> bool {
    match expr {
        Expr::Column(column) => column.name == embeddings::VECTOR,
        Expr::Cast(cast) => is_vector(&cast.expr),
        _ => false,
    }
}
