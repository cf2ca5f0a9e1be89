//! Linear models: fitted principal components of log-normalised counts.
//!
//! The vector of a cell is `(x − mean) · loadings / sdᵖ`: x are its values ln(1 + count / total · 10⁴) at the genes of
//! the vocabulary, where the total is that of all its genes, as in scanpy's `normalize_total`; p is the exponent of
//! [`LinearConfig::whitening`] and sd the standard deviation of each component over the cells that the model was fitted
//! to. A gene that the cell does not express counts as 0.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use cellql_kernels::add_scaled;
use cellql_schemas::expr::{TARGET_SUM, log_normalise};
use cellql_schemas::recipe::{Input, Recipe};
use cellql_schemas::vocabulary::{Placement, Vocabulary};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::embeddings::Embeddings;
use crate::error::{ModelError, Result};
use crate::input::{NotCounts, NotEmbeddable, Sample, placed};
use crate::weights::Tensors;

/// Names of the tensors of a linear model.
const MEAN: &str = "mean";
const LOADINGS: &str = "loadings";
pub(crate) const VARIANCES: &str = "variances";

/// What a linear model is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearConfig {
    /// Number of components: dimensions of an embedding.
    pub components: usize,
    /// Exponent p from 0 to 1 of the division by each component's standard deviation: 0 gives principal components as
    /// they are, 1 whitens.
    pub whitening: f64,
}

/// A linear model before it is loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearWeights {
    /// Number of components and whitening.
    pub config: LinearConfig,
    /// Genes in order.
    pub vocabulary: Vocabulary,
    /// `[genes]`: mean log-normalised value of each gene.
    pub mean: Vec<f32>,
    /// `[components, genes]`: orthonormal rows.
    pub loadings: Vec<f32>,
    /// `[components]`: variance of each component over the cells the model was fitted to.
    pub variances: Vec<f32>,
}

impl LinearWeights {
    /// Its tensors by name.
    pub(crate) fn tensors(&self) -> candle_core::Result<HashMap<String, Tensor>> {
        let (genes, components) = (self.vocabulary.len(), self.config.components);
        let tensor = |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu);
        Ok(HashMap::from([
            (MEAN.to_owned(), tensor(&self.mean, &[genes])?),
            (LOADINGS.to_owned(), tensor(&self.loadings, &[components, genes])?),
            (VARIANCES.to_owned(), tensor(&self.variances, &[components])?),
        ]))
    }
}

impl LinearConfig {
    pub(crate) fn check(&self) -> Result<()> {
        if self.components == 0 || !(0.0..=1.0).contains(&self.whitening) {
            return Err(ModelError::Config(format!(
                "has {} components and whitening {}; they must be above 0, and from 0 to 1",
                self.components, self.whitening
            )));
        }
        Ok(())
    }
}

/// A linear model, ready to run.
#[derive(Debug)]
pub(crate) struct Linear {
    name: String,
    components: usize,
    genes: usize,
    /// `[genes, components]`, divided by the components' standard deviations to the power of the whitening.
    loadings: Vec<f32>,
    /// `[components]`: the vector of a cell that expresses nothing.
    origin: Vec<f32>,
}

impl Linear {
    pub(crate) fn load(name: &str, tensors: &Tensors, config: &LinearConfig, genes: usize) -> Result<Self> {
        let components = config.components;
        let mean = tensors.get(MEAN, &[genes])?;
        let by_component = tensors.get(LOADINGS, &[components, genes])?;
        let variances = tensors.get(VARIANCES, &[components])?;
        let scale = |variance: &f32| match f64::from(*variance).powf(config.whitening / 2.0) {
            // A component without variance, or an exponent of 0.
            sd if sd > 0.0 => (1.0 / sd) as f32,
            _ => 1.0,
        };
        let scales: Vec<f32> = variances.iter().map(scale).collect();
        let mut loadings = vec![0f32; genes * components];
        for (c, (row, scale)) in by_component.chunks_exact(genes).zip(&scales).enumerate() {
            row.iter().enumerate().for_each(|(g, value)| loadings[g * components + c] = value * scale);
        }
        let mut origin = vec![0f64; components];
        for (mean, loadings) in mean.iter().zip(loadings.chunks_exact(components)) {
            origin.iter_mut().zip(loadings).for_each(|(sum, l)| *sum -= f64::from(*mean) * f64::from(*l));
        }
        let origin = origin.into_iter().map(|sum| sum as f32).collect();
        Ok(Self { name: name.to_owned(), components, genes, loadings, origin })
    }

    pub(crate) fn components(&self) -> usize {
        self.components
    }

    /// `[genes, components]`: the vector that one unit of each gene adds.
    pub(crate) fn loadings(&self) -> &[f32] {
        &self.loadings
    }

