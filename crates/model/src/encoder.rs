//! The encoder on the CPU: value embedding plus gene embedding, then post-norm transformer layers over each cell's own
//! tokens, then one more norm.
//!
//! Follows torch's `TransformerEncoderLayer` with its defaults (post-norm, ReLU, eps 1e-5), as the authors' code uses
//! it. A layer is two passes: attention in tasks of one cell and head; then blocks of rows, which go from the result of
//! attention to the queries, keys and values of the next layer without leaving the cache.

use std::cell::RefCell;

use rayon::prelude::*;

use crate::Config;
use crate::batch::Packed;
use crate::embedding::{self, Embedding};
use crate::error::Result;
use crate::weights::Tensors;
use cellql_kernels::{Activations, Attention, BLOCK, Dtype, Isa, LayerNorm, Linear, Rows, RowsViewMut, Then};

#[derive(Debug)]
struct Layer {
    in_proj: Linear,
    out_proj: Linear,
    linear1: Linear,
    linear2: Linear,
    norm1: LayerNorm,
    norm2: LayerNorm,
}

impl Layer {
    fn load(tensors: &Tensors, dtype: Dtype, at: &str, dim: usize) -> Result<Self> {
        let attention = format!("{at}.self_attn");
        let in_proj = (format!("{attention}.in_proj_weight"), format!("{attention}.in_proj_bias"));
        Ok(Self {
            in_proj: tensors.linear_named(dtype, &in_proj.0, &in_proj.1, dim, 3 * dim)?,
            out_proj: tensors.linear(dtype, &format!("{attention}.out_proj"), dim, dim)?,
            linear1: tensors.linear(dtype, &format!("{at}.linear1"), dim, 4 * dim)?,
            linear2: tensors.linear(dtype, &format!("{at}.linear2"), 4 * dim, dim)?,
            norm1: tensors.norm(&format!("{at}.norm1"), dim)?,
            norm2: tensors.norm(&format!("{at}.norm2"), dim)?,
        })
    }
}

/// The encoder of a model, its weights packed in one number format.
#[derive(Debug)]
pub(crate) struct Encoder {
    layers: Vec<Layer>,
    norm: LayerNorm,
    dtype: Dtype,
    heads: usize,
    dim: usize,
}

#[derive(Default)]
struct Scratch {
    attended: Rows,
    y: Rows,
    hidden: Rows,
    activations: Activations,
    embedding: embedding::Scratch,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// Rows of a block: as many as kernels take, fewer where threads would be idle.
fn block_rows(rows: usize) -> usize {
    let threads = rayon::current_num_threads();
    let blocks = rows.div_ceil(BLOCK);
    let blocks = if blocks < 4 * threads { blocks.next_multiple_of(threads) } else { blocks };
    rows.div_ceil(blocks.max(1)).clamp(1, BLOCK)
}

impl Encoder {
    pub(crate) fn load(tensors: &Tensors, config: &Config, dtype: Dtype) -> Result<Self> {
        let dim = config.encoder.hidden_dim;
        let layers = (0..config.encoder.depth).into_par_iter();
        let layer = |l| Layer::load(tensors, dtype, &format!("encoder.transformer_encoder.{l}"), dim);
        Ok(Self {
            layers: layers.map(layer).collect::<Result<_>>()?,
            norm: tensors.norm("encoder.norm", dim)?,
            dtype,
            heads: config.encoder.heads,
            dim,
        })
    }

