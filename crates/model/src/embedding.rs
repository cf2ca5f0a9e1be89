//! What a token is before the first layer: the embedding of its value and of its gene.

use crate::Config;
use crate::error::Result;
use crate::weights::Tensors;
use cellql_kernels::{Activations, BLOCK, Form, Isa, Linear, Rows, Then, softmax};

/// Slope below zero.
const LEAK: f32 = 0.1;

/// Continuous values to vectors, a soft mixture of `bins` learned ones, and genes to vectors.
#[derive(Debug)]
pub(crate) struct Embedding {
    /// `[bins]` both: a linear layer of one input.
    weight: Vec<f32>,
    bias: Vec<f32>,
    mlp2: Linear,
    /// The mixture: `[bins]` to `[dim]`.
    bins: Linear,
    alpha: f32,
    /// Values that stand for something else, and their vectors.
    special: [(f32, Vec<f32>); 2],
    /// `[seq_len + 1, dim]`.
    positions: Vec<f32>,
    dim: usize,
}

/// Memory of one thread.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    h: Rows,
    mixture: Rows,
    activations: Activations,
}

impl Embedding {
    pub(crate) fn load(tensors: &Tensors, config: &Config) -> Result<Self> {
        let (dim, bins, isa) = (config.encoder.hidden_dim, config.bin_num, Isa::best());
        let table = tensors.get("token_emb.emb.weight", &[bins, dim])?;
        let transposed: Vec<f32> = (0..dim * bins).map(|i| table[i % bins * dim + i / bins]).collect();
        let mlp2 = tensors.get("token_emb.mlp2.weight", &[bins, bins])?;
        let bias2 = tensors.get("token_emb.mlp2.bias", &[bins])?;
        let special = |id: f64, name: &str| -> Result<(f32, Vec<f32>)> {
            Ok((id as f32, tensors.get(&format!("token_emb.{name}.weight"), &[1, dim])?.into_owned()))
        };
        Ok(Self {
            weight: tensors.get("token_emb.mlp.weight", &[bins, 1])?.into_owned(),
            bias: tensors.get("token_emb.mlp.bias", &[bins])?.into_owned(),
            mlp2: Linear::pack(isa, Form::F32, &mlp2, &bias2, bins, bins),
            bins: Linear::pack(isa, Form::F32, &transposed, &[], bins, dim),
            alpha: config.bin_alpha as f32,
            special: [special(config.mask_token_id, "emb_mask")?, special(config.pad_token_id, "emb_pad")?],
            positions: tensors.get("pos_emb.weight", &[config.seq_len + 1, dim])?.into_owned(),
            dim,
        })
    }

    /// The vector of a position.
    pub(crate) fn position(&self, position: usize) -> &[f32] {
        &self.positions[position * self.dim..][..self.dim]
    }

    /// Embeds up to [`BLOCK`] values into rows of `out`, `row` apart.
    pub(crate) fn values(&self, values: &[f32], out: &mut [f32], row: usize, scratch: &mut Scratch) {
        let rows = values.len();
        debug_assert!(rows <= BLOCK);
        let Scratch { h, mixture, activations } = scratch;
        h.resize(BLOCK, self.weight.len());
        mixture.resize(BLOCK, self.weight.len());
        for (i, v) in values.iter().enumerate() {
            for ((h, w), b) in h.row_mut(i).iter_mut().zip(&self.weight).zip(&self.bias) {
                let x = v * w + b;
                *h = if x > 0.0 { x } else { LEAK * x };
            }
        }
        let (apart, bins) = (h.stride(), self.weight.len());
        let input = activations.of(Form::F32, h.from(0), apart, rows, bins);
        self.mlp2.forward(input, rows, Then::Bias, mixture.all_mut(), apart);
        for i in 0..rows {
            let mixture = mixture.row_mut(i);
            mixture.iter_mut().zip(h.row(i)).for_each(|(m, h)| *m += self.alpha * h);
            softmax(mixture);
        }
        let input = activations.of(Form::F32, mixture.from(0), apart, rows, bins);
        self.bins.forward(input, rows, Then::Bias, out, row);
        for (i, v) in values.iter().enumerate() {
            if let Some((_, vector)) = self.special.iter().find(|(id, _)| id == v) {
                out[i * row..][..self.dim].copy_from_slice(vector);
            }
        }
    }
}
