//! Kernels of inference on the CPU: plain functions over slices, no tensors.
//!
//! Matrix products in three forms of numbers ([`Linear`] over products of panels), attention of the encoder
//! ([`Attention`]) and of the decoder ([`Favor`]), norms and activations. What a row gives does not depend on what else is
//! in a batch or on the number of threads: every reduction has a fixed order of its own.
//!
//! Depends on rayon alone. Knows nothing of models, files or cells: shapes come with the calls, and a slice too short for
//! them is a panic, for it is a fault of the caller and never of a user's data.

mod amx;
mod attention;
mod favor;
mod linear;
mod memory;
mod norm;
mod numeric;
mod simd;
mod softmax;
mod tile;

pub use attention::Attention;
pub use favor::{Context, Favor, KeySums, Scratch as FavorScratch};
pub use linear::{Activations, BLOCK, Linear, Then};
pub use memory::Rows;
pub use norm::LayerNorm;
pub use numeric::gelu;
pub use simd::dot;
pub use softmax::softmax;
pub use tile::{Form, Isa};
