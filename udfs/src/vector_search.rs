//! `vector_search('cells', query, k => 10, where => '…', recipe => '…')`: the cells nearest to a cell or a vector.
//!
//! ```sql
//! SELECT cell_id, _distance, cell_type FROM vector_search('cells', 17, k => 5, where => 'donor_id = ''human1''');
//! ```
//!
//! `query` is a `cell_id` or an array of numbers. Rows come nearest first; a cell is not its own neighbour.

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::logical_expr::TableType;
use datafusion::physical_plan::ExecutionPlan;
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
        Parameter::required("table", "what to search: `'cells'`", Accepts::Anything),
        Parameter::required("query", "a `cell_id`, or an array of numbers", Accepts::Anything),
        Parameter::optional("k", "how many rows; left out, 10", Accepts::Anything),
        Parameter::optional(
            "where",
            "SQL condition on `cells`, as a string, that every row satisfies",
            Accepts::Anything,
        ),
        Parameter::optional("recipe", "embedding table; left out, the store's only one", Accepts::Anything),
    ],
    returns: "`cell_id`, `_distance` and the obs columns of `cells`, nearest first; a cell is not its own neighbour.",
    summary: "The cells nearest to a cell or a vector.",
    example: "SELECT cell_id, _distance, cell_type FROM vector_search('cells', 17, k => 5, where => 'donor_id = ''human1''');",
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
            return plan_err!("{NAME}: give a cell_id or a vector to search from");
        };
        let k = match given(2) {
            None => DEFAULT_K,
            Some(value) => match whole_number(value) {
                Some(k) if k > 0 => k as usize,
                _ => return plan_err!("{NAME}: 'k' must be a whole number above 0, not {value}"),
            },
        };
        let request = SearchRequest { query: read_query(query)?, k, filter: text(3)?, recipe: text(4)? };
        let schema = self.engine.search_schema(&target)?;
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
    let items = list_items(value);
    let Some(items) = items.and_then(|i| cast(&i, &DataType::Float32).ok()).filter(|i| i.null_count() == 0) else {
        return plan_err!("{NAME}: the query must be a cell_id or an array of numbers, not {}", value.data_type());
    };
    Ok(Query::Vector(items.as_primitive::<Float32Type>().values().to_vec()))
}

/// The answer as a table; the search runs when the query is planned for execution.
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
        let found = self.engine.search(self.request.clone()).await?;
        let exec = MemorySourceConfig::try_new_exec(&[vec![found]], self.schema(), projection.cloned())?;
        Ok(exec)
    }
}
