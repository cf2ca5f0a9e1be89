//! Logical node that reads an embedding table by an index, and its planner.
//!
//! `nearest_by_index` puts it in place of the scan of an embedding table. Its inputs are that scan and, for each
//! condition on the rows, a plan of the `cell_id`s to keep. [`IndexSearchExec`] says what it returns and when it
//! searches.

use std::fmt;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type};
use async_trait::async_trait;
use cellql_schemas::embeddings;
use datafusion::common::{DFSchemaRef, Result, ScalarValue, internal_err};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNode, UserDefinedLogicalNodeCore};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};

use super::StoreEngine;
use super::index_search_exec::{IndexSearchExec, Search};

/// Rows of an embedding table among which the nearest to a constant vector are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Hash)]
pub(super) struct IndexSearch {
    /// Recipe of the embedding table.
    pub(super) recipe: String,
    /// The distance that the rows are sorted by: `cosine_distance` of the table's vector and a constant.
    pub(super) distance: Expr,
    /// Rows that the query asks for, its offset included.
    pub(super) k: usize,
    /// Name of the index, or of the kind and the index, as EXPLAIN shows it.
    pub(super) index: String,
    /// The scan of the embedding table with its filters.
    pub(super) scan: LogicalPlan,
    /// Plans of one column, the `cell_id`s to keep. A row must be in all of them.
    pub(super) kept: Vec<LogicalPlan>,
}

impl UserDefinedLogicalNodeCore for IndexSearch {
    fn name(&self) -> &str {
        "IndexSearch"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        std::iter::once(&self.scan).chain(&self.kept).collect()
    }

    fn schema(&self) -> &DFSchemaRef {
        self.scan.schema()
    }

    /// None: the distance is a description of the search, so no rule may rewrite it.
    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { recipe, k, index, .. } = self;
        write!(f, "IndexSearch: recipe={recipe}, metric=cosine, k={k}, {index}")
    }

    fn with_exprs_and_inputs(&self, _: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        if inputs.is_empty() {
            return internal_err!("IndexSearch has a scan as its first input");
        }
        let scan = inputs.remove(0);
        let Self { recipe, distance, k, index, .. } = self.clone();
        Ok(Self { recipe, distance, k, index, scan, kept: inputs })
    }
}

/// DataFusion's planner, which also plans [`IndexSearch`].
#[derive(Debug)]
pub(super) struct Planner {
    engine: Arc<StoreEngine>,
}

impl Planner {
    pub(super) fn new(engine: Arc<StoreEngine>) -> Self {
        Self { engine }
    }
}

#[async_trait]
impl QueryPlanner for Planner {
    async fn create_physical_plan(&self, plan: &LogicalPlan, state: &SessionState) -> Result<Arc<dyn ExecutionPlan>> {
        let searches = IndexSearchPlanner { engine: Arc::clone(&self.engine) };
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(searches)]);
        planner.create_physical_plan(plan, state).await
    }
}

struct IndexSearchPlanner {
    engine: Arc<StoreEngine>,
}

#[async_trait]
impl ExtensionPlanner for IndexSearchPlanner {
    async fn plan_extension(
        &self,
        _: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _: &[&LogicalPlan],
        inputs: &[Arc<dyn ExecutionPlan>],
        _: &SessionState,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(node) = node.as_any().downcast_ref::<IndexSearch>() else { return Ok(None) };
        let (Some(query), Some((scan, kept))) = (query_vector(&node.distance), inputs.split_first()) else {
            return Err(DataFusionError::Internal("IndexSearch has a constant vector and a scan".into()));
        };
        let IndexSearch { recipe, k, index, .. } = node.clone();
        let search = Search { engine: Arc::clone(&self.engine), recipe, query, k, index };
        Ok(Some(Arc::new(IndexSearchExec::new(search, Arc::clone(scan), kept.to_vec()))))
    }
}

/// The constant in `cosine_distance(vector, constant)`, either way round.
pub(super) fn query_vector(key: &Expr) -> Option<Vec<f32>> {
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
