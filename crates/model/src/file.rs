//! The file of a model: safetensors with configuration and vocabulary in its header, so that one file is the model.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use cellql_schemas::vocabulary::Vocabulary;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Config;
use crate::error::{ModelError, Result};
use crate::linear::{self, LinearConfig, LinearWeights};
use crate::output_map::{self, OutputMap};

/// Key of the header entry that holds [`Header`] as JSON.
const HEADER: &str = "cellql";
/// What the names of tensors begin with that only training reads. They are not part of the authors' model.
pub const HEADS: &str = "heads.";

/// What stands in the header of a file. The order of its fields is that in the file, and part of every model's hash.
#[derive(Serialize, Deserialize)]
struct StoredHeader {
    /// Of a transformer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config: Option<Config>,
    /// Of a linear model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    linear: Option<LinearConfig>,
    vocabulary: Vec<String>,
    /// Dimensions after the output map, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mapped_dim: Option<usize>,
}

/// What kind of model it is, with its sizes.
#[derive(Debug, Clone)]
pub(crate) enum Architecture {
    XTrimoGene(Config),
    Linear(LinearConfig),
}

/// The header of a model's file.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub(crate) architecture: Architecture,
    pub(crate) vocabulary: Vocabulary,
    pub(crate) mapped_dim: Option<usize>,
}

/// A transformer before it is loaded: sizes, genes and named f32 tensors, named as the authors name them.
#[derive(Debug, Clone)]
pub struct Weights {
    /// Sizes.
    pub config: Config,
    /// Genes in order.
    pub vocabulary: Vocabulary,
    /// Tensors by name, without the prefix `model.`.
    pub tensors: HashMap<String, Tensor>,
}

/// Where a model's weights come from; stands in `models` as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Provenance {
    /// Read from a file.
    Imported {
        /// File name.
        file: String,
        /// Its SHA-256.
        sha256: String,
        /// Which of a checkpoint's models.
        key: Option<String>,
        /// What the user must know.
        note: String,
    },
    /// Trained by `cellql pretrain`.
    Trained {
        /// Version of the store whose cells it learned from.
        store_version: u64,
        /// Cells there were to learn from, and held out.
        cells: (u64, u64),
        /// SHA-256 of the model that training began with.
        start: String,
        /// Every setting of the run.
        settings: serde_json::Value,
        /// Steps done.
        steps: u64,
        /// The last mean loss, and that of held-out cells, as text: floats have no equality.
        loss: (String, Option<String>),
        /// Seconds of work.
        seconds: u64,
        /// Version of the program, and the commit it was built from where that is known.
        program: String,
        /// SHA-256 of the model of the store that it began with; of none where the weights were drawn.
        #[serde(default)]
        from: Option<String>,
        /// SHA-256 of the linear model whose embeddings it predicted; of none where it predicted none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
        /// Version of the rule by which cells were hashed, which decides which cells were held out; 0 for hashes that
        /// depended on the store.
        #[serde(default)]
        cell_hash: u32,
    },
    /// Fitted by `cellql model fit`.
    Fitted {
        /// `pca`, or `whiten` for a model with an output map.
        method: String,
        /// Version of the store whose cells it was fitted to.
        store_version: u64,
        /// Cells there were to fit to, and held out.
        cells: (u64, u64),
        /// SHA-256 of the model without the output map.
        of: Option<String>,
        /// Every setting of the fit.
        settings: serde_json::Value,
        /// Version of the rule by which cells were hashed, as for trained models.
        cell_hash: u32,
        /// Version of the program, and the commit it was built from where that is known.
        program: String,
    },
    /// Drawn at random.
    Untrained {
        /// Seed of the draw.
        seed: u64,
    },
}

impl Weights {
    /// Number of weights, buffers aside.
    pub fn parameters(&self) -> usize {
        self.tensors.iter().filter(|(name, _)| is_weight(name)).map(|(_, t)| t.elem_count()).sum()
    }
}

/// Whether a tensor is neither a buffer nor part of an output map nor a statistic of a linear model.
pub(crate) fn is_weight(name: &str) -> bool {
    !name.ends_with("projection_matrix") && !name.starts_with(output_map::PREFIX) && name != linear::VARIANCES
}

/// Serialises a transformer. Equal models give equal bytes, so their SHA-256 is their identity.
///
/// # Errors
/// None that well-formed tensors can cause.
pub fn encode(weights: &Weights) -> Result<(Vec<u8>, String)> {
    let vocabulary = weights.vocabulary.names().to_vec();
    let header = StoredHeader { config: Some(weights.config.clone()), linear: None, vocabulary, mapped_dim: None };
    write(&weights.tensors, &header)
}

/// Serialises a linear model, as [`encode`] does a transformer.
///
/// # Errors
/// Lengths that do not fit each other.
pub fn encode_linear(weights: &LinearWeights) -> Result<(Vec<u8>, String)> {
    let vocabulary = weights.vocabulary.names().to_vec();
    let header = StoredHeader { config: None, linear: Some(weights.config.clone()), vocabulary, mapped_dim: None };
    let tensors = weights.tensors().map_err(ModelError::compute("new", "writing a linear model"))?;
    write(&tensors, &header)
}

