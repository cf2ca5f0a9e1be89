//! Physical node that reads an embedding table by an index, or scans it where the index cannot give the exact answer.
//!
//! When it is executed, it collects the `cell_id`s that its other inputs keep, asks [`Searcher::plan`] whether an index
//! answers the question, and searches for a few rows more than the query needs. It returns the rows that were found, in
//! the order of the table; the sort above computes their distances and cuts them. It executes its scan and returns
//! every row instead where
//! - the table has too few vectors, the filters keep too few of them, or the index is damaged or too old;
//! - the search finds no more rows than the query needs: rows without a vector may then belong to the answer;
//! - the last row that the query needs ties with the next one: other keys of the sort then decide, and a graph finds
//!   equal vectors less reliably than others;
//! - the query vector does not fit the table: the distance function then reports the error.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, SchemaRef, UInt64Type};
use arrow::record_batch::RecordBatch;
use cellql_schemas::embeddings;
use cellql_store::{embedding_table, is_one_of};
use datafusion::common::{Result, internal_err};
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{Distribution, EquivalenceProperties, Partitioning};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};

use super::StoreEngine;
use crate::error::{Error, ErrorKind};
use crate::index::{KnnRequest, Metric, QueryVector, SearchMethod, Searcher};

/// Rows asked of the index beyond those that the query needs, so that rounding of distances changes nothing.
pub(super) const SPARE: usize = 16;
/// Distances closer than this are taken as equal: SQL computes them in another precision than the index.
const TIE: f32 = 1e-6;

