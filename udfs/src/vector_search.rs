//! `vector_search(table, query, k => 10, where => '…', recipe => '…', metric => '…', group => '…')`: the rows nearest
//! to a row or a vector.
//!
//! ```sql
//! SELECT cell_id, _distance, cell_type FROM vector_search('cells', 17, k => 5, where => 'donor_id = ''human1''');
//! ```
//!
//! In `cells`, `query` is a `cell_id` or an array of numbers; in `genes`, a gene's name or an array, and `group` says
//! the cells of which group the genes were embedded in. Rows come nearest first; a row is not its own neighbour.
//! `metric` is `cosine`, `l2`, `inner_product` (its sign turned, so that the nearest come first) or `correlation`.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::TableType;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use datafusion::prelude::Expr;

use crate::constants::fold;
use crate::description::{Description, Kind};
use crate::engine::{Engine, Query, SearchRequest};
use crate::options::{list_items, whole_number};
use crate::parameters::{Accepts, Parameter};

/// Name in SQL.
pub const NAME: &str = "vector_search";
/// What it is.
pub const DESCRIPTION: Description = Description {
    name: NAME,
    kind: Kind::Table,
    parameters: &[
        Parameter::required("table", "what to search: `'cells'` or `'genes'`", Accepts::Anything)
            .with_values(&["cells", "genes"]),
        Parameter::required(
            "query",
            "a `cell_id`, a gene by any of its names, or an array of numbers",
            Accepts::Anything,
        ),
        Parameter::optional("k", "how many rows; left out, 10", Accepts::Anything),
        Parameter::optional(
            "where",
            "SQL condition on the table, as a string, that every row satisfies",
            Accepts::Anything,
        ),
        Parameter::optional("recipe", "embedding table; left out, the store's only one", Accepts::Anything),
        Parameter::optional(
            "metric",
            "`'cosine'` (the default), `'l2'`, `'inner_product'` (its sign turned) or `'correlation'`",
            Accepts::Anything,
        )
        .with_values(&["cosine", "l2", "inner_product", "correlation"]),
        Parameter::optional(
            "group",
            "of genes: the group of cells they were embedded in; left out, the only one",
            Accepts::Anything,
        ),
    ],
    returns: "the key (`cell_id` or `gene_id`), `_distance` and what describes the row, nearest first; a row is \
         not its own \
              neighbour.",
    summary: "The cells or genes nearest to one of them, or to a vector.",
    example: "SELECT cell_id, _distance, cell_type FROM vector_search('cells', 17, k => 5, where => 'donor_id = \
         ''human1''');",
};
/// Rows where `k` is left out.
pub const DEFAULT_K: usize = 10;

/// The table function, bound to an engine.
#[derive(Debug)]
pub struct VectorSearch {
    engine: Arc<dyn Engine>,
}

impl VectorSearch {
    /// Binds it.
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        Self { engine }
    }
}

impl TableFunctionImpl for VectorSearch {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let constants = args.exprs().iter().map(constant).collect::<Result<Vec<_>>>()?;
        if constants.len() > DESCRIPTION.parameters.len() {
            let most = DESCRIPTION.parameters.len();
            return plan_err!("{} takes at most {most} arguments, not {}", DESCRIPTION.usage(), constants.len());
        }
        let given = |i: usize| constants.get(i).filter(|v| !v.is_null());
        let text = |i: usize| match given(i) {
            None => Ok(None),
            Some(value) => match value.try_as_str() {
                Some(Some(text)) => Ok(Some(text.to_owned())),
                _ => plan_err!("{NAME}: '{}' must be a string, not {value}", DESCRIPTION.parameters[i].name),
            },
        };
        let Some(target) = text(0)? else {
            return plan_err!("{NAME}: name what to search, for example {NAME}('cells', 17, k => 10)");
        };
        let Some(query) = given(1) else {
            return plan_err!("{NAME}: give a cell_id, a gene or a vector to search from");
        };
        let k = match given(2) {
            None => DEFAULT_K,
            Some(value) => match whole_number(value) {
                Some(k) if k > 0 => k as usize,
                _ => return plan_err!("{NAME}: 'k' must be a whole number above 0, not {value}"),
            },
        };
        let query = read_query(query)?;
        let (filter, recipe, metric, group) = (text(3)?, text(4)?, text(5)?, text(6)?);
        let request = SearchRequest { target, query, k, filter, recipe, metric, group };
        let schema = self.engine.search_schema(&request)?;
        Ok(Arc::new(Neighbours { engine: Arc::clone(&self.engine), request, schema }))
    }
}

fn constant(expr: &Expr) -> Result<ScalarValue> {
    match fold(expr.clone())? {
        Expr::Literal(value, _) => Ok(value),
        other => plan_err!("{NAME}: arguments must be constants, not {other}"),
    }
}

fn read_query(value: &ScalarValue) -> Result<Query> {
    if value.data_type().is_integer() {
        return match whole_number(value) {
            Some(id) => Ok(Query::Cell(id)),
            None => plan_err!("{NAME}: no cell has the cell_id {value}"),
        };
    }
    if let Some(Some(name)) = value.try_as_str() {
        return Ok(Query::Gene(name.to_owned()));
    }
    let items = list_items(value);
    let Some(items) = items.and_then(|i| cast(&i, &DataType::Float32).ok()).filter(|i| i.null_count() == 0) else {
        return plan_err!(
            "{NAME}: the query must be a cell_id, a gene or an array of numbers, not {}",
            value.data_type()
        );
    };
    Ok(Query::Vector(items.as_primitive::<Float32Type>().values().to_vec()))
}

/// The answer as a table.
#[derive(Debug)]
struct Neighbours {
    engine: Arc<dyn Engine>,
    request: SearchRequest,
    schema: SchemaRef,
}

#[async_trait]
impl TableProvider for Neighbours {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let method = self.engine.plan_search(&self.request).await?;
        let (engine, request) = (Arc::clone(&self.engine), self.request.clone());
        let columns = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        Ok(Arc::new(SearchExec::try_new(engine, request, method, &self.schema, columns)?))
    }
}

/// A search, run when its rows are asked for.
#[derive(Debug)]
struct SearchExec {
    engine: Arc<dyn Engine>,
    request: SearchRequest,
    /// How it will be answered.
    method: String,
    columns: Vec<usize>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl SearchExec {
    fn try_new(
        engine: Arc<dyn Engine>,
        request: SearchRequest,
        method: String,
        schema: &SchemaRef,
        columns: Vec<usize>,
    ) -> Result<Self> {
        let schema = Arc::new(schema.project(&columns)?);
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        ));
        Ok(Self { engine, request, method, columns, properties, metrics: ExecutionPlanMetricsSet::new() })
    }
}

impl DisplayAs for SearchExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SearchRequest { target, k, filter, recipe, metric, .. } = &self.request;
        write!(f, "SearchExec: {target}, k={k}")?;
        for (name, value) in [("metric", metric), ("recipe", recipe), ("where", filter)] {
            if let Some(value) = value {
                write!(f, ", {name}={value}")?;
            }
        }
        write!(f, ", by={}", self.method)
    }
}

impl ExecutionPlan for SearchExec {
    fn name(&self) -> &'static str {
        "SearchExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (engine, request, columns) = (Arc::clone(&self.engine), self.request.clone(), self.columns.clone());
        let baseline = BaselineMetrics::new(&self.metrics, partition);
        let answer = async move {
            let timer = baseline.elapsed_compute().timer();
            let found = engine.search(request).await?.project(&columns)?;
            timer.done();
            baseline.record_output(found.num_rows());
            Ok(found)
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), futures::stream::once(answer))))
    }
}
