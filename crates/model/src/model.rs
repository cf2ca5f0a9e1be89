//! A model that is ready to run, a transformer or a linear one.

use cellql_schemas::recipe::{Pool, Recipe};
use cellql_schemas::vocabulary::{Placement, Vocabulary};

use crate::config::Config;
use crate::embeddings::Embeddings;
use crate::error::{ModelError, Result};
use crate::file::{Architecture, header};
use crate::file_bytes::FileBytes;
use crate::input::Sample;
use crate::linear::Linear;
use crate::output_map::OutputMap;
use crate::transformer::Transformer;
use crate::weights::Tensors;
use cellql_kernels::{Dtype, Isa};

/// A model, ready to run.
#[derive(Debug)]
pub struct Model {
    name: String,
    vocabulary: Vocabulary,
    body: Body,
    map: Option<OutputMap>,
    parameters: usize,
}

#[derive(Debug)]
enum Body {
    Transformer(Box<Transformer>),
    Linear(Linear),
}

impl Model {
    /// Loads a model from the bytes of its file (see [`crate::encode`]).
    ///
    /// # Errors
    /// [`ModelError::Damaged`] where the bytes are no model, [`ModelError::Weight`] where a weight is missing or
    /// misshapen.
    pub fn load(name: &str, bytes: impl Into<FileBytes>) -> Result<Self> {
        let bytes = bytes.into();
        let header = header(name, &bytes)?;
        let tensors = Tensors::of(name, &bytes)?;
        let (vocabulary, parameters) = (header.vocabulary, tensors.parameters());
        let map = |inputs: usize| match header.mapped_dim {
            Some(outputs) => OutputMap::load(&tensors, inputs, outputs).map(Some),
            None => Ok(None),
        };
        let (body, map) = match header.architecture {
            Architecture::Linear(config) => {
                let map = map(config.components)?;
                (Body::Linear(Linear::load(name, &tensors, &config, vocabulary.len())?), map)
            }
            Architecture::XTrimoGene(config) => {
                let map = map(config.embedding_dim(Pool::All))?;
                (Body::Transformer(Box::new(Transformer::load(name, bytes.clone(), config)?)), map)
            }
        };
        Ok(Self { name: name.to_owned(), vocabulary, body, map, parameters })
    }

    /// Runs on a device from now on; `None` is the CPU. Linear models always run on the CPU.
    #[must_use]
    pub fn on(self, device: Option<candle_core::Device>) -> Self {
        let body = match self.body {
            Body::Transformer(transformer) => Body::Transformer(Box::new(transformer.on(device))),
            linear @ Body::Linear(_) => linear,
        };
        Self { body, ..self }
    }

    /// Loads every part, so that what is missing or misshapen is known.
    ///
    /// # Errors
    /// [`ModelError::Weight`] naming the weight.
    pub fn check(&self) -> Result<()> {
        match &self.body {
            Body::Transformer(transformer) => transformer.check(),
            Body::Linear(_) => Ok(()),
        }
    }

    /// Name under which it was loaded.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sizes of a transformer; `None` for a linear model.
    pub fn config(&self) -> Option<&Config> {
        match &self.body {
            Body::Transformer(transformer) => Some(transformer.config()),
            Body::Linear(_) => None,
        }
    }

    /// Genes in order.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Number of weights, buffers and output map aside.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Dimensions of a cell embedding with a pool.
    pub fn dim(&self, pool: Pool) -> usize {
        match (&self.map, &self.body) {
            (Some(map), Body::Linear(_)) => map.outputs(),
            (Some(map), Body::Transformer(_)) if pool == Pool::All => map.outputs(),
            (None, Body::Linear(linear)) => linear.components(),
            (_, Body::Transformer(transformer)) => transformer.config().embedding_dim(pool),
        }
    }

    /// The output map, if the model has one.
    pub fn output_map(&self) -> Option<&OutputMap> {
        self.map.as_ref()
    }

    /// Name of the instructions that a number format runs on here, for display: `AVX-512 VNNI`.
    pub fn instructions(dtype: Dtype) -> &'static str {
        Isa::best().describe(dtype)
    }

    /// The transformer that this model is.
    fn transformer(&self, what: &'static str) -> Result<&Transformer> {
        match &self.body {
            Body::Transformer(transformer) => Ok(transformer),
            Body::Linear(_) => Err(ModelError::IsLinear { model: self.name.clone(), what }),
        }
    }

    /// Loadings of a linear model, `[genes, components]`: what one unit of each gene's log-normalised value adds to the
    /// vector of a cell before an output map; `None` for a transformer.
    pub fn loadings(&self) -> Option<&[f32]> {
        match &self.body {
            Body::Transformer(_) => None,
            Body::Linear(linear) => Some(linear.loadings()),
        }
    }

    /// Embeds cells. The result of a cell is a function of that cell alone; batches of a transformer hold at most
    /// `token_budget` tokens (or one cell), which bounds memory whatever the number of cells. The output map, if there
    /// is one, is applied to embeddings of pool `all`.
    ///
    /// # Errors
    /// [`ModelError::Values`] where values are no counts but the recipe says so.
    pub fn embed<'a>(
        &self,
        recipe: &Recipe,
        cells: impl Iterator<Item = Option<Sample<'a>>>,
        placement: &Placement,
        token_budget: usize,
    ) -> Result<Embeddings> {
        let found = match &self.body {
            Body::Transformer(transformer) => transformer.embed(recipe, cells, placement, token_budget)?,
            Body::Linear(linear) => linear.embed(recipe, cells, placement)?,
        };
        match &self.map {
            Some(map) if recipe.pool == Pool::All => Ok(found.mapped(map)),
            _ => Ok(found),
        }
    }

    /// Predicted log-normalised expression of every vocabulary gene, `[cells, genes]`.
    ///
    /// # Errors
    /// [`ModelError::IsLinear`], else as [`Model::embed`].
    pub fn enhance<'a>(
        &self,
        recipe: &Recipe,
        cells: impl Iterator<Item = Option<Sample<'a>>>,
        placement: &Placement,
        token_budget: usize,
    ) -> Result<Embeddings> {
        self.transformer("enhanced expression")?.enhance(recipe, cells, placement, token_budget)
    }

    /// Context embeddings of the genes at `positions` of the vocabulary, `[cells, positions, decoder width]`.
    ///
    /// # Errors
    /// [`ModelError::IsLinear`], else as [`Model::embed`].
    pub fn contexts<'a>(
        &self,
        recipe: &Recipe,
        positions: &[u32],
        cells: impl Iterator<Item = Option<Sample<'a>>>,
        placement: &Placement,
        token_budget: usize,
    ) -> Result<Embeddings> {
        self.transformer("gene embeddings")?.contexts(recipe, positions, cells, placement, token_budget)
    }
}

#[cfg(test)]
pub(crate) mod tests;
