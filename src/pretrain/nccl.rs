//! Sums of rows over the CUDA devices of this process by NCCL.
//!
//! Depends on candle's CUDA storage. Knows nothing of what the rows are.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::cuda_backend::cudarc::nccl::{Comm, ReduceOp, group_end, group_start};
use candle_core::{CudaDevice, Device, Storage, Tensor};

use crate::error::{Error, Result};

/// One communicator for each device of a run.
#[derive(Debug)]
pub(super) struct Communicators {
    comms: Vec<Comm>,
}

fn failed(e: impl std::fmt::Debug) -> candle_core::Error {
    candle_core::Error::Msg(format!("NCCL: {e:?}"))
}

impl Communicators {
    /// Of some devices; none where there is one device, or one that is not CUDA's.
    ///
    /// # Errors
    /// The devices cannot reach each other.
    pub(super) fn of(devices: &[Device]) -> Result<Option<Self>> {
        let all: Option<Vec<&CudaDevice>> =
            devices.iter().map(|device| if let Device::Cuda(cuda) = device { Some(cuda) } else { None }).collect();
        let Some(all) = all.filter(|all| all.len() > 1) else { return Ok(None) };
        let streams = all.iter().map(|device| Arc::clone(&device.cuda_stream())).collect();
        let comms = Comm::from_devices(streams).map_err(failed).map_err(Error::model("training", "joining devices"))?;
        Ok(Some(Self { comms }))
    }

    /// The sum of one row of each device, given in the order of devices.
    ///
    /// # Errors
    /// A device is gone.
    pub(super) fn sum(&self, rows: &[Tensor]) -> candle_core::Result<Vec<f32>> {
        let mut sums = Vec::new();
        group_start().map_err(failed)?;
        for (comm, row) in self.comms.iter().zip(rows) {
            let row = row.contiguous()?;
            let (storage, _) = row.storage_and_layout();
            let Storage::Cuda(storage) = &*storage else {
                return Err(candle_core::Error::Msg("a row to be summed by NCCL is not on a CUDA device".into()));
            };
            let from: &CudaSlice<f32> = storage.as_cuda_slice()?;
            let mut to = storage.device.alloc_zeros::<f32>(row.elem_count())?;
            comm.all_reduce(from, &mut to, &ReduceOp::Sum).map_err(failed)?;
            sums.push((to, storage.device.clone()));
        }
        group_end().map_err(failed)?;
        let (sum, device) = sums.into_iter().next().ok_or_else(|| failed("no rows"))?;
        device.clone_dtoh(&sum)
    }
}
