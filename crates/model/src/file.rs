//! The file of a model: safetensors with configuration and vocabulary in its header, so that one file is the model.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use cellql_schemas::vocabulary::Vocabulary;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Config;
use crate::error::{ModelError, Result};

/// Key of the header entry that holds [`Header`] as JSON.
const HEADER: &str = "cellql";

#[derive(Serialize, Deserialize)]
struct Header {
    config: Config,
    vocabulary: Vec<String>,
}

/// A model before it is loaded: sizes, genes and named f32 tensors, named as the authors name them.
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
        /// How genes were numbered, which cells' hashes and so the held-out ones depend on: how many there were once
        /// each data set was taken in, and the SHA-256 of what they are.
        #[serde(default)]
        numbering: Vec<(usize, String)>,
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
        let is_buffer = |name: &str| name.ends_with("projection_matrix");
        self.tensors.iter().filter(|(n, _)| !is_buffer(n)).map(|(_, t)| t.elem_count()).sum()
    }
}

impl Weights {
    /// The same in numbers of 16 bits.
    ///
    /// # Errors
    /// Memory does not suffice.
    pub fn halved(&self) -> candle_core::Result<Self> {
        let half = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.to_dtype(DType::F16)?));
        let tensors: candle_core::Result<HashMap<String, Tensor>> = self.tensors.iter().map(half).collect();
        Ok(Self { tensors: tensors?, ..self.clone() })
    }
}

/// Serialises a model. Equal models give equal bytes, so their SHA-256 is their identity.
///
/// # Errors
/// None that well-formed tensors can cause.
pub fn encode(weights: &Weights) -> Result<(Vec<u8>, String)> {
    let doing = || "writing the model file".to_owned();
    let header = Header { config: weights.config.clone(), vocabulary: weights.vocabulary.names().to_vec() };
    // A single entry: the order of several would differ from run to run, and with it the hash.
    let header =
        HashMap::from([(HEADER.to_owned(), serde_json::to_string(&header).map_err(ModelError::write(doing()))?)]);
    let bytes = safetensors::serialize(&weights.tensors, Some(header)).map_err(ModelError::write(doing()))?;
    let sha256 = format!("{:x}", Sha256::digest(&bytes));
    Ok((bytes, sha256))
}

/// Sizes and genes of a model's bytes.
///
/// # Errors
/// As [`decode`].
pub(crate) fn header(name: &str, bytes: &[u8]) -> Result<(Config, Vocabulary)> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| damaged(name, &e))?;
    let header = metadata.metadata().as_ref().and_then(|m| m.get(HEADER)).ok_or_else(|| damaged(name, &"no header"))?;
    let header: Header = serde_json::from_str(header).map_err(|e| damaged(name, &e))?;
    header.config.check()?;
    let vocabulary = Vocabulary::new(header.vocabulary).map_err(|e| damaged(name, &e))?;
    if vocabulary.len() != header.config.n_genes() {
        let why = format!("{} genes but sizes for {}", vocabulary.len(), header.config.n_genes());
        return Err(damaged(name, &why));
    }
    Ok((header.config, vocabulary))
}

pub(crate) fn damaged(name: &str, why: &dyn std::fmt::Display) -> ModelError {
    ModelError::Damaged { model: name.to_owned(), problem: why.to_string() }
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// [`ModelError::Damaged`] where the bytes are something else.
pub fn decode(name: &str, bytes: &[u8]) -> Result<Weights> {
    let (config, vocabulary) = header(name, bytes)?;
    let tensors = tensors(bytes).map_err(|e| damaged(name, &e))?;
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
