//! Training of xTrimoGene models: cells become examples ([`task`]), examples give gradients of all weights ([`learner`], by
//! [`network`] on the CPU, by [`device`] elsewhere), and weights follow the gradients ([`optimiser`]).
//!
//! A run's settings ([`settings`]) and state ([`checkpoint`]) are plain data here. Depends on `model` and `kernels`. Knows nothing
//! of stores, SQL or the terminal: who trains gives cells as counts at positions of the vocabulary ([`Cell`]).

mod cell;
pub mod checkpoint;
pub mod curves;
pub mod device;
mod error;
pub mod learner;
mod metrics;
#[cfg(feature = "nccl")]
mod nccl;
pub mod network;
pub mod optimiser;
mod order;
pub mod parameters;
pub mod scaling;
mod seed;
pub mod settings;
pub mod task;

pub use cell::{ByPosition, Cell};
pub use curves::curves;
pub use device::OnDevices;
pub use error::{Result, TrainingError};
pub use learner::{Alone, Exchange, Learner, OnKernels, Together};
pub use metrics::Measured;
pub use network::{Loss, Network};
pub use optimiser::{Adam, Schedule};
pub use order::{Mixing, Place};
pub use parameters::Parameters;
pub use seed::seeded;
pub use settings::{HoldOut, Numbers, Settings};
pub use task::{Example, Task};
