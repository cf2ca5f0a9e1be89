//! The device kernels on tensors, without gradients: CUDA kernels, or on the CPU the plain loops that mirror them
//! (for tests). All tensors are f32 and contiguous unless said otherwise.

#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
#[cfg(feature = "cuda")]
use candle_core::{CudaDevice, CudaStorage, Layout, Storage, op::BackpropOp};
use candle_core::{DType, Device, Result, Shape, Tensor};
#[cfg(feature = "cuda")]
use cellql_kernels::device::{Cuda, CudaError, Segments, keep_memory};
use cellql_kernels::device::{Heads, plain};

use super::ragged::{CellOffsets, RowLists};
use crate::Config;

/// Widest head that the CUDA kernels take: tiles of a head stand in a block's shared memory.
#[cfg(feature = "cuda")]
const MAX_HEAD_DIM: usize = 128;

/// The kernels for one device, compiled for the heads of one model.
#[derive(Debug, Clone)]
pub(super) struct DeviceKernels {
    /// Heads of the encoder's attention.
    pub(super) encoder: Heads,
    /// Heads of the decoder's attention.
    pub(super) decoder: Heads,
    #[cfg(feature = "cuda")]
    cuda: Option<CudaKernels>,
}

#[cfg(feature = "cuda")]
#[derive(Debug, Clone)]
struct CudaKernels {
    device: CudaDevice,
    encoder: Cuda,
    decoder: Cuda,
}

impl DeviceKernels {
    /// Compiles the kernels on a CUDA device; on the CPU there is nothing to compile.
    ///
    /// # Errors
    /// The device's compiler fails, or a head is wider than the kernels take.
    pub(super) fn new(device: &Device, config: &Config) -> Result<Self> {
        let (encoder, decoder) = (&config.encoder, &config.decoder);
        let encoder = Heads { heads: encoder.heads, dim: encoder.hidden_dim / encoder.heads };
        let decoder = Heads { heads: decoder.heads, dim: decoder.dim_head };
        #[cfg(feature = "cuda")]
        let cuda = match device {
            Device::Cuda(cuda) => {
                let head_dim = encoder.dim.max(decoder.dim);
                if head_dim > MAX_HEAD_DIM {
                    candle_core::bail!(
                        "the model has heads of {head_dim} dimensions; CUDA kernels take {MAX_HEAD_DIM}"
                    );
                }
                let compile = |heads, features| Cuda::compile(cuda.cuda_stream(), heads, features).map_err(failed);
                Some(CudaKernels {
                    device: cuda.clone(),
                    encoder: compile(encoder, 1)?,
                    decoder: compile(decoder, config.nb_features())?,
                })
            }
            _ => None,
        };
        #[cfg(not(feature = "cuda"))]
        let _ = device;
        Ok(Self {
            encoder,
            decoder,
            #[cfg(feature = "cuda")]
            cuda,
        })
    }

    /// Keeps freed device memory allocated for the next step. Returns the free bytes of a CUDA device.
    pub(super) fn keep_memory(&self) -> Result<Option<usize>> {
        #[cfg(feature = "cuda")]
        if let Some(CudaKernels { device, .. }) = &self.cuda {
            return keep_memory(&device.cuda_stream()).map(Some).map_err(failed);
        }
        Ok(None)
    }

    /// Largest random projection of every head: `x` `[rows, heads, dim]` to `[rows, heads]`.
    pub(super) fn max_projections(&self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        let shape = (x.dim(0)?, self.decoder.heads);
        #[cfg(feature = "cuda")]
        if let Some(CudaKernels { device, decoder, .. }) = &self.cuda {
            return on_cuda(device, &[x, w], &[], shape, |v, _| decoder.largest(&v[0], &v[1]));
        }
        on_cpu(plain::largest(&values(x)?, &values(w)?, self.decoder), shape)
    }