/// What is searched for.
#[derive(Debug, Clone)]
pub(super) struct Search {
    pub(super) engine: Arc<StoreEngine>,
    /// Recipe of the embedding table.
    pub(super) recipe: String,
    /// `[dim]`
    pub(super) query: Vec<f32>,
    /// Rows that the query needs.
    pub(super) k: usize,
    /// The index that is asked, as EXPLAIN shows it.
    pub(super) index: String,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct IndexSearchExec {
    search: Search,
    /// The scan of the embedding table with its filters.
    scan: Arc<dyn ExecutionPlan>,
    /// Plans of one column, the `cell_id`s to keep.
    kept: Vec<Arc<dyn ExecutionPlan>>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl IndexSearchExec {
    pub(super) fn new(search: Search, scan: Arc<dyn ExecutionPlan>, kept: Vec<Arc<dyn ExecutionPlan>>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(scan.schema()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { search, scan, kept, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() }
    }
}

impl DisplayAs for IndexSearchExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Search { recipe, k, index, .. } = &self.search;
        write!(f, "IndexSearchExec: recipe={recipe}, metric=cosine, k={k}, ")?;
        write!(f, "by={index} or exact scan, decided at run time")
    }
}

impl ExecutionPlan for IndexSearchExec {
    fn name(&self) -> &'static str {
        "IndexSearchExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::SinglePartition; 1 + self.kept.len()]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false; 1 + self.kept.len()]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        std::iter::once(&self.scan).chain(&self.kept).collect()
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        if children.len() != 1 + self.kept.len() {
            return internal_err!("IndexSearchExec has {} inputs, not {}", 1 + self.kept.len(), children.len());
        }
        let scan = children.remove(0);
        Ok(Arc::new(Self::new(self.search.clone(), scan, children)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let baseline = BaselineMetrics::new(&self.metrics, partition);
        let run = Run {
            search: self.search.clone(),
            kept: self.kept.clone(),
            schema: self.schema(),
            counts: Counts::new(&self.metrics, partition),
            context: Arc::clone(&context),
        };
        let scan = Arc::clone(&self.scan);
        let rows = async move {
            let rows: BoxStream<'static, Result<RecordBatch>> = match run.rows_by_index().await? {
                Some(found) => {
                    run.counts.by_index.add(1);
                    stream::iter(found.into_iter().map(Ok)).boxed()
                }
                None => {
                    run.counts.by_scan.add(1);
                    scan.execute(partition, context)?.boxed()
                }
            };
            Ok::<_, DataFusionError>(rows)
        };
        let rows = stream::once(rows).try_flatten().inspect_ok(move |batch| {
            baseline.record_output(batch.num_rows());
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}

/// One execution of the node.
struct Run {
    search: Search,
    kept: Vec<Arc<dyn ExecutionPlan>>,
    schema: SchemaRef,
    counts: Counts,
    context: Arc<TaskContext>,
}

impl Run {
    /// The rows that the index finds; `None` where every row has to be scanned.
    async fn rows_by_index(&self) -> Result<Option<Vec<RecordBatch>>> {
        let Search { engine, recipe, k, .. } = &self.search;
        let searcher = engine.searcher(Some(recipe)).await.map_err(external)?;
        // Without an index the inputs need not be executed.
        if !self.asks_index(&searcher, None).await? {
            return Ok(None);
        }
        let among = self.kept_ids().await?;
        if !self.asks_index(&searcher, among.as_ref().map(HashSet::len)).await? {
            return Ok(None);
        }
        let queries = [QueryVector { vector: self.search.query.clone(), exclude: None }];
        let request = KnnRequest { queries: &queries, k: k + SPARE, metric: Metric::Cosine, filter: among.as_ref() };
        let found = match searcher.search(request).await {
            Ok(mut result) => result.neighbours.pop().unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Request => return Ok(None),
            Err(error) => return Err(external(error)),
        };
        self.counts.candidates.add(found.len());
        let is_cut_clear = match (k.checked_sub(1).and_then(|last| found.get(last)), found.get(*k)) {
            (Some(last), Some(next)) => next.distance - last.distance > TIE,
            _ => false,
        };
        if !is_cut_clear {
            return Ok(None);
        }
        let rows = self.rows_of(found.iter().map(|n| n.cell_id)).await;
        Ok(Some(rows.map_err(external)?))
    }

    async fn asks_index(&self, searcher: &Searcher, kept: Option<usize>) -> Result<bool> {
        let method = searcher.plan(self.search.k + SPARE, Metric::Cosine, kept).await.map_err(external)?;
        Ok(matches!(method, SearchMethod::Index(..)))
    }

    /// Rows that every input keeps; `None` where there is no such input.
    async fn kept_ids(&self) -> Result<Option<HashSet<u64>>> {
        let mut among: Option<HashSet<u64>> = None;
        for input in &self.kept {
            let mut batches = input.execute(0, Arc::clone(&self.context))?;
            let mut ids = HashSet::new();
            while let Some(batch) = batches.try_next().await? {
                let column = cast(batch.column(0), &DataType::UInt64)?;
                ids.extend(column.as_primitive::<UInt64Type>().iter().flatten());
            }
            among = Some(match among {
                None => ids,
                Some(before) => before.intersection(&ids).copied().collect(),
            });
        }
        self.counts.rows_kept.add(among.as_ref().map_or(0, HashSet::len));
        Ok(among)
    }

    /// Rows of the embedding table, in the table's order and with the columns of the scan.
    async fn rows_of(&self, ids: impl Iterator<Item = u64>) -> crate::error::Result<Vec<RecordBatch>> {
        let Search { engine, recipe, .. } = &self.search;
        let columns: Vec<&str> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        let wanted = is_one_of(embeddings::CELL_ID, ids);
        let batches = engine.store().read(&embedding_table(recipe), &columns, Some(&wanted)).await?;
        let with_schema = |batch: RecordBatch| {
            RecordBatch::try_new(Arc::clone(&self.schema), batch.columns().to_vec())
                .map_err(Error::internal(format!("reading the rows that an index found in the embeddings '{recipe}'")))
        };
        batches.into_iter().map(with_schema).collect()
    }
}

fn external(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// What EXPLAIN ANALYZE shows.
struct Counts {
    /// Rows that the filters and joins keep.
    rows_kept: Count,
    /// Rows that the index returned.
    candidates: Count,
    /// 1 where the index's rows were returned.
    by_index: Count,
    /// 1 where every row was returned.
    by_scan: Count,
}

impl Counts {
    fn new(metrics: &ExecutionPlanMetricsSet, partition: usize) -> Self {
        let count = |name: &'static str| MetricBuilder::new(metrics).counter(name, partition);
        Self {
            rows_kept: count("rows_kept"),
            candidates: count("candidates"),
            by_index: count("answered_by_index"),
            by_scan: count("answered_by_scan"),
        }
    }
}
