//! The models of a store: rows of the table `models`, and a file of weights for each.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::{UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use cellql_schemas::models as table;
use cellql_schemas::recipe::{Pool, Recipe};
use cellql_schemas::suggest::did_you_mean;
use chrono::Utc;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::shipped_models;
use cellql_model::FileBytes;
use cellql_model::{Model, Provenance, Weights, encode};
use cellql_store::Store;

/// A row of `models`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelEntry {
    /// Name in the store.
    pub name: String,
    /// SHA-256 of its file, as hex.
    pub sha256: String,
    /// SHA-256 of its vocabulary, as hex.
    pub vocabulary_sha256: String,
    /// Genes in its vocabulary.
    pub n_genes: u32,
    /// Dimensions of an embedding with pool `all`.
    pub dim: u32,
    /// Dimensions of an embedding with pool `max`; `None` for linear models, which have no pool.
    pub dim_max: Option<u32>,
    /// Number of weights.
    pub parameters: u64,
    /// False for weights that were initialised at random and not trained.
    pub trained: bool,
    /// Where it comes from, as the JSON that the table holds; [`ModelEntry::provenance`] parses it.
    pub provenance_json: String,
}

impl ModelEntry {
    /// Dimensions of an embedding with a pool.
    pub fn embedding_dim(&self, pool: Pool) -> usize {
        match pool {
            Pool::All => self.dim as usize,
            Pool::Max => self.dim_max.unwrap_or(self.dim) as usize,
        }
    }

    /// Where the model comes from: imported, trained here, or initialised at random.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the row's JSON is not a provenance that this version of the program can read.
    pub fn provenance(&self) -> Result<Provenance> {
        serde_json::from_str(&self.provenance_json).map_err(|e| {
            let problem = format!(
                "its provenance cannot be parsed: {e}; import the model again under another name, or open the store \
                 with the version of cellql that wrote it"
            );
            Error::damaged(format!("the row of model '{}' in the table models", self.name), problem)
        })
    }

    /// Whether it is a linear model, which has neither pool nor depth nor embeddings of genes.
    pub fn is_linear(&self) -> bool {
        self.dim_max.is_none()
    }

    /// What the table `models` calls its kind.
    pub fn kind(&self) -> &'static str {
        if self.is_linear() { "linear" } else { "transformer" }
    }

    /// Checks that the options of a recipe are those of this kind of model.
    ///
    /// # Errors
    /// [`Error::Request`] for a pool, depth or precision of a linear model.
    pub fn check_recipe(&self, recipe: &Recipe) -> Result<()> {
        let defaults = Recipe::of_model(&self.name);
        let option = match self.is_linear() {
            true if recipe.pool != defaults.pool => "pool",
            true if recipe.depth != defaults.depth => "depth",
            true if recipe.precision != defaults.precision => "precision",
            _ => return Ok(()),
        };
        Err(Error::Request(format!("model '{}' is linear and has no option {option}; leave it out", self.name)))
    }

    /// Whether it is a model that comes with the program.
    fn is_shipped(&self) -> bool {
        shipped_models::NAMES.contains(&self.name.as_str())
    }

    fn path(&self) -> String {
        format!("models/{}.safetensors", self.sha256)
    }
}

/// Adds a model to a store. Returns the new version of the store and the model's row.
///
/// # Errors
/// The name is taken or invalid, a weight is missing, or the store cannot be written.
pub async fn add(store: &Store, name: &str, weights: &Weights, provenance: &Provenance) -> Result<(Store, ModelEntry)> {
    add_file(store, name, FileBytes::from(encode(weights)?.0), provenance).await
}

/// Checks that a name is valid for a model, so that a long training does not fail when its model is added.
///
/// # Errors
/// [`Error::Request`] for anything but letters, digits, `_` and `-`.
pub fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
        return Err(Error::Request(format!(
            "'{name}' is not a valid name of a model; use letters, digits, '_' and '-'"
        )));
    }
    Ok(())
}