    /// Random features times the sums of their cell: `x` `[rows, heads, dim + 1]` with largest projections last,
    /// `sums` of [`DeviceKernels::scatter`], to `[rows, heads, dim + 1]`.
    pub(super) fn gather(&self, x: &Tensor, w: &Tensor, sums: &Tensor, cells: &CellOffsets) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let (Some(CudaKernels { device, decoder, .. }), Some(index)) = (&self.cuda, &cells.on_device) {
            return on_cuda(device, &[x, w, sums], &[&index.offsets, &index.tiles], x.shape(), |v, i| {
                decoder.gather(&v[0], &v[1], &v[2], Segments { starts: &i[0], runs: &i[1] })
            });
        }
        let [rows, w, sums] = [&values(x)?, &values(w)?, &values(sums)?];
        on_cpu(plain::gather(rows, w, sums, &cells.offsets, self.decoder), x.shape())
    }

    /// Gradient of [`DeviceKernels::gather`] with respect to `x` without its last column, `[rows, heads, dim]`; `r`
    /// is the gradient of its result.
    pub(super) fn features_backward(
        &self,
        [x, r]: [&Tensor; 2],
        w: &Tensor,
        sums: &Tensor,
        cells: &CellOffsets,
    ) -> Result<Tensor> {
        let shape = (x.dim(0)?, self.decoder.heads, self.decoder.dim);
        #[cfg(feature = "cuda")]
        if let (Some(CudaKernels { device, decoder, .. }), Some(index)) = (&self.cuda, &cells.on_device) {
            return on_cuda(device, &[x, r, w, sums], &[&index.offsets, &index.tiles], shape, |v, i| {
                decoder.derivative(&v[0], &v[1], &v[2], &v[3], Segments { starts: &i[0], runs: &i[1] })
            });
        }
        let [x, r, w, sums] = [&values(x)?, &values(r)?, &values(w)?, &values(sums)?];
        on_cpu(plain::derivative(x, r, w, sums, &cells.offsets, self.decoder), shape)
    }

    /// Per cell, the sum over rows of random features times `r` `[rows, heads, dim + 1]`: `[cells, heads, features,
    /// dim + 1]`. `x` is as in [`DeviceKernels::gather`].
    pub(super) fn scatter(&self, x: &Tensor, r: &Tensor, w: &Tensor, cells: &CellOffsets) -> Result<Tensor> {
        let Heads { heads, dim } = self.decoder;
        let shape = (cells.cells(), heads, w.dim(0)?, dim + 1);
        #[cfg(feature = "cuda")]
        if let (Some(CudaKernels { device, decoder, .. }), Some(index)) = (&self.cuda, &cells.on_device) {
            let chunk_shape = (index.chunks.elem_count() / 3, heads * w.dim(0)? * (dim + 1));
            let chunk_sums = on_cuda(device, &[x, r, w], &[&index.chunks], chunk_shape, |v, i| {
                decoder.scatter(&v[0], &v[1], &v[2], &i[0])
            })?;
            return self.sum_rows(&chunk_sums, &index.chunk_lists)?.reshape(shape);
        }
        let [x, r, w] = [&values(x)?, &values(r)?, &values(w)?];
        on_cpu(plain::scatter(x, r, w, &cells.offsets, self.decoder), shape)
    }

    /// Softmax attention within cells: `qkv` `[tokens, 3·dim]` to `[tokens, heads, head dim + 1]`. The last column is
    /// the logarithm of the softmax's denominator, which the backward pass needs.
    pub(super) fn attention(&self, qkv: &Tensor, cells: &CellOffsets) -> Result<Tensor> {
        let shape = (qkv.dim(0)?, self.encoder.heads, self.encoder.dim + 1);
        #[cfg(feature = "cuda")]
        if let (Some(CudaKernels { device, encoder, .. }), Some(index)) = (&self.cuda, &cells.on_device) {
            return on_cuda(device, &[qkv], &[&index.offsets, &index.tiles], shape, |v, i| {
                encoder.attend(&v[0], Segments { starts: &i[0], runs: &i[1] })
            });
        }
        on_cpu(plain::attend(&values(qkv)?, &cells.offsets, self.encoder), shape)
    }

    /// Gradient of `qkv`; `output` is that of [`DeviceKernels::attention`], `grad` is `[tokens, dim]`.
    pub(super) fn attention_backward(
        &self,
        qkv: &Tensor,
        output: &Tensor,
        grad: &Tensor,
        cells: &CellOffsets,
    ) -> Result<Tensor> {
        let grad = &grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if let (Some(CudaKernels { device, encoder, .. }), Some(index)) = (&self.cuda, &cells.on_device) {
            return on_cuda(device, &[qkv, output, grad], &[&index.offsets, &index.tiles], qkv.shape(), |v, i| {
                encoder.attend_backward(&v[0], &v[1], &v[2], Segments { starts: &i[0], runs: &i[1] })
            });
        }
        let [qkv_values, output, grad] = [&values(qkv)?, &values(output)?, &values(grad)?];
        on_cpu(plain::attend_backward(qkv_values, output, grad, &cells.offsets, self.encoder), qkv.shape())
    }

    /// Layer norm of rows.
    pub(super) fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(CudaKernels { device, decoder, .. }) = &self.cuda {
            return on_cuda(device, &[x, weight, bias], &[], x.shape(), |v, _| decoder.normalise(&v[0], &v[1], &v[2]));
        }
        on_cpu(plain::normalise(&values(x)?, &values(weight)?, &values(bias)?), x.shape())
    }

    /// `[2, rows, dim]`: the gradient of `x`, and for every row its part of the gradient of `weight`.
    pub(super) fn layer_norm_backward(&self, x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let (grad, shape) = (&grad.contiguous()?, (2, x.dim(0)?, x.dim(1)?));
        #[cfg(feature = "cuda")]
        if let Some(CudaKernels { device, decoder, .. }) = &self.cuda {
            return on_cuda(device, &[x, weight, grad], &[], shape, |v, _| decoder.norm_backward(&v[0], &v[1], &v[2]));
        }
        on_cpu(plain::norm_backward(&values(x)?, &values(weight)?, &values(grad)?), shape)
    }

    /// Adds a bias to every row.
    pub(super) fn add_bias(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        if x.dtype() != DType::F32 {
            return x.broadcast_add(bias);
        }
        #[cfg(feature = "cuda")]
        if let Some(CudaKernels { device, decoder, .. }) = &self.cuda {
            return on_cuda(device, &[x, bias], &[], x.shape(), |v, _| decoder.biased(&v[0], &v[1]));
        }
        on_cpu(plain::biased(&values(x)?, &values(bias)?), x.shape())
    }

    /// Gradient of GELU's input `x`.
    pub(super) fn gelu_backward(&self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let grad = &grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if let Some(CudaKernels { device, decoder, .. }) = &self.cuda {
            return on_cuda(device, &[x, grad], &[], x.shape(), |v, _| decoder.gelu_backward(&v[0], &v[1]));
        }
        on_cpu(plain::gelu_backward(&values(x)?, &values(grad)?), x.shape())
    }

    /// Sums the listed rows of `x` `[rows, width]`: `[lists, width]`. Long lists are summed in pieces, so that no
    /// thread sums a whole one.
    pub(super) fn sum_rows(&self, x: &Tensor, lists: &RowLists) -> Result<Tensor> {
        if let Some((pieces, pieces_of_list)) = lists.split() {
            return self.sum_rows(&self.sum_rows(x, &pieces)?, &pieces_of_list);
        }
        let (x, width) = (&x.contiguous()?, x.dim(1)?);
        let shape = (lists.count(), width);
        #[cfg(feature = "cuda")]
        if let Some(CudaKernels { device, decoder, .. }) = &self.cuda {
            let upload = |indices: &[u32]| Tensor::new(indices, x.device());
            return on_cuda(device, &[x], &[&upload(&lists.offsets)?, &upload(&lists.rows)?], shape, |v, i| {
                decoder.sum_rows(&v[0], &i[0], &i[1], width)
            });
        }
        on_cpu(plain::sum_rows(&values(x)?, &lists.offsets, &lists.rows, width), shape)
    }
}

