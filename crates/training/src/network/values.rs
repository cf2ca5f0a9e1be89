//! The embedding of values, there and back: `h = leaky(v·w + b)`, `m = softmax(α·h + W₂·h + b₂)`, `e = m·E`.

use std::ops::Range;

use cellql_kernels::{Activations, BLOCK, DenseGradient, DenseScratch, Form, Rows, Then, softmax, softmax_back};

use super::layers::Linear;
use crate::error::Result;
use crate::parameters::Parameters;

/// Slope below zero.
const LEAK: f32 = 0.1;

/// Continuous values to vectors, and the vector of what is hidden.
#[derive(Debug)]
pub(super) struct Values {
    weight: Vec<f32>,
    bias: Vec<f32>,
    mlp2: Linear,
    /// `[bins, dim]`, as the products read it.
    table: cellql_kernels::Dense,
    table_at: Range<usize>,
    weight_at: Range<usize>,
    bias_at: Range<usize>,
    mask_at: Range<usize>,
    alpha: f32,
    dim: usize,
}

/// Its gradient.
#[derive(Debug, Clone)]
pub(super) struct ValuesGradient {
    weight: Vec<f32>,
    bias: Vec<f32>,
    mlp2: DenseGradient,
    table: DenseGradient,
    /// Of the vector of what is hidden, `[dim]`.
    pub(super) mask: Vec<f32>,
}

/// Memory of one thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    h: Rows,
    mixture: Rows,
    d_mixture: Rows,
    d_h: Rows,
    activations: Activations,
    dense: DenseScratch,
}

impl Values {
    pub(super) fn pack(parameters: &Parameters) -> Result<Self> {
        let (bins, dim) = (parameters.config().bin_num, parameters.config().encoder.hidden_dim);
        let table_at = parameters.at("token_emb.emb.weight", &[bins, dim])?;
        let table = &parameters.values[table_at.clone()];
        let turned: Vec<f32> = (0..dim * bins).map(|i| table[i % bins * dim + i / bins]).collect();
        let weight_at = parameters.at("token_emb.mlp.weight", &[bins, 1])?;
        let bias_at = parameters.at("token_emb.mlp.bias", &[bins])?;
        Ok(Self {
            weight: parameters.values[weight_at.clone()].to_vec(),
            bias: parameters.values[bias_at.clone()].to_vec(),
            mlp2: Linear::pack(parameters, Form::F32, "token_emb.mlp2", bins, bins)?,
            table: cellql_kernels::Dense::pack(cellql_kernels::Isa::best(), Form::F32, &turned, &[], bins, dim),
            table_at,
            weight_at,
            bias_at,
            mask_at: parameters.at("token_emb.emb_mask.weight", &[1, dim])?,
            alpha: parameters.config().bin_alpha as f32,
            dim,
        })
    }

    /// Where the vector of what is hidden stands.
    pub(super) fn mask_at(&self) -> Range<usize> {
        self.mask_at.clone()
    }

    pub(super) fn gradient(&self) -> ValuesGradient {
        let bins = self.weight.len();
        ValuesGradient {
            weight: vec![0.0; bins],
            bias: vec![0.0; bins],
            mlp2: self.mlp2.gradient(),
            table: DenseGradient::new(cellql_kernels::Isa::best(), Form::F32, bins, self.dim),
            mask: vec![0.0; self.dim],
        }
    }

    /// h and m of a block of values.
    fn mix(&self, values: &[f32], scratch: &mut Scratch) {
        let (rows, bins) = (values.len(), self.weight.len());
        let Scratch { h, mixture, activations, .. } = scratch;
        h.resize(BLOCK, bins);
        mixture.resize(BLOCK, bins);
        for (i, v) in values.iter().enumerate() {
            for ((h, w), b) in h.row_mut(i).iter_mut().zip(&self.weight).zip(&self.bias) {
                let x = v * w + b;
                *h = if x > 0.0 { x } else { LEAK * x };
            }
        }
        self.mlp2.dense.forward(h.part(0), rows, Then::Bias, mixture.part_mut(0), activations);
        for i in 0..rows {
            let mixture = mixture.row_mut(i);
            mixture.iter_mut().zip(h.row(i)).for_each(|(m, h)| *m += self.alpha * h);
            softmax(mixture);
        }
    }

    /// Embeds at most [`BLOCK`] values.
    pub(super) fn forward(&self, values: &[f32], out: (&mut [f32], usize), scratch: &mut Scratch) {
        self.mix(values, scratch);
        let Scratch { mixture, activations, .. } = scratch;
        self.table.forward(mixture.part(0), values.len(), Then::Bias, out, activations);
    }

    /// Adds what the gradients of their vectors ask of the weights.
    pub(super) fn back(
        &self,
        values: &[f32],
        d: (&[f32], usize),
        gradient: &mut ValuesGradient,
        scratch: &mut Scratch,
    ) {
        self.mix(values, scratch);
        let (rows, bins) = (values.len(), self.weight.len());
        let Scratch { h, mixture, d_mixture, d_h, activations, dense } = scratch;
        d_mixture.resize(BLOCK, bins);
        d_h.resize(BLOCK, bins);
        gradient.table.add(d, mixture.part(0), rows, dense);
        self.table.back(d, rows, Then::Bias, d_mixture.part_mut(0), activations);
        (0..rows).for_each(|i| softmax_back(mixture.row(i), d_mixture.row_mut(i)));
        gradient.mlp2.add(d_mixture.part(0), h.part(0), rows, dense);
        self.mlp2.dense.back(d_mixture.part(0), rows, Then::Bias, d_h.part_mut(0), activations);
        for (i, v) in values.iter().enumerate() {
            let of_bins = d_h.row(i).iter().zip(d_mixture.row(i)).zip(h.row(i)).enumerate();
            for (bin, ((d_h, d_mixture), h)) in of_bins {
                let d = (d_h + self.alpha * d_mixture) * if *h > 0.0 { 1.0 } else { LEAK };
                gradient.weight[bin] += d * v;
                gradient.bias[bin] += d;
            }
        }
    }

    /// Adds a gradient to the row of all gradients.
    pub(super) fn add_to(&self, gradient: &ValuesGradient, flat: &mut [f32]) {
        let bins = self.weight.len();
        let parts =
            [(&self.weight_at, &gradient.weight), (&self.bias_at, &gradient.bias), (&self.mask_at, &gradient.mask)];
        for (at, from) in parts {
            flat[at.clone()].iter_mut().zip(from).for_each(|(to, d)| *to += d);
        }
        self.mlp2.add_to(&gradient.mlp2, flat);
        let mut turned = vec![0.0; self.dim * bins];
        gradient.table.add_to(&mut turned, &mut []);
        let table = &mut flat[self.table_at.clone()];
        for (i, d) in turned.iter().enumerate() {
            table[i % bins * self.dim + i / bins] += d;
        }
    }
}