/// Adds a model to a store, from the bytes of its file.
///
/// # Errors
/// As [`add`].
pub async fn add_file(
    store: &Store,
    name: &str,
    bytes: FileBytes,
    provenance: &Provenance,
) -> Result<(Store, ModelEntry)> {
    check_name(name)?;
    // A model that cannot be loaded is not added.
    let model = Model::load(name, bytes.clone())?;
    model.check()?;
    let mut transaction = store.begin(&format!("adding model {name}")).await?;
    if list(transaction.store()).await?.iter().any(|m| m.name == name) {
        let uri = transaction.store().uri();
        return Err(Error::Request(format!("{uri} already has a model '{name}'; choose another name")));
    }
    let entry = ModelEntry {
        name: name.to_owned(),
        sha256: sha256(&bytes),
        vocabulary_sha256: model.vocabulary().sha256(),
        n_genes: model.vocabulary().len() as u32,
        dim: model.dim(Pool::All) as u32,
        dim_max: model.config().map(|_| model.dim(Pool::Max) as u32),
        parameters: model.parameters() as u64,
        trained: !matches!(provenance, Provenance::Untrained { .. }),
        provenance_json: serde_json::to_string(provenance).map_err(Error::internal("recording the model"))?,
    };
    transaction.put_file(&entry.path(), &bytes).await?;
    let row = to_row(&entry)?;
    let rows = RecordBatchStreamAdapter::new(row.schema(), futures::stream::iter([Ok(row)]));
    transaction.append(table::TABLE, Box::pin(rows)).await?;
    Ok((transaction.publish().await?, entry))
}

fn to_row(entry: &ModelEntry) -> Result<RecordBatch> {
    let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from_iter_values([value])) };
    let columns: Vec<ArrayRef> = vec![
        text(&entry.name),
        text(entry.kind()),
        text(&entry.sha256),
        text(&entry.vocabulary_sha256),
        Arc::new(UInt32Array::from(vec![entry.n_genes])),
        Arc::new(UInt32Array::from(vec![entry.dim])),
        Arc::new(UInt32Array::from(vec![entry.dim_max])),
        Arc::new(UInt64Array::from(vec![entry.parameters])),
        Arc::new(BooleanArray::from(vec![entry.trained])),
        text(&entry.provenance_json),
        text(&Utc::now().to_rfc3339()),
    ];
    RecordBatch::try_new(Arc::new(table::schema()), columns).map_err(Error::internal("recording the model"))
}

/// Every model of a store.
///
/// # Errors
/// The table cannot be read.
pub async fn list(store: &Store) -> Result<Vec<ModelEntry>> {
    let mut entries = Vec::new();
    for batch in store.read(table::TABLE, &[], None).await? {
        read_rows(&batch, &mut entries).ok_or_else(|| {
            let problem = "a column is missing or has another type; open an earlier version with --at-version";
            Error::damaged(format!("the table models of {}", store.uri()), problem)
        })?;
    }
    Ok(entries)
}

fn read_rows(batch: &RecordBatch, entries: &mut Vec<ModelEntry>) -> Option<()> {
    let text = |name: &str| batch.column_by_name(name)?.as_string_opt::<i32>();
    let (name, sha256, vocabulary) = (text(table::NAME)?, text(table::SHA256)?, text(table::VOCABULARY_SHA256)?);
    let small = |name: &str| batch.column_by_name(name)?.as_primitive_opt::<UInt32Type>();
    let (n_genes, dim, dim_max) = (small(table::N_GENES)?, small(table::DIM)?, small(table::DIM_MAX)?);
    let parameters = batch.column_by_name(table::PARAMETERS)?.as_primitive_opt::<UInt64Type>()?;
    let trained = batch.column_by_name(table::TRAINED)?.as_boolean_opt()?;
    let provenance = text(table::PROVENANCE)?;
    entries.extend((0..batch.num_rows()).map(|i| ModelEntry {
        name: name.value(i).to_owned(),
        sha256: sha256.value(i).to_owned(),
        vocabulary_sha256: vocabulary.value(i).to_owned(),
        n_genes: n_genes.value(i),
        dim: dim.value(i),
        dim_max: dim_max.is_valid(i).then(|| dim_max.value(i)),
        parameters: parameters.value(i),
        trained: trained.value(i),
        provenance_json: provenance.value(i).to_owned(),
    }));
    Some(())
}