fn values(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

fn on_cpu(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

#[cfg(feature = "cuda")]
fn failed(e: CudaError) -> candle_core::Error {
    candle_core::Error::Msg(e.to_string())
}

/// Launches a kernel over f32 tensors and u32 index tensors, all contiguous and on one device. `shape` is that of the
/// result.
#[cfg(feature = "cuda")]
fn on_cuda(
    device: &CudaDevice,
    values: &[&Tensor],
    indices: &[&Tensor],
    shape: impl Into<Shape>,
    launch: impl FnOnce(&[CudaView<'_, f32>], &[CudaView<'_, u32>]) -> std::result::Result<CudaSlice<f32>, CudaError>,
) -> Result<Tensor> {
    use candle_core::cuda_backend::CudaDType;
    fn view<'a, T: CudaDType>(storage: &'a Storage, layout: &Layout) -> Result<CudaView<'a, T>> {
        let Storage::Cuda(storage) = storage else {
            candle_core::bail!("an input of a CUDA kernel is not on the device")
        };
        let Some((from, to)) = layout.contiguous_offsets() else {
            candle_core::bail!("an input of a CUDA kernel is not contiguous: {layout:?}")
        };
        Ok(storage.as_cuda_slice::<T>()?.slice(from..to))
    }
    let values: Vec<_> = values.iter().map(|t| t.storage_and_layout()).collect();
    let indices: Vec<_> = indices.iter().map(|t| t.storage_and_layout()).collect();
    let values = values.iter().map(|(s, l)| view::<f32>(s, l)).collect::<Result<Vec<_>>>()?;
    let indices = indices.iter().map(|(s, l)| view::<u32>(s, l)).collect::<Result<Vec<_>>>()?;
    let (output, shape) = (launch(&values, &indices).map_err(failed)?, shape.into());
    if output.len() != shape.elem_count() {
        candle_core::bail!("a CUDA kernel returned {} values for a tensor of shape {shape:?}", output.len());
    }
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(output, device.clone()));
    Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
}
