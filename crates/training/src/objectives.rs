//! What a model is trained for: read-depth-aware masked regression, and two objectives that need only the encoder.
//!
//! Both additional objectives read views of a cell, which are random parts of its expressed genes ([`crate::views`]),
//! through the pooled vector of the encoder. One predicts the embedding that a linear model gives the *whole* cell, so
//! that the vector must hold what the principal components hold. The other tells two views of one cell from those of
//! other cells of the batch (contrast). Linear layers from the pooled vector serve them ([`crate::heads`]).

use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainingError};

/// Objectives with their weights in the loss. By default there is only read-depth-aware masked regression (RDA).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Objectives {
    /// Weight of RDA, the mean squared error at masked genes. At 0 the decoder is not run; only weight
    /// decay changes it.
    pub read_depth: f64,
    /// Cells of a batch that RDA learns from, the first ones; `None`: all.
    pub read_depth_cells: Option<usize>,
    /// Genes of the vocabulary that RDA reads and predicts in a batch, drawn anew for each; `None`: all. Depths are
    /// those of the whole cell. Held-out cells are always judged over all genes.
    pub read_depth_genes: Option<usize>,
    /// Weight of the components: squared errors of a linear model's embedding, as a part of its variance in the batch.
    pub components: f64,
    /// Name of the linear model whose embeddings are predicted.
    pub target: Option<String>,
    /// Whether random gene embeddings are replaced by the loadings of that model before the first step, so that genes
    /// that vary together begin alike.
    pub genes_from_target: bool,
    /// Weight of the contrast of two views: the cross-entropy of finding a view's other view among all of the batch.
    pub contrast: f64,
    /// Temperature of the contrast.
    pub temperature: f64,
    /// Dimensions of the vectors that are contrasted.
    pub contrast_dim: usize,
    /// Fewest and most genes of a view; the number is drawn evenly on a logarithmic scale.
    pub view_genes: (usize, usize),
}

impl Default for Objectives {
    fn default() -> Self {
        Self {
            read_depth: 1.0,
            read_depth_cells: None,
            read_depth_genes: None,
            components: 0.0,
            target: None,
            genes_from_target: false,
            contrast: 0.0,
            temperature: 0.2,
            contrast_dim: 64,
            view_genes: (222, 222),
        }
    }
}

impl Objectives {
    /// Whether cells are read in views.
    pub fn use_views(&self) -> bool {
        self.components > 0.0 || self.contrast > 0.0
    }

    /// Views of a cell: contrast needs two.
    pub fn views(&self) -> usize {
        if self.contrast > 0.0 { 2 } else { 1 }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// [`TrainingError::Setting`] naming the first invalid one.
    pub fn check(&self) -> Result<()> {
        let wrong = |name: &str, value: String, is: &str| {
            Err(TrainingError::setting(&format!("objectives: {name} ="), value, is))
        };
        let weights = [("read_depth", self.read_depth), ("components", self.components), ("contrast", self.contrast)];
        if let Some((name, weight)) = weights.into_iter().find(|(_, weight)| !(*weight >= 0.0 && weight.is_finite())) {
            return wrong(name, weight.to_string(), "0 or more");
        }
        if weights.iter().all(|(_, weight)| *weight == 0.0) {
            return wrong("read_depth", "0".into(), "above 0 where components and contrast are 0");
        }
        let (fewest, most) = self.view_genes;
        if fewest == 0 || fewest > most {
            return wrong("view_genes", format!("{:?}", self.view_genes), "two numbers above 0, the smaller one first");
        }
        if self.read_depth_cells == Some(0) {
            return wrong("read_depth_cells", "0".into(), "above 0; set read_depth to 0 to train without it");
        }
        if self.read_depth_genes.is_some_and(|genes| genes < 2) {
            return wrong("read_depth_genes", format!("{:?}", self.read_depth_genes), "2 or more, or null for all");
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return wrong("temperature", self.temperature.to_string(), "above 0");
        }
        if self.contrast_dim == 0 || self.contrast_dim > 1 << 14 {
            return wrong("contrast_dim", self.contrast_dim.to_string(), "from 1 to 16384");
        }
        match &self.target {
            None if self.components > 0.0 || self.genes_from_target => {
                wrong("target", "null".into(), "the name of a linear model of the store")
            }
            _ => Ok(()),
        }
    }
}

/// How batches are made.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Batches {
    /// Whether all cells of a batch are of one data set. Otherwise data sets are mixed.
    pub of_one_dataset: bool,
    /// A data set is drawn with a probability proportional to its number of cells to the power of this: 1 draws all
    /// cells equally often, 0 all data sets.
    pub exponent: f64,
}

impl Default for Batches {
    fn default() -> Self {
        Self { of_one_dataset: false, exponent: 0.5 }
    }
}

impl Batches {
    /// Checks the exponent.
    ///
    /// # Errors
    /// [`TrainingError::Setting`] if it is not from 0 to 1.
    pub fn check(&self) -> Result<()> {
        match (0.0..=1.0).contains(&self.exponent) {
            true => Ok(()),
            false => Err(TrainingError::setting("batches: exponent =", self.exponent, "from 0 to 1")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused() {
        Objectives::default().check().unwrap();
        let with = |change: fn(&mut Objectives)| {
            let mut objectives = Objectives { components: 1.0, target: Some("m".into()), ..Objectives::default() };
            objectives.check().unwrap();
            change(&mut objectives);
            objectives.check().unwrap_err().to_string()
        };
        assert!(with(|o| o.target = None).contains("target"));
        assert!(with(|o| o.contrast = f64::NAN).contains("contrast"));
        assert!(with(|o| o.view_genes = (10, 9)).contains("view_genes"));
        assert!(with(|o| o.temperature = 0.0).contains("temperature"));
        assert!(with(|o| o.read_depth_cells = Some(0)).contains("read_depth_cells"));
        assert!(with(|o| (o.components, o.read_depth) = (0.0, 0.0)).contains("read_depth"));
        assert!(Batches { exponent: 1.5, ..Batches::default() }.check().is_err());
    }
}
