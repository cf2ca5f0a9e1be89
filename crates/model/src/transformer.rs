//! A transformer that is ready to run: embeddings, enhanced expression and gene context embeddings of cells.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::DType;
use candle_nn::VarBuilder;
use cellql_schemas::recipe::Recipe;
use cellql_schemas::vocabulary::Placement;

use crate::batch::{Packed, plan};
use crate::config::Config;
use crate::decoder::Decoder;
use crate::embedding::Embedding;
use crate::embeddings::Embeddings;
use crate::encoder::Encoder;
use crate::error::{ModelError, Result};
use crate::file::decode;
use crate::file_bytes::FileBytes;
use crate::input::{NotEmbeddable, Sample, Tokens};
use crate::runner::{OnCpu, Runner};
use crate::weights::Tensors;
use crate::xtrimogene::XTrimoGene;
use crate::{input, pool};
use cellql_kernels::{Dtype, Rows};

/// A transformer, ready to run. Weights are packed for a number format when it is first used, once per process.
#[derive(Debug)]
pub(crate) struct Transformer {
    name: String,
    config: Config,
    bytes: FileBytes,
    pub(crate) embedding: Embedding,
    encoders: Parts<Encoder>,
    decoders: Parts<Decoder>,
    /// Where it runs, if not on the CPU's kernels.
    device: Option<candle_core::Device>,
    on_device: Parts<XTrimoGene>,
}

/// A part of a model, packed once for each number format that was asked for.
type Parts<T> = Mutex<BTreeMap<Dtype, Arc<T>>>;

/// The part for a number format, loaded on first use.
fn part<T>(parts: &Parts<T>, dtype: Dtype, load: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
    // Held while loading, so that two callers load once.
    let mut parts = parts.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(part) = parts.get(&dtype) {
        return Ok(Arc::clone(part));
    }
    let part = Arc::new(load()?);
    parts.insert(dtype, Arc::clone(&part));
    Ok(part)
}

impl Transformer {
    pub(crate) fn load(name: &str, bytes: FileBytes, config: Config) -> Result<Self> {
        let embedding = Embedding::load(&Tensors::of(name, &bytes)?, &config)?;
        let (encoders, decoders, on_device) = (Parts::default(), Parts::default(), Parts::default());
        let name = name.to_owned();
        Ok(Self { name, config, bytes, embedding, encoders, decoders, device: None, on_device })
    }

    /// Runs on a device from now on; `None` is the CPU.
    pub(crate) fn on(self, device: Option<candle_core::Device>) -> Self {
        Self { device, on_device: Parts::default(), ..self }
    }

    /// Loads every part, so that what is missing or misshapen is known.
    pub(crate) fn check(&self) -> Result<()> {
        self.encoder(Dtype::F32)?;
        self.decoder(Dtype::F32)?;
        Ok(())
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn encoder(&self, dtype: Dtype) -> Result<Arc<Encoder>> {
        let load = || Encoder::load(&Tensors::of(&self.name, &self.bytes)?, &self.config, dtype);
        part(&self.encoders, dtype, load)
    }

    pub(crate) fn decoder(&self, dtype: Dtype) -> Result<Arc<Decoder>> {
        let load = || Decoder::load(&Tensors::of(&self.name, &self.bytes)?, &self.config, dtype);
        part(&self.decoders, dtype, load)
    }

    fn on_device(&self, device: &candle_core::Device, dtype: Dtype) -> Result<Arc<XTrimoGene>> {
        let candle_dtype = match dtype {
            Dtype::F32 => DType::F32,
            Dtype::Bf16 => DType::BF16,
            Dtype::Int8 => {
                return Err(ModelError::Device("precision int8 is for the CPU; on a GPU use bf16".into()));
            }
        };
        part(&self.on_device, dtype, || {
            let weights = decode(&self.name, &self.bytes)?;
            let vb = VarBuilder::from_tensors(weights.tensors, candle_dtype, device);
            XTrimoGene::load(vb, &weights.config)
                .map_err(ModelError::compute(&self.name, "moving weights to the device"))
        })
    }

    fn runner(&self, dtype: Dtype, decodes: bool) -> Result<Box<dyn Runner + '_>> {
        if let Some(device) = &self.device {
            return Ok(Box::new(self.on_device(device, dtype)?));
        }
        Ok(Box::new(OnCpu {
            embedding: &self.embedding,
            encoder: self.encoder(dtype)?,
            decoder: if decodes { Some(self.decoder(dtype)?) } else { None },
        }))
    }

