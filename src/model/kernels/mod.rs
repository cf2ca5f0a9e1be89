//! Kernels of inference on the CPU: plain functions over slices, no tensors.
//!
//! Matrix products in three forms of numbers ([`linear`] over [`tile`] and [`amx`]), attention of the encoder
//! ([`attention`]) and of the decoder ([`favor`]), norms and activations. What a row gives does not depend on what else is
//! in a batch or on the number of threads: every reduction has a fixed order of its own.

mod amx;
mod attention;
mod favor;
mod linear;
mod memory;
mod norm;
mod numeric;
mod softmax;
mod tile;

pub(super) use attention::Attention;
pub(super) use favor::{Context, Favor, KeySums, Scratch as FavorScratch};
pub(super) use linear::{Activations, BLOCK, Linear, Then};
pub(super) use memory::Rows;
pub(super) use norm::LayerNorm;
pub(super) use numeric::gelu;
pub(super) use softmax::softmax;
pub(super) use tile::{Form, Isa};
