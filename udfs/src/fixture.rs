//! A session of four small cells, for tests: genes A, B and C with the ids 0, 1 and 2, and no model.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use arrow::array::{ArrayRef, FixedSizeListArray, StringArray, UInt64Array};
use arrow::datatypes::{Float32Type, SchemaRef};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use cellql_schemas::expr::{ProfileBuilder, Profiles, with_dataset_ids};
use cellql_schemas::recipe::Recipe;
use datafusion::catalog::MemTable;
use datafusion::common::Result;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::{DFParser, Statement};

use crate::engine::{Embedded, Engine, EngineError, Enhanced, SearchRequest};
use crate::named_arguments::to_positional;
use crate::over_cells::Cells;

const SYMBOLS: [&str; 3] = ["A", "B", "C"];

#[derive(Debug)]
struct ThreeGenes;

fn no_model<T>() -> Result<T, EngineError> {
    Err(EngineError::Request("there is no model".into()))
}

#[async_trait]
impl Engine for ThreeGenes {
    fn gene(&self, name: &str) -> Result<u32, EngineError> {
        let found = SYMBOLS.iter().position(|symbol| *symbol == name);
        found.map(|id| id as u32).ok_or_else(|| EngineError::Request(format!("unknown gene '{name}'")))
    }

    fn is_measured(&self, dataset_id: u32, gene_id: u32) -> Result<bool, EngineError> {
        // Data set 7 measured A and B, 8 all three.
        Ok(dataset_id == 8 || gene_id < 2)
    }

    fn symbol(&self, gene_id: u32) -> Option<String> {
        SYMBOLS.get(gene_id as usize).map(|symbol| (*symbol).to_owned())
    }

    fn model(&self, _: Option<&str>) -> Result<String, EngineError> {
        no_model()
    }

    fn transformer(&self, _: Option<&str>, _: &str) -> Result<String, EngineError> {
        no_model()
    }

    fn dim(&self, _: &Recipe) -> Result<usize, EngineError> {
        no_model()
    }

    fn embed(&self, _: &Recipe, _: Cells) -> Result<Embedded, EngineError> {
        no_model()
    }

    fn gene_of_model(&self, _: &str, _: &str) -> Result<u32, EngineError> {
        no_model()
    }

    fn context_dim(&self, _: &str) -> Result<usize, EngineError> {
        no_model()
    }

    fn embed_gene(&self, _: &Recipe, _: u32, _: Cells) -> Result<Embedded, EngineError> {
        no_model()
    }

    fn enhance(&self, _: &Recipe, _: Cells) -> Result<Enhanced, EngineError> {
        no_model()
    }

    fn genes_seen(&self, _: &str, _: &Profiles) -> Result<Vec<Option<u32>>, EngineError> {
        no_model()
    }

    fn search_schema(&self, _: &SearchRequest) -> Result<SchemaRef, EngineError> {
        no_model()
    }

    async fn plan_search(&self, _: &SearchRequest) -> Result<String, EngineError> {
        no_model()
    }

    async fn search(&self, _: SearchRequest) -> Result<RecordBatch, EngineError> {
        no_model()
    }
}

/// `cells`: `cell_id`, `kind`, `expr` (A = 1 and B = 2; A = 3 and C = 5; NULL; no gene), `vector` ([1, 2]; [3, 6];
/// NULL; NULL).
fn cells() -> RecordBatch {
    let mut expr = ProfileBuilder::default();
    expr.push(&[0, 1], &[1.0, 2.0]);
    expr.push(&[0, 2], &[3.0, 5.0]);
    expr.push_null();
    expr.push(&[], &[]);
    let vectors = [Some(vec![Some(1.0), Some(2.0)]), Some(vec![Some(3.0), Some(6.0)]), None, None];
    let columns: [(&str, ArrayRef); 4] = [
        ("cell_id", Arc::new(UInt64Array::from(vec![0, 1, 2, 3]))),
        ("kind", Arc::new(StringArray::from(vec!["x", "x", "x", "y"]))),
        ("expr", Arc::new(expr.finish())),
        ("vector", Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(vectors, 2))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
}

/// The same with cells of two data sets: 7 and 8, by turns.
fn cells_of_two_data_sets() -> RecordBatch {
    let cells = cells();
    let at = cells.schema().index_of("expr").unwrap();
    let dataset_ids = [Some(&[7u32][..]), Some(&[8][..]), Some(&[7][..]), Some(&[8][..])];
    let names = cells.schema().fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>();
    let mut columns = cells.columns().to_vec();
    columns[at] = with_dataset_ids(&columns[at], dataset_ids).unwrap();
    let columns = names.iter().map(String::as_str).zip(columns).map(|(name, column)| (name, column, true));
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

/// The engine of [`context`].
pub(crate) fn engine() -> Arc<dyn Engine> {
    Arc::new(ThreeGenes)
}

/// A session with the functions and the tables `cells` and `of_two`, a batch per cell.
pub(crate) fn context() -> SessionContext {
    let config = SessionConfig::new().with_information_schema(true).with_target_partitions(1);
    let context = SessionContext::new_with_config(config);
    crate::register_all(&context, &engine());
    for (name, cells) in [("cells", cells()), ("of_two", cells_of_two_data_sets())] {
        let batches = (0..cells.num_rows()).map(|row| cells.slice(row, 1)).collect();
        context.register_table(name, Arc::new(MemTable::try_new(cells.schema(), vec![batches]).unwrap())).unwrap();
    }
    context
}

/// Waits for a future that never waits itself: a query over one partition in memory starts no task, so it needs no
/// runtime.
fn finish<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(done) = future.as_mut().poll(&mut context) {
            return done;
        }
    }
}

async fn run(sql: &str) -> Result<Vec<RecordBatch>> {
    let context = context();
    let mut statement = DFParser::parse_sql(sql)?.pop_front().unwrap();
    if let Statement::Statement(inner) = &mut statement {
        to_positional(inner, crate::FUNCTIONS)?;
    }
    let plan = context.state().statement_to_plan(statement).await?;
    crate::constants::check_arrays(&plan)?;
    context.execute_logical_plan(plan).await?.collect().await
}

/// The first column of a query's result.
pub(crate) fn shown(sql: &str) -> Vec<String> {
    let batches = finish(run(sql)).unwrap_or_else(|e| panic!("{sql}: {e}"));
    let options = FormatOptions::default().with_null("NULL");
    let mut values = Vec::new();
    for batch in &batches {
        let column = ArrayFormatter::try_new(batch.column(0), &options).unwrap();
        values.extend((0..batch.num_rows()).map(|row| column.value(row).to_string()));
    }
    values
}

/// The error a query ends with.
pub(crate) fn wrong(sql: &str) -> String {
    finish(run(sql)).expect_err(sql).to_string()
}
