//! Gradients by tensors and candle's automatic differentiation, some cells at a time, on one device or several.
//!
//! Several devices of a machine hold the same weights, and the cells of a batch are dealt out to them. Their gradients
//! are added on the devices by NCCL (feature `nccl`), else in memory, in the order of devices.
//!
//! Depends on `model` for the tensors. Knows nothing of stores.

use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use cellql_kernels::Dtype;

use crate::error::{Result, TrainingError};
use crate::flat_weights::FlatWeights;
use crate::heads::{COMPONENTS, CONTRAST};
use crate::learner::Learner;
#[cfg(feature = "nccl")]
use crate::nccl::Communicators;
use crate::network::{Loss, spread};
use crate::objectives::Objectives;
use crate::read_depth::Example;
use crate::views::{CellViews, target_len, targets};
use cellql_model::{DecoderInput, FusedOps, Packed, Tokens, XTrimoGene};

/// Numbers in rows of the decoder, over all its layers, of the cells learned from at once: 32 cells of 3M, 16 of 10M, 2
/// of 100M.
const AT_ONCE: usize = 160_000_000;
/// Bytes that the backward pass needs for each of them (26 GB were taken for 32 cells of 3M).
const BYTES: usize = 170;

/// Learns on devices. In bf16 products are bf16; the weights that gradients are of stay f32.
#[derive(Debug)]
pub struct OnDevices {
    devices: Vec<Device>,
    dtype: Dtype,
    /// Functions of each device, made with its first batch, and how many numbers it has room for.
    functions: Vec<OnceLock<(FusedOps, usize)>>,
    /// Whether they are used: on CUDA devices, in tests also on the CPU.
    fused: bool,
    #[cfg(feature = "nccl")]
    communicators: Option<Communicators>,
}

impl OnDevices {
    /// Over some devices, at least one. Those of CUDA must have streams of their own: several threads ask of them in
    /// turn.
    ///
    /// # Errors
    /// [`TrainingError::Setting`] without a device or for int8; devices of CUDA that cannot reach each other.
    pub fn new(devices: Vec<Device>, dtype: Dtype) -> Result<Self> {
        if devices.is_empty() {
            return Err(TrainingError::setting("devices", 0, "one or more"));
        }
        TrainingError::check_dtype(dtype)?;
        Ok(Self {
            #[cfg(feature = "nccl")]
            communicators: if devices.len() > 1 { Communicators::of(&devices)? } else { None },
            functions: devices.iter().map(|_| OnceLock::new()).collect(),
            fused: devices.iter().any(Device::is_cuda),
            devices,
            dtype,
        })
    }

    /// With the functions of a CUDA device, also on the CPU.
    #[cfg(test)]
    pub(crate) fn with_fused(self) -> Self {
        Self { fused: true, ..self }
    }

    /// As candle names it.
    fn dtype(&self) -> DType {
        match self.dtype {
            Dtype::F32 => DType::F32,
            Dtype::Bf16 | Dtype::Int8 => DType::BF16,
        }
    }

    /// Functions of a device, where it has some, and how many [`AT_ONCE`] it takes.
    fn functions(&self, number: usize, parameters: &FlatWeights) -> candle_core::Result<(Option<FusedOps>, usize)> {
        if !self.fused {
            return Ok((None, AT_ONCE));
        }
        let made = &self.functions[number];
        let (fused, room) = match made.get() {
            Some(made) => made,
            None => {
                let fused = FusedOps::new(&self.devices[number], parameters.config())?;
                let free = fused.keep_memory()?;
                made.get_or_init(|| (fused, free.map_or(AT_ONCE, |free| AT_ONCE.min(free / BYTES))))
            }
        };
        Ok((Some(fused.clone()), *room))
    }

    /// The model over variables, and the variables in the parameters' order.
    fn model(
        &self,
        number: usize,
        parameters: &FlatWeights,
        fused: Option<FusedOps>,
    ) -> candle_core::Result<(XTrimoGene, Vec<Var>)> {
        let (device, mut tensors, mut vars) = (&self.devices[number], parameters.buffers().clone(), Vec::new());
        for slot in parameters.slots() {
            let values = Tensor::from_slice(&parameters.values[slot.at.clone()], slot.shape.as_slice(), device)?;
            let var = Var::from_tensor(&values)?;
            tensors.insert(slot.name.clone(), var.as_tensor().clone());
            vars.push(var);
        }
        let vb = VarBuilder::from_tensors(tensors, self.dtype(), device);
        Ok((XTrimoGene::load_with(vb, parameters.config(), fused)?, vars))
    }

