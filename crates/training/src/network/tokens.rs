//! Tokens of a cell, forward and backward: values and gene embeddings are added up and go through the encoder.

use std::ops::Range;

use cellql_kernels::{Dtype, Rows, RowsView, add_scaled};

use super::encoder::{self, Encoder, EncoderGradient, blocks};
use super::values::{self, Values, ValuesGradient};
use crate::error::Result;
use crate::flat_weights::FlatWeights;

/// Embedding of tokens and the encoder, packed for a step.
#[derive(Debug)]
pub(super) struct TokenEncoder<'a> {
    pub(super) values: Values,
    encoder: Encoder,
    /// Gene embeddings, `[seq_len + 1, dim]`.
    positions: &'a [f32],
    positions_at: Range<usize>,
    pub(super) dim: usize,
}

/// Its gradient.
#[derive(Debug)]
pub(super) struct TokenGradient {
    pub(super) values: ValuesGradient,
    encoder: EncoderGradient,
    /// Of the gene embeddings, `[seq_len + 1, dim]`.
    positions: Vec<f32>,
}

impl TokenGradient {
    pub(super) fn add_position(&mut self, position: usize, d: &[f32]) {
        add_scaled(&mut self.positions[position * d.len()..][..d.len()], d, 1.0);
    }
}

impl<'a> TokenEncoder<'a> {
    pub(super) fn pack(parameters: &'a FlatWeights, dtype: Dtype) -> Result<Self> {
        let (dim, seq_len) = (parameters.config().encoder.hidden_dim, parameters.config().seq_len);
        let positions_at = parameters.at("pos_emb.weight", &[seq_len + 1, dim])?;
        Ok(Self {
            values: Values::pack(parameters)?,
            encoder: Encoder::pack(parameters, dtype)?,
            positions: &parameters.values[positions_at.clone()],
            positions_at,
            dim,
        })
    }

    /// The embedding of a gene, or of T or S, `[dim]`.
    pub(super) fn position(&self, position: usize) -> &[f32] {
        &self.positions[position * self.dim..][..self.dim]
    }

    /// A gradient of zero.
    pub(super) fn gradient(&self) -> TokenGradient {
        TokenGradient {
            values: self.values.gradient(),
            encoder: self.encoder.gradient(),
            positions: vec![0.0; self.positions.len()],
        }
    }

    /// Encodes the tokens of a cell, `[tokens, dim]`. `encoder` keeps what the backward pass reads.
    pub(super) fn forward(
        &self,
        positions: &[u32],
        values: &[f32],
        of_values: &mut values::Scratch,
        encoder: &mut encoder::Scratch,
    ) -> Rows {
        let tokens = positions.len();
        let mut x = Rows::new(tokens, self.dim);
        for (first, rows) in blocks(tokens) {
            self.values.forward(&values[first..first + rows], x.view_mut(first), of_values);
        }
        for (i, p) in positions.iter().enumerate() {
            add_scaled(x.row_mut(i), self.position(*p as usize), 1.0);
        }
        self.encoder.forward(x, tokens, encoder)
    }

    /// Adds the gradients of all weights, from the gradient `d` of the encoded tokens, which is overwritten. `encoder`
    /// is as [`TokenEncoder::forward`] left it.
    pub(super) fn backward(
        &self,
        (positions, values): (&[u32], &[f32]),
        d: &mut Rows,
        gradient: &mut TokenGradient,
        of_values: &mut values::Scratch,
        encoder: &mut encoder::Scratch,
    ) {
        let tokens = positions.len();
        self.encoder.backward(tokens, d, &mut gradient.encoder, encoder);
        for (i, p) in positions.iter().enumerate() {
            gradient.add_position(*p as usize, d.row(i));
        }
        for (first, rows) in blocks(tokens) {
            self.values.backward(&values[first..first + rows], d.view(first), &mut gradient.values, of_values);
        }
    }

    /// Adds the gradient of the vector that embeds the value zero, `[dim]`.
    pub(super) fn zero_backward(&self, d: &[f32], gradient: &mut TokenGradient, of_values: &mut values::Scratch) {
        self.values.backward(&[0.0], RowsView::of_row(d), &mut gradient.values, of_values);
    }

    /// Adds a gradient to the flat vector of all gradients.
    pub(super) fn add_to(&self, gradient: &TokenGradient, flat: &mut [f32]) {
        self.values.add_to(&gradient.values, flat);
        self.encoder.add_to(&gradient.encoder, flat);
        add_scaled(&mut flat[self.positions_at.clone()], &gradient.positions, 1.0);
    }
}
