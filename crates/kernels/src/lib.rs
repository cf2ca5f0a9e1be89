//! Kernels of the model on the CPU: plain functions over slices, no tensors.
//!
//! Matrix products in three forms of numbers ([`Linear`] over products of panels), attention of the encoder
//! ([`Attention`]) and of the decoder ([`Favor`]), norms and activations. What a row gives does not depend on what else is
//! in a batch or on the number of threads: every reduction has a fixed order of its own.
//!
//! What learns has its way back beside it ([`Dense`], [`LearningAttention`], [`LearningFavor`], [`norm_back`]…): for one cell at
//! a time and without threads of its own, since cells are what training shares out.
//!
//! What learns on a GPU is in [`device`].
//!
//! Depends on rayon alone, with feature `cuda` on cudarc. Knows nothing of models, files or cells: shapes come with the
//! calls, and a slice too short for them is a panic, for it is a fault of the caller and never of a user's data.

mod amx;
mod attention;
mod attention_learning;
mod attention_operands;
mod backward;
mod dense;
pub mod device;
mod favor;
mod favor_learning;
mod favor_rows;
mod linear;
mod memory;
mod norm;
mod numeric;
mod operands;
mod projection;
mod simd;
mod softmax;
mod tile;

pub use attention::Attention;
pub use attention_learning::{AttentionScratch, LearningAttention};
pub use backward::{add_scaled, gelu_back, norm_back, softmax_back};
pub use dense::{Dense, DenseGradient, DenseScratch};
pub use favor::{Context, Favor, KeySums, Scratch as FavorScratch};
pub use favor_learning::{KeyGradient, LearningContext, LearningFavor, LearningScratch, LearningSums, SumsGradient};
pub use linear::{Activations, BLOCK, Linear, Then};
pub use memory::Rows;
pub use norm::LayerNorm;
pub use numeric::gelu;
pub use simd::dot;
pub use softmax::softmax;
pub use tile::{Form, Isa};
