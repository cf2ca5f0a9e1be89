//! Everything a run of pretraining depends on beside the store and the weights it begins with.

use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainingError};
use crate::optimiser::Adam;
use crate::order::Mixing;
use crate::task::Task;

/// Numbers that products of training compute with; weights and moments are f32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Numbers {
    /// 32 bits.
    F32,
    /// Products of 16-bit numbers, summed in f32.
    Bf16,
}

/// Cells that are not learned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HoldOut {
    /// Share of all cells, by the hash of their content.
    pub share: f64,
    /// SQL condition on `cells`: those that satisfy it are held out too.
    pub condition: Option<String>,
}

impl Default for HoldOut {
    fn default() -> Self {
        Self { share: 0.1, condition: None }
    }
}

/// How a model is trained. Files of settings are JSON of this form; what they leave out is as here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Steps.
    pub steps: u64,
    /// Cells of a batch.
    pub batch: usize,
    /// Batches of a step: their gradients are added up.
    pub accumulate: usize,
    /// Seed of orders and masks.
    pub seed: u64,
    /// Numbers of products.
    pub precision: Numbers,
    /// SQL condition on `cells`: those to learn from.
    pub condition: Option<String>,
    /// Those not to.
    pub hold_out: HoldOut,
    /// How cells are mixed: cells of a block.
    pub block: usize,
    /// Blocks shuffled together.
    pub blocks: usize,
    /// The task.
    pub task: Task,
    /// How weights follow gradients.
    pub adam: Adam,
    /// Steps between two looks at held-out cells.
    pub validate_every: u64,
    /// Held-out cells looked at.
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
            precision: Numbers::F32,
            condition: None,
            hold_out: HoldOut::default(),
            block: mixing.block,
            blocks: mixing.blocks,
            task: Task::default(),
            adam: Adam::default(),
            validate_every: 100,
            validate_cells: 256,
            spike: 4.0,
        }
    }
}

impl Settings {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`TrainingError::Setting`] naming the one that makes no sense.
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
        self.task.check()?;
        self.adam.check()
    }
}
