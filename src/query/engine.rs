//! The engine behind the functions: genes, models and neighbours of one store.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use cellql_schemas::embeddings;
use cellql_schemas::expr::{Profile, Profiles};
use cellql_schemas::recipe::Recipe;
use cellql_schemas::vocabulary::Placement;
use cellql_udfs::engine::{Embedded, Engine, EngineError, Enhanced, SearchRequest};
use cellql_udfs::over_cells::Cells;
use tokio::runtime::Handle;

use super::compute::EMBED;
use super::measured::MeasuredGenes;
use super::nesting;
use super::stored_embeddings::StoredEmbeddings;
use super::vector_cache::VectorCache;
use crate::error::{Error, Result};
use crate::index::Searcher;
use crate::model_registry::{self, ModelEntry};
use cellql_model::{Config, DEFAULT_TOKEN_BUDGET, Device, Model, ModelError};
use cellql_store::genes::Catalogue;
use cellql_store::{CellHasher, Store};

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
pub(super) struct Loaded {
    pub(super) model: Model,
    pub(super) placement: Placement,
}

/// One store's engine. Models are loaded when first called, once per session.
#[derive(Debug)]
pub struct StoreEngine {
    store: Store,
    genes: Catalogue,
    pub(super) hasher: CellHasher,
    models: Vec<ModelEntry>,
    loaded: Mutex<HashMap<String, Arc<Loaded>>>,
    /// Held while a model is called.
    pub(super) turn: Mutex<()>,
    pub(super) vectors: Mutex<VectorCache>,
    /// By recipe, once asked for.
    pub(super) stored: Mutex<HashMap<String, Option<Arc<StoredEmbeddings>>>>,
    /// Likewise.
    pub(super) searchers: tokio::sync::Mutex<HashMap<String, Arc<Searcher>>>,
    pub(super) only_computes: bool,
    /// Read for the first statement that asks for it.
    measured: tokio::sync::OnceCell<MeasuredGenes>,
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
        let genes = store.genes().await?;
        Ok(Self {
            hasher: genes.hasher(),
            genes,
            models: model_registry::list(&store).await?,
            store,
            loaded: Mutex::default(),
            turn: Mutex::default(),
            vectors: Mutex::default(),
            stored: Mutex::default(),
            searchers: tokio::sync::Mutex::default(),
            only_computes: false,
            measured: tokio::sync::OnceCell::new(),
            notices: Mutex::default(),
            runtime: Handle::current(),
            device: None,
        })
    }

    /// An engine over the same store as it is now, on the same device.
    ///
    /// # Errors
    /// As [`StoreEngine::open`].
    pub async fn reopened(&self, store: Store) -> Result<Self> {
        Ok(Self { device: self.device.clone(), ..Self::open(store).await? })
    }

    /// Runs models on a device.
    ///
    /// # Errors
    /// This build or this machine has no such device.
    pub fn on(self, device: Device) -> Result<Self> {
        Ok(Self { device: device.open()?, ..self })
    }

    /// Never reads an embedding from the store: for whoever wants to know what the model says now.
    #[must_use]
    pub fn only_computing(self) -> Self {
        Self { only_computes: true, ..self }
    }

    /// Waits for a future from a function, which runs on threads of the async runtime: those must not wait, another
    /// may.
    pub(super) fn wait<T: Send>(&self, future: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let unreadable = || Error::Request("reading the store failed: its files make the reader fail".into());
        std::thread::scope(|scope| {
            // Conditions are planned there.
            let thread = std::thread::Builder::new().stack_size(nesting::STACK);
            let waiting = thread.spawn_scoped(scope, || self.runtime.block_on(future));
            waiting.map_err(Error::internal("starting a thread"))?.join().map_err(|_| unreadable())?
        })
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
    pub fn entry(&self, name: Option<&str>) -> Result<&ModelEntry> {
        model_registry::find(&self.models, name)
    }

    /// Its models.
    pub fn models(&self) -> &[ModelEntry] {
        &self.models
    }

    /// Takes what was noted since the last call.
    pub fn take_notices(&self) -> Notices {
        std::mem::take(&mut *self.notices.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn note(&self, add: impl FnOnce(&mut Notices)) {
        add(&mut self.notices.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn loaded(&self, name: &str) -> Result<Arc<Loaded>> {
        // Held while loading, so that two partitions that start together load once.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = loaded.get(name) {
            return Ok(Arc::clone(model));
        }
        let entry = self.entry(Some(name))?;
        let model = self.wait(model_registry::load(&self.store, entry))?;
        let model = model.on(self.device.clone());
        let placement = self.genes.place(model.vocabulary());
        let fresh = Arc::new(Loaded { model, placement });
        loaded.insert(name.to_owned(), Arc::clone(&fresh));
        Ok(fresh)
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

    /// The transformer of a name, or the one meant by none, for what linear models cannot do: `what`.
    ///
    /// # Errors
    /// [`Error::Request`] with the names there are.
    pub fn transformer_entry(&self, name: Option<&str>, what: &str) -> Result<&ModelEntry> {
        model_registry::find_transformer(&self.models, name, what)
    }

    /// The sizes of a transformer, for what linear models cannot do: `what`.
    ///
    /// # Errors
    /// An unknown or linear model, or one that cannot be loaded.
    pub fn with_transformer<T>(&self, model: &str, what: &'static str, read: impl FnOnce(&Config) -> T) -> Result<T> {
        let loaded = self.loaded(model)?;
        let linear = || ModelError::IsLinear { model: model.to_owned(), what };
        Ok(read(loaded.model.config().ok_or_else(linear)?))
    }

    /// Which genes each data set measured.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) async fn measured(&self) -> Result<&MeasuredGenes> {
        self.measured.get_or_try_init(|| MeasuredGenes::read(&self.store)).await
    }

    /// Names of the store's embedding tables.
    pub fn recipes(&self) -> Vec<String> {
        self.store.recipes(embeddings::SCHEMA).map(str::to_owned).collect()
    }
}

#[async_trait]
impl Engine for StoreEngine {
    fn gene(&self, name: &str) -> Result<u32, EngineError> {
        Ok(self.genes.find(name).map_err(Error::from)?)
    }

    fn is_measured(&self, dataset_id: u32, gene_id: u32) -> Result<bool, EngineError> {
        match self.measured.get() {
            Some(measured) => Ok(measured.contains(dataset_id, gene_id)),
            // The session reads them when it plans a statement that asks for them.
            None => Ok(self.wait(self.measured())?.contains(dataset_id, gene_id)),
        }
    }

    fn symbol(&self, gene_id: u32) -> Option<String> {
        self.genes.symbol(gene_id).map(str::to_owned)
    }

    fn model(&self, name: Option<&str>) -> Result<String, EngineError> {
        Ok(self.entry(name)?.name.clone())
    }

    fn transformer(&self, name: Option<&str>, what: &str) -> Result<String, EngineError> {
        Ok(self.transformer_entry(name, what)?.name.clone())
    }

    fn dim(&self, recipe: &Recipe) -> Result<usize, EngineError> {
        let entry = self.entry(Some(&recipe.model))?;
        entry.check_recipe(recipe)?;
        Ok(entry.embedding_dim(recipe.pool))
    }

    fn embed(&self, recipe: &Recipe, cells: Cells) -> Result<Embedded, EngineError> {
        let dim = self.dim(recipe)?;
        Ok(self.remembering(EMBED, recipe, cells, dim, |l, cells| {
            Ok(l.model.embed(recipe, cells, &l.placement, DEFAULT_TOKEN_BUDGET)?)
        })?)
    }

    fn gene_of_model(&self, model: &str, gene: &str) -> Result<u32, EngineError> {
        let id = self.genes.find(gene).map_err(Error::from)?;
        let position = self.loaded(model)?.placement.position(id);
        position
            .ok_or_else(|| EngineError::Request(format!("gene '{gene}' is not in the vocabulary of model '{model}'")))
    }

    fn context_dim(&self, model: &str) -> Result<usize, EngineError> {
        Ok(self.with_transformer(model, "gene embeddings", |config| config.decoder.hidden_dim)?)
    }

    fn embed_gene(&self, recipe: &Recipe, position: u32, cells: Cells) -> Result<Embedded, EngineError> {
        let dim = self.context_dim(&recipe.model)?;
        Ok(self.remembering(&format!("gene {position}"), recipe, cells, dim, |l, cells| {
            Ok(l.model.contexts(recipe, &[position], cells, &l.placement, DEFAULT_TOKEN_BUDGET)?)
        })?)
    }

    fn enhance(&self, recipe: &Recipe, cells: Cells) -> Result<Enhanced, EngineError> {
        let n_genes = self.entry(Some(&recipe.model))?.n_genes as usize;
        let all = self.remembering("enhance", recipe, cells, n_genes, |l, cells| {
            Ok(l.model.enhance(recipe, cells, &l.placement, DEFAULT_TOKEN_BUDGET)?)
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

    fn search_schema(&self, request: &SearchRequest) -> Result<SchemaRef, EngineError> {
        self.wait(async { Ok(self.check_search(request).await) })?
    }

    async fn plan_search(&self, request: &SearchRequest) -> Result<String, EngineError> {
        Ok(self.method_of(request).await?)
    }

    async fn search(&self, request: SearchRequest) -> Result<RecordBatch, EngineError> {
        Ok(self.answer(request).await?)
    }
}
