//! What a thread holds while it goes through its cells of a batch: gradients, loss and buffers.

use cellql_kernels::{Activations, KeyGradient, LinearGradient, LinearScratch, Rows};

use super::Loss;
use super::decoder::{self, LayerGradient};
use super::encoder;
use super::layers::NormGradient;
use super::tokens::TokenGradient;
use super::values;

/// Gradients of every weight, in the layouts in which products sum them.
#[derive(Debug)]
pub(super) struct Gradient {
    pub(super) tokens: TokenGradient,
    pub(super) embed: LinearGradient,
    pub(super) layers: Vec<LayerGradient>,
    pub(super) norms: [NormGradient; 2],
    /// Of `to_final`: weight, `[width]`, and bias.
    pub(super) last: (Vec<f32>, f32),
    /// Of the vector that embeds the value zero, `[dim]`.
    pub(super) zero: Vec<f32>,
}

/// Buffers of one thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) values: values::Scratch,
    pub(super) encoder: encoder::Scratch,
    pub(super) decoder: decoder::Scratch,
    pub(super) activations: Activations,
    pub(super) linear: LinearScratch,
    /// Input of each decoder layer, and the gradient of one of them, `[positions, width]`.
    pub(super) entered: Vec<Rows>,
    pub(super) d: Rows,
}

/// What one thread accumulates over its cells of a batch.
#[derive(Debug)]
pub(super) struct ThreadState {
    pub(super) gradient: Gradient,
    pub(super) shared: SharedGradient,
    pub(super) shared_keys: KeyGradient,
    pub(super) loss: Loss,
    pub(super) scratch: Scratch,
}

/// Gradient of the rows that cells share ([`super::shared_rows`]).
#[derive(Debug, Default)]
pub(super) struct SharedGradient {
    /// `[positions, width]`.
    pub(super) rows: Rows,
    /// t of shared queries, `[positions, features]`; unused where the first layer is the last.
    pub(super) features: Rows,
}

/// The buffers that a thread keeps for its next step. Memory returned to the system would be faulted in again page by
/// page.
pub(super) type Buffers = (Scratch, SharedGradient);
