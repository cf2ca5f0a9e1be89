//! Searches as SQL asks them: neighbours of a cell, a gene or a vector, with the rows that describe them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{AsArray, Float32Array, UInt32Array};
use arrow::compute::{cast, concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type};
use arrow::record_batch::RecordBatch;
use cellql_schemas::suggest::did_you_mean;
use cellql_schemas::{cells, gene_embeddings, genes};
use cellql_udfs::engine::{EngineError, Query, SearchRequest};

use super::{StoreEngine, condition};
use crate::error::{Error, Result};
use crate::index::{KnnRequest, Metric, Neighbour, QueryVector, SearchMethod, Searcher, Vectors, exact};
use cellql_store::sql::{quote_filter_column, quote_literal};
use cellql_store::{StoreError, gene_embedding_table, is_one_of};

/// Distance column of a search.
const DISTANCE: &str = "_distance";

/// What can be searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Cells,
    Genes,
}

impl Target {
    fn of(request: &SearchRequest) -> Result<Self> {
        match request.target.as_str() {
            cells::TABLE => Ok(Target::Cells),
            genes::TABLE => Ok(Target::Genes),
            other => {
                let hint = did_you_mean(other, [cells::TABLE, genes::TABLE]);
                let problem = format!("vector_search: cannot search '{other}', only 'cells' and 'genes'.{hint}");
                Err(Error::Request(problem))
            }
        }
    }

    fn table(self) -> &'static str {
        match self {
            Target::Cells => cells::TABLE,
            Target::Genes => genes::TABLE,
        }
    }

    fn key(self) -> &'static str {
        match self {
            Target::Cells => cells::CELL_ID,
            Target::Genes => genes::GENE_ID,
        }
    }

    /// Columns of its table that an answer does not show.
    fn hides(self, column: &str) -> bool {
        match self {
            Target::Cells => column == cells::EXPR,
            Target::Genes => column == genes::SOURCE_NAMES,
        }
    }
}

fn metric(request: &SearchRequest) -> Result<Metric> {
    let given = request.metric.as_deref().map_or(Ok(Metric::default()), str::parse);
    given.map_err(|e| Error::Request(format!("vector_search: {e}")))
}

/// The one that is meant by a name, or by none where there is just one.
fn one_of(names: &[String], asked: Option<&str>, what: &str, option: &str) -> Result<String> {
    let listed = || names.iter().map(|n| format!("'{n}'")).collect::<Vec<_>>().join(", ");
    match (asked, names) {
        (Some(name), _) => names.iter().find(|n| *n == name).cloned().ok_or_else(|| {
            let hint = did_you_mean(name, names.iter().map(String::as_str));
            Error::Request(format!("unknown {option} '{name}': the store has {what} {}.{hint}", listed()))
        }),
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(Error::Request(format!("the store has several {what}, name one: {option} => {}", listed()))),
    }
}

impl StoreEngine {
    fn recipe(&self, name: Option<&str>) -> Result<String> {
        let all = self.recipes();
        if all.is_empty() {
            return Err(Error::Request(
                "the store has no embeddings to search; make them with: \
                 cellql index build STORE --on cells --model NAME"
                    .into(),
            ));
        }
        one_of(&all, name, "embeddings", "recipe")
    }

    fn gene_recipe(&self, name: Option<&str>) -> Result<String> {
        let names: Vec<String> = self.store().recipes(gene_embeddings::SCHEMA).map(str::to_owned).collect();
        if names.is_empty() {
            return Err(Error::Request(
                "the store has no gene embeddings to search; make them with: cellql embed STORE --genes --model NAME"
                    .into(),
            ));
        }
        one_of(&names, name, "gene embeddings", "recipe")
    }

    /// The searcher over a recipe's embeddings, opened once per session.
    ///
    /// # Errors
    /// There is no such recipe, or several and none named.
    pub async fn searcher(&self, recipe: Option<&str>) -> Result<Arc<Searcher>> {
        let recipe = self.recipe(recipe)?;
        let mut all = self.searchers.lock().await;
        if let Some(searcher) = all.get(&recipe) {
            return Ok(Arc::clone(searcher));
        }
        let opened = Arc::new(Searcher::open(self.store(), &recipe).await?);
        all.insert(recipe, Arc::clone(&opened));
        Ok(opened)
    }