    /// Loss and, where asked for, gradient of the cells that one device takes, the gradient as one row on the device.
    fn share(
        &self,
        number: usize,
        parameters: &FlatWeights,
        examples: &[Example],
        with_gradient: bool,
    ) -> candle_core::Result<(Loss, Option<Tensor>)> {
        let device = &self.devices[number];
        let (fused, room) = self.functions(number, parameters)?;
        let (model, vars) = self.model(number, parameters, fused)?;
        let (mut loss, mut row) = (Loss::default(), None);
        let mine =
            examples.iter().skip(number).step_by(self.devices.len()).filter(|example| !example.masked.is_empty());
        let (mine, config) = (mine.collect::<Vec<_>>(), parameters.config());
        let decoder = &config.decoder;
        let numbers_of_cell = config.seq_len * decoder.hidden_dim * decoder.depth;
        for cells in mine.chunks((room / numbers_of_cell).max(1)) {
            let squares = squares(&model, device, parameters, cells)?;
            if with_gradient {
                let of_cells = gradient_row(&squares, &vars)?;
                row = Some(row.map_or_else(|| Ok(of_cells.clone()), |row: Tensor| row + &of_cells)?);
            }
            // Read last, so that this thread does not wait for the device before it has sent the backward pass.
            let masked = cells.iter().map(|example| example.masked.len() as u64).sum();
            let squares = squares.to_scalar::<f32>()?.into();
            loss = loss.and(Loss { squares, masked, ..Loss::default() });
        }
        let none = || Tensor::zeros(parameters.values.len(), DType::F32, device);
        Ok((loss, if with_gradient { Some(row.map_or_else(none, Ok)?) } else { None }))
    }

