//! Training of xTrimoGene models: cells become examples ([`read_depth`]), examples give gradients of all weights
//! ([`learner`]; by [`network`] on the CPU, by [`device`] elsewhere), and the optimiser updates the weights
//! ([`optimiser`]).
//!
//! A run's settings ([`settings`]) and state ([`checkpoint`]) are plain data. Depends on `model`, `kernels` and
//! `schemas`. Knows nothing of stores, SQL or the terminal: callers pass cells as counts at positions of the vocabulary
//! ([`Cell`]).

mod cell;
pub mod checkpoint;
pub mod curves;
pub mod device;
mod downsampling;
mod error;
pub mod flat_weights;
pub mod gene_panel;
pub mod heads;
pub mod learner;
mod loader_position;
mod metrics;
#[cfg(feature = "nccl")]
mod nccl;
pub mod network;
pub mod objectives;
pub mod optimiser;
pub mod read_depth;
mod seed;
pub mod settings;
pub mod training_cost;
pub mod views;

pub use cell::{Cell, counts_by_position};
pub use curves::curves;
pub use device::OnDevices;
pub use downsampling::downsampled;
pub use error::{Result, TrainingError};
pub use flat_weights::FlatWeights;
pub use gene_panel::GenePanel;
pub use heads::{add_heads, set_gene_embeddings};
pub use learner::{AllReduce, Learner, OnKernels, SingleProcess};
pub use loader_position::{LoaderPosition, Mixing};
pub use metrics::{LossParts, StepMetrics};
pub use network::{Loss, Network};
pub use objectives::{Batches, Objectives};
pub use optimiser::{Adam, Schedule};
pub use read_depth::{Example, ReadDepthAware};
pub use seed::seeded;
pub use settings::{HoldOut, Settings};
pub use views::CellViews;
