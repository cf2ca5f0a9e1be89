//! The engine behind the functions: genes, models and neighbours of one store.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{AsArray, Float32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use cellql_schemas::expr::{Profile, Profiles};
use cellql_schemas::recipe::Recipe;
use cellql_schemas::suggest::did_you_mean;
use cellql_schemas::vocabulary::Placement;
use cellql_schemas::{cells, embeddings};
use cellql_udfs::engine::{Embedded, Engine, EngineError, Enhanced, Query, SearchRequest};
use cellql_udfs::over_cells::Cells;
use tokio::runtime::Handle;

use super::memo::{self, Memo, Remembered};
use crate::error::{Error, Result};
use crate::genes::Catalogue;
use crate::index::{self, Method, Neighbour};
use crate::model::registry::{self, Entry};
use crate::model::{DEFAULT_TOKEN_BUDGET, Device, Embeddings, Model, Sample};
use crate::store::Store;

/// Distance column of a search.
const DISTANCE: &str = "_distance";

/// What a person should know about an answer beside the answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notices {
    /// Untrained models that were used.
    pub untrained: Vec<String>,
    /// Reason → cells that got no embedding.
    pub not_embedded: BTreeMap<String, u64>,
    /// How searches were answered.
    pub searches: Vec<String>,
    /// Cells that went through a model.
    pub cells_embedded: u64,
}

/// A model with the places of this store's genes in its vocabulary.
#[derive(Debug)]
struct Loaded {
    model: Model,
    placement: Placement,
}

/// One store's engine. Models are loaded when first called, once per session.
#[derive(Debug)]
pub struct StoreEngine {
    store: Store,
    genes: Catalogue,
    models: Vec<Entry>,
    loaded: Mutex<HashMap<String, Arc<Loaded>>>,
    memo: Mutex<Memo>,
    notices: Mutex<Notices>,
    runtime: Handle,
    device: Option<candle_core::Device>,
}

impl From<Error> for EngineError {
    fn from(error: Error) -> Self {
        match error.exit_code() {
            1 => EngineError::Request(error.to_string()),
            _ => EngineError::Internal(error.to_string()),
        }
    }
}

