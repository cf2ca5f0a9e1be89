//! What is measured of a step of training.

use serde::{Deserialize, Serialize};

/// One line of a run's `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Steps done.
    pub step: u64,
    /// Cells learned from so far.
    pub cells: u64,
    /// Times the cells were gone through.
    pub epoch: u64,
    /// Mean squared error at the masked genes, of ln(1 + x) values.
    pub loss: f64,
    /// The same of held-out cells, after this step.
    pub validation_loss: Option<f64>,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Length of the gradient before it was clipped.
    pub gradient: f64,
    /// Of this step.
    pub cells_per_second: f64,
    /// Of work, so far.
    pub seconds: f64,
}
