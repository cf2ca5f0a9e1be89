//! Rows that the cells of a batch share: a gene without expression has the same row before the first decoder layer, the
//! same key and the same query features in every cell.
//!
//! Keys are summed once for a batch; a cell subtracts the keys at its own positions and adds its own instead. In the
//! backward pass the cells' gradients of the shared rows are summed first, and the rows go through once.

use std::ops::Range;

use cellql_kernels::{Activations, BLOCK, Rows, Then, TrainableSums, add_scaled};
use rayon::prelude::*;

use super::Network;
use super::decoder;
use super::encoder::blocks;
use super::thread_state::ThreadState;

/// Rows, summed keys and largest x'·Pᵀ of every position, its value being zero.
#[derive(Debug)]
pub(super) struct SharedRows {
    /// Input of the first layer, `[positions, width]`.
    pub(super) rows: Rows,
    pub(super) sums: TrainableSums,
    /// Per position, over all heads.
    pub(super) largest: Vec<f32>,
    /// Features of queries, `[positions, features]`; `None` where the first layer is the last, which has few query
    /// rows.
    pub(super) features: Option<Rows>,
}

/// Positions in `parts` runs of nearly one length.
pub(super) fn runs(positions: usize, parts: usize) -> Vec<Range<usize>> {
    let length = positions.div_ceil(parts.max(1));
    (0..positions).step_by(length.max(1)).map(|first| first..(first + length).min(positions)).collect()
}

/// Rows at some positions.
pub(super) fn gather(from: &Rows, at: impl ExactSizeIterator<Item = usize>, width: usize) -> Rows {
    let mut rows = Rows::new(at.len().max(1), width);
    rows.gather(from, at);
    rows
}

impl Network<'_> {
    /// Tokens of some positions, their values being zero: `[positions, dim]`.
    fn zero_tokens(&self, at: Range<usize>) -> Rows {
        let mut tokens = Rows::new(at.len(), self.dim);
        for (i, p) in at.enumerate() {
            let token = tokens.row_mut(i).iter_mut().zip(self.zero.iter().zip(self.tokens.position(p)));
            token.for_each(|(t, (z, g))| *t = z + g);
        }
        tokens
    }

    /// Computes every position with a value of zero, up to the keys of the first layer. Parts and their order depend on
    /// the number of positions alone, so results do not depend on threads.
    pub(super) fn shared_rows(&self) -> SharedRows {
        const PARTS: usize = 16;
        let part = |at: Range<usize>| {
            let (tokens, mut rows) = (self.zero_tokens(at.clone()), Rows::new(at.len(), self.width));
            let mut activations = Activations::default();
            for (first, count) in blocks(at.len()) {
                self.embed.linear.forward(
                    tokens.view(first),
                    count,
                    Then::Bias,
                    rows.view_mut(first),
                    &mut activations,
                );
            }
            let (layer, mut largest) = (&self.layers[0], Vec::new());
            let mut sums = layer.favor().no_keys();
            let scratch = &mut decoder::Scratch::default();
            layer.add_keys(&rows, at.len(), 1.0, &mut sums, Some(&mut largest), scratch);
            let features = (self.layers.len() > 1).then(|| {
                let mut features = Rows::new(at.len(), layer.favor().width());
                layer.query_features(&rows, at.len(), &mut features, scratch);
                features
            });
            (rows, sums, largest, features)
        };
        let runs = runs(self.seq_len, PARTS);
        let parts: Vec<_> = runs.clone().into_par_iter().map(part).collect();
        let mut shared = SharedRows {
            rows: Rows::new(self.seq_len, self.width),
            sums: self.layers[0].favor().no_keys(),
            largest: Vec::with_capacity(self.seq_len),
            features: (self.layers.len() > 1).then(|| Rows::new(self.seq_len, self.layers[0].favor().width())),
        };
        for (at, (rows, sums, largest, features)) in runs.into_iter().zip(parts) {
            if let (Some(to), Some(from)) = (&mut shared.features, &features) {
                to.scatter(from, at.clone());
            }
            shared.rows.scatter(&rows, at);
            shared.sums.add(&sums);
            shared.largest.extend(largest);
        }
        shared
    }

    /// Backward pass of [`Network::shared_rows`], once for a batch: the cells' gradients of the shared rows and keys
    /// are summed, and each thread takes a run of positions.
    pub(super) fn shared_rows_backward(&self, shared: &SharedRows, threads: &mut [ThreadState]) {
        let Some((first, others)) = threads.split_first_mut() else { return };
        for other in others.iter() {
            first.shared_keys.add(&other.shared_keys);
            for p in 0..self.seq_len {
                add_scaled(first.shared.rows.row_mut(p), other.shared.rows.row(p), 1.0);
                if shared.features.is_some() {
                    add_scaled(first.shared.features.row_mut(p), other.shared.features.row(p), 1.0);
                }
            }
        }
        let (keys, d_shared) = (first.shared_keys.clone(), std::mem::take(&mut first.shared));
        let runs = runs(self.seq_len, threads.len());
        threads.par_iter_mut().zip(runs).for_each(|(thread, at)| {
            let rows = gather(&shared.rows, at.clone(), self.width);
            let mut d = gather(&d_shared.rows, at.clone(), self.width);
            let gradient = &mut thread.gradient;
            self.layers[0].keys_backward(
                &rows,
                at.len(),
                1.0,
                &keys,
                &mut d,
                &mut gradient.layers[0],
                &mut thread.scratch.decoder,
            );
            if shared.features.is_some() {
                let (layer, decoder) = (&mut gradient.layers[0], &mut thread.scratch.decoder);
                self.layers[0].shared_queries_backward(&rows, &d_shared.features, at.clone(), &mut d, layer, decoder);
            }
            let tokens = self.zero_tokens(at.clone());
            let mut d_tokens = Rows::new(BLOCK, self.dim);
            for (first, rows) in blocks(at.len()) {
                gradient.embed.add(d.view(first), tokens.view(first), rows, &mut thread.scratch.linear);
                let activations = &mut thread.scratch.activations;
                self.embed.linear.backward(d.view(first), rows, Then::Bias, d_tokens.view_mut(0), activations);
                for i in 0..rows {
                    let d = d_tokens.row(i);
                    gradient.tokens.add_position(at.start + first + i, d);
                    add_scaled(&mut gradient.zero, d, 1.0);
                }
            }
        });
        threads[0].shared = d_shared;
    }
}
