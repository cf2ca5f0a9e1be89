//! The decoder on the CPU: a Performer over every position of the vocabulary, T and S.
//!
//! A layer is one pass over all positions: a block of rows finishes the previous layer (queries against its summed
//! keys, then the feed-forward) and adds its own keys to the sums of the next layer. Memory holds one row per position
//! and the sums of some parts of the positions. The borders of the parts depend on the vocabulary alone, so results do
//! not depend on threads.
//!
//! Genes without expression enter the first layer with vectors that no cell changes. Their rows, keys and summed keys
//! are computed once per model ([`Unexpressed`]). A cell subtracts the keys at its own genes and adds its own keys
//! instead.

use std::cell::RefCell;
use std::sync::OnceLock;

use rayon::prelude::*;

use crate::embedding::{self, Embedding};
use crate::error::Result;
use crate::weights::Tensors;
use crate::{Config, Tokens};
use cellql_kernels::{
    Activations, BLOCK, Context, Dtype, Favor, FavorScratch, Isa, KeySums, LayerNorm, Linear, Rows, RowsView,
    RowsViewMut, Then, gelu,
};

/// Blocks of one part of the positions.
const PART: usize = 5;

#[derive(Debug)]
struct Layer {
    norm: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    favor: Favor,
    feed_norm: LayerNorm,
    w1: Linear,
    w2: Linear,
}

impl Layer {
    fn load(tensors: &Tensors, config: &Config, dtype: Dtype, layer: usize) -> Result<Self> {
        let (decoder, at) = (&config.decoder, format!("decoder.performer.net.layers.{layer}"));
        let (width, inner) = (decoder.hidden_dim, decoder.heads * decoder.dim_head);
        let linear = |name: &str, from, to| tensors.linear(dtype, &format!("{at}.{name}"), from, to);
        let matrix = format!("{at}.0.fn.fast_attention.projection_matrix");
        let projection = tensors.get(&matrix, &[config.nb_features(), decoder.dim_head])?;
        Ok(Self {
            norm: tensors.norm(&format!("{at}.0.norm"), width)?,
            query: linear("0.fn.to_q", width, inner)?,
            key: linear("0.fn.to_k", width, inner)?,
            value: linear("0.fn.to_v", width, inner)?,
            out: linear("0.fn.to_out", inner, width)?,
            favor: Favor::new(Isa::best(), dtype, &projection, decoder.heads, decoder.dim_head),
            feed_norm: tensors.norm(&format!("{at}.1.norm"), width)?,
            w1: linear("1.fn.fn.w1", width, 4 * width)?,
            w2: linear("1.fn.fn.w2", 4 * width, width)?,
        })
    }
}

/// The decoder of a model, its weights packed in one number format.
#[derive(Debug)]
pub(crate) struct Decoder {
    embed: Linear,
    layers: Vec<Layer>,
    norms: [LayerNorm; 2],
    /// `[width]`, then its bias: context to expression.
    to_final: (Vec<f32>, f32),
    dtype: Dtype,
    dim: usize,
    width: usize,
    inner: usize,
    /// Positions, T and S included.
    positions: usize,
    unexpressed: OnceLock<Unexpressed>,
}

/// The first layer's view of a cell that expresses nothing.
#[derive(Debug)]
struct Unexpressed {
    /// `[positions, width]`.
    rows: Rows,
    sums: KeySums,
    /// Largest x'·Pᵀ of each position's key.
    largest: Vec<f32>,
}

#[derive(Default)]
struct Scratch {
    tokens: Rows,
    x: Rows,
    h: Rows,
    a: Rows,
    b: Rows,
    attended: Rows,
    hidden: Rows,
    activations: Activations,
    favor: FavorScratch,
    embedding: embedding::Scratch,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// A cell as the layers read it.
struct Cell<'a> {
    tokens: &'a Tokens,
    /// `[tokens, dim]`.
    encoded: RowsView<'a>,
}

