//! Functions of tensors that are computed aside and go back in a way of their own, told to candle's automatic differentiation.

use std::sync::{Mutex, PoisonError};

#[cfg(feature = "cuda")]
use candle_core::Storage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor};

/// What a function of `x` gave, as something that depends on it; where no gradient will be asked for, as it is.
pub(crate) fn known1(
    x: &Tensor,
    out: Tensor,
    back: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if x.track_op() { x.apply_op1(Known1 { out: Once::new(out), back }) } else { Ok(out) }
}

/// The same of three tensors.
pub(crate) fn known3(
    [a, b, c]: [&Tensor; 3],
    out: Tensor,
    back: impl Fn(&Tensor) -> Result<[Tensor; 3]> + Send + Sync + 'static,
) -> Result<Tensor> {
    let is_asked = [a, b, c].iter().any(|x| x.track_op());
    if is_asked { a.apply_op3(b, c, Known3 { out: Once::new(out), back }) } else { Ok(out) }
}

/// What is given away once, so that it does not stand in memory a second time until the way back.
struct Once(Mutex<Option<Tensor>>);

impl Once {
    fn new(out: Tensor) -> Self {
        Self(Mutex::new(Some(out)))
    }

    fn take(&self) -> Result<Tensor> {
        let given = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        given.ok_or_else(|| candle_core::Error::Msg("what a function gave was asked for twice".into()))
    }
}

/// What a function of one tensor gave, and how it goes back.
struct Known1<B> {
    out: Once,
    back: B,
}

/// The same of three.
struct Known3<B> {
    out: Once,
    back: B,
}

fn known_on_cpu(out: &Tensor) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(out.flatten_all()?.to_vec1()?), out.shape().clone()))
}

#[cfg(not(feature = "cuda"))]
fn known_on_cuda(_: &Tensor) -> Result<(CudaStorage, Shape)> {
    candle_core::bail!("this program was built without CUDA")
}

#[cfg(feature = "cuda")]
fn known_on_cuda(out: &Tensor) -> Result<(CudaStorage, Shape)> {
    use candle_core::backend::BackendStorage;
    let (storage, layout) = out.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { candle_core::bail!("a tensor is not on the device") };
    if !layout.is_contiguous() || layout.start_offset() != 0 {
        candle_core::bail!("a result is not contiguous");
    }
    Ok((storage.try_clone(layout)?, out.shape().clone()))
}

impl<B: Fn(&Tensor) -> Result<Tensor>> CustomOp1 for Known1<B> {
    fn name(&self) -> &'static str {
        "function of one tensor"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        known_on_cpu(&self.out.take()?)
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        known_on_cuda(&self.out.take()?)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        (self.back)(g).map(Some)
    }
}

impl<B: Fn(&Tensor) -> Result<[Tensor; 3]>> CustomOp3 for Known3<B> {
    fn name(&self) -> &'static str {
        "function of three tensors"
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
        known_on_cpu(&self.out.take()?)
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
        known_on_cuda(&self.out.take()?)
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = (self.back)(g)?;
        Ok((Some(a), Some(b), Some(c)))
    }
}
