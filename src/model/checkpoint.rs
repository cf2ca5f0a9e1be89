//! Other people's model files: the authors' `models.ckpt` (a torch zip of three models) and plain safetensors.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::pickle::{Object, Stack, TensorInfo};
use candle_core::{DType, Device, Tensor};
use cellql_schemas::vocabulary::Vocabulary;
use serde_json::{Map, Number, Value};

use super::{Config, Weights, file};
use crate::error::{Error, Result};

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
/// [`Error::Input`] naming the file and what in it is missing or damaged.
pub fn read_checkpoint(path: &Path, key: CheckpointKey, vocabulary: Vocabulary) -> Result<Weights> {
    // candle's unpickler indexes into what it reads; on a damaged file that panics.
    let read = AssertUnwindSafe(|| read_entry(path, key.name()));
    let (config, tensors) = catch_unwind(read)
        .unwrap_or_else(|_| Err(Error::input(path, "data.pkl", "is damaged in a way its reader does not expect")))?;
    assemble(path, config, tensors, vocabulary)
}

/// Reads plain safetensors, with the configuration as JSON beside it.
///
/// # Errors
/// [`Error::Input`] naming the file and what in it is missing or damaged.
pub fn read_safetensors(path: &Path, config: &Path, vocabulary: Vocabulary) -> Result<Weights> {
    let read = |p: &Path| std::fs::read(p).map_err(|e| Error::input(p, "file", format!("cannot be read: {e}")));
    let json: Value = serde_json::from_slice(&read(config)?).map_err(|e| Error::input(config, "JSON", e))?;
    let tensors = file::tensors(&read(path)?).map_err(|e| Error::input(path, "tensors", e))?;
    assemble(path, json, tensors, vocabulary)
}

fn assemble(path: &Path, config: Value, tensors: HashMap<String, Tensor>, vocabulary: Vocabulary) -> Result<Weights> {
    let config = Config::from_json(config).map_err(|e| Error::input(path, "config", e))?;
    if config.n_genes() != vocabulary.len() {
        let problem = format!("the model has {} genes, the list of genes {}", config.n_genes(), vocabulary.len());
        return Err(Error::input(path, "config", problem));
    }
    Ok(Weights { config, vocabulary, tensors })
}

type Zip = zip::ZipArchive<BufReader<File>>;

fn read_entry(path: &Path, key: &str) -> Result<(Value, HashMap<String, Tensor>)> {
    let fail = |object: &str, e: &dyn std::fmt::Display| Error::input(path, object, e);
    let file = File::open(path).map_err(|e| fail("file", &format!("cannot be opened: {e}")))?;
    let mut zip =
        Zip::new(BufReader::new(file)).map_err(|e| fail("file", &format!("is not a torch checkpoint: {e}")))?;
    let names = zip.file_names().map(|n| n.map(|n| n.into_owned())).collect::<Result<Vec<String>, _>>();
    let names = names.map_err(|e| fail("file", &e))?;
    let Some(pickle) = names.into_iter().find(|n| n.ends_with("/data.pkl")) else {
        return Err(fail("file", &"is a zip without data.pkl, no torch checkpoint"));
    };
    let folder = pickle.trim_end_matches(".pkl").to_owned();
    let root = unpickle(&mut zip, &pickle).map_err(|e| fail("data.pkl", &e))?;

    let entries = root.dict().map_err(|_| fail("data.pkl", &"is not a dictionary of models"))?;
    let keys: Vec<String> = entries.iter().filter_map(|(k, _)| k.clone().unicode().ok()).collect();
    let Some(entry) = take(entries, key) else {
        return Err(fail("data.pkl", &format!("has no model '{key}'; it has {}", keys.join(", "))));
    };
    let mut parts = entry.dict().map_err(|_| fail(key, &"is not {config, state_dict}"))?;
    let state = find(&mut parts, "state_dict").and_then(|s| s.dict().ok());
    let state = state.ok_or_else(|| fail(key, &"has no state_dict"))?;
    let config = find(&mut parts, "config").map(to_json).ok_or_else(|| fail(key, &"has no config"))?;

    let mut tensors = HashMap::new();
    for (name, value) in state {
        let info = value.into_tensor_info(name, Path::new(&folder)).map_err(|e| fail("state_dict", &e))?;
        let Some(info) = info.filter(|i| i.dtype.is_float()) else {
            continue;
        };
        let tensor = read_tensor(&mut zip, &info).map_err(|e| fail(&info.name, &e))?;
        tensors.insert(info.name.trim_start_matches("model.").to_owned(), tensor);
    }
    Ok((config, tensors))
}

fn unpickle(zip: &mut Zip, name: &str) -> candle_core::Result<Object> {
    let reader = zip.by_name(name).map_err(candle_core::Error::wrap)?;
    let mut stack = Stack::empty();
    stack.read_loop(&mut BufReader::new(reader))?;
    stack.finalize()
}

fn take(entries: Vec<(Object, Object)>, key: &str) -> Option<Object> {
    entries.into_iter().find(|(k, _)| *k == Object::Unicode(key.to_owned())).map(|(_, v)| v)
}

fn find(entries: &mut Vec<(Object, Object)>, key: &str) -> Option<Object> {
    let at = entries.iter().position(|(k, _)| *k == Object::Unicode(key.to_owned()))?;
    Some(entries.swap_remove(at).1)
}

/// The plain values a configuration is made of; anything else becomes null.
fn to_json(object: Object) -> Value {
    match object {
        Object::Int(i) => Value::from(i),
        Object::Long(i) => Value::from(i),
        Object::Float(f) => Number::from_f64(f).map_or(Value::Null, Value::Number),
        Object::Unicode(s) => Value::String(s),
        Object::Bool(b) => Value::Bool(b),
        Object::Tuple(items) | Object::List(items) => Value::Array(items.into_iter().map(to_json).collect()),
        Object::Dict(entries) => {
            let pairs = entries.into_iter().filter_map(|(k, v)| Some((k.unicode().ok()?, to_json(v))));
            Value::Object(Map::from_iter(pairs))
        }
        _ => Value::Null,
    }
}

fn read_tensor(zip: &mut Zip, info: &TensorInfo) -> candle_core::Result<Tensor> {
    if !info.layout.is_contiguous() {
        candle_core::bail!("is stored transposed; save the checkpoint with contiguous tensors");
    }
    let size = info.layout.shape().elem_count().saturating_mul(info.dtype.size_in_bytes());
    let skip = info.layout.start_offset();
    let entry = zip.by_name(&info.path).map_err(candle_core::Error::wrap)?;
    if (entry.size() as usize) < skip.saturating_add(size) {
        candle_core::bail!("needs {size} bytes, its storage has {}", entry.size());
    }
    let mut bytes = Vec::with_capacity(skip + size);
    entry.take((skip + size) as u64).read_to_end(&mut bytes)?;
    if bytes.len() < skip + size {
        candle_core::bail!("is cut short");
    }
    Tensor::from_raw_buffer(&bytes[skip..], info.dtype, info.layout.dims(), &Device::Cpu)?.to_dtype(DType::F32)
}
