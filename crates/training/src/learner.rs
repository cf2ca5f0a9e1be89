//! Who computes gradients, and with whom they are summed. Kernels on the CPU stand here, devices in [`crate::device`].

use std::sync::{Arc, Barrier, Mutex, PoisonError};

use cellql_kernels::Form;

use crate::error::Result;
use crate::network::{Loss, Memory, Network};
use crate::parameters::Parameters;
use crate::settings::Numbers;
use crate::task::Example;

/// Gives the loss of examples and the gradient of its sum of squares.
pub trait Learner: Send + Sync {
    /// Adds the gradient to `flat`, in the parameters' order.
    ///
    /// # Errors
    /// A weight is missing or misshapen, or memory does not suffice.
    fn learn(&self, parameters: &Parameters, examples: &[Example], flat: &mut [f32]) -> Result<Loss>;

    /// The loss alone.
    ///
    /// # Errors
    /// As [`Learner::learn`].
    fn loss(&self, parameters: &Parameters, examples: &[Example]) -> Result<Loss>;
}

/// The CPU's kernels.
#[derive(Debug)]
pub struct OnKernels {
    form: Form,
    recomputes: bool,
    memory: Memory,
}

impl OnKernels {
    /// Products in some numbers. `recomputes` computes activations again on the way back instead of keeping them: less memory,
    /// more time, the same gradients, so a run may change it as it goes on.
    pub fn new(numbers: Numbers, recomputes: bool) -> Self {
        let form = match numbers {
            Numbers::F32 => Form::F32,
            Numbers::Bf16 => Form::Bf16,
        };
        Self { form, recomputes, memory: Memory::default() }
    }
}

impl Learner for OnKernels {
    fn learn(&self, parameters: &Parameters, examples: &[Example], flat: &mut [f32]) -> Result<Loss> {
        let network = Network::pack(parameters, self.form)?.recomputing(self.recomputes);
        Ok(network.learn(examples, flat, &self.memory))
    }

    fn loss(&self, parameters: &Parameters, examples: &[Example]) -> Result<Loss> {
        Ok(Network::pack(parameters, self.form)?.loss(examples))
    }
}

/// Sums gradients and losses over the processes of a run, each of which holds the same weights and reads its own
/// cells.
pub trait Exchange: Send + Sync {
    /// This one, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn ranks(&self) -> usize;

    /// Replaces gradient and loss by their sums over all, the same numbers everywhere.
    ///
    /// # Errors
    /// Another one is gone.
    fn sum(&self, gradient: &mut [f32], loss: Loss) -> Result<Loss>;
}

/// No others.
#[derive(Debug, Clone, Copy)]
pub struct Alone;

impl Exchange for Alone {
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

/// Several runs in one process, each with its own cells.
#[derive(Debug)]
pub struct Together {
    rank: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ranks: usize,
    barrier: Barrier,
    sums: Mutex<(Vec<f32>, Loss)>,
}

impl Together {
    /// One for each of `ranks` learners.
    pub fn of(ranks: usize) -> Vec<Self> {
        let shared = Shared { ranks, barrier: Barrier::new(ranks), sums: Mutex::default() };
        let shared = Arc::new(shared);
        (0..ranks).map(|rank| Self { rank, shared: Arc::clone(&shared) }).collect()
    }
}

impl Exchange for Together {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.shared.ranks
    }

    fn sum(&self, gradient: &mut [f32], loss: Loss) -> Result<Loss> {
        let Shared { ranks, barrier, sums } = &*self.shared;
        // In the order of ranks, so that the sum is the same in every run.
        for turn in 0..*ranks {
            if turn == self.rank {
                let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
                if turn == 0 {
                    *sums = (gradient.to_vec(), loss);
                } else {
                    cellql_kernels::add_scaled(&mut sums.0, gradient, 1.0);
                    sums.1 = sums.1.and(loss);
                }
            }
            barrier.wait();
        }
        let whole = {
            let sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
            gradient.copy_from_slice(&sums.0);
            sums.1
        };
        barrier.wait();
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_the_same_everywhere_step_after_step() {
        let one = |exchange: Together| {
            let rank = exchange.rank() as f32;
            let mut seen = Vec::new();
            for step in 0..20 {
                let mut gradient = vec![rank + 1.0, 10.0 * step as f32 + rank];
                let loss = Loss { squares: f64::from(rank) + 1.0, masked: 2 };
                seen.push((exchange.sum(&mut gradient, loss).unwrap(), gradient));
            }
            seen
        };
        let threads: Vec<_> = Together::of(3).into_iter().map(|e| std::thread::spawn(move || one(e))).collect();
        let all: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(all.iter().all(|seen| *seen == all[0]));
        let (loss, gradient) = &all[0][7];
        assert_eq!((loss.squares, loss.masked), (6.0, 6));
        assert_eq!(*gradient, [6.0, 213.0]);
    }
}
