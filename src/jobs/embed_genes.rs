//! Averages the context embeddings of a model's genes over groups of cells.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray, UInt32Array, UInt64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, UInt64Type};
use arrow::record_batch::RecordBatch;
use cellql_schemas::expr::Profiles;
use cellql_schemas::gene_embeddings as table;
use cellql_schemas::recipe::Recipe;
use cellql_schemas::suggest::did_you_mean;
use cellql_schemas::{cells, jobs};
use cellql_udfs::embed::vector_column;
use cellql_udfs::engine::Embedded;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

use super::cells::{BATCH_CELLS, EligibleCells};
use super::record::{FinishedCells, JobRecord};
use super::{MemoryBudget, check_model, recipe_metadata};
use crate::error::{Error, Result};
use crate::query::StoreEngine;
use cellql_model::Sample;
use cellql_store::progress::OnProgress;
use cellql_store::sql::quote_literal;
use cellql_store::{Store, StoreError, gene_embedding_table, is_one_of};

/// How cells are grouped, and how many of each group are averaged.
#[derive(Debug, Clone, Default)]
pub struct Groups {
    /// Column of `cells` whose values are the groups; `None` for one group of all cells.
    pub by: Option<String>,
    /// Maximum number of cells of each group, spread evenly over it.
    pub at_most: Option<u64>,
}

/// Result of [`embed_genes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenesReport {
    /// Name of the table's recipe.
    pub recipe: String,
    /// Groups added, with the number of cells averaged.
    pub added: Vec<(String, u64)>,
    /// Groups that the table had already.
    pub already: usize,
    /// Cells without a vector.
    pub without_vector: u64,
}

/// Adds the groups that the recipe's table lacks. Each group is published when it is finished, so that a run that was
/// killed continues with the next one.
///
/// Returns the new version of the store and a report.
///
/// # Errors
/// An unknown model or column, or a store that cannot be written.
pub async fn embed_genes(
    engine: &Arc<StoreEngine>,
    recipe: &Recipe,
    total: Option<&str>,
    groups: &Groups,
    memory: MemoryBudget,
    on_progress: OnProgress,
) -> Result<(Store, GenesReport)> {
    let eligible = EligibleCells::of(engine, recipe, total).await?;
    let members = members(engine, &eligible, groups).await?;
    let by = groups.by.clone().unwrap_or_default();
    let mut store = engine.store().clone();
    let mut report = GenesReport { recipe: recipe.name(), added: Vec::new(), already: 0, without_vector: 0 };
    let there = groups_in(engine, &store, recipe, &by).await?;
    let cells_of = |groups: &[(String, Vec<u64>)]| groups.iter().map(|(_, ids)| ids.len() as u64).sum::<u64>();
    let mut record = JobRecord::begin_genes(&report.recipe, groups.by.as_deref());
    record.cells = cells_of(&members);
    let todo: Vec<_> = members.into_iter().filter(|(group, _)| !there.contains(group)).collect();
    record.done = record.cells - cells_of(&todo);
    report.already = there.len();
    let all = cells_of(&todo);
    let last = todo.len();
    let mut done = 0;
    for (at, (group, ids)) in todo.into_iter().enumerate() {
        let mut mean = GroupMean::new(engine, recipe)?;
        for some in ids.chunks(BATCH_CELLS) {
            let filter = is_one_of(cells::CELL_ID, some.iter().copied());
            for batch in engine.store().read(cells::TABLE, &eligible.columns(), Some(&filter)).await? {
                let totals = eligible.totals(&batch)?;
                let (engine, recipe, progress) = (Arc::clone(engine), recipe.clone(), Arc::clone(&on_progress));
                let rows = batch.num_rows() as u64;
                // Off the async threads, so that lance reads while the model runs.
                let add = move || {
                    let result =
                        mean.add(&engine, &recipe, &batch, &totals, memory, &|n| progress(done + n, Some(all)));
                    result.map(|()| mean)
                };
                mean = tokio::task::spawn_blocking(add).await.map_err(Error::internal("averaging genes"))??;
                done += rows;
            }
        }
        if mean.cells > 0 {
            report.added.push((group.clone(), mean.cells));
        }
        let added = FinishedCells { cells: ids.len() as u64, without_vector: ids.len() as u64 - mean.cells };
        let state = if at + 1 == last { jobs::DONE } else { jobs::RUNNING };
        store = publish(engine, &store, recipe, (&by, &group), mean, (&record, added, state)).await?;
        record.done += added.cells;
        record.without_vector += added.without_vector;
        report.without_vector += added.without_vector;
    }
    Ok((store, report))
}