/// The model with a name. Without a name: the only model beside the shipped ones, or the first of
/// [`shipped_models::NAMES`] if there are only those.
///
/// # Errors
/// [`Error::Request`] with the names of the store's models.
pub fn find<'a>(entries: &'a [ModelEntry], name: Option<&str>) -> Result<&'a ModelEntry> {
    choose(&entries.iter().collect::<Vec<_>>(), name, "model")
}

/// As [`find`], among transformers: for what linear models cannot do. `what` says what that is: `gene embeddings`.
///
/// # Errors
/// [`Error::Request`] with the names of the store's transformers, or a name of a linear model.
pub fn find_transformer<'a>(entries: &'a [ModelEntry], name: Option<&str>, what: &str) -> Result<&'a ModelEntry> {
    let transformers: Vec<&ModelEntry> = entries.iter().filter(|m| !m.is_linear()).collect();
    match name {
        Some(name) if entries.iter().any(|m| m.name == name && m.is_linear()) => {
            Err(Error::Request(format!("model '{name}' is linear and has no {what}; name a transformer")))
        }
        _ => choose(&transformers, name, "transformer"),
    }
}

fn choose<'a>(entries: &[&'a ModelEntry], name: Option<&str>, kind: &str) -> Result<&'a ModelEntry> {
    let names = || entries.iter().map(|m| m.name.as_str());
    let listed = || names().map(|n| format!("'{n}'")).collect::<Vec<_>>().join(", ");
    if entries.is_empty() {
        return Err(Error::Request(format!(
            "the store has no {kind}; add one with: cellql model add, cellql model import, or cellql model init for \
             untrained weights"
        )));
    }
    if let Some(name) = name {
        return entries.iter().copied().find(|m| m.name == name).ok_or_else(|| {
            let hint = did_you_mean(name, names());
            Error::Request(format!("unknown {kind} '{name}': the store has {}.{hint}", listed()))
        });
    }
    let own: Vec<&ModelEntry> = entries.iter().copied().filter(|m| !m.is_shipped()).collect();
    let preferred = || shipped_models::NAMES.iter().find_map(|name| entries.iter().copied().find(|m| m.name == *name));
    let found = if own.is_empty() { preferred() } else { own.first().copied().filter(|_| own.len() == 1) };
    found.ok_or_else(|| Error::Request(format!("the store has several {kind}s; name one of them: {}", listed())))
}

/// The file of a model. Its SHA-256 is checked.
///
/// # Errors
/// The file is missing or damaged.
pub async fn bytes(store: &Store, entry: &ModelEntry) -> Result<FileBytes> {
    let bytes = open(store, entry).await?;
    match sha256(&bytes) == entry.sha256 {
        true => Ok(bytes),
        false => Err(damaged(entry)),
    }
}

async fn open(store: &Store, entry: &ModelEntry) -> Result<FileBytes> {
    match store.local_path(&entry.path()) {
        Some(path) => Ok(FileBytes::map(&path)?),
        None => Ok(FileBytes::Held(store.read_file(&entry.path()).await?)),
    }
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

fn damaged(entry: &ModelEntry) -> Error {
    let (name, path) = (&entry.name, entry.path());
    Error::damaged(
        format!("model '{name}': its file {path}"),
        "its SHA-256 is not the recorded one; add or import the model again under another name",
    )
}

/// Loads a model. The SHA-256 of its file is checked while its weights are read.
///
/// # Errors
/// The file is missing or damaged.
pub async fn load(store: &Store, entry: &ModelEntry) -> Result<Model> {
    let bytes = open(store, entry).await?;
    let to_check = bytes.clone();
    std::thread::scope(|scope| {
        let hash = scope.spawn(|| sha256(&to_check));
        let model = Model::load(&entry.name, bytes);
        if hash.join().ok().as_ref() != Some(&entry.sha256) {
            return Err(damaged(entry));
        }
        Ok(model?)
    })
}