impl Decoder {
    pub(crate) fn load(tensors: &Tensors, config: &Config, dtype: Dtype) -> Result<Self> {
        let (dim, width) = (config.encoder.hidden_dim, config.decoder.hidden_dim);
        let layers = (0..config.decoder.depth).into_par_iter();
        Ok(Self {
            embed: tensors.linear(dtype, "decoder_embed", dim, width)?,
            layers: layers.map(|l| Layer::load(tensors, config, dtype, l)).collect::<Result<_>>()?,
            norms: [tensors.norm("decoder.norm", width)?, tensors.norm("norm", width)?],
            to_final: (
                tensors.get("to_final.weight", &[1, width])?.into_owned(),
                tensors.get("to_final.bias", &[1])?.first().copied().unwrap_or(0.0),
            ),
            dtype,
            dim,
            width,
            inner: config.decoder.heads * config.decoder.dim_head,
            positions: config.seq_len,
            unexpressed: OnceLock::new(),
        })
    }

    /// Context embeddings of the `wanted` positions, `[wanted, width]`, from the cell's encoded tokens, `[tokens,
    /// dim]`.
    pub(crate) fn contexts(
        &self,
        embedding: &Embedding,
        tokens: &Tokens,
        encoded: RowsView,
        wanted: &[u32],
    ) -> Vec<f32> {
        let mut out = vec![0f32; wanted.len() * self.width];
        self.decode(embedding, &Cell { tokens, encoded }, wanted, self.width, &mut out, |context, out| {
            out.copy_from_slice(context);
        });
        out
    }

    /// Predicted log-normalised expression of every gene, `[genes]`.
    pub(crate) fn enhance(&self, embedding: &Embedding, tokens: &Tokens, encoded: RowsView) -> Vec<f32> {
        let genes: Vec<u32> = (0..self.positions as u32 - 2).collect();
        let mut out = vec![0f32; genes.len()];
        let (weight, bias) = &self.to_final;
        self.decode(embedding, &Cell { tokens, encoded }, &genes, 1, &mut out, |context, out| {
            out[0] = cellql_kernels::dot(context, weight) + bias;
        });
        out
    }

    /// Runs all layers; `finish` turns a wanted position's context into its `size` numbers of `out`.
    fn decode(
        &self,
        embedding: &Embedding,
        cell: &Cell,
        wanted: &[u32],
        size: usize,
        out: &mut [f32],
        finish: impl Fn(&[f32], &mut [f32]) + Sync,
    ) {
        let unexpressed = self.unexpressed.get_or_init(|| self.without_expression(embedding));
        let (mut x, mut context) = self.first(embedding, cell, unexpressed);
        let row = x.stride();
        for pair in self.layers.windows(2) {
            let parts = x.all_mut().par_chunks_mut(PART * BLOCK * row).with_max_len(1);
            let sums: Vec<KeySums> = parts
                .map(|part| {
                    let mut sums = pair[1].favor.no_keys();
                    SCRATCH.with_borrow_mut(|scratch| {
                        for x in part.chunks_mut(BLOCK * row) {
                            let (rows, mut x) = (x.len() / row, RowsViewMut::new(x, row, self.width));
                            self.finish_layer(&pair[0], &context, x.reborrow(), rows, scratch);
                            self.add_keys(&pair[1], x.view(), rows, &mut sums, scratch);
                        }
                    });
                    sums
                })
                .collect();
            context = pair[1].favor.context(&sums, None);
        }
        let Some(last) = self.layers.last() else { return };
        let blocks = wanted.par_chunks(BLOCK).zip(out.par_chunks_mut(BLOCK * size)).with_max_len(1);
        blocks.for_each(|(wanted, out)| {
            SCRATCH.with_borrow_mut(|scratch| {
                let mut rows = std::mem::take(&mut scratch.x);
                rows.resize(BLOCK, self.width);
                wanted.iter().enumerate().for_each(|(i, p)| rows.row_mut(i).copy_from_slice(x.row(*p as usize)));
                self.finish_layer(last, &context, rows.view_mut(0), wanted.len(), scratch);
                for (i, out) in out.chunks_exact_mut(size).enumerate() {
                    let context = rows.row_mut(i);
                    self.norms.iter().for_each(|norm| norm.apply(context));
                    finish(context, out);
                }
                scratch.x = rows;
            });
        });
    }

