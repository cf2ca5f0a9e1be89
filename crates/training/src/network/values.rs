//! The embedding of values, forward and backward: `h = leaky(v·w + b)`, `m = softmax(α·h + W₂·h + b₂)`, `e = m·E`.

use std::ops::Range;

use cellql_kernels::{
    Activations, BLOCK, Dtype, LinearGradient, LinearScratch, Rows, RowsView, RowsViewMut, Then, softmax_backward,
    transposed,
};
use cellql_model::{LEAK, mix_bins, value_bins};

use super::layers::Linear;
use crate::error::Result;
use crate::flat_weights::FlatWeights;

/// The embedding of continuous values, and the vector of the mask token.
#[derive(Debug)]
pub(super) struct Values {
    weight: Vec<f32>,
    bias: Vec<f32>,
    mlp2: Linear,
    /// `[bins, dim]`, as the products read it.
    table: cellql_kernels::TrainableLinear,
    table_at: Range<usize>,
    weight_at: Range<usize>,
    bias_at: Range<usize>,
    mask_at: Range<usize>,
    alpha: f32,
    dim: usize,
}

/// Gradient of [`Values`].
#[derive(Debug, Clone)]
pub(super) struct ValuesGradient {
    weight: Vec<f32>,
    bias: Vec<f32>,
    mlp2: LinearGradient,
    table: LinearGradient,
    /// Of the vector of the mask token, `[dim]`.
    pub(super) mask: Vec<f32>,
}

/// Buffers that one thread uses again for each block.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    h: Rows,
    mixture: Rows,
    d_mixture: Rows,
    d_h: Rows,
    activations: Activations,
    linear: LinearScratch,
}

impl Values {
    pub(super) fn pack(parameters: &FlatWeights) -> Result<Self> {
        let (bins, dim) = (parameters.config().bin_num, parameters.config().encoder.hidden_dim);
        let table_at = parameters.at("token_emb.emb.weight", &[bins, dim])?;
        let table = &parameters.values[table_at.clone()];
        let table = transposed(table, dim);
        let weight_at = parameters.at("token_emb.mlp.weight", &[bins, 1])?;
        let bias_at = parameters.at("token_emb.mlp.bias", &[bins])?;
        Ok(Self {
            weight: parameters.values[weight_at.clone()].to_vec(),
            bias: parameters.values[bias_at.clone()].to_vec(),
            mlp2: Linear::pack(parameters, Dtype::F32, "token_emb.mlp2", bins, bins)?,
            table: cellql_kernels::TrainableLinear::pack(
                cellql_kernels::Isa::best(),
                Dtype::F32,
                &table,
                &[],
                bins,
                dim,
            ),
            table_at,
            weight_at,
            bias_at,
            mask_at: parameters.at("token_emb.emb_mask.weight", &[1, dim])?,
            alpha: parameters.config().bin_alpha as f32,
            dim,
        })
    }

    /// Range of the mask token's vector among the parameters.
    pub(super) fn mask_at(&self) -> Range<usize> {
        self.mask_at.clone()
    }

    pub(super) fn gradient(&self) -> ValuesGradient {
        let bins = self.weight.len();
        ValuesGradient {
            weight: vec![0.0; bins],
            bias: vec![0.0; bins],
            mlp2: self.mlp2.gradient(),
            table: LinearGradient::new(cellql_kernels::Isa::best(), Dtype::F32, bins, self.dim),
            mask: vec![0.0; self.dim],
        }
    }

    /// h and m of a block of values.
    fn mix(&self, values: &[f32], scratch: &mut Scratch) {
        let (rows, bins) = (values.len(), self.weight.len());
        let Scratch { h, mixture, activations, .. } = scratch;
        h.resize(BLOCK, bins);
        mixture.resize(BLOCK, bins);
        value_bins(values, &self.weight, &self.bias, h);
        self.mlp2.linear.forward(h.view(0), rows, Then::Bias, mixture.view_mut(0), activations);
        mix_bins(h, self.alpha, rows, mixture);
    }

    /// Embeds at most [`BLOCK`] values.
    pub(super) fn forward(&self, values: &[f32], out: RowsViewMut, scratch: &mut Scratch) {
        self.mix(values, scratch);
        let Scratch { mixture, activations, .. } = scratch;
        self.table.forward(mixture.view(0), values.len(), Then::Bias, out, activations);
    }

    /// Adds the gradients of the weights, from the gradient `d`, `[values, dim]`, of the values' vectors.
    pub(super) fn backward(&self, values: &[f32], d: RowsView, gradient: &mut ValuesGradient, scratch: &mut Scratch) {
        self.mix(values, scratch);
        let (rows, bins) = (values.len(), self.weight.len());
        let Scratch { h, mixture, d_mixture, d_h, activations, linear } = scratch;
        d_mixture.resize(BLOCK, bins);
        d_h.resize(BLOCK, bins);
        gradient.table.add(d, mixture.view(0), rows, linear);
        self.table.backward(d, rows, Then::Bias, d_mixture.view_mut(0), activations);
        (0..rows).for_each(|i| softmax_backward(mixture.row(i), d_mixture.row_mut(i)));
        gradient.mlp2.add(d_mixture.view(0), h.view(0), rows, linear);
        self.mlp2.linear.backward(d_mixture.view(0), rows, Then::Bias, d_h.view_mut(0), activations);
        for (i, v) in values.iter().enumerate() {
            let of_bins = d_h.row(i).iter().zip(d_mixture.row(i)).zip(h.row(i)).enumerate();
            for (bin, ((d_h, d_mixture), h)) in of_bins {
                let d = (d_h + self.alpha * d_mixture) * if *h > 0.0 { 1.0 } else { LEAK };
                gradient.weight[bin] += d * v;
                gradient.bias[bin] += d;
            }
        }
    }

    /// Adds a gradient to the flat vector of all gradients.
    pub(super) fn add_to(&self, gradient: &ValuesGradient, flat: &mut [f32]) {
        let bins = self.weight.len();
        let parts =
            [(&self.weight_at, &gradient.weight), (&self.bias_at, &gradient.bias), (&self.mask_at, &gradient.mask)];
        for (at, from) in parts {
            flat[at.clone()].iter_mut().zip(from).for_each(|(to, d)| *to += d);
        }
        self.mlp2.add_to(&gradient.mlp2, flat);
        let mut d_table = vec![0.0; self.dim * bins];
        gradient.table.add_to(&mut d_table, &mut []);
        let table = flat[self.table_at.clone()].iter_mut();
        table.zip(transposed(&d_table, bins)).for_each(|(to, d)| *to += d);
    }
}