/// The file of a model with another output map, or with its first one.
///
/// # Errors
/// [`ModelError::Damaged`] where the bytes are no model.
pub fn with_output_map(name: &str, bytes: &[u8], map: &OutputMap) -> Result<(Vec<u8>, String)> {
    let doing = || ModelError::compute(name, "adding an output map");
    let (mut header, mut tensors) = (stored_header(name, bytes)?, tensors(bytes).map_err(|e| damaged(name, &e))?);
    let (inputs, outputs) = (map.inputs(), map.outputs());
    header.mapped_dim = Some(outputs);
    let mean = Tensor::from_slice(&map.mean, inputs, &Device::Cpu).map_err(doing())?;
    let matrix = Tensor::from_slice(&map.matrix, (outputs, inputs), &Device::Cpu).map_err(doing())?;
    tensors.extend([(output_map::MEAN.to_owned(), mean), (output_map::MATRIX.to_owned(), matrix)]);
    write(&tensors, &header)
}

/// The file of a model with weights of 16 bits.
///
/// # Errors
/// [`ModelError::Damaged`] where the bytes are no model.
pub fn halved(name: &str, bytes: &[u8]) -> Result<(Vec<u8>, String)> {
    let (header, tensors) = (stored_header(name, bytes)?, tensors(bytes).map_err(|e| damaged(name, &e))?);
    let half = |(name, tensor): (String, Tensor)| Ok((name, tensor.to_dtype(DType::F16)?));
    let tensors: candle_core::Result<HashMap<String, Tensor>> = tensors.into_iter().map(half).collect();
    write(&tensors.map_err(ModelError::compute(name, "halving it"))?, &header)
}

fn write(tensors: &HashMap<String, Tensor>, header: &StoredHeader) -> Result<(Vec<u8>, String)> {
    let doing = || "writing the model file".to_owned();
    // A single entry: the order of several would differ from run to run, and with it the hash.
    let header =
        HashMap::from([(HEADER.to_owned(), serde_json::to_string(header).map_err(ModelError::write(doing()))?)]);
    let bytes = safetensors::serialize(tensors, Some(header)).map_err(ModelError::write(doing()))?;
    let sha256 = format!("{:x}", Sha256::digest(&bytes));
    Ok((bytes, sha256))
}

fn stored_header(name: &str, bytes: &[u8]) -> Result<StoredHeader> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| damaged(name, &e))?;
    let header = metadata.metadata().as_ref().and_then(|m| m.get(HEADER)).ok_or_else(|| damaged(name, &"no header"))?;
    serde_json::from_str(header).map_err(|e| damaged(name, &e))
}

/// Kind, sizes and genes of a model's bytes.
///
/// # Errors
/// [`ModelError::Damaged`] where the bytes are something else, [`ModelError::Config`] for impossible sizes.
pub(crate) fn header(name: &str, bytes: &[u8]) -> Result<Header> {
    let StoredHeader { config, linear, vocabulary, mapped_dim } = stored_header(name, bytes)?;
    let vocabulary = Vocabulary::new(vocabulary).map_err(|e| damaged(name, &e))?;
    let architecture = match (config, linear) {
        (Some(config), None) => {
            config.check()?;
            if vocabulary.len() != config.n_genes() {
                let why = format!("{} genes but sizes for {}", vocabulary.len(), config.n_genes());
                return Err(damaged(name, &why));
            }
            Architecture::XTrimoGene(config)
        }
        (None, Some(config)) => {
            config.check()?;
            Architecture::Linear(config)
        }
        _ => return Err(damaged(name, &"its header has neither or both of 'config' and 'linear'")),
    };
    if mapped_dim == Some(0) {
        return Err(damaged(name, &"its output map has no dimensions"));
    }
    Ok(Header { architecture, vocabulary, mapped_dim })
}

pub(crate) fn damaged(name: &str, why: &dyn std::fmt::Display) -> ModelError {
    ModelError::Damaged { model: name.to_owned(), problem: why.to_string() }
}

/// Reads what [`encode`] wrote; an output map is left out.
///
/// # Errors
/// [`ModelError::Damaged`] where the bytes are something else, [`ModelError::IsLinear`] for a linear model.
pub fn decode(name: &str, bytes: &[u8]) -> Result<Weights> {
    let Header { architecture, vocabulary, .. } = header(name, bytes)?;
    let Architecture::XTrimoGene(config) = architecture else {
        return Err(ModelError::IsLinear { model: name.to_owned(), what: "transformer weights" });
    };
    let mut tensors = tensors(bytes).map_err(|e| damaged(name, &e))?;
    tensors.retain(|name, _| !name.starts_with(output_map::PREFIX));
    Ok(Weights { config, vocabulary, tensors })
}

/// The tensors of a safetensors file, floating ones as f32; others are bookkeeping and left out.
pub(crate) fn tensors(bytes: &[u8]) -> candle_core::Result<HashMap<String, Tensor>> {
    let loaded = candle_core::safetensors::load_buffer(bytes, &Device::Cpu)?;
    loaded
        .into_iter()
        .filter(|(_, t)| t.dtype().is_float())
        .map(|(name, t)| Ok((name.trim_start_matches("model.").to_owned(), t.to_dtype(DType::F32)?)))
        .collect()
}