    /// Rows of vectors as the first layer reads them: `decoder_embed(token + position)`.
    fn embed_rows(&self, tokens: &Rows, rows: usize, out: RowsViewMut, activations: &mut Activations) {
        let input = activations.of(self.dtype, tokens.view(0), rows);
        self.embed.forward(input, rows, Then::Bias, out);
    }

    fn without_expression(&self, embedding: &Embedding) -> Unexpressed {
        let layer = &self.layers[0];
        let mut rows = Rows::new(self.positions, self.width);
        let row = rows.stride();
        let parts = rows.all_mut().par_chunks_mut(PART * BLOCK * row).enumerate().with_max_len(1);
        let done: Vec<(KeySums, Vec<f32>)> = parts
            .map(|(part, x)| {
                let (mut sums, mut largest) = (layer.favor.no_keys(), Vec::new());
                SCRATCH.with_borrow_mut(|scratch| {
                    let mut zero = vec![0f32; self.dim];
                    embedding.values(&[0.0], RowsViewMut::of_row(&mut zero), &mut scratch.embedding);
                    for (block, x) in x.chunks_mut(BLOCK * row).enumerate() {
                        let (first, rows) = ((part * PART + block) * BLOCK, x.len() / row);
                        let mut x = RowsViewMut::new(x, row, self.width);
                        scratch.tokens.resize(BLOCK, self.dim);
                        for i in 0..rows {
                            let at = embedding.position(first + i);
                            let token = scratch.tokens.row_mut(i).iter_mut().zip(at.iter().zip(&zero));
                            token.for_each(|(t, (a, z))| *t = a + z);
                        }
                        self.embed_rows(&scratch.tokens, rows, x.reborrow(), &mut scratch.activations);
                        self.add_keys(layer, x.view(), rows, &mut sums, scratch);
                        layer.favor.largest(scratch.a.view(0), rows, &mut scratch.favor, &mut largest);
                    }
                });
                (sums, largest)
            })
            .collect();
        let (sums, largest): (Vec<KeySums>, Vec<Vec<f32>>) = done.into_iter().unzip();
        Unexpressed { rows, sums: layer.favor.merge(&sums), largest: largest.concat() }
    }

