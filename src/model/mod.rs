//! The foundation model: scFoundation / xTrimoGene, a masked autoencoder over one cell's genes.
//!
//! Paper: Hao et al., Nature Methods 2024, doi 10.1038/s41592-024-02305-7; authors' code:
//! github.com/biomap-research/scFoundation. Cells come in as profiles, are aligned to the vocabulary ([`input`]), packed end
//! to end ([`batch`]), encoded ([`encoder`]) and pooled ([`pool`]), or decoded to a context embedding and a predicted
//! expression of every gene ([`decoder`]).
//!
//! Depends on candle and `schemas`. Knows nothing of SQL: a model is bytes, a cell is two slices. Only [`registry`], which
//! keeps models in a store, knows of tables.

mod batch;
mod checkpoint;
mod config;
mod decoder;
mod device;
mod embedding;
mod encoder;
mod export;
mod file;
mod fused;
mod graph;
mod init;
mod input;
mod known;
mod pickle;
mod pool;
pub mod registry;
mod runner;
pub mod shipped;
mod weights;

pub use batch::DEFAULT_TOKEN_BUDGET;
pub(crate) use batch::Packed;
pub use checkpoint::{CheckpointKey, read_checkpoint, read_safetensors};
pub use config::{Config, Decoder as DecoderConfig, Encoder as EncoderConfig, Size};
pub use device::Device;
pub use export::write_checkpoint;
pub use file::{Provenance, Weights, decode, encode};
pub use fused::Fused;
pub use graph::{Graph, Whole};
pub use init::initialise;
pub use input::{NotEmbeddable, Sample, Tokens};

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::DType;
use cellql_schemas::recipe::{Pool, Precision, Recipe};
use cellql_schemas::vocabulary::{Placement, Vocabulary};

use crate::error::{Error, Result};
use crate::files::FileBytes;
use batch::plan;
use cellql_kernels::{Form, Isa, Rows};
use decoder::Decoder;
use embedding::Embedding;
use encoder::Encoder;
use runner::{OnCpu, Runner};
use weights::Tensors;

/// A model, ready to run. Weights are packed for a precision when it is first asked for, once per process.
#[derive(Debug)]
pub struct Model {
    name: String,
    config: Config,
    vocabulary: Vocabulary,
    bytes: FileBytes,
    embedding: Embedding,
    encoders: Parts<Encoder>,
    decoders: Parts<Decoder>,
    /// Where it runs, if not on the CPU's kernels.
    device: Option<candle_core::Device>,
    graphs: Parts<Graph>,
}

/// The form of numbers in which kernels compute a precision.
fn form(precision: Precision) -> Form {
    match precision {
        Precision::F32 => Form::F32,
        Precision::Bf16 => Form::Bf16,
        Precision::Int8 => Form::Int8,
    }
}

/// One part of a model per precision.
type Parts<T> = Mutex<BTreeMap<&'static str, Arc<T>>>;

/// The part of a precision, loaded when it is first asked for.
fn part<T>(parts: &Parts<T>, precision: Precision, load: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
    // Held while loading, so that two callers load once.
    let mut parts = parts.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(part) = parts.get(precision.name()) {
        return Ok(Arc::clone(part));
    }
    let part = Arc::new(load()?);
    parts.insert(precision.name(), Arc::clone(&part));
    Ok(part)
}

/// A vector per cell.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Embeddings {
    /// `[cells, dim]`; zeros for cells without an embedding.
    pub vectors: Vec<f32>,
    /// Vocabulary genes expressed in each cell.
    pub genes_seen: Vec<u32>,
    /// Why a cell has no embedding; `None` where it has one.
    pub refused: Vec<Option<NotEmbeddable>>,
    /// Tokens that were encoded.
    pub tokens: u64,
    /// Batches they came in.
    pub batches: u64,
}

impl Model {
    /// Loads a model from the bytes of its file (see [`encode`]).
    ///
    /// # Errors
    /// [`Error::Request`] where the bytes are no model or weights are missing or misshapen.
    pub fn load(name: &str, bytes: impl Into<FileBytes>) -> Result<Self> {
        let bytes = bytes.into();
        let (config, vocabulary) = file::header(name, &bytes)?;
        let embedding = Embedding::load(&Tensors::of(name, &bytes)?, &config)?;
        let (encoders, decoders, graphs) = (Parts::default(), Parts::default(), Parts::default());
        let name = name.to_owned();
        Ok(Self { name, config, vocabulary, bytes, embedding, encoders, decoders, device: None, graphs })
    }

