//! Settings of a training run: with the store and the initial weights they determine its result.

use cellql_kernels::Dtype;
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainingError};
use crate::loader_position::Mixing;
use crate::objectives::{Batches, Objectives};
use crate::optimiser::Adam;
use crate::read_depth::ReadDepthAware;

/// Cells that are not learned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HoldOut {
    /// Share of all cells, by the hash of their content.
    pub share: f64,
    /// SQL condition on `cells`: cells that satisfy it are held out too.
    pub condition: Option<String>,
}

impl Default for HoldOut {
    fn default() -> Self {
        Self { share: 0.1, condition: None }
    }
}

/// Settings of a training run. A settings file is JSON with these keys; missing keys take the defaults of this type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Number of optimiser steps.
    pub steps: u64,
    /// Cells per batch.
    pub batch: usize,
    /// Batches per step, whose gradients are added (gradient accumulation).
    pub accumulate: usize,
    /// Seed of orders and masks.
    pub seed: u64,
    /// Number format of matrix products: f32 or bf16. Weights and moments are always f32.
    pub precision: Dtype,
    /// SQL condition on `cells` that selects the cells to learn from.
    pub condition: Option<String>,
    /// Cells that are held out.
    pub hold_out: HoldOut,
    /// Cells of a block, which are read together ([`Mixing::block`]).
    pub block: usize,
    /// Blocks shuffled together.
    pub blocks: usize,
    /// The pretraining task.
    pub task: ReadDepthAware,
    /// What the model is trained for.
    pub objectives: Objectives,
    /// How cells get into batches.
    pub batches: Batches,
    /// The optimiser.
    pub adam: Adam,
    /// Steps between two validations on held-out cells.
    pub validate_every: u64,
    /// Held-out cells of a validation.
    pub validate_cells: usize,
    /// A loss more than this many times the mean of those before it stops the run.
    pub spike: f64,
}

impl Default for Settings {
    fn default() -> Self {
        let mixing = Mixing::default();
        Self {
            steps: 1000,
            batch: 32,
            accumulate: 1,
            seed: 0,
            precision: Dtype::F32,
            condition: None,
            hold_out: HoldOut::default(),
            block: mixing.block,
            blocks: mixing.blocks,
            task: ReadDepthAware::default(),
            objectives: Objectives::default(),
            batches: Batches::default(),
            adam: Adam::default(),
            validate_every: 100,
            validate_cells: 256,
            spike: 4.0,
        }
    }
}

impl Settings {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`TrainingError::Setting`] naming the first invalid one.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("steps", self.steps as usize),
            ("batch", self.batch),
            ("accumulate", self.accumulate),
            ("block", self.block),
            ("blocks", self.blocks),
            ("validate_every", self.validate_every as usize),
        ];
        if let Some((name, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return Err(TrainingError::setting(name, 0, "above 0"));
        }
        let most = [
            ("batch", self.batch, 1 << 20),
            ("accumulate", self.accumulate, 1 << 20),
            ("block times blocks", self.block.saturating_mul(self.blocks), 1 << 24),
            ("validate_cells", self.validate_cells, 1 << 24),
        ];
        if let Some((name, size, most)) = most.into_iter().find(|(_, size, most)| size > most) {
            return Err(TrainingError::setting(name, size, format!("{most} at most")));
        }
        if self.spike.is_nan() || self.spike <= 1.0 {
            return Err(TrainingError::setting("spike", self.spike, "above 1"));
        }
        TrainingError::check_dtype(self.precision)?;
        if self.objectives.use_views() && self.batch < 2 {
            return Err(TrainingError::setting("batch", self.batch, "2 or more where components or contrast are used"));
        }
        self.task.check()?;
        self.objectives.check()?;
        self.batches.check()?;
        self.adam.check()
    }
}
