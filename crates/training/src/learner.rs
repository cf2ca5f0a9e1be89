//! The border between a training run and the computation of gradients ([`Learner`]), and between the processes of a run
//! ([`AllReduce`]). The learner on the CPU's kernels is here; [`crate::device`] has that on devices.

use cellql_kernels::Dtype;

use crate::error::{Result, TrainingError};
use crate::flat_weights::FlatWeights;
use crate::network::{BufferPool, Loss, Network, ViewBuffers, ViewNetwork};
use crate::objectives::Objectives;
use crate::read_depth::Example;
use crate::views::{CellViews, target_len};

/// Computes the loss of examples and the gradient of its sum of squares.
pub trait Learner: Send + Sync {
    /// Adds the gradient to `flat`, in the parameters' order.
    ///
    /// # Errors
    /// A weight is missing or misshapen, or memory does not suffice.
    fn learn(&self, parameters: &FlatWeights, examples: &[Example], flat: &mut [f32]) -> Result<Loss>;

    /// The loss alone.
    ///
    /// # Errors
    /// As [`Learner::learn`].
    fn loss(&self, parameters: &FlatWeights, examples: &[Example]) -> Result<Loss>;

    /// Adds the gradient of the weighted losses of a batch of views to `flat`, in the parameters' order.
    ///
    /// # Errors
    /// As [`Learner::learn`].
    fn learn_views(
        &self,
        parameters: &FlatWeights,
        batch: &[CellViews],
        objectives: &Objectives,
        flat: &mut [f32],
    ) -> Result<Loss>;

    /// The losses alone.
    ///
    /// # Errors
    /// As [`Learner::learn`].
    fn loss_of_views(&self, parameters: &FlatWeights, batch: &[CellViews], objectives: &Objectives) -> Result<Loss>;
}

/// Learns with the kernels of the CPU.
#[derive(Debug)]
pub struct OnKernels {
    dtype: Dtype,
    recomputes: bool,
    buffers: BufferPool,
    view_buffers: ViewBuffers,
}

impl OnKernels {
    /// Products in f32 or bf16. With `recomputes` the backward pass recomputes activations instead of storing them:
    /// less memory, more time, the same gradients, so a resumed run may change it.
    ///
    /// # Errors
    /// [`TrainingError::Setting`] for int8.
    pub fn new(dtype: Dtype, recomputes: bool) -> Result<Self> {
        TrainingError::check_dtype(dtype)?;
        Ok(Self { dtype, recomputes, buffers: BufferPool::default(), view_buffers: ViewBuffers::default() })
    }
}

impl Learner for OnKernels {
    fn learn(&self, parameters: &FlatWeights, examples: &[Example], flat: &mut [f32]) -> Result<Loss> {
        let network = Network::pack(parameters, self.dtype)?.recomputing(self.recomputes);
        Ok(network.learn(examples, flat, &self.buffers))
    }

    fn loss(&self, parameters: &FlatWeights, examples: &[Example]) -> Result<Loss> {
        Ok(Network::pack(parameters, self.dtype)?.loss(examples))
    }

    fn learn_views(
        &self,
        parameters: &FlatWeights,
        batch: &[CellViews],
        objectives: &Objectives,
        flat: &mut [f32],
    ) -> Result<Loss> {
        let network = ViewNetwork::pack(parameters, self.dtype, objectives, target_len(batch))?;
        Ok(network.recomputing(self.recomputes).learn(batch, flat, &self.view_buffers))
    }

    fn loss_of_views(&self, parameters: &FlatWeights, batch: &[CellViews], objectives: &Objectives) -> Result<Loss> {
        Ok(ViewNetwork::pack(parameters, self.dtype, objectives, target_len(batch))?.loss(batch))
    }
}

/// Sums gradients and losses over the processes of a run. Each process holds the same weights and reads its own cells.
pub trait AllReduce: Send + Sync {
    /// Number of this process, from 0.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn ranks(&self) -> usize;

    /// Replaces `gradient` by its sum over all processes and returns the sum of their losses: the same bits in every
    /// process.
    ///
    /// # Errors
    /// Another process is gone.
    fn sum(&self, gradient: &mut [f32], loss: Loss) -> Result<Loss>;
}

/// A run of one process.
#[derive(Debug, Clone, Copy)]
pub struct SingleProcess;

impl AllReduce for SingleProcess {
    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        1
    }

    fn sum(&self, _: &mut [f32], loss: Loss) -> Result<Loss> {
        Ok(loss)
    }
}