/// The ids of each group's cells, in order of the groups' names.
async fn members(engine: &StoreEngine, eligible: &EligibleCells, groups: &Groups) -> Result<Vec<(String, Vec<u64>)>> {
    let store = engine.store();
    let mut columns = vec![cells::CELL_ID];
    if let Some(by) = &groups.by {
        let table = store.table(cells::TABLE).await?;
        if table.schema().field(by).is_none() {
            let fields = &table.schema().fields;
            let hint = did_you_mean(by, fields.iter().map(|f| f.name.as_str()));
            return Err(Error::Request(format!("--group-by {by}: the table cells has no such column.{hint}")));
        }
        columns.push(by);
    }
    let mut found: std::collections::BTreeMap<String, Vec<u64>> = std::collections::BTreeMap::new();
    for batch in store.read(cells::TABLE, &columns, Some(&eligible.filter)).await? {
        let ids = batch.column(0).as_primitive::<UInt64Type>();
        let names = batch.columns().get(1).map(|column| cast(column, &DataType::Utf8)).transpose();
        let names = names.map_err(Error::internal("reading the groups"))?;
        let names = names.as_ref().map(|column| column.as_string::<i32>());
        for (row, id) in ids.values().iter().enumerate() {
            match names {
                None => found.entry("all".to_owned()).or_default().push(*id),
                Some(names) if names.is_valid(row) => found.entry(names.value(row).to_owned()).or_default().push(*id),
                // Cells without a value belong to no group.
                Some(_) => {}
            }
        }
    }
    let limit = groups.at_most.map_or(usize::MAX, |n| n as usize);
    let spread = |mut ids: Vec<u64>| -> Vec<u64> {
        ids.sort_unstable();
        let n = ids.len();
        if n <= limit { ids } else { (0..limit).map(|i| ids[i * n / limit]).collect() }
    };
    Ok(found.into_iter().map(|(group, ids)| (group, spread(ids))).collect())
}

/// The groups that the recipe's table has. Fails if another model made it.
async fn groups_in(engine: &StoreEngine, store: &Store, recipe: &Recipe, by: &str) -> Result<HashSet<String>> {
    let name = gene_embedding_table(&recipe.name());
    if !store.tables().any(|t| t == name) {
        return Ok(HashSet::new());
    }
    check_model(store, &name, &engine.entry(Some(&recipe.model))?.sha256).await?;
    let filter = format!("{} = {}", table::GROUP_BY, quote_literal(by));
    let batches = store.read(&name, &[table::GROUP], Some(&filter)).await?;
    let names = batches.iter().flat_map(|b| b.column(0).as_string::<i32>().iter().flatten().map(str::to_owned));
    Ok(names.collect())
}

/// The running mean of a group's context embeddings, `[genes, width]`.
struct GroupMean {
    /// Gene ids.
    genes: Vec<u32>,
    /// Position of each gene in the model's vocabulary.
    positions: Vec<u32>,
    width: usize,
    /// `[genes, width]`.
    sums: Vec<f64>,
    /// Number of cells that were added.
    cells: u64,
}

impl GroupMean {
    fn new(engine: &StoreEngine, recipe: &Recipe) -> Result<Self> {
        let (genes, positions): (Vec<u32>, Vec<u32>) = engine.genes_of_model(&recipe.model)?.into_iter().unzip();
        let width = engine.with_transformer(&recipe.model, "gene embeddings", |config| config.decoder.hidden_dim)?;
        let sums = vec![0.0; genes.len() * width];
        Ok(Self { genes, positions, width, sums, cells: 0 })
    }

    fn add(
        &mut self,
        engine: &StoreEngine,
        recipe: &Recipe,
        batch: &RecordBatch,
        totals: &[Option<f64>],
        memory: MemoryBudget,
        on_cell: &dyn Fn(u64),
    ) -> Result<()> {
        let profiles = Profiles::new(batch.column(1)).map_err(Error::internal("reading cells"))?;
        let budget = memory.tokens(engine, recipe)?;
        // One cell at a time: its context embeddings take tens of megabytes, and the model uses every core for it.
        for (row, total) in totals.iter().enumerate() {
            let sample = profiles.get(row).map(|profile| Sample { profile, total: *total });
            let found = engine.contexts(recipe, &self.positions, std::iter::once(sample), budget)?;
            if found.valid == [true] {
                self.sums.iter_mut().zip(&found.vectors).for_each(|(s, v)| *s += f64::from(*v));
                self.cells += 1;
            }
            on_cell(row as u64 + 1);
        }
        Ok(())
    }

    fn into_batch(self, by: &str, group: &str, schema: &arrow::datatypes::SchemaRef) -> Result<RecordBatch> {
        let n = self.genes.len();
        let means = self.sums.iter().map(|s| (s / self.cells as f64) as f32).collect();
        let means = Embedded { vectors: means, valid: vec![true; n], ..Embedded::default() };
        let vectors = vector_column(means, self.width)?;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(by, n))),
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(group, n))),
            Arc::new(UInt32Array::from(self.genes)),
            Arc::new(vectors),
            Arc::new(UInt64Array::from(vec![self.cells; n])),
        ];
        RecordBatch::try_new(Arc::clone(schema), columns).map_err(Error::internal("building gene embeddings"))
    }
}

async fn publish(
    engine: &StoreEngine,
    store: &Store,
    recipe: &Recipe,
    (by, group): (&str, &str),
    mean: GroupMean,
    (record, finished, state): (&JobRecord, FinishedCells, &str),
) -> Result<Store> {
    let name = recipe.name();
    let schema = Arc::new(table::schema(mean.width).with_metadata(recipe_metadata(engine, recipe)?));
    let row = if mean.cells > 0 { Some(mean.into_batch(by, group, &schema)?) } else { None };
    let mut transaction = store.begin(&format!("embedding genes of {group} with {name}")).await?;
    if transaction.store().version() != store.version() {
        // The positions of genes are those of the version that the engine opened.
        return Err(Error::Store(StoreError::Conflict {
            store: store.uri().to_owned(),
            doing: format!("embedding genes with {name}"),
        }));
    }
    if let Some(row) = row {
        let rows = RecordBatchStreamAdapter::new(schema, futures::stream::iter([Ok(row)]));
        transaction.append(&gene_embedding_table(&name), Box::pin(rows)).await?;
    }
    record.write(&mut transaction, finished, state).await?;
    Ok(transaction.publish().await?)
}