    /// Every device at once; an error of one is found before any waits for another.
    fn run(
        &self,
        parameters: &FlatWeights,
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

    /// Losses of a batch of views and, where asked for, their gradient, on the first device: contrast needs all views
    /// in one place, and they are few tokens.
    fn run_views(
        &self,
        parameters: &FlatWeights,
        batch: &[CellViews],
        objectives: &Objectives,
        flat: Option<&mut [f32]>,
    ) -> candle_core::Result<Loss> {
        let (fused, _) = self.functions(0, parameters)?;
        let (model, vars) = self.model(0, parameters, fused)?;
        let head = |name: &str| -> Option<(&Var, &Var)> {
            let var = |part: &str| {
                let at = parameters.slots().iter().position(|slot| slot.name == format!("{name}.{part}"))?;
                vars.get(at)
            };
            Some((var("weight")?, var("bias")?))
        };
        let (total, loss) = losses_of_views(&model, batch, objectives, head)?;
        if let Some(flat) = flat {
            cellql_kernels::add_scaled(flat, &gradient_row(&total, &vars)?.to_vec1::<f32>()?, 1.0);
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

/// The gradient of a loss as one row, in the variables' order.
fn gradient_row(loss: &Tensor, vars: &[Var]) -> candle_core::Result<Tensor> {
    let gradients = loss.backward()?;
    let of = |var: &Var| match gradients.get(var) {
        Some(gradient) => gradient.to_dtype(DType::F32)?.flatten_all(),
        None => Tensor::zeros(var.elem_count(), DType::F32, loss.device()),
    };
    Tensor::cat(&vars.iter().map(of).collect::<candle_core::Result<Vec<_>>>()?, 0)
}

/// The sum of squared errors of some cells.
fn squares(
    model: &XTrimoGene,
    device: &Device,
    parameters: &FlatWeights,
    examples: &[&Example],
) -> candle_core::Result<Tensor> {
    let mask = parameters.config().mask_token_id as f32;
    let whole = |example: &&Example| {
        let (positions, values) = example.tokens();
        let depths = [example.target_depth, example.source_depth];
        let mut all: Vec<f32> = example.input.iter().copied().chain(depths).collect();
        example.hidden.iter().for_each(|p| all[*p as usize] = mask);
        DecoderInput { values: all, tokens: Tokens { positions, values } }
    };
    let cells: Vec<DecoderInput> = examples.iter().map(whole).collect();
    let packed = Packed::new(cells.iter().map(|cell| &cell.tokens));
    let (mut wanted, mut target) = (Vec::new(), Vec::new());
    for (first, example) in (0u32..).step_by(parameters.config().seq_len).zip(examples) {
        wanted.extend(example.masked.iter().map(|p| first + p));
        target.extend(example.masked.iter().map(|p| example.target[*p as usize]));
    }
    let encoded = model.encode(&packed)?;
    let contexts = model.decode(&cells, &encoded, Some(&wanted))?;
    let predicted = model.predict(&contexts)?.to_dtype(DType::F32)?;
    (predicted - Tensor::new(target, device)?)?.sqr()?.sum_all()
}

/// The weighted sum of the losses of a batch of views, and each of them.
fn losses_of_views<'a>(
    model: &XTrimoGene,
    batch: &[CellViews],
    objectives: &Objectives,
    head: impl Fn(&str) -> Option<(&'a Var, &'a Var)>,
) -> candle_core::Result<(Tensor, Loss)> {
    let device = model.device();
    let pooled = pooled(model, &Packed::new(batch.iter().flat_map(|cell| &cell.views)))?;
    let through = |name: &str| -> candle_core::Result<Tensor> {
        let Some((weight, bias)) = head(name) else { candle_core::bail!("the model lacks {name}") };
        pooled.matmul(&weight.t()?)?.broadcast_add(bias)
    };
    let mut total = Tensor::zeros((), DType::F32, device)?;
    let mut loss = Loss { view_batches: 1, ..Loss::default() };
    if objectives.components > 0.0 {
        let targets = targets(batch);
        let dim = target_len(batch);
        let spread = spread(&targets, dim);
        if spread > 0.0 {
            let targets = Tensor::from_vec(targets, ((), dim), device)?;
            let part = ((through(COMPONENTS)? - targets)?.sqr()?.sum_all()? / spread)?;
            loss.components = part.to_scalar::<f32>()?.into();
            total = (total + (part * objectives.components)?)?;
        }
    }
    if objectives.contrast > 0.0 && pooled.dim(0)? >= 4 {
        let part = contrast(&through(CONTRAST)?, objectives.temperature)?;
        loss.contrast = part.to_scalar::<f32>()?.into();
        total = (total + (part * objectives.contrast)?)?;
    }
    Ok((total, loss))
}

/// Pooled vectors of cells, `[cells, 4·dim]`, f32: S, T, maximum and mean over genes.
fn pooled(model: &XTrimoGene, packed: &Packed) -> candle_core::Result<Tensor> {
    let encoded = model.encode(packed)?.to_dtype(DType::F32)?;
    let of_cell = |cell: &[usize]| {
        let genes = encoded.narrow(0, cell[0], cell[1] - cell[0] - 2)?;
        let row = |at: usize| encoded.narrow(0, at, 1)?.squeeze(0);
        Tensor::cat(&[row(cell[1] - 1)?, row(cell[1] - 2)?, genes.max(0)?, genes.mean(0)?], 0)
    };
    Tensor::stack(&packed.starts.windows(2).map(of_cell).collect::<candle_core::Result<Vec<_>>>()?, 0)
}

/// The normalised temperature-scaled cross-entropy of vectors of which 2i and 2i + 1 are views of one cell.
fn contrast(z: &Tensor, temperature: f64) -> candle_core::Result<Tensor> {
    let (n, device) = (z.dim(0)?, z.device());
    let unit = z.broadcast_div(&z.sqr()?.sum_keepdim(1)?.sqrt()?)?;
    let itself = (Tensor::eye(n, DType::F32, device)? * 1e9)?;
    let logits = ((unit.matmul(&unit.t()?)? / temperature)? - itself)?;
    let pairs: Vec<u32> = (0..n as u32).map(|i| i ^ 1).collect();
    let of_pairs = candle_nn::ops::log_softmax(&logits, 1)?.gather(&Tensor::from_vec(pairs, (n, 1), device)?, 1)?;
    of_pairs.mean_all()?.neg()
}

impl Learner for OnDevices {
    fn learn(&self, parameters: &FlatWeights, examples: &[Example], flat: &mut [f32]) -> Result<Loss> {
        self.run(parameters, examples, Some(flat)).map_err(TrainingError::compute("a step on devices"))
    }

    fn loss(&self, parameters: &FlatWeights, examples: &[Example]) -> Result<Loss> {
        self.run(parameters, examples, None).map_err(TrainingError::compute("a loss on devices"))
    }

    fn learn_views(
        &self,
        parameters: &FlatWeights,
        batch: &[CellViews],
        objectives: &Objectives,
        flat: &mut [f32],
    ) -> Result<Loss> {
        let loss = self.run_views(parameters, batch, objectives, Some(flat));
        loss.map_err(TrainingError::compute("a step on views on a device"))
    }

    fn loss_of_views(&self, parameters: &FlatWeights, batch: &[CellViews], objectives: &Objectives) -> Result<Loss> {
        let loss = self.run_views(parameters, batch, objectives, None);
        loss.map_err(TrainingError::compute("a loss of views on a device"))
    }
}