    /// Embeds cells, `[cells, components]`; each result is a function of its cell alone.
    pub(crate) fn embed<'a>(
        &self,
        recipe: &Recipe,
        cells: impl Iterator<Item = Option<Sample<'a>>>,
        placement: &Placement,
    ) -> Result<Embeddings> {
        let cells: Vec<Option<Sample>> = cells.collect();
        let mut vectors = vec![0f32; cells.len() * self.components];
        let embed = |(cell, out): (&Option<Sample>, &mut [f32])| match cell {
            None => Ok(Err(NotEmbeddable::Missing)),
            Some(cell) => self.embed_cell(*cell, recipe.input, placement, out),
        };
        let done: Result<Vec<_>, NotCounts> =
            cells.par_iter().zip(vectors.par_chunks_mut(self.components)).map(embed).collect();
        let done = done.map_err(|source| ModelError::Values { model: self.name.clone(), source })?;
        let genes_seen = done.iter().map(|seen| seen.unwrap_or(0)).collect();
        let refused: Vec<Option<NotEmbeddable>> = done.into_iter().map(Result::err).collect();
        Ok(Embeddings { vectors, genes_seen, refused, tokens: 0, batches: 1 })
    }

    /// Writes the vector of a cell; returns how many genes of the vocabulary it expresses.
    fn embed_cell(
        &self,
        cell: Sample<'_>,
        input: Input,
        placement: &Placement,
        out: &mut [f32],
    ) -> Result<Result<u32, NotEmbeddable>, NotCounts> {
        // Sorted, so that the order of additions does not depend on how the store numbers genes.
        let genes = placed(cell.profile, placement, input, self.genes)?;
        if genes.is_empty() {
            return Ok(Err(NotEmbeddable::NoGenes));
        }
        let total = cell.profile.total();
        out.copy_from_slice(&self.origin);
        for (position, value) in &genes {
            let x = match input {
                Input::Counts | Input::Linear | Input::Bulk => log_normalise(*value, total, TARGET_SUM) as f32,
                Input::Log | Input::LogTotal | Input::BulkLog => *value,
            };
            add_scaled(out, &self.loadings[*position as usize * self.components..][..self.components], x);
        }
        Ok(Ok(genes.len() as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Model, encode_linear};
    use cellql_schemas::expr::Profile;
    use cellql_schemas::nomenclature::Nomenclature;

    fn model(whitening: f64) -> (Model, Placement) {
        let vocabulary = Vocabulary::new(vec!["A".into(), "B".into(), "C".into()]).unwrap();
        let weights = LinearWeights {
            config: LinearConfig { components: 2, whitening },
            vocabulary,
            mean: vec![1.0, 2.0, 0.5],
            loadings: vec![0.6, 0.8, 0.0, -0.8, 0.6, 0.0],
            variances: vec![4.0, 0.25],
        };
        let model = Model::load("l", encode_linear(&weights).unwrap().0).unwrap();
        let names = [("A", 5), ("B", 2), ("C", 9)].map(|(name, id)| (name.to_owned(), vec![id]));
        let placement = model.vocabulary().place(Nomenclature::hgnc(), &HashMap::from(names), |_| None);
        (model, placement)
    }

    fn embed(whitening: f64, profile: Profile<'_>, input: Input) -> Result<Embeddings> {
        let (model, placement) = model(whitening);
        let recipe = Recipe { input, ..Recipe::of_model("l") };
        model.embed(&recipe, [Some(Sample { profile, total: None })].into_iter(), &placement, 1)
    }

    #[test]
    fn a_vector_is_the_centred_cell_along_the_loadings() {
        // Gene 7 is not in the vocabulary and counts towards the total: ln(1 + 30/100·10⁴) of gene 5, A.
        let profile = Profile { gene_ids: &[2, 5, 7], values: &[10.0, 30.0, 60.0] };
        let (a, b) = (3001f64.ln() - 1.0, 1001f64.ln() - 2.0);
        let expected = [0.6 * a + 0.8 * b, -0.8 * a + 0.6 * b];
        for (whitening, scales) in [(0.0, [1.0, 1.0]), (1.0, [0.5, 2.0]), (0.5, [0.5f64.sqrt(), 2f64.sqrt()])] {
            let found = embed(whitening, profile, Input::Counts).unwrap();
            assert_eq!(found.genes_seen, [2]);
            for i in 0..2 {
                assert!((f64::from(found.vectors[i]) - expected[i] * scales[i]).abs() < 1e-5, "{found:?}");
            }
        }
    }

    #[test]
    fn values_follow_the_input_and_fractions_are_no_counts() {
        let profile = Profile { gene_ids: &[2, 5], values: &[1.5, 0.25] };
        assert!(matches!(embed(0.0, profile, Input::Counts), Err(ModelError::Values { .. })));
        let found = embed(0.0, profile, Input::Log).unwrap();
        assert!((found.vectors[0] - (0.6 * (0.25 - 1.0) + 0.8 * (1.5 - 2.0))).abs() < 1e-6);
        let none = embed(0.0, Profile { gene_ids: &[7], values: &[3.0] }, Input::Counts).unwrap();
        assert_eq!(none.refused, [Some(NotEmbeddable::NoGenes)]);
    }

    #[test]
    fn a_linear_model_has_no_genes_to_embed() {
        let (model, placement) = model(0.0);
        let recipe = Recipe::of_model("l");
        assert!(matches!(model.enhance(&recipe, std::iter::empty(), &placement, 1), Err(ModelError::IsLinear { .. })));
        assert!(model.contexts(&recipe, &[0], std::iter::empty(), &placement, 1).is_err());
        assert_eq!((model.dim(cellql_schemas::recipe::Pool::All), model.parameters()), (2, 6 + 3));
    }
}
