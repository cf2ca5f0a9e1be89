//! Writes a model as the authors' `models.ckpt` has it: a torch zip whose pickle is `{key: {config, state_dict}}`.
//!
//! Layout after torch's own `torch.save`: `archive/data.pkl`, `archive/data/<n>` for each tensor's storage,
//! little-endian.

use std::io::{Seek, Write};

use serde_json::{Value as Json, json};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::error::{ModelError, Result};
use crate::{CheckpointKey, Config, HEADS, Weights};

/// Writes a checkpoint of one model under its key, without layers that only training reads ([`HEADS`]).
///
/// # Errors
/// `out` cannot be written.
pub fn write_checkpoint<W: Write + Seek>(weights: &Weights, key: CheckpointKey, out: W) -> Result<W> {
    let doing = || "writing the checkpoint".to_owned();
    let mut names: Vec<&String> = weights.tensors.keys().filter(|name| !name.starts_with(HEADS)).collect();
    names.sort();
    let mut pickle = Pickle::default();
    pickle.bytes(&[0x80, 2]);
    pickle.dict(|p| {
        p.text(key.name());
        p.dict(|p| {
            p.text("config");
            p.json(&config(&weights.config));
            p.text("state_dict");
            p.dict(|p| {
                for (storage, name) in names.iter().enumerate() {
                    p.text(&format!("model.{name}"));
                    p.tensor(storage, weights.tensors[*name].dims());
                }
            });
        });
    });
    pickle.bytes(b".");

    let mut zip = ZipWriter::new(out);
    // Stored, as torch does: it maps storages where they lie.
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored).large_file(true);
    let mut file = |name: &str, bytes: &[u8]| -> Result<()> {
        zip.start_file(format!("archive/{name}"), options).map_err(ModelError::write(doing()))?;
        zip.write_all(bytes).map_err(ModelError::write(doing()))
    };
    file("data.pkl", &pickle.0)?;
    file("byteorder", b"little")?;
    for (storage, name) in names.iter().enumerate() {
        let values = weights.tensors[*name].flatten_all().and_then(|t| t.to_vec1::<f32>());
        let values = values.map_err(ModelError::compute("exported", "reading weights"))?;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        file(&format!("data/{storage}"), &bytes)?;
    }
    file("version", b"3\n")?;
    zip.finish().map_err(ModelError::write(doing()))
}

/// The authors' nested configuration.
fn config(config: &Config) -> Json {
    let (encoder, decoder) = (&config.encoder, &config.decoder);
    json!({
        "model": "mae_autobin",
        "dataset_config": { "rnaseq": {} },
        "model_config": { "mae_autobin": {
            "seq_len": config.seq_len,
            "bin_alpha": config.bin_alpha,
            "bin_num": config.bin_num,
            "pad_token_id": config.pad_token_id,
            "mask_token_id": config.mask_token_id,
            "encoder": {
                "module_type": "transformer", "norm_first": false, "seq_len": config.seq_len,
                "hidden_dim": encoder.hidden_dim, "depth": encoder.depth, "heads": encoder.heads,
                "dim_head": encoder.hidden_dim / encoder.heads,
            },
            "decoder": {
                "module_type": "performer", "norm_first": false, "seq_len": config.seq_len,
                "hidden_dim": decoder.hidden_dim, "depth": decoder.depth, "heads": decoder.heads,
                "dim_head": decoder.dim_head,
            },
        } },
    })
}

/// Bytes of a pickle, protocol 2.
#[derive(Default)]
struct Pickle(Vec<u8>);

impl Pickle {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(b"X");
        self.bytes(&(text.len() as u32).to_le_bytes());
        self.bytes(text.as_bytes());
    }

    fn number(&mut self, number: usize) {
        // LONG1 of eight bytes: storages can be larger than a BININT.
        self.bytes(&[0x8a, 8]);
        self.bytes(&(number as u64).to_le_bytes());
    }

    fn class(&mut self, module: &str, name: &str) {
        self.bytes(format!("c{module}\n{name}\n").as_bytes());
    }

    fn dict(&mut self, entries: impl FnOnce(&mut Self)) {
        self.bytes(b"}(");
        entries(self);
        self.bytes(b"u");
    }

    fn tuple(&mut self, entries: impl FnOnce(&mut Self)) {
        self.bytes(b"(");
        entries(self);
        self.bytes(b"t");
    }

    fn json(&mut self, value: &Json) {
        match value {
            Json::Null => self.bytes(b"N"),
            Json::Bool(true) => self.bytes(&[0x88]),
            Json::Bool(false) => self.bytes(&[0x89]),
            Json::String(text) => self.text(text),
            Json::Number(number) => match number.as_u64() {
                Some(whole) => self.number(whole as usize),
                None => {
                    self.bytes(b"G");
                    self.bytes(&number.as_f64().unwrap_or(f64::NAN).to_be_bytes());
                }
            },
            Json::Array(items) => {
                self.bytes(b"](");
                items.iter().for_each(|item| self.json(item));
                self.bytes(b"e");
            }
            Json::Object(entries) => self.dict(|p| {
                for (name, value) in entries {
                    p.text(name);
                    p.json(value);
                }
            }),
        }
    }

    /// `torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())` of f32.
    fn tensor(&mut self, storage: usize, shape: &[usize]) {
        self.class("torch._utils", "_rebuild_tensor_v2");
        self.tuple(|p| {
            p.tuple(|p| {
                p.text("storage");
                p.class("torch", "FloatStorage");
                p.text(&storage.to_string());
                p.text("cpu");
                p.number(shape.iter().product());
            });
            p.bytes(b"Q");
            p.number(0);
            p.tuple(|p| shape.iter().for_each(|d| p.number(*d)));
            p.tuple(|p| (0..shape.len()).for_each(|i| p.number(shape[i + 1..].iter().product())));
            p.bytes(&[0x89]);
            p.class("collections", "OrderedDict");
            p.bytes(b")R");
        });
        self.bytes(b"R");
    }
}
