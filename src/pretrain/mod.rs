//! Training a model from the cells of a store.
//!
//! Some cells are held out ([`split`]), the others come in random order ([`loader`]) and become examples ([`task`]).
//! Examples give gradients of all weights ([`learner`], by [`network`] on the CPU, by [`device`] elsewhere), weights follow them ([`optimiser`]),
//! and a run of such steps can be stopped and gone on with anywhere ([`mod@run`], [`checkpoint`]).
//!
//! Depends on `model` and `store`. Knows nothing of SQL or the terminal.

pub mod checkpoint;
pub mod curves;
pub mod device;
pub mod learner;
pub mod loader;
pub mod measured;
#[cfg(feature = "nccl")]
mod nccl;
pub mod network;
pub mod optimiser;
pub mod parameters;
pub mod run;
mod seed;
pub mod settings;
pub mod split;
pub mod task;

pub use curves::curves;
pub use device::OnDevices;
pub use learner::{Alone, Exchange, Learner, OnKernels, Together};
pub use loader::{Cell, Loader, Mixing, Place};
pub use measured::MeasuredGenes;
pub use network::{Loss, Network};
pub use optimiser::{Adam, Schedule};
pub use parameters::Parameters;
pub use run::{Ended, Measured, Run};
pub use settings::{Numbers, Settings};
pub use split::{HoldOut, Split, split};
pub use task::{Example, Task};
