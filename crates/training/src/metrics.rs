//! Measurements of a training step.

use serde::{Deserialize, Serialize};

/// Measurements of one step: a line of a run's `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Number of the step, from 1.
    pub step: u64,
    /// Cells learned from so far.
    pub cells: u64,
    /// Completed passes over the cells.
    pub epoch: u64,
    /// Mean squared error at the masked genes, of ln(1 + x) values.
    pub loss: f64,
    /// The same for held-out cells after this step, if it was followed by a validation.
    pub validation_loss: Option<f64>,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Global gradient norm before clipping.
    #[serde(rename = "gradient")]
    pub gradient_norm: f64,
    /// Throughput of this step.
    pub cells_per_second: f64,
    /// Seconds of computation since the run began.
    pub seconds: f64,
}
