//! Fused ops for training on CUDA devices, with backward passes of their own.
//!
//! As plain tensor operations, candle would keep every intermediate result in memory until the backward pass. These
//! ops keep only their inputs and what the backward kernels need. The kernels are CUDA; on the CPU plain loops stand
//! in for them (for tests). Ops take and return f32, except linear layers, which also take bf16.
//!
//! Depends on the kernels and candle. Knows nothing of layers or names of weights.

mod kernels;
mod ragged;

use candle_core::{Device, Result, Tensor};
use cellql_kernels::device::Heads;

use crate::Config;
use crate::custom_ops::{apply_precomputed_op1, apply_precomputed_op3};
use kernels::DeviceKernels;
pub(crate) use ragged::CellOffsets;
use ragged::RowLists;

/// Attention, layer norms, linear layers, GELU and row selection as fused ops, for one device and the head sizes of
/// one model.
#[derive(Debug, Clone)]
pub struct FusedOps(DeviceKernels);

impl FusedOps {
    /// Compiles the kernels on a CUDA device for a model of these sizes; on the CPU there is nothing to compile.
    ///
    /// A CUDA device must have a stream of its own ([`Device::new_cuda_with_stream`]), so that calls from several
    /// threads run in order.
    ///
    /// # Errors
    /// The device's compiler fails, or a head is wider than the kernels take.
    pub fn new(device: &Device, config: &Config) -> Result<Self> {
        DeviceKernels::new(device, config).map(Self)
    }

    /// Makes a CUDA device keep freed memory allocated for the next step. Returns its free memory in bytes, `None` on
    /// the CPU.
    ///
    /// # Errors
    /// The driver fails.
    pub fn keep_memory(&self) -> Result<Option<usize>> {
        self.0.keep_memory()
    }

    /// Softmax attention within cells: `[tokens, 3·dim]` (queries, keys, values) to `[tokens, dim]`.
    pub(crate) fn attention(&self, qkv: &Tensor, cells: &CellOffsets) -> Result<Tensor> {
        let heads = self.0.encoder;
        cells.check_shape(qkv.shape(), 3 * heads.width())?;
        let (kernels, cells, input) = (self.0.clone(), cells.clone(), qkv.detach().contiguous()?);
        let with_log_sum = kernels.attention(&input, &cells)?;
        let output = with_log_sum.narrow(2, 0, heads.dim)?.contiguous()?.reshape((qkv.dim(0)?, heads.width()))?;
        let backward = move |grad: &Tensor| kernels.attention_backward(&input, &with_log_sum, grad, &cells);
        apply_precomputed_op1(qkv, output, backward)
    }

    /// FAVOR+ attention within cells: `q` `[queries, width]` to `k` and `v` `[keys, width]`, with random features
    /// `projection` `[features, head dim]`. Every cell has the same number of keys. Returns `[queries, width]`.
    pub(crate) fn favor(
        &self,
        [q, k, v]: [&Tensor; 3],
        projection: &Tensor,
        queries: &CellOffsets,
        keys: &CellOffsets,
    ) -> Result<Tensor> {
        let Heads { heads, dim } = self.0.decoder;
        queries.check_shape(q.shape(), heads * dim)?;
        [k, v].into_iter().try_for_each(|x| keys.check_shape(x.shape(), heads * dim))?;
        if projection.dim(1)? != dim || keys.cells() == 0 || k.dim(0)? % keys.cells() != 0 {
            let (features, keys) = (projection.shape(), k.shape());
            candle_core::bail!("FAVOR+: random features {features:?} and keys {keys:?} do not fit heads of {dim}");
        }
        let (kernels, w, queries, keys) = (self.0.clone(), projection.clone(), queries.clone(), keys.clone());
        let by_head = |x: &Tensor| x.detach().contiguous()?.reshape((x.dim(0)?, heads, dim));
        let (q_heads, k_heads, v_heads) = (by_head(q)?, by_head(k)?, by_head(v)?);
        let q_max = kernels.max_projections(&q_heads, &w)?.unsqueeze(2)?;
        let k_max = max_of_cells(&kernels.max_projections(&k_heads, &w)?, keys.cells())?;
        let (q_with_max, k_with_max) = (Tensor::cat(&[&q_heads, &q_max], 2)?, Tensor::cat(&[&k_heads, &k_max], 2)?);
        // A column of ones sums the features themselves: the denominators of attention.
        let v_with_one = Tensor::cat(&[&v_heads, &k_max.ones_like()?], 2)?;
        let sums = kernels.scatter(&k_with_max, &v_with_one, &w, &keys)?;
        let gathered = kernels.gather(&q_with_max, &w, &sums, &queries)?;
        let denominators = gathered.narrow(2, dim, 1)?.contiguous()?;
        let attended = gathered.narrow(2, 0, dim)?.broadcast_div(&denominators)?;
        let output = attended.reshape((q.dim(0)?, heads * dim))?;
        let backward = move |grad: &Tensor| {
            let grad = grad.reshape(attended.shape())?;
            let grad_denominators = (&grad * &attended)?.sum_keepdim(2)?.neg()?;
            let r = Tensor::cat(&[grad, grad_denominators], 2)?.broadcast_div(&denominators)?;
            let grad_sums = kernels.scatter(&q_with_max, &r, &w, &queries)?;
            let grad_q = kernels.features_backward([&q_with_max, &r], &w, &sums, &queries)?;
            let grad_k = kernels.features_backward([&k_with_max, &v_with_one], &w, &grad_sums, &keys)?;
            let grad_v = kernels.gather(&k_with_max, &w, &grad_sums, &keys)?.narrow(2, 0, dim)?.contiguous()?;
            let flat = |x: Tensor| x.reshape((x.dim(0)?, heads * dim));
            Ok([flat(grad_q)?, flat(grad_k)?, flat(grad_v)?])
        };
        apply_precomputed_op3([q, k, v], output, backward)
    }

