//! What the additional objectives predict of a cell: its embedding by a linear model of the store.
//!
//! Depends on models and the store. Knows nothing of training.

use cellql_model::{Model, Sample};
use cellql_schemas::expr::Profile;
use cellql_schemas::recipe::{Pool, Recipe};
use cellql_schemas::vocabulary::Placement;
use cellql_store::Store;

use crate::error::{Error, Result};
use crate::model_registry::{self, ModelEntry};

/// A linear model that embeds cells as they are read.
#[derive(Debug)]
pub struct Targets {
    model: Model,
    placement: Placement,
    recipe: Recipe,
    sha256: String,
}

impl Targets {
    /// Loads a model of the store.
    ///
    /// # Errors
    /// A model that is not linear, or cannot be read.
    pub async fn of(store: &Store, entry: &ModelEntry) -> Result<Self> {
        if !entry.is_linear() {
            return Err(Error::Request(format!(
                "objectives: target '{}' is not a linear model; fit one with cellql model fit --kind pca",
                entry.name
            )));
        }
        let model = Model::load(&entry.name, model_registry::bytes(store, entry).await?)?;
        let placement = store.genes().await?.place(model.vocabulary());
        let recipe = Recipe::of_model(&entry.name);
        Ok(Self { model, placement, recipe, sha256: entry.sha256.clone() })
    }

    /// Length of an embedding.
    pub fn dim(&self) -> usize {
        self.model.dim(Pool::All)
    }

    /// SHA-256 of the model.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Loadings of the genes at the positions of another vocabulary; `None` for those that the model lacks.
    pub fn loadings(&self, placement: &Placement) -> Vec<Option<&[f32]>> {
        let all = self.model.loadings().unwrap_or_default();
        let components = all.len() / self.model.vocabulary().len().max(1);
        let of_gene = |position: usize| {
            let gene = self.placement.position(placement.gene_at(position)?)?;
            all.get(gene as usize * components..)?.get(..components)
        };
        (0..placement.len()).map(of_gene).collect()
    }

    /// Embeddings of cells in their order; zeros for a cell that expresses none of the model's genes.
    ///
    /// # Errors
    /// Values that are no counts.
    pub(super) fn embed<'a>(&self, cells: impl Iterator<Item = Profile<'a>>) -> Result<Vec<Vec<f32>>> {
        let samples = cells.map(|profile| Some(Sample { profile, total: None }));
        let embedded = self.model.embed(&self.recipe, samples, &self.placement, usize::MAX)?;
        Ok(embedded.vectors.chunks_exact(self.dim()).map(<[f32]>::to_vec).collect())
    }
}
