//! Other people's model files: the authors' `models.ckpt` (a torch zip of three models) and plain safetensors.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use candle_core::{DType, Device, Layout, Shape, Tensor};
use cellql_schemas::vocabulary::Vocabulary;
use serde_json::Value as Json;

use crate::error::{ModelError, Result};
use crate::pickle::{self, Value};
use crate::{Config, Weights, file};

/// Which of a checkpoint's three models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointKey {
    /// For cell embeddings.
    Cell,
    /// For cell embeddings with read-depth enhancement.
    Rde,
    /// For gene embeddings and enhanced expression.
    Gene,
}

impl CheckpointKey {
    /// The key in the file.
    pub fn name(self) -> &'static str {
        match self {
            CheckpointKey::Cell => "cell",
            CheckpointKey::Rde => "rde",
            CheckpointKey::Gene => "gene",
        }
    }
}

/// Reads one model of a `models.ckpt`: `{key: {config, state_dict}}` in torch's zip format.
///
/// # Errors
/// [`ModelError::Input`] naming the file and what in it is missing or damaged.
pub fn read_checkpoint(path: &Path, key: CheckpointKey, vocabulary: Vocabulary) -> Result<Weights> {
    let (config, tensors) = read_entry(path, key.name())?;
    assemble(path, config, tensors, vocabulary)
}

/// Reads plain safetensors, with the configuration as JSON beside it.
///
/// # Errors
/// [`ModelError::Input`] naming the file and what in it is missing or damaged.
pub fn read_safetensors(path: &Path, config: &Path, vocabulary: Vocabulary) -> Result<Weights> {
    let read = |p: &Path| std::fs::read(p).map_err(|e| ModelError::input(p, "file", format!("cannot be read: {e}")));
    let json: Json = serde_json::from_slice(&read(config)?).map_err(|e| ModelError::input(config, "JSON", e))?;
    let tensors = file::tensors(&read(path)?).map_err(|e| ModelError::input(path, "tensors", e))?;
    assemble(path, json, tensors, vocabulary)
}

fn assemble(path: &Path, config: Json, tensors: HashMap<String, Tensor>, vocabulary: Vocabulary) -> Result<Weights> {
    let config = Config::from_json(config).map_err(|e| ModelError::input(path, "config", e))?;
    if config.n_genes() != vocabulary.len() {
        let problem = format!("the model has {} genes, the list of genes {}", config.n_genes(), vocabulary.len());
        return Err(ModelError::input(path, "config", problem));
    }
    Ok(Weights { config, vocabulary, tensors })
}

type Zip = zip::ZipArchive<BufReader<File>>;

fn read_entry(path: &Path, key: &str) -> Result<(Json, HashMap<String, Tensor>)> {
    let fail = |object: &str, e: &dyn std::fmt::Display| ModelError::input(path, object, e);
    let file = File::open(path).map_err(|e| fail("file", &format!("cannot be opened: {e}")))?;
    let mut zip =
        Zip::new(BufReader::new(file)).map_err(|e| fail("file", &format!("is not a torch checkpoint: {e}")))?;
    let names = zip.file_names().map(|n| n.map(|n| n.into_owned())).collect::<Result<Vec<String>, _>>();
    let names = names.map_err(|e| fail("file", &e))?;
    let Some(name) = names.into_iter().find(|n| n.ends_with("/data.pkl")) else {
        return Err(fail("file", &"is a zip without data.pkl, no torch checkpoint"));
    };
    let folder = name.trim_end_matches(".pkl").to_owned();
    let bytes = read_file(&mut zip, &name, usize::MAX).map_err(|e| fail("data.pkl", &e))?;
    let root = pickle::read(&bytes).map_err(|e| fail("data.pkl", &e))?;

    let Some(entry) = root.get(key) else {
        let keys: Vec<String> = root.entries().into_iter().map(|(k, _)| k).collect();
        return Err(fail("data.pkl", &format!("has no model '{key}'; it has {}", keys.join(", "))));
    };
    let config = entry.get("config").and_then(|c| c.to_json(CONFIG_DEPTH));
    let config = config.ok_or_else(|| fail(key, &"has no config"))?;
    let state = entry.get("state_dict").ok_or_else(|| fail(key, &"has no state_dict"))?;
    let mut tensors = HashMap::new();
    for (name, value) in state.entries() {
        let stored = Stored::of(&value).ok_or_else(|| fail(&name, &"is no tensor of a kind torch writes"))?;
        if stored.dtype.is_float() {
            let tensor = stored.read(&mut zip, &folder).map_err(|e| fail(&name, &e))?;
            tensors.insert(name.trim_start_matches("model.").to_owned(), tensor);
        }
    }
    Ok((config, tensors))
}

/// How deep a configuration may be nested.
const CONFIG_DEPTH: usize = 16;

fn read_file(zip: &mut Zip, name: &str, at_most: usize) -> candle_core::Result<Vec<u8>> {
    let entry = zip.by_name(name).map_err(candle_core::Error::wrap)?;
    let mut bytes = Vec::new();
    entry.take(at_most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Where a tensor lies.
struct Stored {
    dtype: DType,
    /// Name of its storage inside the zip's `data` folder.
    storage: String,
    /// Elements before its first.
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Stored {
    /// From `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, …)`, bare or as a parameter.
    fn of(value: &Value) -> Option<Self> {
        let Value::Call(class, arguments) = value else {
            return None;
        };
        if class == "torch._utils._rebuild_parameter" {
            return Self::of(arguments.first()?);
        }
        if class != "torch._utils._rebuild_tensor_v2" {
            return None;
        }
        let [Value::Storage(storage), offset, shape, strides, ..] = arguments.as_slice() else {
            return None;
        };
        let Value::Class(kind) = storage.get(1)? else {
            return None;
        };
        let dtype = match kind.strip_prefix("torch.")? {
            "FloatStorage" => DType::F32,
            "DoubleStorage" => DType::F64,
            "HalfStorage" => DType::F16,
            "BFloat16Storage" => DType::BF16,
            "LongStorage" => DType::I64,
            "ByteStorage" | "BoolStorage" => DType::U8,
            _ => return None,
        };
        Some(Self {
            dtype,
            storage: storage.get(2)?.text()?.to_owned(),
            offset: offset.size()?,
            shape: shape.sizes()?,
            strides: strides.sizes()?,
        })
    }

    fn read(&self, zip: &mut Zip, folder: &str) -> candle_core::Result<Tensor> {
        if !Layout::new(Shape::from(self.shape.clone()), self.strides.clone(), 0).is_contiguous() {
            candle_core::bail!("is stored transposed; save the checkpoint with contiguous tensors");
        }
        let width = self.dtype.size_in_bytes();
        let bytes_of = |elements: Option<usize>| elements.and_then(|n| n.checked_mul(width));
        let elements = self.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let (Some(size), Some(skip)) = (bytes_of(elements), bytes_of(Some(self.offset))) else {
            candle_core::bail!("has an impossible size {:?}", self.shape);
        };
        let end = skip.saturating_add(size);
        let bytes = read_file(zip, &format!("{folder}/{}", self.storage), end)?;
        if bytes.len() < end {
            candle_core::bail!("needs {end} bytes, its storage has {}", bytes.len());
        }
        Tensor::from_raw_buffer(&bytes[skip..], self.dtype, &self.shape, &Device::Cpu)?.to_dtype(DType::F32)
    }
}