    /// Embeds cells. The result of a cell is a function of that cell alone; batches hold at most `token_budget` tokens
    /// (or one cell), which bounds memory whatever the number of cells.
    pub(crate) fn embed<'a>(
        &self,
        recipe: &Recipe,
        cells: impl Iterator<Item = Option<Sample<'a>>>,
        placement: &Placement,
        token_budget: usize,
    ) -> Result<Embeddings> {
        let runner = self.runner(recipe.precision, false)?;
        let pool = |encoded: &Rows, cell: Range<usize>, _: &Tokens, out: &mut [f32]| {
            pool::pool(encoded, cell, recipe.pool, out);
            Ok(())
        };
        self.run(runner.as_ref(), recipe, cells, placement, token_budget, self.config.embedding_dim(recipe.pool), pool)
    }

    /// Predicted log-normalised expression of every vocabulary gene, `[cells, genes]`.
    pub(crate) fn enhance<'a>(
        &self,
        recipe: &Recipe,
        cells: impl Iterator<Item = Option<Sample<'a>>>,
        placement: &Placement,
        token_budget: usize,
    ) -> Result<Embeddings> {
        let runner = self.runner(recipe.precision, true)?;
        let enhance = |encoded: &Rows, cell: Range<usize>, tokens: &Tokens, out: &mut [f32]| {
            out.copy_from_slice(&runner.enhance(tokens, encoded, cell.start)?);
            Ok(())
        };
        self.run(runner.as_ref(), recipe, cells, placement, token_budget, self.config.n_genes(), enhance)
    }

    /// Context embeddings of the genes at `positions` of the vocabulary, `[cells, positions, decoder width]`.
    pub(crate) fn contexts<'a>(
        &self,
        recipe: &Recipe,
        positions: &[u32],
        cells: impl Iterator<Item = Option<Sample<'a>>>,
        placement: &Placement,
        token_budget: usize,
    ) -> Result<Embeddings> {
        let runner = self.runner(recipe.precision, true)?;
        let decode = |encoded: &Rows, cell: Range<usize>, tokens: &Tokens, out: &mut [f32]| {
            out.copy_from_slice(&runner.contexts(tokens, encoded, cell.start, positions)?);
            Ok(())
        };
        let size = positions.len() * self.config.decoder.hidden_dim;
        self.run(runner.as_ref(), recipe, cells, placement, token_budget, size, decode)
    }

    /// Aligns cells, encodes them in batches, and has `finish` make `size` numbers of each.
    #[allow(clippy::too_many_arguments, reason = "what the three callers share")]
    fn run<'a>(
        &self,
        runner: &dyn Runner,
        recipe: &Recipe,
        cells: impl Iterator<Item = Option<Sample<'a>>>,
        placement: &Placement,
        token_budget: usize,
        size: usize,
        finish: impl Fn(&Rows, Range<usize>, &Tokens, &mut [f32]) -> candle_core::Result<()>,
    ) -> Result<Embeddings> {
        let doing =
            || ModelError::compute(&self.name, "running it over cells; less memory is needed with a smaller --memory");
        let mut out = Embeddings::default();
        let mut tokens = Vec::new();
        for (row, cell) in cells.enumerate() {
            let aligned = match cell {
                None => Err(NotEmbeddable::Missing),
                Some(cell) => input::align(cell, placement, recipe, self.config.n_genes())
                    .map_err(|source| ModelError::Values { model: self.name.clone(), source })?,
            };
            out.genes_seen.push(aligned.as_ref().map_or(0, |t| t.n_genes() as u32));
            match aligned {
                Ok(cell) => {
                    out.refused.push(None);
                    tokens.push((row, cell));
                }
                Err(why) => out.refused.push(Some(why)),
            }
        }
        out.vectors = vec![0.0; out.refused.len() * size];
        for batch in plan(&tokens, token_budget) {
            let packed = Packed::new(batch.iter().map(|&i| &tokens[i].1));
            let encoded = runner.encode(&packed).map_err(doing())?;
            out.tokens += packed.positions.len() as u64;
            out.batches += 1;
            for (slot, &i) in batch.iter().enumerate() {
                let (row, tokens) = &tokens[i];
                let out = &mut out.vectors[row * size..(row + 1) * size];
                finish(&encoded, packed.cell(slot), tokens, out).map_err(doing())?;
            }
        }
        Ok(out)
    }
}