impl StoreEngine {
    /// Reads what every query needs.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn open(store: Store) -> Result<Self> {
        Ok(Self {
            genes: store.genes().await?,
            models: registry::list(&store).await?,
            store,
            loaded: Mutex::default(),
            memo: Mutex::default(),
            notices: Mutex::default(),
            runtime: Handle::current(),
            device: None,
        })
    }

    /// Runs models on a device.
    ///
    /// # Errors
    /// This build or this machine has no such device.
    pub fn on(self, device: Device) -> Result<Self> {
        Ok(Self { device: device.open()?, ..self })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Its genes.
    pub fn genes(&self) -> &Catalogue {
        &self.genes
    }

    /// The model of a name, or the only one.
    ///
    /// # Errors
    /// [`Error::Request`] with the names there are.
    pub fn entry(&self, name: Option<&str>) -> Result<&Entry> {
        registry::find(&self.models, name)
    }

    /// Takes what was noted since the last call.
    pub fn take_notices(&self) -> Notices {
        std::mem::take(&mut *self.notices.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, add: impl FnOnce(&mut Notices)) {
        add(&mut self.notices.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn loaded(&self, name: &str) -> Result<Arc<Loaded>> {
        // Held while loading, so that two partitions that start together load once.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = loaded.get(name) {
            return Ok(Arc::clone(model));
        }
        let entry = self.entry(Some(name))?;
        // Functions are called on threads of the async runtime, which must not wait for it; another thread may.
        let read = || self.runtime.block_on(registry::load(&self.store, entry));
        let model = std::thread::scope(|scope| scope.spawn(read).join()).map_err(|_| {
            Error::Request(format!("model '{name}' cannot be loaded: its file makes the reader fail"))
        })??;
        let model = model.on(self.device.clone());
        let placement = self.genes.place(model.vocabulary());
        let fresh = Arc::new(Loaded { model, placement });
        loaded.insert(name.to_owned(), Arc::clone(&fresh));
        Ok(fresh)
    }

    /// Computes `dim` numbers of each cell, of each distinct one once per session: what was computed before is remembered.
    fn remembering(
        &self,
        what: &str,
        recipe: &Recipe,
        cells: Cells,
        dim: usize,
        compute: impl FnOnce(&Loaded, &mut dyn Iterator<Item = Option<Sample<'_>>>) -> Result<Embeddings>,
    ) -> Result<Embedded> {
        let sample = |row: usize| cells.profiles.get(row).map(|profile| Sample { profile, total: cells.total(row) });
        let keys: Vec<Option<memo::Key>> = (0..cells.profiles.len())
            .map(|row| sample(row).map(|s| memo::key(what, recipe, s.profile, s.total)))
            .collect();
        let mut rows: Vec<Option<Remembered>> = {
            let memo = self.memo.lock().unwrap_or_else(PoisonError::into_inner);
            keys.iter().map(|key| key.as_ref().and_then(|k| memo.get(k))).collect()
        };
        let mut first: HashMap<&memo::Key, usize> = HashMap::new();
        for (row, key) in keys.iter().enumerate().filter(|(row, _)| rows[*row].is_none()) {
            if let Some(key) = key {
                first.entry(key).or_insert(row);
            }
        }
        let mut new: Vec<usize> = first.values().copied().collect();
        new.sort_unstable();
        if !new.is_empty() {
            let computed = self.computing(recipe, |loaded| compute(loaded, &mut new.iter().map(|&row| sample(row))))?;
            let mut memo = self.memo.lock().unwrap_or_else(PoisonError::into_inner);
            for (i, &row) in new.iter().enumerate() {
                let vector = computed.valid[i].then(|| Arc::from(&computed.vectors[i * dim..(i + 1) * dim]));
                let fresh = Remembered { vector, genes_seen: computed.genes_seen[i] };
                if let Some(key) = keys[row] {
                    memo.put(key, fresh.clone());
                }
                rows[row] = Some(fresh);
            }
        }
        let mut out = Embedded::default();
        for (row, key) in keys.iter().enumerate() {
            let twin = || key.as_ref().and_then(|k| first.get(k)).and_then(|&at| rows[at].clone());
            let found = rows[row].clone().or_else(twin);
            let vector = found.as_ref().and_then(|f| f.vector.clone());
            out.valid.push(vector.is_some());
            out.genes_seen.push(found.map_or(0, |f| f.genes_seen));
            match vector {
                Some(vector) => out.vectors.extend_from_slice(&vector),
                None => out.vectors.resize(out.vectors.len() + dim, 0.0),
            }
        }
        Ok(out)
    }

    /// Runs a model and notes what a person should know of it.
    fn computing(&self, recipe: &Recipe, compute: impl FnOnce(&Loaded) -> Result<Embeddings>) -> Result<Embedded> {
        let out = compute(&*self.loaded(&recipe.model)?)?;
        let trained = self.entry(Some(&recipe.model))?.trained;
        self.note(|notices| {
            if !trained && !notices.untrained.contains(&recipe.model) {
                notices.untrained.push(recipe.model.clone());
            }
            for why in &out.refused {
                match why {
                    Some(why) => *notices.not_embedded.entry(why.to_string()).or_default() += 1,
                    None => notices.cells_embedded += 1,
                }
            }
        });
        let valid = out.refused.iter().map(Option::is_none).collect();
        Ok(Embedded { vectors: out.vectors, genes_seen: out.genes_seen, valid })
    }

    /// Embeds cells, without looking up or remembering them.
    ///
    /// # Errors
    /// An unknown model, or values the recipe does not allow.
    pub fn embed_cells<'a>(
        &self,
        recipe: &Recipe,
        cells: impl Iterator<Item = Option<Sample<'a>>>,
        token_budget: usize,
    ) -> Result<Embedded> {
        self.computing(recipe, |l| l.model.embed(recipe, cells, &l.placement, token_budget))
    }

    /// Context embeddings of the genes at `positions` of the vocabulary, `[cells, positions, context_dim]`.
    ///
    /// # Errors
    /// As [`StoreEngine::embed_cells`].
    pub fn contexts<'a>(
        &self,
        recipe: &Recipe,
        positions: &[u32],
        cells: impl Iterator<Item = Option<Sample<'a>>>,
        token_budget: usize,
    ) -> Result<Embedded> {
        self.computing(recipe, |l| l.model.contexts(recipe, positions, cells, &l.placement, token_budget))
    }

    /// Predicted expression of every vocabulary gene, `[cells, genes]`.
    ///
    /// # Errors
    /// As [`StoreEngine::embed_cells`].
    pub fn enhanced<'a>(
        &self,
        recipe: &Recipe,
        cells: impl Iterator<Item = Option<Sample<'a>>>,
        token_budget: usize,
    ) -> Result<Embedded> {
        self.computing(recipe, |l| l.model.enhance(recipe, cells, &l.placement, token_budget))
    }

    /// Genes of the store with their positions in a model's vocabulary, by gene.
    ///
    /// # Errors
    /// An unknown model, or one that cannot be loaded.
    pub fn genes_of_model(&self, model: &str) -> Result<Vec<(u32, u32)>> {
        let loaded = self.loaded(model)?;
        let places = 0..loaded.model.vocabulary().len();
        let mut genes: Vec<(u32, u32)> =
            places.filter_map(|p| Some((loaded.placement.gene_at(p)?, p as u32))).collect();
        genes.sort_unstable();
        Ok(genes)
    }

    /// Sum of the vocabulary's genes of each cell.
    ///
    /// # Errors
    /// An unknown model, or one that cannot be loaded.
    pub fn vocabulary_totals(&self, model: &str, cells: &Profiles) -> Result<Vec<Option<f64>>> {
        let loaded = self.loaded(model)?;
        let total = |cell: Profile| -> f64 {
            let placed =
                cell.gene_ids.iter().zip(cell.values).filter(|(g, _)| loaded.placement.position(**g).is_some());
            placed.map(|(_, v)| f64::from(*v)).sum()
        };
        Ok(cells.iter().map(|cell| cell.map(total)).collect())
    }

    /// The loaded model of a name.
    ///
    /// # Errors
    /// An unknown model, or one that cannot be loaded.
    pub fn with_model<T>(&self, model: &str, read: impl FnOnce(&Model) -> T) -> Result<T> {
        Ok(read(&self.loaded(model)?.model))
    }

    /// Names of the store's embedding tables.
    pub fn recipes(&self) -> Vec<String> {
        let prefix = format!("{}/", embeddings::SCHEMA);
        self.store.tables().filter_map(|t| t.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    fn recipe(&self, name: Option<&str>) -> Result<String> {
        let all = self.recipes();
        let listed = || all.iter().map(|n| format!("'{n}'")).collect::<Vec<_>>().join(", ");
        match (name, all.as_slice()) {
            (_, []) => Err(Error::Request(
                "the store has no embeddings to search; make them with: cellql index build STORE --on cells --model NAME".into(),
            )),
            (Some(name), _) => all.iter().find(|r| *r == name).cloned().ok_or_else(|| {
                let hint = did_you_mean(name, all.iter().map(String::as_str));
                Error::Request(format!("unknown recipe '{name}': the store has embeddings {}.{hint}", listed()))
            }),
            (None, [only]) => Ok(only.clone()),
            (None, _) => Err(Error::Request(format!("the store has several embeddings, name one: recipe => {}", listed()))),
        }
    }

    async fn neighbours(&self, request: SearchRequest) -> Result<RecordBatch> {
        let recipe = self.recipe(request.recipe.as_deref())?;
        let among = match &request.filter {
            Some(filter) => Some(self.matching(filter).await?),
            None => None,
        };
        let query = match &request.query {
            Query::Cell(id) => index::Query::Cell(*id),
            Query::Vector(vector) => index::Query::Vector(vector),
        };
        let asked = index::Request { recipe: &recipe, query, k: request.k, among };
        let (found, method) = index::search(&self.store, asked).await?;
        self.note(|notices| {
            notices.searches.push(match method {
                Method::Exact => format!("searched '{recipe}' exactly"),
                Method::Graph(name) => format!("searched '{recipe}' by index '{name}'"),
                Method::ExactInstead(why) => format!("searched '{recipe}' exactly, because {why}"),
            });
        });
        self.rows_of(&found).await
    }

    /// Cells that satisfy a filter.
    async fn matching(&self, filter: &str) -> Result<HashSet<u64>> {
        let batches = self.store.read(cells::TABLE, &[cells::CELL_ID], Some(filter)).await.map_err(|e| match e {
            Error::Store { cause, .. } => Error::Request(format!("vector_search: where => '{filter}': {cause}")),
            other => other,
        })?;
        let ids = batches.iter().flat_map(|b| b.column(0).as_primitive::<UInt64Type>().values().iter().copied());
        Ok(ids.collect())
    }

    /// The obs rows of neighbours, in their order, with the distance.
    async fn rows_of(&self, found: &[Neighbour]) -> Result<RecordBatch> {
        let doing = || Error::store("reading the neighbours' rows");
        let schema = self.neighbour_schema().await?;
        let columns: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).filter(|n| *n != DISTANCE).collect();
        let ids = found.iter().map(|n| n.cell_id.to_string()).collect::<Vec<_>>().join(", ");
        let filter = if found.is_empty() { "false".to_owned() } else { format!("{} IN ({ids})", cells::CELL_ID) };
        let batches = self.store.read(cells::TABLE, &columns, Some(&filter)).await?;
        let read = Arc::new(schema.project(&positions(&schema)).map_err(doing())?);
        let rows = concat_batches(&read, &batches).map_err(doing())?;
        let at: HashMap<u64, u32> =
            rows.column(0).as_primitive::<UInt64Type>().values().iter().copied().zip(0u32..).collect();
        let present: Vec<(u32, f32)> =
            found.iter().filter_map(|n| at.get(&n.cell_id).map(|row| (*row, n.distance))).collect();
        let order = arrow::array::UInt32Array::from_iter_values(present.iter().map(|(row, _)| *row));
        let ordered = take_record_batch(&rows, &order).map_err(doing())?;
        let mut columns = ordered.columns().to_vec();
        columns.insert(1, Arc::new(Float32Array::from_iter_values(present.iter().map(|(_, d)| *d))));
        RecordBatch::try_new(schema, columns).map_err(doing())
    }

    async fn neighbour_schema(&self) -> Result<SchemaRef> {
        let cells = self.store.table(cells::TABLE).await?;
        let all = Schema::from(cells.schema());
        let mut fields: Vec<Field> =
            all.fields().iter().filter(|f| f.name() != cells::EXPR).map(|f| f.as_ref().clone()).collect();
        fields.insert(1, Field::new(DISTANCE, DataType::Float32, false));
        Ok(Arc::new(Schema::new(fields)))
    }
}

fn positions(schema: &Schema) -> Vec<usize> {
    (0..schema.fields().len()).filter(|i| schema.field(*i).name() != DISTANCE).collect()
}

#[async_trait]
impl Engine for StoreEngine {
    fn gene(&self, name: &str) -> Result<u32, EngineError> {
        Ok(self.genes.find(name)?)
    }

    fn symbol(&self, gene_id: u32) -> Option<String> {
        self.genes.symbol(gene_id).map(str::to_owned)
    }

    fn model(&self, name: Option<&str>) -> Result<String, EngineError> {
        Ok(self.entry(name)?.name.clone())
    }

    fn dim(&self, recipe: &Recipe) -> Result<usize, EngineError> {
        Ok(self.entry(Some(&recipe.model))?.embedding_dim(recipe.pool))
    }

    fn embed(&self, recipe: &Recipe, cells: Cells) -> Result<Embedded, EngineError> {
        let dim = self.dim(recipe)?;
        Ok(self.remembering("embed", recipe, cells, dim, |l, cells| {
            l.model.embed(recipe, cells, &l.placement, DEFAULT_TOKEN_BUDGET)
        })?)
    }

    fn gene_of_model(&self, model: &str, gene: &str) -> Result<u32, EngineError> {
        let id = self.genes.find(gene)?;
        let position = self.loaded(model)?.placement.position(id);
        position
            .ok_or_else(|| EngineError::Request(format!("gene '{gene}' is not in the vocabulary of model '{model}'")))
    }

    fn context_dim(&self, model: &str) -> Result<usize, EngineError> {
        Ok(self.with_model(model, |m| m.config().decoder.hidden_dim)?)
    }

    fn embed_gene(&self, recipe: &Recipe, position: u32, cells: Cells) -> Result<Embedded, EngineError> {
        let dim = self.context_dim(&recipe.model)?;
        Ok(self.remembering(&format!("gene {position}"), recipe, cells, dim, |l, cells| {
            l.model.contexts(recipe, &[position], cells, &l.placement, DEFAULT_TOKEN_BUDGET)
        })?)
    }

    fn enhance(&self, recipe: &Recipe, cells: Cells) -> Result<Enhanced, EngineError> {
        let n_genes = self.entry(Some(&recipe.model))?.n_genes as usize;
        let all = self.remembering("enhance", recipe, cells, n_genes, |l, cells| {
            l.model.enhance(recipe, cells, &l.placement, DEFAULT_TOKEN_BUDGET)
        })?;
        let (gene_ids, places): (Vec<u32>, Vec<u32>) = self.genes_of_model(&recipe.model)?.into_iter().unzip();
        let cells = all.vectors.chunks_exact(n_genes);
        let values = cells.flat_map(|cell| places.iter().map(|place| cell[*place as usize])).collect();
        Ok(Enhanced { gene_ids, values, valid: all.valid })
    }

    fn genes_seen(&self, model: &str, cells: &Profiles) -> Result<Vec<Option<u32>>, EngineError> {
        let loaded = self.loaded(model)?;
        let seen = |cell: Profile| loaded.placement.count(cell.gene_ids.iter().copied()) as u32;
        Ok(cells.iter().map(|cell| cell.map(seen)).collect())
    }

    fn search_schema(&self, target: &str) -> Result<SchemaRef, EngineError> {
        if target != cells::TABLE {
            let known = did_you_mean(target, [cells::TABLE]);
            return Err(EngineError::Request(format!("vector_search: cannot search '{target}', only 'cells'.{known}")));
        }
        let schema = || self.runtime.block_on(self.neighbour_schema());
        let schema = std::thread::scope(|scope| scope.spawn(schema).join());
        Ok(schema.map_err(|_| EngineError::Internal("reading the columns of cells failed".into()))??)
    }

    async fn search(&self, request: SearchRequest) -> Result<RecordBatch, EngineError> {
        Ok(self.neighbours(request).await?)
    }
}