    /// Checks what a search names before any of it runs, and gives the columns of its answer.
    pub(super) async fn check_search(&self, request: &SearchRequest) -> Result<SchemaRef, EngineError> {
        let about = |given: Option<&str>| {
            let given = given.unwrap_or_default().to_owned();
            move |error: Error| EngineError::from(error).about(&given)
        };
        let target = Target::of(request).map_err(about(Some(&request.target)))?;
        metric(request).map_err(about(request.metric.as_deref()))?;
        let recipe = request.recipe.as_deref();
        match target {
            Target::Cells => self.recipe(recipe),
            Target::Genes => self.gene_recipe(recipe),
        }
        .map_err(about(recipe))?;
        match (&request.query, target) {
            (Query::Gene(name), Target::Genes) => self.genes().find(name).map(|_| ()).map_err(Error::from),
            (Query::Gene(name), Target::Cells) => Err(Error::Request(format!(
                "vector_search: '{name}' is no cell_id; genes are searched with vector_search('genes', '{name}')"
            ))),
            (Query::Cell(id), Target::Genes) => {
                Err(Error::Request(format!("vector_search: {id} is no gene; name one, for example 'CD8A'")))
            }
            (Query::Cell(_), Target::Cells) | (Query::Vector(_), _) => Ok(()),
        }
        .map_err(match &request.query {
            Query::Gene(name) => about(Some(name)),
            Query::Cell(_) | Query::Vector(_) => about(None),
        })?;
        if let Some(filter) = &request.filter {
            self.checked_filter(target, filter).await.map_err(about(Some(filter)))?;
        }
        Ok(self.answer_schema(target).await?)
    }

    /// How a search will be answered, as far as that is known without running any of it.
    pub(super) async fn method_of(&self, request: &SearchRequest) -> Result<String> {
        let metric = metric(request)?;
        let target = Target::of(request)?;
        if target == Target::Genes {
            return Ok(SearchMethod::Exact.to_string());
        }
        let searcher = self.searcher(request.recipe.as_deref()).await?;
        Ok(match searcher.candidate_index(request.k, metric).await? {
            Some(index) => format!("{index} or exact scan, decided at run time"),
            None => SearchMethod::Exact.to_string(),
        })
    }

    /// Answers a search.
    pub(super) async fn answer(&self, request: SearchRequest) -> Result<RecordBatch> {
        let target = Target::of(&request)?;
        let found = match target {
            Target::Cells => self.nearest_cells(&request).await?,
            Target::Genes => self.nearest_genes(&request).await?,
        };
        self.rows_of(target, &found).await
    }

    async fn nearest_cells(&self, request: &SearchRequest) -> Result<Vec<Neighbour>> {
        let searcher = self.searcher(request.recipe.as_deref()).await?;
        let filter = match &request.filter {
            Some(filter) => Some(self.matching(Target::Cells, filter).await?),
            None => None,
        };
        let query = match &request.query {
            Query::Vector(vector) => QueryVector { vector: vector.clone(), exclude: None },
            Query::Cell(id) => {
                let vector = searcher.vectors_of(&[*id]).await?.pop().flatten().ok_or_else(|| {
                    let recipe = searcher.recipe();
                    Error::Request(format!("cell {id} has no vector in the embedding table '{recipe}'"))
                })?;
                QueryVector { vector, exclude: Some(*id) }
            }
            Query::Gene(name) => return Err(Error::Request(format!("vector_search: '{name}' is no cell_id"))),
        };
        let (k, metric) = (request.k, metric(request)?);
        let request = KnnRequest { queries: &[query], k, metric, filter: filter.as_ref() };
        let mut result = searcher.search(request).await?;
        self.note(|n| n.searches.push(format!("searched '{}': {}", searcher.recipe(), result.method)));
        Ok(result.neighbours.pop().unwrap_or_default())
    }

    /// Genes are some tens of thousands: every one is looked at.
    async fn nearest_genes(&self, request: &SearchRequest) -> Result<Vec<Neighbour>> {
        let recipe = self.gene_recipe(request.recipe.as_deref())?;
        let table = gene_embedding_table(&recipe);
        let group = one_of(&self.groups(&table).await?, request.group.as_deref(), "groups of cells", "group")?;
        let in_group = format!("{} = {}", quote_filter_column(gene_embeddings::GROUP), quote_literal(&group));
        let columns = [gene_embeddings::GENE_ID, gene_embeddings::VECTOR];
        let batches = self.store().read(&table, &columns, Some(&in_group)).await?;
        let metric = metric(request)?;
        let vectors = Vectors::from_batches(&batches, metric)?;
        let (query, not) = match &request.query {
            Query::Vector(vector) if vector.len() != vectors.dim => {
                let (given, dim) = (vector.len(), vectors.dim);
                let problem = format!("the query has {given} numbers, the vectors of '{recipe}' have {dim}");
                return Err(Error::Request(problem));
            }
            Query::Vector(vector) => (metric.prepare(vector), None),
            Query::Cell(id) => return Err(Error::Request(format!("vector_search: {id} is no gene"))),
            Query::Gene(name) => {
                let id = u64::from(self.genes().find(name)?);
                let at = vectors.ids.iter().position(|gene| *gene == id);
                let at = at.ok_or_else(|| {
                    Error::Request(format!(
                        "gene '{name}' has no vector in the gene embeddings '{recipe}', group '{group}'"
                    ))
                })?;
                (Some(vectors.at(at).to_vec()), Some(id))
            }
        };
        let query = query.ok_or_else(|| Error::Request("the query vector has no direction: its length is 0".into()))?;
        let among = match &request.filter {
            Some(filter) => Some(self.matching(Target::Genes, filter).await?),
            None => None,
        };
        self.note(|n| n.searches.push(format!("searched gene embeddings '{recipe}', group '{group}': exact scan")));
        Ok(exact(&vectors, &query, request.k, among.as_ref(), not))
    }

