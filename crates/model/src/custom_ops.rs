//! Custom ops whose forward result is computed before candle sees the op, each with a backward pass of its own.
//!
//! candle's [`CustomOp1`] and [`CustomOp3`] compute their forward result from raw storages. The ops here take a
//! finished tensor instead, so that forward and backward can be written with tensors. Applying an op only records the
//! inputs and the backward pass in candle's graph.

use std::sync::{Mutex, PoisonError};

#[cfg(feature = "cuda")]
use candle_core::Storage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor};

/// Records `output` in candle's graph as a function of `x`. `backward` maps the gradient of `output` to that of `x`.
/// Returns `output` unchanged if `x` needs no gradient.
pub(crate) fn apply_precomputed_op1(
    x: &Tensor,
    output: Tensor,
    backward: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if x.track_op() { x.apply_op1(PrecomputedOp1 { output: TakeOnce::new(output), backward }) } else { Ok(output) }
}

/// Records `output` in candle's graph as a function of `a`, `b` and `c`. `backward` maps the gradient of `output` to
/// those of the three inputs. Returns `output` unchanged if no input needs a gradient.
pub(crate) fn apply_precomputed_op3(
    [a, b, c]: [&Tensor; 3],
    output: Tensor,
    backward: impl Fn(&Tensor) -> Result<[Tensor; 3]> + Send + Sync + 'static,
) -> Result<Tensor> {
    if ![a, b, c].iter().any(|x| x.track_op()) {
        return Ok(output);
    }
    a.apply_op3(b, c, PrecomputedOp3 { output: TakeOnce::new(output), backward })
}

/// A forward result that candle takes out of the op. The op lives until the backward pass; without taking the result
/// out, its memory would be held twice until then.
struct TakeOnce(Mutex<Option<Tensor>>);

impl TakeOnce {
    fn new(output: Tensor) -> Self {
        Self(Mutex::new(Some(output)))
    }

    fn take(&self) -> Result<Tensor> {
        let output = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        output.ok_or_else(|| candle_core::Error::Msg("a precomputed op was run forward twice".into()))
    }
}

/// A custom op of one input with a precomputed forward result.
struct PrecomputedOp1<B> {
    output: TakeOnce,
    backward: B,
}

/// A custom op of three inputs with a precomputed forward result.
struct PrecomputedOp3<B> {
    output: TakeOnce,
    backward: B,
}

fn cpu_storage(output: &Tensor) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(output.flatten_all()?.to_vec1()?), output.shape().clone()))
}

#[cfg(not(feature = "cuda"))]
fn cuda_storage(_: &Tensor) -> Result<(CudaStorage, Shape)> {
    candle_core::bail!("this program was built without CUDA")
}

#[cfg(feature = "cuda")]
fn cuda_storage(output: &Tensor) -> Result<(CudaStorage, Shape)> {
    use candle_core::backend::BackendStorage;
    let (storage, layout) = output.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        candle_core::bail!("the result of a precomputed op is not on the CUDA device of its inputs")
    };
    if !layout.is_contiguous() || layout.start_offset() != 0 {
        candle_core::bail!("the result of a precomputed op is not contiguous: {layout:?}");
    }
    Ok((storage.try_clone(layout)?, output.shape().clone()))
}

impl<B: Fn(&Tensor) -> Result<Tensor>> CustomOp1 for PrecomputedOp1<B> {
    fn name(&self) -> &'static str {
        "precomputed-op1"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        cpu_storage(&self.output.take()?)
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda_storage(&self.output.take()?)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        (self.backward)(grad).map(Some)
    }
}

impl<B: Fn(&Tensor) -> Result<[Tensor; 3]>> CustomOp3 for PrecomputedOp3<B> {
    fn name(&self) -> &'static str {
        "precomputed-op3"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        cpu_storage(&self.output.take()?)
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda_storage(&self.output.take()?)
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = (self.backward)(grad)?;
        Ok((Some(a), Some(b), Some(c)))
    }
}
