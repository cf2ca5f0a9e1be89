//! Training on the CPU: the loss of a batch and the gradient of every weight, with hand-written backward passes.
//!
//! Each cell is computed alone, and cells are distributed over threads. Inside a cell, blocks of positions go through a
//! layer while they are in the cache. Activations that the backward pass reads are stored, or recomputed where memory
//! is short ([`Network::recomputing`]); the gradients are the same to the bit. Weights are packed once per step, in f32
//! or bf16, from weights in f32. `cellql_model::Graph` is the same model in tensors; tests compare the gradients of the
//! two with each other and with finite differences.
//!
//! Depends on `kernels` and on this crate's examples and parameters. Knows nothing of stores, optimisers or files.

mod cell;
mod decoder;
mod encoder;
mod layers;
mod pooling;
mod shared_rows;
#[cfg(test)]
mod tests;
mod thread_state;
mod tokens;
mod values;
mod view_losses;
#[cfg(test)]
mod view_tests;
mod views;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use cellql_kernels::{Dtype, Rows};
use rayon::prelude::*;

use crate::error::{Result, TrainingError};
use crate::flat_weights::FlatWeights;
use crate::objectives::Objectives;
use crate::read_depth::Example;
use decoder::Layer;
use layers::{Linear, Norm};
use shared_rows::SharedRows;
use thread_state::{Buffers, Scratch, ThreadState};
use tokens::TokenEncoder;
pub(crate) use view_losses::spread;
pub use views::{ViewBuffers, ViewNetwork};

/// Losses of some cells, as sums, so that those of parts of a batch add up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Loss {
    /// Squared errors at masked positions, of ln(1 + x) values.
    pub squares: f64,
    /// Number of masked positions.
    pub masked: u64,
    /// Losses of the components, one per batch of views.
    pub components: f64,
    /// Contrasts, one per batch of views.
    pub contrast: f64,
    /// Number of batches of views.
    pub view_batches: u64,
}

impl Loss {
    /// The mean squared error at masked positions.
    pub fn mean(&self) -> f64 {
        self.squares / self.masked.max(1) as f64
    }

    /// The mean loss of the components.
    pub fn mean_components(&self) -> f64 {
        self.components / self.view_batches.max(1) as f64
    }

    /// The mean contrast.
    pub fn mean_contrast(&self) -> f64 {
        self.contrast / self.view_batches.max(1) as f64
    }

    /// The weighted sum of all.
    pub fn total(&self, objectives: &Objectives) -> f64 {
        objectives.read_depth * self.mean()
            + objectives.components * self.mean_components()
            + objectives.contrast * self.mean_contrast()
    }

    /// The loss over the cells of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            squares: self.squares + other.squares,
            masked: self.masked + other.masked,
            components: self.components + other.components,
            contrast: self.contrast + other.contrast,
            view_batches: self.view_batches + other.view_batches,
        }
    }
}

/// Buffers of threads that are used again in the next step. To allocate them in every step would cost a tenth of it.
#[derive(Debug, Default)]
pub struct BufferPool(Mutex<Vec<Buffers>>);

impl BufferPool {
    fn take(&self) -> Option<Buffers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn put(&self, buffers: Buffers) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffers);
    }
}

/// A model, packed for a step.
#[derive(Debug)]
pub struct Network<'a> {
    tokens: TokenEncoder<'a>,
    embed: Linear,
    layers: Vec<Layer>,
    norms: [Norm; 2],
    /// `to_final`, from context to expression: weight, `[width]`, and bias.
    last: (&'a [f32], f32),
    last_at: [Range<usize>; 2],
    /// The vector of the mask token, `[dim]`.
    mask: &'a [f32],
    /// The vector of the value zero, `[dim]`.
    zero: Vec<f32>,
    dim: usize,
    width: usize,
    seq_len: usize,
    /// Every position, in order.
    all: Vec<usize>,
    recomputes: bool,
}