    /// Encodes a batch: `[tokens, dim]`.
    pub(crate) fn forward(&self, embedding: &Embedding, batch: &Packed) -> Rows {
        let tokens = batch.values.len();
        let (mut x, mut qkv) = (Rows::new(tokens, self.dim), Rows::new(tokens, 3 * self.dim));
        let mut attended = vec![0f32; tokens * self.dim];
        let attention =
            Attention { isa: Isa::best(), dtype: self.dtype, heads: self.heads, dim: self.dim / self.heads };
        let block = block_rows(tokens);
        let (x_row, qkv_row) = (x.stride(), qkv.stride());
        for l in 0..=self.layers.len() {
            let blocks = x.all_mut().par_chunks_mut(block * x_row).zip(qkv.all_mut().par_chunks_mut(block * qkv_row));
            blocks.enumerate().with_max_len(1).for_each(|(i, (x, qkv))| {
                let (rows, first, qkv) = (x.len() / x_row, i * block, RowsViewMut::new(qkv, qkv_row, 3 * self.dim));
                let block = Block { first, rows, x: RowsViewMut::new(x, x_row, self.dim) };
                SCRATCH.with_borrow_mut(|scratch| {
                    match l.checked_sub(1) {
                        None => self.embed(embedding, batch, block, qkv, scratch),
                        Some(done) => self.after(done, batch, &attended, block, qkv, scratch),
                    };
                });
            });
            if l < self.layers.len() {
                attention.run(&qkv, &batch.starts, &mut attended);
            }
        }
        x
    }

    /// Tokens, and the first layer's queries, keys and values.
    fn embed(&self, embedding: &Embedding, batch: &Packed, block: Block, qkv: RowsViewMut, scratch: &mut Scratch) {
        let Block { first, rows, mut x } = block;
        embedding.values(&batch.values[first..first + rows], x.reborrow(), &mut scratch.embedding);
        for (i, position) in batch.positions[first..first + rows].iter().enumerate() {
            let gene = embedding.position(*position as usize);
            x.row_mut(i).iter_mut().zip(gene).for_each(|(x, g)| *x += g);
        }
        let input = scratch.activations.of(self.dtype, x.view(), rows);
        self.layers[0].in_proj.forward(input, rows, Then::Bias, qkv);
    }

    /// The rest of a layer after its attention, and the next one's queries, keys and values.
    fn after(
        &self,
        done: usize,
        batch: &Packed,
        attended: &[f32],
        block: Block,
        qkv: RowsViewMut,
        scratch: &mut Scratch,
    ) {
        let Block { first, rows, mut x } = block;
        let (layer, dim, dtype) = (&self.layers[done], self.dim, self.dtype);
        let Scratch { attended: gathered, y, hidden, activations, .. } = scratch;
        gathered.resize(BLOCK, dim);
        y.resize(BLOCK, dim);
        hidden.resize(BLOCK, 4 * dim);
        gather(attended, batch, self.heads, first, rows, gathered);

        let input = activations.of(dtype, gathered.view(0), rows);
        layer.out_proj.forward(input, rows, Then::Add(x.view()), y.view_mut(0));
        (0..rows).for_each(|i| layer.norm1.apply(y.row_mut(i)));

        let input = activations.of(dtype, y.view(0), rows);
        layer.linear1.forward(input, rows, Then::Relu, hidden.view_mut(0));
        let input = activations.of(dtype, hidden.view(0), rows);
        layer.linear2.forward(input, rows, Then::Add(y.view(0)), x.reborrow());
        (0..rows).for_each(|i| layer.norm2.apply(x.row_mut(i)));

        match self.layers.get(done + 1) {
            Some(next) => {
                let input = activations.of(dtype, x.view(), rows);
                next.in_proj.forward(input, rows, Then::Bias, qkv);
            }
            None => (0..rows).for_each(|i| self.norm.apply(x.row_mut(i))),
        }
    }
}

/// Rows `[first, first + rows)` of a batch.
struct Block<'a> {
    first: usize,
    rows: usize,
    x: RowsViewMut<'a>,
}

/// Rows of the result of attention, which is stored cell by cell and head by head.
fn gather(attended: &[f32], batch: &Packed, heads: usize, first: usize, rows: usize, out: &mut Rows) {
    let mut cell = batch.starts.partition_point(|start| *start <= first) - 1;
    for i in 0..rows {
        while batch.starts[cell + 1] <= first + i {
            cell += 1;
        }
        let (start, end) = (batch.starts[cell], batch.starts[cell + 1]);
        let row = out.row_mut(i);
        let (dim, width) = (row.len() / heads, row.len());
        for (h, part) in row.chunks_exact_mut(dim).enumerate() {
            let at = start * width + (h * (end - start) + first + i - start) * dim;
            part.copy_from_slice(&attended[at..at + dim]);
        }
    }
}
