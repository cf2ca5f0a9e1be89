//! Gradients by plain tensors and candle's automatic differentiation, a cell at a time, on one device or several.
//!
//! Several devices of a machine hold the same weights and take turns at the cells of a batch; their gradients are added on
//! the devices by NCCL (feature `nccl`), else in memory, in the order of devices.
//!
//! Depends on `model` for the tensors. Knows nothing of stores.

use candle_core::{DType, Device, Tensor, Var};

use super::learner::Learner;
#[cfg(feature = "nccl")]
use super::nccl::Communicators;
use super::network::Loss;
use super::parameters::Parameters;
use super::settings::Numbers;
use super::task::Example;
use crate::error::{Error, Result};
use crate::model::{Graph, Tokens};

/// Learns on devices. In bf16 products are bf16; the weights that gradients are of stay f32.
#[derive(Debug)]
pub struct OnDevices {
    devices: Vec<Device>,
    numbers: Numbers,
    #[cfg(feature = "nccl")]
    communicators: Option<Communicators>,
}

impl OnDevices {
    /// Over some devices, at least one.
    ///
    /// # Errors
    /// There is none, or devices of CUDA cannot reach each other.
    pub fn new(devices: Vec<Device>, numbers: Numbers) -> Result<Self> {
        if devices.is_empty() {
            return Err(Error::Request("training on devices takes at least one".into()));
        }
        Ok(Self {
            #[cfg(feature = "nccl")]
            communicators: Communicators::of(&devices)?,
            devices,
            numbers,
        })
    }

    fn dtype(&self) -> DType {
        match self.numbers {
            Numbers::F32 => DType::F32,
            Numbers::Bf16 => DType::BF16,
        }
    }

    /// The model over variables, and the variables in the parameters' order.
    fn graph(&self, device: &Device, parameters: &Parameters) -> candle_core::Result<(Graph, Vec<Var>)> {
        let weights = parameters.to_weights().map_err(|e| candle_core::Error::Msg(e.to_string()))?;
        let (mut tensors, mut vars) = (weights.tensors, Vec::new());
        for slot in parameters.slots() {
            let values = Tensor::from_slice(&parameters.values[slot.at.clone()], slot.shape.as_slice(), device)?;
            let var = Var::from_tensor(&values)?;
            tensors.insert(slot.name.clone(), var.as_tensor().clone());
            vars.push(var);
        }
        Ok((Graph::new(weights.config, &tensors, device, self.dtype())?, vars))
    }

    /// Loss and, where asked for, gradient of the cells that one device takes, the gradient as one row on the device.
    fn share(
        &self,
        number: usize,
        parameters: &Parameters,
        examples: &[Example],
        with_gradient: bool,
    ) -> candle_core::Result<(Loss, Option<Tensor>)> {
        let device = &self.devices[number];
        let (graph, vars) = self.graph(device, parameters)?;
        let (mut loss, mut row) = (Loss::default(), None);
        for example in examples.iter().skip(number).step_by(self.devices.len()) {
            if example.masked.is_empty() {
                continue;
            }
            let squares = squares(&graph, device, parameters, example)?;
            let one = Loss { squares: squares.to_scalar::<f32>()?.into(), masked: example.masked.len() as u64 };
            loss = loss.and(one);
            if with_gradient {
                let gradients = squares.backward()?;
                let of = |var: &Var| match gradients.get(var) {
                    Some(gradient) => gradient.to_dtype(DType::F32)?.flatten_all(),
                    None => Tensor::zeros(var.elem_count(), DType::F32, device),
                };
                let of_cell = Tensor::cat(&vars.iter().map(of).collect::<candle_core::Result<Vec<_>>>()?, 0)?;
                row = Some(row.map_or_else(|| Ok(of_cell.clone()), |row: Tensor| row + &of_cell)?);
            }
        }
        let none = || Tensor::zeros(parameters.values.len(), DType::F32, device);
        Ok((loss, if with_gradient { Some(row.map_or_else(none, Ok)?) } else { None }))
    }

    /// Every device at once; an error of one is found before any waits for another.
    fn run(
        &self,
        parameters: &Parameters,
        examples: &[Example],
        flat: Option<&mut [f32]>,
    ) -> candle_core::Result<Loss> {
        let with_gradient = flat.is_some();
        let shares: Vec<candle_core::Result<(Loss, Option<Tensor>)>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.devices.len())
                .map(|number| scope.spawn(move || self.share(number, parameters, examples, with_gradient)))
                .collect();
            let gone = || Err(candle_core::Error::Msg("a device's thread ended early".into()));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| gone())).collect()
        });
        let (mut loss, mut rows) = (Loss::default(), Vec::new());
        for share in shares {
            let (of_device, row) = share?;
            loss = loss.and(of_device);
            rows.extend(row);
        }
        if let Some(flat) = flat {
            for row in self.summed(rows)? {
                cellql_kernels::add_scaled(flat, &row, 1.0);
            }
        }
        Ok(loss)
    }

    /// Rows in memory whose sum is that of all devices' rows.
    fn summed(&self, rows: Vec<Tensor>) -> candle_core::Result<Vec<Vec<f32>>> {
        #[cfg(feature = "nccl")]
        if let Some(communicators) = &self.communicators {
            return Ok(vec![communicators.sum(rows)?]);
        }
        rows.iter().map(Tensor::to_vec1::<f32>).collect()
    }
}

/// The sum of squared errors of a cell.
fn squares(graph: &Graph, device: &Device, parameters: &Parameters, example: &Example) -> candle_core::Result<Tensor> {
    let (positions, values) = example.tokens();
    let encoded = graph.encode(&positions, &values, &[0, positions.len()])?;
    let depths = [example.target_depth, example.source_depth];
    let mut all: Vec<f32> = example.input.iter().copied().chain(depths).collect();
    example.hidden.iter().for_each(|p| all[*p as usize] = parameters.config().mask_token_id as f32);
    let contexts = graph.decode(&all, &Tokens { positions, values }, &encoded)?;
    let masked = Tensor::new(example.masked.as_slice(), device)?;
    let target: Vec<f32> = example.masked.iter().map(|p| example.target[*p as usize]).collect();
    let predicted = graph.predict(&contexts.index_select(&masked, 0)?)?.to_dtype(DType::F32)?;
    (predicted - Tensor::new(target, device)?)?.sqr()?.sum_all()
}

impl Learner for OnDevices {
    fn learn(&self, parameters: &Parameters, examples: &[Example], flat: &mut [f32]) -> Result<Loss> {
        self.run(parameters, examples, Some(flat)).map_err(Error::model("training", "a step on devices"))
    }

    fn loss(&self, parameters: &Parameters, examples: &[Example]) -> Result<Loss> {
        self.run(parameters, examples, None).map_err(Error::model("training", "a loss on devices"))
    }
}
