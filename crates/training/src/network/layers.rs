//! Linear layers and layer norms with their gradients and their ranges in the flat vector of all parameters.

use std::ops::Range;

use cellql_kernels::{
    BLOCK, Dtype, Isa, LayerNorm, LinearGradient, Rows, RowsView, RowsViewMut, TrainableLinear, norm_backward,
};

use crate::error::Result;
use crate::flat_weights::FlatWeights;

/// A linear layer, packed for a step.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) linear: TrainableLinear,
    dtype: Dtype,
    inputs: usize,
    outputs: usize,
    weight: Range<usize>,
    bias: Range<usize>,
}

impl Linear {
    pub(super) fn pack(
        parameters: &FlatWeights,
        dtype: Dtype,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<Self> {
        Self::pack_named(parameters, dtype, &format!("{name}.weight"), &format!("{name}.bias"), inputs, outputs)
    }

    pub(super) fn pack_named(
        parameters: &FlatWeights,
        dtype: Dtype,
        weight: &str,
        bias: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<Self> {
        let (weight, bias) = (parameters.at(weight, &[outputs, inputs])?, parameters.at(bias, &[outputs])?);
        let values = &parameters.values;
        let linear =
            TrainableLinear::pack(Isa::best(), dtype, &values[weight.clone()], &values[bias.clone()], inputs, outputs);
        Ok(Self { linear, dtype, inputs, outputs, weight, bias })
    }

    /// A gradient of zero.
    pub(super) fn gradient(&self) -> LinearGradient {
        LinearGradient::new(Isa::best(), self.dtype, self.inputs, self.outputs)
    }

    /// Adds a gradient to the flat vector of all gradients.
    pub(super) fn add_to(&self, gradient: &LinearGradient, flat: &mut [f32]) {
        // Two tensors never share numbers.
        if let Ok([weight, bias]) = flat.get_disjoint_mut([self.weight.clone(), self.bias.clone()]) {
            gradient.add_to(weight, bias);
        }
    }
}

/// A layer norm.
#[derive(Debug)]
pub(super) struct Norm {
    norm: LayerNorm,
    scale: Vec<f32>,
    weight: Range<usize>,
    bias: Range<usize>,
}

/// Gradient of a layer norm's scale and shift.
#[derive(Debug, Clone)]
pub(super) struct NormGradient {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Norm {
    pub(super) fn pack(parameters: &FlatWeights, name: &str, dim: usize) -> Result<Self> {
        let weight = parameters.at(&format!("{name}.weight"), &[dim])?;
        let bias = parameters.at(&format!("{name}.bias"), &[dim])?;
        let (scale, shift) = (parameters.values[weight.clone()].to_vec(), parameters.values[bias.clone()].to_vec());
        Ok(Self { norm: LayerNorm::new(scale.clone(), shift), scale, weight, bias })
    }

    /// A gradient of zero.
    pub(super) fn gradient(&self) -> NormGradient {
        NormGradient { weight: vec![0.0; self.scale.len()], bias: vec![0.0; self.scale.len()] }
    }

    /// Normalised copies of a block of rows.
    pub(super) fn forward(&self, x: RowsView, rows: usize, out: &mut Rows) {
        let dim = self.scale.len();
        out.resize(BLOCK, dim);
        for i in 0..rows {
            let to = out.row_mut(i);
            to.copy_from_slice(x.row(i));
            self.norm.apply(to);
        }
    }

    /// Adds the gradient of the rows `x` to `dx`, from the gradient `dy` of the normalised rows; all `[rows, dim]`.
    pub(super) fn backward(
        &self,
        x: RowsView,
        dy: RowsView,
        rows: usize,
        mut dx: RowsViewMut,
        gradient: &mut NormGradient,
    ) {
        let NormGradient { weight, bias } = gradient;
        for i in 0..rows {
            norm_backward(x.row(i), &self.scale, dy.row(i), dx.row_mut(i), weight, bias);
        }
    }

    /// Adds a gradient to the flat vector of all gradients.
    pub(super) fn add_to(&self, gradient: &NormGradient, flat: &mut [f32]) {
        flat[self.weight.clone()].iter_mut().zip(&gradient.weight).for_each(|(to, d)| *to += d);
        flat[self.bias.clone()].iter_mut().zip(&gradient.bias).for_each(|(to, d)| *to += d);
    }
}
