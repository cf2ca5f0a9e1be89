//! A session: the store's tables, views and functions in a DataFusion context.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray, UInt64Array};
use arrow::record_batch::RecordBatch;
use cellql_schemas::{cells, embeddings, gene_embeddings};
use cellql_udfs::engine::Engine;
use datafusion::catalog::{MemorySchemaProvider, SchemaProvider, TableProvider};
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::ast;

use super::cells_table::CellsTable;
use super::defer_model_calls::DeferModelCalls;
use super::engine::{Notices, StoreEngine};
use super::filters;
use super::gather_model_calls::GatherModelCalls;
use super::index_search::Planner;
use super::math_order;
use super::measured;
use super::nearest_by_index::NearestByIndex;
use super::nesting;
use super::parameters::Parameters;
use super::project_model_calls::ProjectModelCalls;
use super::settings;
use super::table::StoreTable;
use super::unsupported;
use crate::error::{Error, Result};
use cellql_model::Device;
use cellql_store::{Store, StoreError, StoreVersion};

pub(super) const CATALOG: &str = "cellql";
pub(super) const SCHEMA: &str = "public";

/// Views that give AnnData users what they expect.
const VIEWS: &[(&str, &str)] = &[
    ("obs", "SELECT * EXCEPT (expr) FROM cells"),
    ("measured", "SELECT dataset_id, unnest(measured_genes) AS gene_id FROM datasets"),
    ("var", "SELECT * FROM genes WHERE cardinality(source_names) > 0"),
    (
        "X",
        "SELECT cell_id, gene_id, value FROM \
         (SELECT cell_id, unnest(expr['gene_id']) AS gene_id, unnest(expr['value']) AS value FROM cells)",
    ),
];

/// SQL over one version of a store. It reads and changes nothing.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let folder = tempfile::tempdir().unwrap();
/// let uri = folder.path().join("store");
/// let store = cellql_store::Store::init(uri.to_str().unwrap()).await.unwrap();
/// let session = cellql::query::Session::open(store).await.unwrap();
/// let query = session.sql("SELECT gene_id FROM genes WHERE symbol = 'INS'").await.unwrap();
/// let rows = query.collect().await.unwrap();
/// assert_eq!(rows[0].num_rows(), 1);
/// # });
/// ```
pub struct Session {
    context: SessionContext,
    engine: Arc<StoreEngine>,
}

impl Session {
    /// Opens a session on a store.
    ///
    /// # Errors
    /// A table cannot be read.
    pub async fn open(store: Store) -> Result<Self> {
        Self::open_on(store, Device::Cpu).await
    }

    /// As [`Session::open`], its models on a device.
    ///
    /// # Errors
    /// As [`Session::open`], or there is no such device.
    pub async fn open_on(store: Store, device: Device) -> Result<Self> {
        let engine = Arc::new(StoreEngine::open(store).await?.on(device)?);
        Self::with_engine(engine).await
    }

