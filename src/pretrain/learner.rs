//! Who computes gradients: kernels on the CPU, or the plain tensors on a device. And with whom they are summed.

use std::sync::{Arc, Barrier, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor, Var};
use cellql_kernels::Form;

use super::network::{Loss, Network};
use super::parameters::Parameters;
use super::settings::Numbers;
use super::task::Example;
use crate::error::{Error, Result};
use crate::model::{Graph, Tokens};

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
#[derive(Debug, Clone, Copy)]
pub struct OnKernels(pub Numbers);

impl OnKernels {
    fn form(self) -> Form {
        match self.0 {
            Numbers::F32 => Form::F32,
            Numbers::Bf16 => Form::Bf16,
        }
    }
}

impl Learner for OnKernels {
    fn learn(&self, parameters: &Parameters, examples: &[Example], flat: &mut [f32]) -> Result<Loss> {
        Ok(Network::pack(parameters, self.form())?.learn(examples, flat))
    }

    fn loss(&self, parameters: &Parameters, examples: &[Example]) -> Result<Loss> {
        Ok(Network::pack(parameters, self.form())?.loss(examples))
    }
}

/// Plain tensors with candle's gradients, a cell at a time, on any device. In bf16 products are bf16; the weights that
/// gradients are of stay f32.
#[derive(Debug, Clone)]
pub struct OnDevice {
    /// Where.
    pub device: Device,
    /// Numbers of products.
    pub numbers: Numbers,
}

impl OnDevice {
    fn dtype(&self) -> DType {
        match self.numbers {
            Numbers::F32 => DType::F32,
            Numbers::Bf16 => DType::BF16,
        }
    }

    /// The model over variables, and the variables in the parameters' order.
    fn graph(&self, parameters: &Parameters) -> candle_core::Result<(Graph, Vec<Var>)> {
        let weights = parameters.to_weights().map_err(|e| candle_core::Error::Msg(e.to_string()))?;
        let (mut tensors, mut vars) = (weights.tensors, Vec::new());
        for slot in parameters.slots() {
            let values = Tensor::from_slice(&parameters.values[slot.at.clone()], slot.shape.as_slice(), &self.device)?;
            let var = Var::from_tensor(&values)?;
            tensors.insert(slot.name.clone(), var.as_tensor().clone());
            vars.push(var);
        }
        Ok((Graph::new(weights.config, &tensors, &self.device, self.dtype())?, vars))
    }

    /// The sum of squared errors of a cell.
    fn squares(&self, graph: &Graph, parameters: &Parameters, example: &Example) -> candle_core::Result<Tensor> {
        let genes = parameters.config().n_genes() as u32;
        let depths = [example.target_depth, example.source_depth];
        let mut positions: Vec<u32> = example.seen().collect();
        let mut values: Vec<f32> = positions.iter().map(|p| example.input[*p as usize]).collect();
        positions.extend([genes, genes + 1]);
        values.extend(depths);
        let encoded = graph.encode(&positions, &values, &[0, positions.len()])?;
        let mut all: Vec<f32> = example.input.iter().copied().chain(depths).collect();
        example.hidden.iter().for_each(|p| all[*p as usize] = parameters.config().mask_token_id as f32);
        let contexts = graph.decode(&all, &Tokens { positions, values }, &encoded)?;
        let masked = Tensor::new(example.masked.as_slice(), &self.device)?;
        let target: Vec<f32> = example.masked.iter().map(|p| example.target[*p as usize]).collect();
        let predicted = graph.predict(&contexts.index_select(&masked, 0)?)?.to_dtype(DType::F32)?;
        (predicted - Tensor::new(target, &self.device)?)?.sqr()?.sum_all()
    }

    fn run(
        &self,
        parameters: &Parameters,
        examples: &[Example],
        mut flat: Option<&mut [f32]>,
    ) -> candle_core::Result<Loss> {
        let (graph, vars) = self.graph(parameters)?;
        let mut loss = Loss::default();
        for example in examples.iter().filter(|example| !example.masked.is_empty()) {
            let squares = self.squares(&graph, parameters, example)?;
            let one = Loss { squares: squares.to_scalar::<f32>()?.into(), masked: example.masked.len() as u64 };
            loss = loss.and(one);
            let Some(flat) = flat.as_deref_mut() else { continue };
            let gradients = squares.backward()?;
            for (slot, var) in parameters.slots().iter().zip(&vars) {
                if let Some(gradient) = gradients.get(var) {
                    let gradient = gradient.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                    cellql_kernels::add_scaled(&mut flat[slot.at.clone()], &gradient, 1.0);
                }
            }
        }
        Ok(loss)
    }
}

impl Learner for OnDevice {
    fn learn(&self, parameters: &Parameters, examples: &[Example], flat: &mut [f32]) -> Result<Loss> {
        self.run(parameters, examples, Some(flat)).map_err(Error::model("training", "a step on the device"))
    }

    fn loss(&self, parameters: &Parameters, examples: &[Example]) -> Result<Loss> {
        self.run(parameters, examples, None).map_err(Error::model("training", "a loss on the device"))
    }
}

/// Sums gradients and losses over the processes or devices of a run, each of which holds the same weights and reads its own
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

/// Several learners in one process, for as many devices.
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