    /// Layer norm over the last axis of `x` `[rows, dim]`.
    pub(crate) fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let (rows, dim) = x.dims2()?;
        if weight.dims() != [dim] || bias.dims() != [dim] {
            let (weight, bias) = (weight.shape(), bias.shape());
            candle_core::bail!("layer norm of [{rows}, {dim}]: weight {weight:?} and bias {bias:?} are not [{dim}]");
        }
        let (kernels, input, scale) = (self.0.clone(), x.detach().contiguous()?, weight.detach());
        let output = kernels.layer_norm(&input, &scale, &bias.detach())?;
        let backward = move |grad: &Tensor| {
            let both = kernels.layer_norm_backward(&input, &scale, grad)?;
            let part = |part: usize| both.narrow(0, part, 1)?.squeeze(0);
            Ok([part(0)?, sum_over_rows(&part(1)?)?, sum_over_rows(grad)?])
        };
        apply_precomputed_op3([x, weight, bias], output, backward)
    }

    /// Linear layer: `x` `[rows, in]`, `weight` `[out, in]`, `bias` `[out]` to `[rows, out]`.
    pub(crate) fn linear(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        if bias.dims() != &weight.dims()[..1] {
            candle_core::bail!("linear layer: bias {:?} does not fit weight {:?}", bias.shape(), weight.shape());
        }
        let (input, scale) = (x.detach(), weight.detach());
        let output = self.0.add_bias(&input.matmul(&scale.t()?)?, &bias.detach())?;
        let backward = move |grad: &Tensor| Ok([grad.matmul(&scale)?, grad.t()?.matmul(&input)?, sum_over_rows(grad)?]);
        apply_precomputed_op3([x, weight, bias], output, backward)
    }

    /// GELU by the error function.
    pub(crate) fn gelu(&self, x: &Tensor) -> Result<Tensor> {
        let (kernels, input) = (self.0.clone(), x.detach().contiguous()?);
        let output = input.gelu_erf()?;
        apply_precomputed_op1(x, output, move |grad: &Tensor| kernels.gelu_backward(&input, grad))
    }

    /// Rows of `x` `[rows, width]` at `index`, in its order and as often as named: `[index, width]`.
    pub(crate) fn index_select(&self, x: &Tensor, index: &[u32]) -> Result<Tensor> {
        let rows = x.dim(0)?;
        if let Some(row) = index.iter().find(|row| **row as usize >= rows) {
            candle_core::bail!("row {row} of a tensor with {rows} rows was selected");
        }
        let output = x.detach().contiguous()?.index_select(&Tensor::new(index, x.device())?, 0)?;
        let (kernels, lists) = (self.0.clone(), RowLists::invert(index, rows));
        apply_precomputed_op1(x, output, move |grad: &Tensor| kernels.sum_rows(grad, &lists))
    }
}

/// The largest value of each cell, repeated for its rows and heads: `[rows, heads]` to `[rows, heads, 1]`. Every cell
/// has the same number of rows.
fn max_of_cells(projections: &Tensor, cells: usize) -> Result<Tensor> {
    let (rows, heads) = projections.dims2()?;
    let largest = projections.reshape((cells, ()))?.max_keepdim(1)?;
    largest.broadcast_as((cells, rows / cells * heads))?.contiguous()?.reshape((rows, heads, 1))
}

/// `[rows, width]` to `[width]`, as a matrix product with ones: candle's own sum reads each column on its own.
fn sum_over_rows(x: &Tensor) -> Result<Tensor> {
    Tensor::ones((1, x.dim(0)?), x.dtype(), x.device())?.matmul(x)?.squeeze(0)
}