impl<'a> Network<'a> {
    /// Packs weights for a step, products in f32 or bf16.
    ///
    /// # Errors
    /// [`TrainingError::Weight`] where a weight is missing or misshapen, [`TrainingError::Setting`] for int8.
    pub fn pack(parameters: &'a FlatWeights, dtype: Dtype) -> Result<Self> {
        TrainingError::check_dtype(dtype)?;
        let config = parameters.config();
        let (dim, width) = (config.encoder.hidden_dim, config.decoder.hidden_dim);
        let tokens = TokenEncoder::pack(parameters, dtype)?;
        let last_at = [parameters.at("to_final.weight", &[1, width])?, parameters.at("to_final.bias", &[1])?];
        let mut zero = Rows::new(1, dim);
        tokens.values.forward(&[0.0], zero.view_mut(0), &mut values::Scratch::default());
        let layer = |n| Layer::pack(parameters, dtype, n);
        Ok(Self {
            embed: Linear::pack(parameters, dtype, "decoder_embed", dim, width)?,
            layers: (0..config.decoder.depth).map(layer).collect::<Result<_>>()?,
            norms: [Norm::pack(parameters, "decoder.norm", width)?, Norm::pack(parameters, "norm", width)?],
            last: (&parameters.values[last_at[0].clone()], parameters.values[last_at[1].start]),
            last_at,
            mask: &parameters.values[tokens.values.mask_at()],
            zero: zero.row(0).to_vec(),
            tokens,
            dim,
            width,
            seq_len: config.seq_len,
            all: (0..config.seq_len).collect(),
            recomputes: false,
        })
    }

    /// Whether the backward pass recomputes activations instead of storing them (activation checkpointing).
    #[must_use]
    pub fn recomputing(self, recomputes: bool) -> Self {
        Self { recomputes, ..self }
    }

    /// The loss of some cells.
    pub fn loss(&self, examples: &[Example]) -> Loss {
        let shared = self.shared_rows();
        let each = examples.par_iter().map_init(Scratch::default, |scratch, e| self.loss_of_cell(e, &shared, scratch));
        each.collect::<Vec<_>>().into_iter().fold(Loss::default(), Loss::and)
    }

    /// The loss of some cells, and the gradient of its sum of squares, added to `flat` in the parameters' order. With
    /// one number of threads the sums have one order.
    pub fn learn(&self, examples: &[Example], flat: &mut [f32], buffers: &BufferPool) -> Loss {
        let shared = self.shared_rows();
        // By length, dealt out so that threads finish together.
        let mut order: Vec<&Example> = examples.iter().collect();
        order.sort_by_cached_key(|example| std::cmp::Reverse(example.seen().count()));
        let threads = rayon::current_num_threads().min(examples.len()).max(1);
        let state = |_| self.thread_state(&shared, buffers.take());
        let mut states: Vec<ThreadState> = (0..threads).into_par_iter().map(state).collect();
        states.par_iter_mut().enumerate().for_each(|(n, state)| {
            order.iter().skip(n).step_by(threads).for_each(|example| self.learn_one(example, &shared, state));
        });
        self.shared_rows_backward(&shared, &mut states);
        let loss = states.iter_mut().map(|state| self.add_to(state, flat)).fold(Loss::default(), Loss::and);
        states.into_iter().for_each(|state| buffers.put((state.scratch, state.shared)));
        loss
    }

    fn learn_one(&self, example: &Example, shared: &SharedRows, state: &mut ThreadState) {
        // Without masked positions there is no loss.
        if !example.masked.is_empty() {
            self.learn_cell(example, shared, state);
        }
    }

    /// Adds a thread's gradient to the flat vector of all gradients; returns its loss.
    fn add_to(&self, state: &mut ThreadState, flat: &mut [f32]) -> Loss {
        let ThreadState { gradient, scratch, loss, .. } = state;
        self.tokens.zero_backward(&gradient.zero, &mut gradient.tokens, &mut scratch.values);
        self.tokens.add_to(&gradient.tokens, flat);
        self.embed.add_to(&gradient.embed, flat);
        for (layer, gradient) in self.layers.iter().zip(&gradient.layers) {
            layer.add_to(gradient, flat);
        }
        for (norm, gradient) in self.norms.iter().zip(&gradient.norms) {
            norm.add_to(gradient, flat);
        }
        let [weight, bias] = &self.last_at;
        cellql_kernels::add_scaled(&mut flat[weight.clone()], &gradient.last.0, 1.0);
        flat[bias.start] += gradient.last.1;
        *loss
    }
}
