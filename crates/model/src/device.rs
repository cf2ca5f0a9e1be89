//! Which processor runs a model.

use std::str::FromStr;

use crate::error::{ModelError, Result};

/// A processor, by the name a user gives it: `cpu`, `cuda` or `cuda:1`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Device {
    /// The kernels of this program.
    #[default]
    Cpu,
    /// The CUDA device of that number.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("unknown device '{text}'; there are: cpu, cuda, cuda:1 and so on");
        match text.split_once(':') {
            None if text == "cpu" => Ok(Device::Cpu),
            None if text == "cuda" => Ok(Device::Cuda(0)),
            Some(("cuda", number)) => number.parse().map(Device::Cuda).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

impl Device {
    /// Opens the device; `None` is the CPU, which needs no opening.
    ///
    /// # Errors
    /// [`ModelError::Device`] where this build or this machine has no such device.
    pub fn open(self) -> Result<Option<candle_core::Device>> {
        let Device::Cuda(number) = self else { return Ok(None) };
        if !cfg!(feature = "cuda") {
            return Err(ModelError::Device(
                "this program was built without CUDA; build it with `make cuda`, or leave out --device".into(),
            ));
        }
        // With a stream of its own: that of `new_cuda` is another in every thread, and what one thread began another
        // would not wait for.
        let opened = candle_core::Device::new_cuda_with_stream(number);
        opened.map(Some).map_err(|e| ModelError::Device(format!("CUDA device {number} cannot be used: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        assert_eq!("cpu".parse(), Ok(Device::Cpu));
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
        assert!("cuda:x".parse::<Device>().is_err() && "metal".parse::<Device>().is_err());
    }
}