    /// A session whose model calls never read embeddings from the store: what the model says now.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn open_only_computing(store: Store) -> Result<Self> {
        Self::with_engine(Arc::new(StoreEngine::open(store).await?.only_computing())).await
    }

    /// A session on the newest version of the same store, its models on the same device.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn reopened(&self) -> Result<Self> {
        let newest = Store::open(self.engine.store().uri()).await?;
        Self::with_engine(Arc::new(self.engine.reopened(newest).await?)).await
    }

    /// Explains a failed read: if the version of this session was deleted since it was opened, that is the reason.
    pub async fn explained(&self, error: Error) -> Error {
        if !error.lacks_file() {
            return error;
        }
        let (uri, version) = (self.engine.store().uri(), self.engine.store().version().version);
        match Store::open_at(uri, version).await {
            Err(StoreError::NoVersion { .. }) => Error::Request(format!(
                "version {version} of {uri} was deleted by cellql compact --keep while it was read; run the \
                 command again"
            )),
            _ => error,
        }
    }

    async fn with_engine(engine: Arc<StoreEngine>) -> Result<Self> {
        let mut config = SessionConfig::new()
            .with_default_catalog_and_schema(CATALOG, SCHEMA)
            .with_create_default_catalog_and_schema(true)
            .with_information_schema(true);
        // So that errors can say where in the statement they are.
        config.options_mut().sql_parser.collect_spans = true;
        // First, so that the rules that distribute and sort see the node's needs.
        let mut physical: Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> =
            vec![Arc::new(GatherModelCalls::new(Arc::clone(&engine)))];
        physical.extend(PhysicalOptimizer::new().rules);
        let state = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(runtime()?)
            .with_default_features()
            .with_physical_optimizer_rules(physical)
            .with_query_planner(Arc::new(Planner::new(Arc::clone(&engine))))
            .with_optimizer_rule(Arc::new(ProjectModelCalls))
            .with_optimizer_rule(Arc::new(DeferModelCalls))
            .with_optimizer_rule(Arc::new(NearestByIndex::new(Arc::clone(&engine))))
            .build();
        let context = SessionContext::new_with_state(state);
        math_order::mend(&context);
        let session = Self { context, engine };
        let functions: Arc<dyn Engine> = Arc::clone(&session.engine) as Arc<dyn Engine>;
        cellql_udfs::register_all(&session.context, &functions);
        session.register_tables().await?;
        for (name, query) in VIEWS {
            let view = session.context.sql(query).await?.into_view();
            session.context.register_table(format!("{SCHEMA}.\"{name}\""), view)?;
        }
        Ok(session)
    }

    async fn register_tables(&self) -> Result<()> {
        let store = self.engine.store();
        for name in store.tables().filter(|t| !t.contains('/')) {
            let table = StoreTable::new(store.table(name).await?);
            let table: Arc<dyn TableProvider> = match name {
                cells::TABLE => Arc::new(CellsTable::new(table)),
                _ => Arc::new(table),
            };
            self.context.register_table(name, table)?;
        }
        let catalog = self.context.catalog(CATALOG).ok_or_else(|| Error::Request("no catalog".into()))?;
        for schema in [embeddings::SCHEMA, gene_embeddings::SCHEMA] {
            catalog.register_schema(schema, self.tables_by_recipe(schema).await?)?;
        }
        Ok(())
    }

    /// The tables `<schema>/<recipe>` under their recipes. With a single recipe there is no doubt what plain `<schema>`
    /// means.
    async fn tables_by_recipe(&self, schema: &str) -> Result<Arc<MemorySchemaProvider>> {
        let store = self.engine.store();
        let tables = Arc::new(MemorySchemaProvider::new());
        let recipes: Vec<&str> = store.recipes(schema).collect();
        let is_of_cells = schema == embeddings::SCHEMA;
        let cells = match is_of_cells && !recipes.is_empty() {
            true => rows(store, &*store.table(cells::TABLE).await?).await?,
            false => 0,
        };
        for recipe in &recipes {
            let name = format!("{schema}/{recipe}");
            let opened = store.table(&name).await?;
            if is_of_cells {
                check_rows(store, &name, rows(store, &opened).await?, cells)?;
            }
            let table = StoreTable::new(opened);
            let table = Arc::new(if is_of_cells { table.of_recipe((*recipe).to_owned()) } else { table });
            tables.register_table((*recipe).to_owned(), Arc::clone(&table) as _)?;
            if recipes.len() == 1 {
                self.context.register_table(schema, table)?;
            }
        }
        Ok(tables)
    }

    /// Plans one statement. It runs when its result is read.
    ///
    /// # Errors
    /// [`Error::Query`]: syntax, unknown names, wrong options, or a statement that would change something.
    pub async fn sql(&self, statement: &str) -> Result<DataFrame> {
        self.sql_with(statement, &Parameters::default()).await
    }

    /// As [`Session::sql`], with values for the placeholders `$name`.
    ///
    /// # Errors
    /// As [`Session::sql`], or a placeholder has no value.
    pub async fn sql_with(&self, statement: &str, parameters: &Parameters) -> Result<DataFrame> {
        let mut all = DFParser::parse_sql(statement)?;
        match (all.pop_front(), all.pop_front()) {
            (Some(only), None) if nesting::is_too_deep(&only) => Err(nesting::refused(
                only,
                "statement",
                "operators, joins or UNIONs; write a list of values as IN (…), and rows as VALUES",
            )),
            (Some(only), None) => self.plan(only, parameters).await,
            (None, _) => Err(Error::Request("there is no statement to run".into())),
            _ => Err(Error::Request("expected one statement, found several".into())),
        }
    }

    async fn plan(&self, mut statement: Statement, parameters: &Parameters) -> Result<DataFrame> {
        prepare(&mut statement, parameters)?;
        if let Some(inner) = statement_inside(&mut statement) {
            let state = self.context.state_ref();
            let is_scalar = |name: &str| {
                let state = state.read();
                state.scalar_functions().contains_key(name)
                    && !state.aggregate_functions().contains_key(name)
                    && !state.window_functions().contains_key(name)
            };
            unsupported::refuse(inner, &is_scalar)?;
            self.check_tables(inner).await?;
        }
        let plan = self.context.state().statement_to_plan(statement).await?;
        settings::check(&plan)?;
        filters::check(&plan)?;
        cellql_udfs::constants::check_arrays(&plan)?;
        if measured::is_asked_for(&plan)? {
            self.engine.measured().await?;
        }
        refuse_changes(&plan)?;
        SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).verify_plan(&plan)?;
        Ok(self.context.execute_logical_plan(plan).await?)
    }

    pub(super) fn context(&self) -> &SessionContext {
        &self.context
    }

    /// Adds a table that only this session has.
    ///
    /// # Errors
    /// There is a table of that name.
    pub fn put(&self, name: &str, rows: RecordBatch) -> Result<()> {
        self.context.register_batch(name, rows)?;
        Ok(())
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<StoreEngine> {
        &self.engine
    }

    /// Takes what was noted since the last call.
    pub fn take_notices(&self) -> Notices {
        self.engine.take_notices()
    }

    /// Obs columns of `cells`, in order.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn obs_columns(&self) -> Result<Vec<String>> {
        let table = self.context.table(cells::TABLE).await?;
        let names = table.schema().fields().iter().map(|f| f.name().clone());
        Ok(names.filter(|n| !cells::is_reserved(n)).collect())
    }

    /// The versions of the store: number, time, what made it.
    ///
    /// # Errors
    /// One cannot be read.
    pub async fn versions(&self) -> Result<DataFrame> {
        let versions = self.engine.store().versions().await?;
        let text = |of: fn(&StoreVersion) -> &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(versions.iter().map(of)))
        };
        let numbers: ArrayRef = Arc::new(UInt64Array::from_iter_values(versions.iter().map(|v| v.version)));
        let columns = [("version", numbers), ("made_at", text(|v| &v.made_at)), ("made_by", text(|v| &v.made_by))];
        let rows = RecordBatch::try_from_iter(columns).map_err(Error::internal("listing the versions"))?;
        self.frame(rows)
    }

    /// Rows that were made elsewhere, as the result of a query.
    ///
    /// # Errors
    /// None that valid rows can cause.
    pub fn frame(&self, rows: RecordBatch) -> Result<DataFrame> {
        Ok(self.context.read_batch(rows)?)
    }

    /// Rows of a table or view.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn count(&self, table: &str) -> Result<usize> {
        Ok(self.context.table(table).await?.count().await?)
    }

    /// Genes that some file measured.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn measured_genes(&self) -> Result<usize> {
        self.count("var").await
    }
}

