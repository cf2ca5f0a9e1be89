//! Kernels of the model on the CPU: plain functions over slices, no tensors.
//!
//! - Inference: linear layers in f32, bf16 and int8 ([`Linear`]), attention of the encoder ([`Attention`]) and of the
//!   decoder ([`Favor`]), norms and activations. A row's result does not depend on the other rows of a batch or on the
//!   number of threads: every reduction has a fixed order.
//! - Training: the same with backward passes ([`TrainableLinear`], [`TrainableAttention`], [`TrainableFavor`],
//!   [`norm_backward`]…). They take one cell at a time and start no threads, because training distributes whole cells
//!   over threads.
//! - [`device`]: kernels for training on GPUs (feature `cuda`), and the same as plain loops.
//!
//! Matrices are rows some distance apart ([`Rows`], [`RowsView`]); [`Dtype`] is the number format of products, and
//! [`Isa`] the instructions that compute them.
//!
//! Depends on rayon, with feature `cuda` on cudarc. Knows nothing of models, files or cells: shapes come with the
//! calls. A slice that is too short for them is a panic, because it is a fault of the caller and never of a user's
//! data.
//!
//! ```
//! use cellql_kernels::{Activations, Dtype, Isa, Linear, Rows, Then};
//!
//! // Two rows times a matrix of three outputs and two inputs, as torch stores it, plus a bias.
//! let layer = Linear::pack(Isa::best(), Dtype::F32, &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0], &[0.0, 0.0, 0.5], 2, 3);
//! let (mut x, mut y) = (Rows::new(2, 2), Rows::new(2, 3));
//! x.row_mut(0).copy_from_slice(&[1.0, 2.0]);
//! x.row_mut(1).copy_from_slice(&[3.0, 4.0]);
//! let mut activations = Activations::default();
//! layer.forward(activations.of(Dtype::F32, x.view(0), 2), 2, Then::Bias, y.view_mut(0));
//! assert_eq!(y.row(0), [1.0, 2.0, 3.5]);
//! assert_eq!(y.row(1), [3.0, 4.0, 7.5]);
//! ```

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod attention_backward;
mod attention_operands;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod backward;
mod detection;
pub mod device;
mod favor;
mod favor_backward;
mod favor_rows;
mod isa;
mod linear;
mod linear_backward;
mod norm;
mod numeric;
mod operands;
mod panel;
mod product;
mod projection;
mod rows;
mod simd;
mod softmax;
mod view;

pub use attention::Attention;
pub use attention_backward::{AttentionScratch, TrainableAttention};
pub use backward::{add_scaled, gelu_backward, norm_backward, softmax_backward};
pub use cellql_dtype::{Dtype, UnknownDtype};
pub use favor::{Context, FEATURE_EPS, Favor, FavorScratch, KeySums};
pub use favor_backward::{
    FavorBackwardScratch, KeyGradient, SumsGradient, TrainableContext, TrainableFavor, TrainableSums,
};
pub use isa::Isa;
pub use linear::{Activations, BLOCK, Linear, Then};
pub use linear_backward::{LinearGradient, LinearScratch, TrainableLinear, transposed};
pub use norm::{LayerNorm, NORM_EPS};
pub use numeric::gelu;
pub use rows::Rows;
pub use simd::dot;
pub use softmax::softmax;
pub use view::{RowsView, RowsViewMut};
