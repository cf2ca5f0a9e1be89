//! Sums of rows over the CUDA devices of this process by NCCL.
//!
//! NCCL's communicators stay with the thread that made them; rows are sent to it. Depends on candle's CUDA storage.
//! Knows nothing of what the rows are.

use std::sync::mpsc::{Receiver, Sender, channel};

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::cuda_backend::cudarc::nccl::{Comm, ReduceOp, group_end, group_start};
use candle_core::{CudaDevice, Device, Storage, Tensor};

use crate::error::{Result, TrainingError};

/// One row of each device, and where their sum is to go.
type Request = (Vec<Tensor>, Sender<candle_core::Result<Vec<f32>>>);

/// The thread that joins the devices of a run; it ends with this.
#[derive(Debug)]
pub(crate) struct Communicators {
    requests: Sender<Request>,
}

fn failed(e: impl std::fmt::Debug) -> candle_core::Error {
    candle_core::Error::Msg(format!("NCCL: {e:?}"))
}

impl Communicators {
    /// Of some devices; none where one is not CUDA's.
    ///
    /// # Errors
    /// The devices cannot reach each other.
    pub(crate) fn of(devices: &[Device]) -> Result<Option<Self>> {
        let all: Option<Vec<CudaDevice>> = devices
            .iter()
            .map(|device| if let Device::Cuda(cuda) = device { Some(cuda.clone()) } else { None })
            .collect();
        let Some(all) = all else { return Ok(None) };
        let (requests, asked) = channel();
        let (tell, joined) = channel();
        std::thread::spawn(move || {
            let comms = Comm::from_devices(all.iter().map(CudaDevice::cuda_stream).collect()).map_err(failed);
            let comms = comms.map_err(|e| tell.send(Err(e)));
            if let Ok(comms) = comms
                && tell.send(Ok(())).is_ok()
            {
                answer(&comms, &asked);
            }
        });
        let joined = joined.recv().unwrap_or_else(|e| Err(failed(e)));
        joined.map_err(TrainingError::compute("joining devices"))?;
        Ok(Some(Self { requests }))
    }

    /// The sum of one row of each device, given in the order of devices.
    ///
    /// # Errors
    /// A device is gone.
    pub(crate) fn sum(&self, rows: Vec<Tensor>) -> candle_core::Result<Vec<f32>> {
        let (give, sum) = channel();
        self.requests.send((rows, give)).map_err(failed)?;
        sum.recv().unwrap_or_else(|e| Err(failed(e)))
    }
}

/// Sums what is asked until nobody can ask.
fn answer(comms: &[Comm], asked: &Receiver<Request>) {
    while let Ok((rows, give)) = asked.recv() {
        // Who asked may have gone; the next request is another's.
        let _ = give.send(sum(comms, &rows));
    }
}

fn sum(comms: &[Comm], rows: &[Tensor]) -> candle_core::Result<Vec<f32>> {
    let rows: Vec<Tensor> = rows.iter().map(Tensor::contiguous).collect::<candle_core::Result<_>>()?;
    let storages: Vec<_> = rows.iter().map(Tensor::storage_and_layout).collect();
    let mut pairs = Vec::new();
    for (storage, layout) in &storages {
        let Storage::Cuda(storage) = &**storage else {
            return Err(failed("a row is not on a CUDA device"));
        };
        let from: &CudaSlice<f32> = storage.as_cuda_slice()?;
        let to = storage.device.alloc_zeros::<f32>(layout.shape().elem_count())?;
        pairs.push((from.slice(layout.start_offset()..), to, storage.device.clone()));
    }
    // A group that was begun is ended whatever happens in it.
    group_start().map_err(failed)?;
    let reduced = comms
        .iter()
        .zip(&mut pairs)
        .try_for_each(|(comm, (from, to, _))| comm.all_reduce(from, to, &ReduceOp::Sum).map(|_| ()).map_err(failed));
    group_end().map_err(failed)?;
    reduced?;
    let (_, sum, device) = pairs.into_iter().next().ok_or_else(|| failed("no rows"))?;
    device.clone_dtoh(&sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many devices as there are: of one alone the sum is its own row, but joining, the thread and the copies are
    /// seen.
    #[test]
    fn rows_of_all_devices_are_summed() {
        let devices: Vec<Device> = (0..8).map_while(|number| Device::new_cuda_with_stream(number).ok()).collect();
        if devices.is_empty() {
            println!("skipped: no CUDA device");
            return;
        }
        let communicators = Communicators::of(&devices).unwrap().unwrap();
        for step in 1..4 {
            let row = |device: &Device| Tensor::new(&[1f32, 2.0, 3.0 * step as f32], device).unwrap();
            let sum = communicators.sum(devices.iter().map(row).collect()).unwrap();
            assert_eq!(sum, [1.0, 2.0, 3.0 * step as f32].map(|one| one * devices.len() as f32));
        }
    }
}