    /// Runs on a device from now on; `None` is the CPU.
    #[must_use]
    pub fn on(self, device: Option<candle_core::Device>) -> Self {
        Self { device, graphs: Parts::default(), ..self }
    }

    /// Loads every part, so that what is missing or misshapen is known.
    ///
    /// # Errors
    /// [`Error::Request`] naming the weight.
    pub fn check(&self) -> Result<()> {
        self.encoder(Precision::F32)?;
        self.decoder(Precision::F32)?;
        Ok(())
    }

    /// Name under which it was loaded.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Genes in order.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Numbers in a cell embedding.
    pub fn dim(&self, pool: Pool) -> usize {
        self.config.embedding_dim(pool)
    }

    /// What a precision runs on here, for people: `AVX-512 VNNI`.
    pub fn instructions(precision: Precision) -> &'static str {
        Isa::best().describe(form(precision))
    }

    fn encoder(&self, precision: Precision) -> Result<Arc<Encoder>> {
        let load = || Encoder::load(&Tensors::of(&self.name, &self.bytes)?, &self.config, form(precision));
        part(&self.encoders, precision, load)
    }

    fn decoder(&self, precision: Precision) -> Result<Arc<Decoder>> {
        let load = || Decoder::load(&Tensors::of(&self.name, &self.bytes)?, &self.config, form(precision));
        part(&self.decoders, precision, load)
    }

    fn graph(&self, device: &candle_core::Device, precision: Precision) -> Result<Arc<Graph>> {
        let dtype = match precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
            Precision::Int8 => {
                return Err(Error::Request("precision int8 is for the CPU; on a GPU use bf16".into()));
            }
        };
        part(&self.graphs, precision, || {
            let weights = decode(&self.name, &self.bytes)?;
            let moved = Graph::new(weights.config, &weights.tensors, device, dtype);
            moved.map_err(Error::model(&self.name, "moving weights to the device"))
        })
    }

    fn runner(&self, precision: Precision, decodes: bool) -> Result<Box<dyn Runner + '_>> {
        if let Some(device) = &self.device {
            return Ok(Box::new(self.graph(device, precision)?));
        }
        Ok(Box::new(OnCpu {
            embedding: &self.embedding,
            encoder: self.encoder(precision)?,
            decoder: if decodes { Some(self.decoder(precision)?) } else { None },
        }))
    }

    /// Embeds cells. The result of a cell is a function of that cell alone; batches hold at most `token_budget` tokens
    /// (or one cell), which bounds memory whatever the number of cells.
    ///
    /// # Errors
    /// [`Error::Request`] where values are no counts but the recipe says so.
    pub fn embed<'a>(
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
        self.run(runner.as_ref(), recipe, cells, placement, token_budget, self.dim(recipe.pool), pool)
    }

    /// Predicted log-normalised expression of every vocabulary gene, `[cells, genes]`.
    ///
    /// # Errors
    /// As [`Model::embed`].
    pub fn enhance<'a>(
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
        self.run(runner.as_ref(), recipe, cells, placement, token_budget, self.vocabulary.len(), enhance)
    }

    /// Context embeddings of the genes at `positions` of the vocabulary, `[cells, positions, decoder width]`.
    ///
    /// # Errors
    /// As [`Model::embed`].
    pub fn contexts<'a>(
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
        let doing = || Error::model(&self.name, "running it over cells; less memory is needed with a smaller --memory");
        let mut out = Embeddings::default();
        let mut tokens = Vec::new();
        for (row, cell) in cells.enumerate() {
            let aligned = match cell {
                None => Err(NotEmbeddable::Missing),
                Some(cell) => input::align(cell, placement, recipe, self.vocabulary.len())
                    .map_err(|e| Error::Request(format!("model '{}': {e}", self.name)))?,
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor, Var};
    use cellql_schemas::expr::Profile;
    use cellql_schemas::nomenclature::Nomenclature;

    /// A small model with weights at random, and two cells as tokens.
    fn small() -> (Weights, Vec<Tokens>) {
        let vocabulary = Vocabulary::new((0..90).map(|i| format!("gene{i}")).collect()).unwrap();
        let mut config = Config::of_size(Size::M3, 90);
        config.encoder = EncoderConfig { hidden_dim: 40, depth: 2, heads: 5 };
        config.decoder = DecoderConfig { hidden_dim: 36, depth: 2, heads: 3, dim_head: 10 };
        let weights = initialise(&config, vocabulary, 3).unwrap();
        let cell = |step: u32, depth: f32| {
            let mut positions: Vec<u32> = (0..90).step_by(step as usize).collect();
            let mut values: Vec<f32> = positions.iter().map(|p| (p * 7 % 5 + 1) as f32 * 0.7).collect();
            positions.extend([90, 91]);
            values.extend([4.0, depth]);
            Tokens { positions, values }
        };
        (weights, vec![cell(3, 3.1), cell(7, 2.6)])
    }

    fn worst(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn kernels_and_plain_tensors_agree() {
        let (weights, cells) = small();
        let model = Model::load("small", encode(&weights).unwrap().0).unwrap();
        let graph = Graph::new(weights.config.clone(), &weights.tensors, &Device::Cpu, DType::F32).unwrap();
        let packed = Packed::new(cells.iter());
        let plain = graph.encode(&packed.positions, &packed.values, &packed.starts).unwrap();
        let fast = model.encoder(Precision::F32).unwrap().forward(&model.embedding, &packed);
        for (i, row) in plain.to_vec2::<f32>().unwrap().iter().enumerate() {
            assert!(worst(fast.row(i), row) < 1e-5);
        }
        let decoder = model.decoder(Precision::F32).unwrap();
        for (slot, cell) in cells.iter().enumerate() {
            let range = packed.cell(slot);
            let encoded = plain.narrow(0, range.start, range.len()).unwrap();
            let mut values = vec![0f32; 92];
            cell.positions.iter().zip(&cell.values).for_each(|(p, v)| values[*p as usize] = *v);
            let contexts = graph.decode(&[Whole { values, tokens: cell.clone() }], &encoded, None).unwrap();
            let predicted = graph.predict(&contexts).unwrap().to_vec1::<f32>().unwrap();
            let enhanced = decoder.enhance(&model.embedding, cell, fast.from(range.start), fast.stride());
            assert!(worst(&enhanced, &predicted[..90]) < 1e-5);
            let wanted: Vec<u32> = (0..90).rev().collect();
            let found = decoder.contexts(&model.embedding, cell, fast.from(range.start), fast.stride(), &wanted);
            for (found, p) in found.chunks(36).zip(&wanted) {
                assert!(worst(found, &contexts.get(*p as usize).unwrap().to_vec1::<f32>().unwrap()) < 1e-5);
            }
        }
    }

    /// Genes and counts of one cell.
    type Stored = (Vec<u32>, Vec<f32>);

    /// Cells of many lengths, with a placement that takes gene i to position i.
    fn stored(model: &Model, cells: usize) -> (Vec<Stored>, Placement) {
        let by_name: std::collections::HashMap<String, Vec<u32>> =
            (0..90).map(|i| (format!("gene{i}"), vec![i])).collect();
        let placement = model.vocabulary().place(Nomenclature::hgnc(), &by_name, |_| None);
        let cell = |c: usize| {
            let genes: Vec<u32> =
                (0..90).filter(|g| (g * 31 + c as u32 * 17).is_multiple_of(2 + c as u32 % 9)).collect();
            let values = genes.iter().map(|g| (1 + (g + c as u32) % 6) as f32).collect();
            (genes, values)
        };
        ((0..cells).map(cell).collect(), placement)
    }

    /// Embeddings, predictions and contexts of cells on a device beside those of the kernels.
    fn beside_kernels(model: Model, device: &Device, precision: Precision) -> f32 {
        let (cells, placement) = stored(&model, 21);
        let samples = || {
            let profile = |(gene_ids, values)| Sample { profile: Profile { gene_ids, values }, total: None };
            cells.iter().map(move |(g, v): &Stored| Some(profile((g.as_slice(), v.as_slice()))))
        };
        let recipe = Recipe { precision, ..Recipe::of_model("small") };
        let all = |model: &Model| {
            let embedded = model.embed(&recipe, samples(), &placement, 150).unwrap();
            let enhanced = model.enhance(&recipe, samples(), &placement, 150).unwrap();
            let contexts = model.contexts(&recipe, &[3, 89], samples(), &placement, 150).unwrap();
            [embedded.vectors, enhanced.vectors, contexts.vectors].concat()
        };
        let kernels = all(&model);
        worst(&kernels, &all(&model.on(Some(device.clone()))))
    }

    #[test]
    fn a_device_gives_what_the_kernels_give() {
        let model = || Model::load("small", encode(&small().0).unwrap().0).unwrap();
        assert!(beside_kernels(model(), &Device::Cpu, Precision::F32) < 1e-5);
        match Device::new_cuda_with_stream(0) {
            Ok(gpu) => {
                assert!(beside_kernels(model(), &gpu, Precision::F32) < 1e-3);
                assert!(beside_kernels(model(), &gpu, Precision::Bf16) < 0.1);
            }
            Err(_) => eprintln!("no device: the model was not run on a GPU"),
        }
    }

    #[test]
    fn functions_of_a_device_give_what_plain_tensors_give() {
        let (weights, cells) = small();
        let packed = Packed::new(cells.iter());
        let given = |fused: Option<Fused>| {
            let (config, tensors) = (weights.config.clone(), &weights.tensors);
            let graph = Graph::over(config, tensors, &Device::Cpu, DType::F32, fused).unwrap();
            let encoded = graph.encode(&packed.positions, &packed.values, &packed.starts).unwrap();
            let whole = |cell: &Tokens| Whole { values: vec![0.0; 92], tokens: cell.clone() };
            let whole: Vec<Whole> = cells.iter().map(whole).collect();
            let [all, wanted] = [None, Some(&[0, 5, 91, 92, 100][..])].map(|wanted| {
                let contexts = graph.decode(&whole, &encoded, wanted).unwrap();
                contexts.to_vec2::<f32>().unwrap()
            });
            for (row, at) in wanted.iter().zip([0, 5, 91, 92, 100]) {
                assert!(worst(row, &all[at]) < 1e-5, "what is asked for alone is what stands among all");
            }
            [encoded.flatten_all().unwrap().to_vec1::<f32>().unwrap(), all.concat()]
        };
        let fused = Fused::new(&Device::Cpu, &weights.config, &weights.tensors).unwrap();
        let ([encoded, contexts], [plain_encoded, plain_contexts]) = (given(Some(fused)), given(None));
        assert!(worst(&encoded, &plain_encoded) < 1e-5 && worst(&contexts, &plain_contexts) < 1e-5);
    }

    #[test]
    fn every_weight_gets_a_finite_gradient_and_none_is_cut_off() {
        let (weights, cells) = small();
        let vars: std::collections::HashMap<String, Var> =
            weights.tensors.iter().map(|(n, t)| (n.clone(), Var::from_tensor(t).unwrap())).collect();
        let tensors = vars.iter().map(|(n, v)| (n.clone(), v.as_tensor().clone())).collect();
        let graph = Graph::new(weights.config.clone(), &tensors, &Device::Cpu, DType::F32).unwrap();
        let mut loss = Tensor::new(0f32, &Device::Cpu).unwrap();
        for cell in &cells {
            let encoded = graph.encode(&cell.positions, &cell.values, &[0, cell.len()]).unwrap();
            // Zeros, a masked position and padding, so that every kind of value is there.
            let mut values = vec![0f32; 92];
            cell.positions.iter().zip(&cell.values).for_each(|(p, v)| values[*p as usize] = *v);
            (values[1], values[2]) = (102.0, 103.0);
            let contexts = graph.decode(&[Whole { values, tokens: cell.clone() }], &encoded, None).unwrap();
            loss = (loss + graph.predict(&contexts).unwrap().sqr().unwrap().mean_all().unwrap()).unwrap();
        }
        let gradients = loss.backward().unwrap();
        for (name, var) in vars.iter().filter(|(n, _)| !n.ends_with("projection_matrix")) {
            let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
            let all = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(all.iter().all(|g| g.is_finite()) && all.iter().any(|g| *g != 0.0), "{name}");
        }
    }

    #[test]
    fn a_cell_of_the_vocabulary_alone_is_refused_without_it() {
        let (weights, _) = small();
        let model = Model::load("small", encode(&weights).unwrap().0).unwrap();
        let by_name = std::collections::HashMap::from([("gene4".to_owned(), vec![4])]);
        let placement = model.vocabulary().place(Nomenclature::hgnc(), &by_name, |_| None);
        let cell =
            |gene_ids: &'static [u32]| Some(Sample { profile: Profile { gene_ids, values: &[20.0] }, total: None });
        let found = model.enhance(&Recipe::of_model("small"), [cell(&[4]), cell(&[5])].into_iter(), &placement, 10);
        let found = found.unwrap();
        assert_eq!(found.refused, [None, Some(NotEmbeddable::NoGenes)]);
        assert!(found.vectors[..90].iter().any(|v| *v != 0.0) && found.vectors[90..].iter().all(|v| *v == 0.0));
    }
}
