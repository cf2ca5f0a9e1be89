//! Weights of a model's file by name and shape. f32 weights are borrowed from the file's bytes.

use std::borrow::Cow;

use candle_core::safetensors::Load;
use candle_core::{DType, Device};
use safetensors::SafeTensors;

use crate::error::{ModelError, Result};
use crate::file::{damaged, is_weight};
use cellql_kernels::{Dtype, Isa, LayerNorm, Linear};

/// The tensors of a model's file.
#[derive(Debug)]
pub(crate) struct Tensors<'a> {
    model: &'a str,
    tensors: SafeTensors<'a>,
}

impl<'a> Tensors<'a> {
    /// Of a model's bytes.
    pub(crate) fn of(model: &'a str, bytes: &'a [u8]) -> Result<Self> {
        Ok(Self { model, tensors: SafeTensors::deserialize(bytes).map_err(|e| damaged(model, &e))? })
    }

    /// Number of weights, buffers and output map aside.
    pub(crate) fn parameters(&self) -> usize {
        let weights = self.tensors.iter().filter(|(name, _)| is_weight(name));
        weights.map(|(_, view)| view.shape().iter().product::<usize>()).sum()
    }

    /// A tensor of exactly this shape; f32 is not copied.
    pub(crate) fn get(&self, name: &str, shape: &[usize]) -> Result<Cow<'a, [f32]>> {
        let wrong =
            |problem: String| ModelError::Weight { model: self.model.to_owned(), weight: name.to_owned(), problem };
        let view = self.tensors.tensor(name).map_err(|_| wrong("is missing".into()))?;
        if view.shape() != shape {
            return Err(wrong(format!("has the shape {:?}, its configuration asks for {shape:?}", view.shape())));
        }
        if view.dtype() == safetensors::Dtype::F32
            && let Ok(floats) = bytemuck::try_cast_slice(view.data())
        {
            return Ok(Cow::Borrowed(floats));
        }
        let read = view.load(&Device::Cpu).and_then(|t| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1());
        Ok(Cow::Owned(read.map_err(ModelError::compute(self.model, "reading weights"))?))
    }

    pub(crate) fn linear(&self, dtype: Dtype, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        self.linear_named(dtype, &format!("{name}.weight"), &format!("{name}.bias"), inputs, outputs)
    }

    pub(crate) fn linear_named(
        &self,
        dtype: Dtype,
        weight: &str,
        bias: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<Linear> {
        let (weight, bias) = (self.get(weight, &[outputs, inputs])?, self.get(bias, &[outputs])?);
        Ok(Linear::pack(Isa::best(), dtype, &weight, &bias, inputs, outputs))
    }

    pub(crate) fn norm(&self, name: &str, dim: usize) -> Result<LayerNorm> {
        let part = |part: &str| self.get(&format!("{name}.{part}"), &[dim]);
        Ok(LayerNorm::new(part("weight")?.into_owned(), part("bias")?.into_owned()))
    }
}
