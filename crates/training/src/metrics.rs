//! Measurements of a training step.

use serde::{Deserialize, Serialize};

use crate::network::Loss;
use crate::objectives::Objectives;

/// Measurements of one step: a line of a run's `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Number of the step, from 1.
    pub step: u64,
    /// Cells learned from so far.
    pub cells: u64,
    /// Completed passes over the cells.
    pub epoch: u64,
    /// The weighted sum of the objectives; by default the mean squared error at the masked genes, of ln(1 + x) values.
    pub loss: f64,
    /// The objectives one by one, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<LossParts>,
    /// The same for held-out cells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_parts: Option<LossParts>,
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

/// Losses of the objectives of a step ([`crate::Objectives`]), each without its weight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossParts {
    /// Mean squared error at the masked genes.
    pub read_depth: f64,
    /// Squared errors of the components, as a part of their variance in the batch.
    pub components: f64,
    /// Cross-entropy of the contrast of views.
    pub contrast: f64,
}

impl LossParts {
    /// Of a loss; `None` where there is only read-depth-aware masked regression.
    pub fn of(loss: &Loss, objectives: &Objectives) -> Option<Self> {
        objectives.use_views().then(|| Self {
            read_depth: loss.mean(),
            components: loss.mean_components(),
            contrast: loss.mean_contrast(),
        })
    }
}