    /// Groups of cells that genes were embedded in.
    async fn groups(&self, table: &str) -> Result<Vec<String>> {
        let batches = self.store().read(table, &[gene_embeddings::GROUP], None).await?;
        let mut names: Vec<String> =
            batches.iter().flat_map(|b| b.column(0).as_string::<i32>().iter().flatten().map(str::to_owned)).collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Cells that satisfy an SQL condition.
    ///
    /// # Errors
    /// The condition does not fit `cells`.
    pub async fn cells_where(&self, condition: &str) -> Result<HashSet<u64>> {
        self.matching(Target::Cells, condition).await
    }

    pub(super) async fn checked_filter(&self, target: Target, filter: &str) -> Result<String> {
        let table = self.store().table(target.table()).await?;
        condition::on_table(target.table(), &Schema::from(table.schema()), filter)
    }

    /// Rows that satisfy a filter.
    async fn matching(&self, target: Target, filter: &str) -> Result<HashSet<u64>> {
        let checked = self.checked_filter(target, filter).await?;
        let batches =
            self.store().read(target.table(), &[target.key()], Some(&checked)).await.map_err(|e| match e {
                StoreError::Storage { source, .. } => condition::failed(filter, source.as_ref()),
                other => other.into(),
            })?;
        let mut all = HashSet::new();
        for batch in &batches {
            let ids =
                cast(batch.column(0), &DataType::UInt64).map_err(Error::internal("reading what a filter keeps"))?;
            all.extend(ids.as_primitive::<UInt64Type>().values().iter().copied());
        }
        Ok(all)
    }

    /// The rows of neighbours, in their order, with the distance.
    async fn rows_of(&self, target: Target, found: &[Neighbour]) -> Result<RecordBatch> {
        let doing = || Error::internal("reading the neighbours' rows");
        let schema = self.answer_schema(target).await?;
        let columns: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).filter(|n| *n != DISTANCE).collect();
        let filter = is_one_of(target.key(), found.iter().map(|n| n.cell_id));
        let batches = self.store().read(target.table(), &columns, Some(&filter)).await?;
        let described: Vec<usize> =
            (0..schema.fields().len()).filter(|i| schema.field(*i).name() != DISTANCE).collect();
        let read = Arc::new(schema.project(&described).map_err(doing())?);
        let rows = concat_batches(&read, &batches).map_err(doing())?;
        let keys = cast(rows.column(0), &DataType::UInt64).map_err(doing())?;
        let at: HashMap<u64, u32> = keys.as_primitive::<UInt64Type>().values().iter().copied().zip(0u32..).collect();
        let present: Vec<(u32, f32)> =
            found.iter().filter_map(|n| at.get(&n.cell_id).map(|row| (*row, n.distance))).collect();
        let order = UInt32Array::from_iter_values(present.iter().map(|(row, _)| *row));
        let ordered = take_record_batch(&rows, &order).map_err(doing())?;
        let mut columns = ordered.columns().to_vec();
        columns.insert(1, Arc::new(Float32Array::from_iter_values(present.iter().map(|(_, d)| *d))));
        RecordBatch::try_new(schema, columns).map_err(doing())
    }

    pub(super) async fn answer_schema(&self, target: Target) -> Result<SchemaRef> {
        let table = self.store().table(target.table()).await?;
        let all = Schema::from(table.schema());
        let shown = all.fields().iter().filter(|f| !target.hides(f.name()));
        let mut fields: Vec<Field> = shown.map(|f| f.as_ref().clone()).collect();
        fields.insert(1, Field::new(DISTANCE, DataType::Float32, false));
        Ok(Arc::new(Schema::new(fields)))
    }
}
