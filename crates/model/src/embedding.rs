//! Tokens before the first layer: the embedding of a value plus the embedding of a gene.

use crate::Config;
use crate::error::Result;
use crate::value_bins::{mix_bins, value_bins};
use crate::weights::Tensors;
use cellql_kernels::{Activations, BLOCK, Dtype, Isa, Linear, Rows, RowsViewMut, Then, transposed};

/// Embeddings of continuous values (a soft mixture of `bins` learned vectors) and of genes.
#[derive(Debug)]
pub(crate) struct Embedding {
    /// `[bins]` both: a linear layer of one input.
    weight: Vec<f32>,
    bias: Vec<f32>,
    mlp2: Linear,
    /// The mixture: `[bins]` to `[dim]`.
    bins: Linear,
    alpha: f32,
    /// The values of masks and padding, and their vectors.
    special: [(f32, Vec<f32>); 2],
    /// `[seq_len + 1, dim]`.
    positions: Vec<f32>,
    dim: usize,
}

/// Buffers that one thread uses again for each block.
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
        let mlp2 = tensors.get("token_emb.mlp2.weight", &[bins, bins])?;
        let bias2 = tensors.get("token_emb.mlp2.bias", &[bins])?;
        let special = |id: f64, name: &str| -> Result<(f32, Vec<f32>)> {
            Ok((id as f32, tensors.get(&format!("token_emb.{name}.weight"), &[1, dim])?.into_owned()))
        };
        Ok(Self {
            weight: tensors.get("token_emb.mlp.weight", &[bins, 1])?.into_owned(),
            bias: tensors.get("token_emb.mlp.bias", &[bins])?.into_owned(),
            mlp2: Linear::pack(isa, Dtype::F32, &mlp2, &bias2, bins, bins),
            bins: Linear::pack(isa, Dtype::F32, &transposed(&table, dim), &[], bins, dim),
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

    /// Embeds up to [`BLOCK`] values: `[values, dim]`.
    pub(crate) fn values(&self, values: &[f32], mut out: RowsViewMut, scratch: &mut Scratch) {
        let rows = values.len();
        debug_assert!(rows <= BLOCK);
        let Scratch { h, mixture, activations } = scratch;
        h.resize(BLOCK, self.weight.len());
        mixture.resize(BLOCK, self.weight.len());
        value_bins(values, &self.weight, &self.bias, h);
        self.mlp2.forward(activations.of(Dtype::F32, h.view(0), rows), rows, Then::Bias, mixture.view_mut(0));
        mix_bins(h, self.alpha, rows, mixture);
        let input = activations.of(Dtype::F32, mixture.view(0), rows);
        self.bins.forward(input, rows, Then::Bias, out.reborrow());
        for (i, v) in values.iter().enumerate() {
            if let Some((_, vector)) = self.special.iter().find(|(id, _)| id == v) {
                out.row_mut(i).copy_from_slice(vector);
            }
        }
    }
}