/// Refuses statements that would change something, with what does it instead.
fn refuse_changes(plan: &LogicalPlan) -> Result<()> {
    let instead = match plan {
        LogicalPlan::Ddl(_) => {
            "tables and views cannot be made; name a subquery with WITH, or keep a result with --format parquet \
             > FILE"
        }
        LogicalPlan::Copy(_) => {
            "COPY is not possible; keep a result with --format parquet > FILE, or cells with cellql export"
        }
        LogicalPlan::Dml(_) => {
            "rows cannot be changed; cells are added with cellql ingest and removed with cellql dataset remove"
        }
        _ => return Ok(()),
    };
    Err(Error::Request(format!("a SQL statement only reads: {instead}")))
}

/// The statement that runs or that EXPLAIN is about.
fn statement_inside(statement: &mut Statement) -> Option<&mut ast::Statement> {
    match statement {
        Statement::Statement(inner) => Some(inner),
        Statement::Explain(explain) => statement_inside(&mut explain.statement),
        _ => None,
    }
}

/// Number of rows of a table.
async fn rows(store: &Store, table: &lance::Dataset) -> Result<usize> {
    table.count_rows(None).await.map_err(Error::internal(format!("counting rows of {}", store.uri())))
}

/// Fails for an embedding table with more rows than there are cells: an earlier version of the program could write
/// cells twice.
fn check_rows(store: &Store, name: &str, rows: usize, cells: usize) -> Result<()> {
    if rows > cells {
        let problem = format!("it has {rows} rows for {cells} cells; mend it with: cellql compact {}", store.uri());
        return Err(Error::damaged(format!("table {name} of {}", store.uri()), problem));
    }
    Ok(())
}

/// Puts in parameters and turns named arguments of our functions into positions, also inside EXPLAIN.
fn prepare(statement: &mut Statement, parameters: &Parameters) -> Result<(), DataFusionError> {
    match statement {
        Statement::Statement(inner) => {
            parameters.bind(inner)?;
            cellql_udfs::named_arguments::to_positional(inner, cellql_udfs::FUNCTIONS)
        }
        Statement::Explain(explain) => prepare(&mut explain.statement, parameters),
        _ => Ok(()),
    }
}

/// The part of the process's memory that sorts, joins and aggregates of a statement may use together.
const MEMORY_SHARE: f64 = 0.6;

/// Memory and temporary files of statements: sorts and aggregates beyond [`MEMORY_SHARE`] go on in temporary files, and
/// what cannot do that fails instead of using up the machine's memory.
fn runtime() -> Result<Arc<RuntimeEnv>> {
    let builder = RuntimeEnvBuilder::new();
    let builder = match crate::memory::limit() {
        Some(bytes) => builder.with_memory_limit(bytes as usize, MEMORY_SHARE),
        None => builder,
    };
    Ok(builder.build_arc()?)
}
