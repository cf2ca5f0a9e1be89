//! The model as it learns on the CPU: the loss of a batch and the gradient of every weight, written out by hand.
//!
//! A cell goes through alone, and cells are shared out over threads; inside a cell, blocks of positions go through a layer
//! while they are in the cache. What the way back reads is kept, or computed again where memory is short
//! ([`Network::recomputing`]); gradients are the same to the bit. Weights are packed once for a
//! step, in f32 or bf16, from weights in f32. `model::graph` is the same model in plain tensors, and tests hold the gradients
//! of the two to each other, and both to finite differences.
//!
//! Depends on `kernels` and on this module's task and parameters. Knows nothing of stores, optimisers or files.

mod cell;
mod decoder;
mod encoder;
mod layers;
mod shared;
#[cfg(test)]
mod tests;
mod values;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use cellql_kernels::{Form, Rows};
use rayon::prelude::*;

use crate::error::Result;
use crate::parameters::Parameters;
use crate::task::Example;
use cell::{Left, Part, Scratch};
use decoder::Layer;
use encoder::Encoder;
use layers::{Linear, Norm};
use values::Values;

/// Squared errors at masked positions.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Loss {
    /// Their sum, of ln(1 + x) values.
    pub squares: f64,
    /// How many.
    pub masked: u64,
}

impl Loss {
    /// The mean squared error.
    pub fn mean(&self) -> f64 {
        self.squares / self.masked.max(1) as f64
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { squares: self.squares + other.squares, masked: self.masked + other.masked }
    }
}

/// Memory of threads, for one step after another: taken from the system and given back each time, it would cost a tenth of a
/// step.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Vec<Left>>);

impl Memory {
    fn take(&self) -> Option<Left> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn leave(&self, left: Left) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(left);
    }
}

/// A model, packed for a step.
#[derive(Debug)]
pub struct Network<'a> {
    values: Values,
    encoder: Encoder,
    embed: Linear,
    layers: Vec<Layer>,
    norms: [Norm; 2],
    /// `[width]`, then its bias: context to expression.
    last: (&'a [f32], f32),
    last_at: [Range<usize>; 2],
    /// `[seq_len + 1, dim]`.
    positions: &'a [f32],
    positions_at: Range<usize>,
    /// The vector of what is hidden, `[dim]`.
    mask: &'a [f32],
    /// That of a value of zero.
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
    /// [`crate::TrainingError::Weight`] where a weight is missing or misshapen.
    pub fn pack(parameters: &'a Parameters, form: Form) -> Result<Self> {
        let config = parameters.config();
        let (dim, width) = (config.encoder.hidden_dim, config.decoder.hidden_dim);
        let values = Values::pack(parameters)?;
        let last_at = [parameters.at("to_final.weight", &[1, width])?, parameters.at("to_final.bias", &[1])?];
        let positions_at = parameters.at("pos_emb.weight", &[config.seq_len + 1, dim])?;
        let mut zero = Rows::new(1, dim);
        values.forward(&[0.0], zero.part_mut(0), &mut values::Scratch::default());
        let layer = |n| Layer::pack(parameters, form, n);
        Ok(Self {
            encoder: Encoder::pack(parameters, form)?,
            embed: Linear::pack(parameters, form, "decoder_embed", dim, width)?,
            layers: (0..config.decoder.depth).map(layer).collect::<Result<_>>()?,
            norms: [Norm::pack(parameters, "decoder.norm", width)?, Norm::pack(parameters, "norm", width)?],
            last: (&parameters.values[last_at[0].clone()], parameters.values[last_at[1].start]),
            last_at,
            positions: &parameters.values[positions_at.clone()],
            positions_at,
            mask: &parameters.values[values.mask_at()],
            zero: zero.row(0).to_vec(),
            values,
            dim,
            width,
            seq_len: config.seq_len,
            all: (0..config.seq_len).collect(),
            recomputes: false,
        })
    }

    /// Computes again on the way back what would be kept of the way there.
    #[must_use]
    pub fn recomputing(self, recomputes: bool) -> Self {
        Self { recomputes, ..self }
    }

    fn position(&self, position: usize) -> &[f32] {
        &self.positions[position * self.dim..][..self.dim]
    }

    /// The loss of some cells.
    pub fn loss(&self, examples: &[Example]) -> Loss {
        let shared = self.share();
        let each = examples.par_iter().map_init(Scratch::default, |scratch, e| self.ask(e, &shared, scratch));
        each.collect::<Vec<_>>().into_iter().fold(Loss::default(), Loss::and)
    }

    /// The loss of some cells, and the gradient of its sum of squares, added to `flat` in the parameters' order. With one
    /// number of threads the sums have one order.
    pub fn learn(&self, examples: &[Example], flat: &mut [f32], memory: &Memory) -> Loss {
        let shared = self.share();
        // By tokens, dealt out so that threads end together.
        let mut order: Vec<&Example> = examples.iter().collect();
        order.sort_by_cached_key(|example| std::cmp::Reverse(example.seen().count()));
        let threads = rayon::current_num_threads().min(examples.len()).max(1);
        let mut parts: Vec<Part> = (0..threads).into_par_iter().map(|_| self.part(&shared, memory.take())).collect();
        parts.par_iter_mut().enumerate().for_each(|(n, part)| {
            order.iter().skip(n).step_by(threads).for_each(|example| self.learn_one(example, &shared, part));
        });
        self.share_back(&shared, &mut parts);
        let loss = parts.iter_mut().map(|part| self.add_to(part, flat)).fold(Loss::default(), Loss::and);
        parts.into_iter().for_each(|part| memory.leave((part.scratch, part.shared)));
        loss
    }

    fn learn_one(&self, example: &Example, shared: &shared::Shared, part: &mut Part) {
        // A cell of which nothing was masked teaches nothing.
        if !example.masked.is_empty() {
            self.learn_cell(example, shared, part);
        }
    }

    /// Adds a part's gradient to the row of all gradients; gives its loss.
    fn add_to(&self, part: &mut Part, flat: &mut [f32]) -> Loss {
        let Part { gradient, scratch, loss, .. } = part;
        self.values.back(&[0.0], (&gradient.zero, self.dim), &mut gradient.values, &mut scratch.values);
        self.values.add_to(&gradient.values, flat);
        self.encoder.add_to(&gradient.encoder, flat);
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
        cellql_kernels::add_scaled(&mut flat[self.positions_at.clone()], &gradient.positions, 1.0);
        *loss
    }
}