    /// Rows of a cell before the first layer, and the first layer's summed keys.
    fn first(&self, embedding: &Embedding, cell: &Cell, unexpressed: &Unexpressed) -> (Rows, Context) {
        let layer = &self.layers[0];
        let mut x = unexpressed.rows.clone();
        let mut is_expressed = vec![false; self.positions];
        cell.tokens.positions.iter().for_each(|p| is_expressed[*p as usize] = true);
        let tokens = cell.tokens.positions.par_chunks(BLOCK).enumerate().with_max_len(1);
        let done: Vec<(Rows, KeySums, KeySums)> = tokens
            .map(|(block, positions)| {
                let (mut taken, mut added) = (unexpressed.sums.empty(), layer.favor.no_keys());
                let mut rows = Rows::new(positions.len(), self.width);
                SCRATCH.with_borrow_mut(|scratch| {
                    for (i, p) in positions.iter().enumerate() {
                        rows.row_mut(i).copy_from_slice(unexpressed.rows.row(*p as usize));
                    }
                    self.add_keys(layer, rows.view(0), positions.len(), &mut taken, scratch);
                    scratch.tokens.resize(BLOCK, self.dim);
                    for (i, p) in positions.iter().enumerate() {
                        let encoded = cell.encoded.row(block * BLOCK + i);
                        let at = embedding.position(*p as usize);
                        let token = scratch.tokens.row_mut(i).iter_mut().zip(encoded.iter().zip(at));
                        token.for_each(|(t, (e, a))| *t = e + a);
                    }
                    self.embed_rows(&scratch.tokens, positions.len(), rows.view_mut(0), &mut scratch.activations);
                    self.add_keys(layer, rows.view(0), positions.len(), &mut added, scratch);
                });
                (rows, taken, added)
            })
            .collect();
        let mut parts = vec![unexpressed.sums.clone()];
        for ((rows, taken, added), positions) in done.into_iter().zip(cell.tokens.positions.chunks(BLOCK)) {
            for (i, p) in positions.iter().enumerate() {
                x.row_mut(*p as usize)[..self.width].copy_from_slice(rows.row(i));
            }
            parts.extend([taken.negated(), added]);
        }
        // Subtracted keys do not count towards the largest.
        let zeros = unexpressed.largest.iter().zip(&is_expressed).filter(|(_, expressed)| !**expressed);
        let zeros = zeros.map(|(y, _)| *y).fold(f32::NEG_INFINITY, f32::max);
        let largest = parts[1..].iter().skip(1).step_by(2).map(KeySums::largest).fold(zeros, f32::max);
        (x, layer.favor.context(&parts, Some(largest)))
    }

    /// Adds the keys and values of some rows to a layer's sums; leaves the keys in `scratch.a`.
    fn add_keys(&self, layer: &Layer, x: RowsView, rows: usize, sums: &mut KeySums, scratch: &mut Scratch) {
        let Scratch { h, a, b, activations, favor, .. } = scratch;
        normalised(&layer.norm, x, rows, h);
        a.resize(BLOCK, self.inner);
        b.resize(BLOCK, self.inner);
        let input = activations.of(self.dtype, h.view(0), rows);
        layer.key.forward(input, rows, Then::Bias, a.view_mut(0));
        layer.value.forward(input, rows, Then::Bias, b.view_mut(0));
        layer.favor.add_keys(a.view(0), b.view(0), rows, sums, favor);
    }

    /// Attention of rows against a layer's summed keys, then its feed-forward, in place.
    fn finish_layer(&self, layer: &Layer, context: &Context, x: RowsViewMut, rows: usize, scratch: &mut Scratch) {
        let Scratch { h, a, b, attended, hidden, activations, favor, .. } = scratch;
        let (width, dtype) = (self.width, self.dtype);
        normalised(&layer.norm, x.view(), rows, h);
        a.resize(BLOCK, self.inner);
        attended.resize(BLOCK, self.inner);
        b.resize(BLOCK, width);
        hidden.resize(BLOCK, 4 * width);

        layer.query.forward(activations.of(dtype, h.view(0), rows), rows, Then::Bias, a.view_mut(0));
        layer.favor.attend(a.view(0), rows, context, attended.view_mut(0), favor);
        layer.out.forward(activations.of(dtype, attended.view(0), rows), rows, Then::Add(x.view()), b.view_mut(0));

        normalised(&layer.feed_norm, b.view(0), rows, h);
        layer.w1.forward(activations.of(dtype, h.view(0), rows), rows, Then::Bias, hidden.view_mut(0));
        (0..rows).for_each(|i| gelu(hidden.row_mut(i)));
        layer.w2.forward(activations.of(dtype, hidden.view(0), rows), rows, Then::Add(b.view(0)), x);
    }
}

/// Normalised copies of rows.
fn normalised(norm: &LayerNorm, x: RowsView, rows: usize, out: &mut Rows) {
    out.resize(BLOCK, x.width());
    for (i, row) in x.rows(rows).enumerate() {
        let to = out.row_mut(i);
        to.copy_from_slice(row);
        norm.apply(to);
    }
}
