//! Physical node of a projection that calls models. It gathers rows until a model has a full batch of tokens.
//!
//! It has one partition, since one model call uses every core. Each batch of tokens is one call on a blocking thread.
//! When a query is cancelled, its stream is dropped and no call follows the one that runs.

use std::fmt;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use cellql_schemas::expr::Profiles;
use datafusion::common::{Result, internal_err};
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{Distribution, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::CardinalityEffect;
use datafusion::physical_plan::metrics::{
    BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, Time,
};
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::{StreamExt, TryStreamExt, stream};

use super::model_metrics::{ModelMetrics, measured};
use cellql_model::DEFAULT_TOKEN_BUDGET;

/// Evaluates expressions, some of which call models, over its input.
#[derive(Debug)]
pub(super) struct ModelExec {
    expr: Vec<ProjectionExpr>,
    input: Arc<dyn ExecutionPlan>,
    /// Column of the input with the cells' expression, by which rows are counted in tokens.
    cells: Option<usize>,
    /// For EXPLAIN: where each call's result comes from.
    sources: Vec<String>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ModelExec {
    pub(super) fn try_new(
        expr: Vec<ProjectionExpr>,
        input: Arc<dyn ExecutionPlan>,
        cells: Option<usize>,
        sources: Vec<String>,
    ) -> Result<Self> {
        let plain = ProjectionExec::try_new(expr.clone(), Arc::clone(&input))?;
        let properties = PlanProperties::clone(plain.properties());
        let properties = Arc::new(properties.with_partitioning(Partitioning::UnknownPartitioning(1)));
        Ok(Self { expr, input, cells, sources, properties, metrics: ExecutionPlanMetricsSet::new() })
    }
}

impl DisplayAs for ModelExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expr: Vec<String> = self.expr.iter().map(ToString::to_string).collect();
        write!(f, "ModelExec: expr=[{}], source=[{}]", expr.join(", "), self.sources.join(", "))
    }
}

impl ExecutionPlan for ModelExec {
    fn name(&self) -> &'static str {
        "ModelExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::SinglePartition]
    }

    /// The order is kept, but DataFusion 54 would then push sorts below this node by column positions, which differ
    /// there.
    fn maintains_input_order(&self) -> Vec<bool> {
        vec![false]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => {
                Ok(Arc::new(Self::try_new(self.expr.clone(), input, self.cells, self.sources.clone())?))
            }
            _ => internal_err!("ModelExec has one input"),
        }
    }

    /// Each row of the input gives one row, so a limit can be pushed below.
    fn supports_limit_pushdown(&self) -> bool {
        true
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let baseline = BaselineMetrics::new(&self.metrics, partition);
        let counts = Counts::new(&self.metrics, partition);
        let call =
            Arc::new(Call { expr: self.expr.iter().map(|e| Arc::clone(&e.expr)).collect(), schema: self.schema() });
        let cells = self.cells;
        let calls = input.map_ok(move |batch| stream::iter(portions(&batch, cells).into_iter().map(Ok))).try_flatten();
        let gathered = gather(calls.boxed(), self.input.schema());
        let rows = gathered.and_then(move |batch| {
            let (call, counts, baseline) = (Arc::clone(&call), counts.clone(), baseline.clone());
            async move {
                let done = tokio::task::spawn_blocking(move || measured(|| call.evaluate(&batch))).await;
                let (result, counted) = done.map_err(|e| DataFusionError::External(Box::new(e)))?;
                counts.add(counted);
                let batch = result?;
                baseline.record_output(batch.num_rows());
                Ok(batch)
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}

/// Rows, and the tokens a model makes of them.
type Portion = (RecordBatch, usize);

/// A batch in pieces of at most a model's batch of tokens, or of one row.
fn portions(batch: &RecordBatch, cells: Option<usize>) -> Vec<Portion> {
    // T and S are tokens too; where the expression is computed, as many genes as cells often have are assumed.
    const GUESS: usize = 2000;
    let profiles = cells.and_then(|at| Profiles::new(batch.column(at)).ok());
    let tokens = |row: usize| match &profiles {
        Some(profiles) => profiles.get(row).map_or(0, |p| p.gene_ids.len() + 2),
        None => GUESS,
    };
    let (mut pieces, mut first, mut held) = (Vec::new(), 0, 0);
    for row in 0..batch.num_rows() {
        let more = tokens(row);
        if row > first && held + more > DEFAULT_TOKEN_BUDGET {
            pieces.push((batch.slice(first, row - first), held));
            (first, held) = (row, 0);
        }
        held += more;
    }
    pieces.push((batch.slice(first, batch.num_rows() - first), held));
    pieces
}

/// Joins small pieces, in order, until the next would be too much.
fn gather(
    pieces: stream::BoxStream<'static, Result<Portion>>,
    schema: SchemaRef,
) -> impl futures::Stream<Item = Result<RecordBatch>> + Send {
    stream::try_unfold((pieces, None::<Portion>), move |(mut pieces, mut kept)| {
        let schema = Arc::clone(&schema);
        async move {
            let (mut held, mut tokens) = (Vec::new(), 0);
            loop {
                let next = match kept.take() {
                    Some(portion) => Some(portion),
                    None => pieces.try_next().await?,
                };
                match next {
                    Some((_, more)) if !held.is_empty() && tokens + more > DEFAULT_TOKEN_BUDGET => {
                        kept = next;
                        break;
                    }
                    Some((batch, more)) => {
                        tokens += more;
                        held.push(batch);
                    }
                    None => break,
                }
            }
            match held.is_empty() {
                true => Ok(None),
                false => Ok(Some((concat_batches(&schema, &held)?, (pieces, kept)))),
            }
        }
    })
}

/// The expressions, ready to be evaluated on another thread.
struct Call {
    expr: Vec<Arc<dyn PhysicalExpr>>,
    schema: SchemaRef,
}

impl Call {
    fn evaluate(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let column = |e: &Arc<dyn PhysicalExpr>| e.evaluate(batch)?.into_array(batch.num_rows());
        let columns: Vec<ArrayRef> = self.expr.iter().map(column).collect::<Result<_>>()?;
        let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &rows)?)
    }
}

/// What EXPLAIN ANALYZE shows.
#[derive(Debug, Clone)]
struct Counts {
    computed: Count,
    stored: Count,
    remembered: Count,
    tokens: Count,
    batches: Count,
    seconds: Time,
}

impl Counts {
    fn new(metrics: &ExecutionPlanMetricsSet, partition: usize) -> Self {
        let count = |name: &'static str| MetricBuilder::new(metrics).counter(name, partition);
        Self {
            computed: count("cells_computed"),
            stored: count("cells_stored"),
            remembered: count("cells_remembered"),
            tokens: count("tokens"),
            batches: count("batches"),
            seconds: MetricBuilder::new(metrics).subset_time("model_time", partition),
        }
    }

    fn add(&self, counted: ModelMetrics) {
        self.computed.add(counted.computed as usize);
        self.stored.add(counted.stored as usize);
        self.remembered.add(counted.remembered as usize);
        self.tokens.add(counted.tokens as usize);
        self.batches.add(counted.batches as usize);
        self.seconds.add_duration(std::time::Duration::from_secs_f64(counted.seconds));
    }
}
