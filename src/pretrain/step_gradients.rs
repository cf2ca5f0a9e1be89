//! The gradient of a step, from those of its objectives.

use cellql_training::learner::AllReduce;
use cellql_training::{Loss, Settings};
use rayon::prelude::*;

use crate::error::Result;

/// Gradients of a step before they are averaged.
pub(super) struct StepGradients {
    /// Of the sum of squares of RDA.
    pub(super) read_depth: Vec<f32>,
    /// Of the weighted losses of views; empty where no objective uses them.
    pub(super) views: Vec<f32>,
}

impl StepGradients {
    pub(super) fn new(weights: usize, settings: &Settings) -> Self {
        let views = if settings.objectives.use_views() { weights } else { 0 };
        Self { read_depth: vec![0.0; weights], views: vec![0.0; views] }
    }

    /// The gradient over all processes, the loss, and the factor that makes the gradient that of the mean loss. Without
    /// views it is the gradient of RDA as it was computed.
    pub(super) fn sum(mut self, all: &dyn AllReduce, loss: Loss, settings: &Settings) -> Result<(Vec<f32>, Loss, f64)> {
        let loss = all.sum(&mut self.read_depth, loss)?;
        let scale = settings.objectives.read_depth / loss.masked.max(1) as f64;
        if self.views.is_empty() {
            return Ok((self.read_depth, loss, scale));
        }
        all.sum(&mut self.views, Loss::default())?;
        let of_views = 1.0 / loss.view_batches.max(1) as f64;
        let both = self.read_depth.par_iter_mut().zip(&self.views);
        both.for_each(|(g, v)| *g = (f64::from(*g) * scale + f64::from(*v) * of_views) as f32);
        Ok((self.read_depth, loss, 1.0))
    }
}
