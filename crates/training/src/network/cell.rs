//! One cell, forward and backward: encoder, decoder, loss at the masked positions, and the gradient of every weight.

use cellql_kernels::{BLOCK, Rows, RowsView, RowsViewMut, Then, TrainableContext, add_scaled, dot};

use super::decoder::{self, QueryRows, SharedQueries};
use super::encoder::blocks;
use super::shared_rows::{SharedRows, gather};
use super::thread_state::{Buffers, Gradient, Scratch, ThreadState};
use super::{Loss, Network};
use crate::read_depth::Example;

/// A cell's tokens, and the positions of the decoder at which it differs from a cell that expresses nothing.
struct Cell<'a> {
    example: &'a Example,
    /// Seen genes, then T and S.
    positions: Vec<u32>,
    values: Vec<f32>,
    /// Positions of tokens, then hidden ones.
    own: Vec<usize>,
    /// All other positions.
    zero: Vec<usize>,
}

impl<'a> Cell<'a> {
    fn new(example: &'a Example) -> Self {
        let (positions, values) = example.tokens();
        let own: Vec<usize> = positions.iter().chain(&example.hidden).map(|p| *p as usize).collect();
        let mut is_own = vec![false; example.input.len() + 2];
        own.iter().for_each(|p| is_own[*p] = true);
        let zero = (0..is_own.len()).filter(|p| !is_own[*p]).collect();
        Self { example, positions, values, own, zero }
    }

    fn own(&self) -> impl ExactSizeIterator<Item = usize> {
        self.own.iter().copied()
    }

    fn masked(&self) -> impl ExactSizeIterator<Item = usize> {
        self.example.masked.iter().map(|p| *p as usize)
    }
}

/// Results of the forward pass that the backward pass reads.
struct Forward {
    own_tokens: Rows,
    own: Rows,
    /// The shared rows at the cell's own positions.
    own_as_zero: Rows,
    contexts: Vec<TrainableContext>,
    /// Masked positions before and after the last layer, `[masked, width]`.
    queries: Rows,
    answers: Rows,
}

impl Network<'_> {
    /// The state of a thread before its first cell: gradients of zero, in the buffers of an earlier step if there are
    /// any.
    pub(super) fn thread_state(&self, shared: &SharedRows, buffers: Option<Buffers>) -> ThreadState {
        let (mut scratch, mut d_shared) = buffers.unwrap_or_default();
        d_shared.rows.resize(self.seq_len, self.width);
        d_shared.rows.clear();
        if shared.features.is_some() {
            d_shared.features.resize(self.seq_len, self.layers[0].favor().width());
            d_shared.features.clear();
        }
        scratch.encoder.keeps = !self.recomputes;
        scratch.decoder.keeps = !self.recomputes;
        let gradient = Gradient {
            tokens: self.tokens.gradient(),
            embed: self.embed.gradient(),
            layers: self.layers.iter().map(decoder::Layer::gradient).collect(),
            norms: [self.norms[0].gradient(), self.norms[1].gradient()],
            last: (vec![0.0; self.width], 0.0),
            zero: vec![0.0; self.dim],
        };
        ThreadState {
            gradient,
            shared: d_shared,
            shared_keys: self.layers[0].favor().no_key_gradient(shared.sums.max),
            loss: Loss::default(),
            scratch,
        }
    }

    /// The loss of a cell, without gradients.
    pub(super) fn loss_of_cell(&self, example: &Example, shared: &SharedRows, scratch: &mut Scratch) -> Loss {
        let cell = Cell::new(example);
        let forward = self.forward(&cell, shared, scratch);
        let mut loss = Loss { masked: example.masked.len() as u64, ..Loss::default() };
        self.for_each_prediction(&cell, &forward.answers, |_, _, _, error| loss.squares += f64::from(error).powi(2));
        loss
    }

    /// Adds the loss of a cell and the gradient of its sum of squares.
    pub(super) fn learn_cell(&self, example: &Example, shared: &SharedRows, state: &mut ThreadState) {
        let cell = Cell::new(example);
        let forward = self.forward(&cell, shared, &mut state.scratch);
        state.loss.masked += example.masked.len() as u64;
        let mut d = self.loss_backward(&cell, &forward, state);
        let mut d_encoded = self.decode_backward(&cell, &forward, &mut d, shared, state);
        let ThreadState { gradient, scratch: Scratch { values, encoder, .. }, .. } = state;
        let tokens = (&*cell.positions, &*cell.values);
        self.tokens.backward(tokens, &mut d_encoded, &mut gradient.tokens, values, encoder);
    }

    fn forward(&self, cell: &Cell, shared: &SharedRows, scratch: &mut Scratch) -> Forward {
        let Scratch { values, encoder, .. } = scratch;
        let encoded = self.tokens.forward(&cell.positions, &cell.values, values, encoder);
        let own_tokens = self.own_tokens(cell, &encoded);
        let mut own = Rows::new(own_tokens.1, self.width);
        for (first, rows) in blocks(own_tokens.1) {
            let x = own_tokens.0.view(first);
            self.embed.linear.forward(x, rows, Then::Bias, own.view_mut(first), &mut scratch.activations);
        }
        self.decode(cell, own_tokens.0, own, shared, scratch)
    }

    /// Decoder tokens at the cell's own positions, `[own, dim]`, and how many there are.
    fn own_tokens(&self, cell: &Cell, encoded: &Rows) -> (Rows, usize) {
        let (tokens, own) = (cell.positions.len(), cell.own());
        let count = own.len();
        let mut rows = Rows::new(count, self.dim);
        for (i, p) in own.enumerate() {
            let row = rows.row_mut(i);
            row.copy_from_slice(if i < tokens { encoded.row(i) } else { self.mask });
            add_scaled(row, self.tokens.position(p), 1.0);
        }
        (rows, count)
    }

    /// Every decoder layer. The last one computes masked positions only.
    fn decode(&self, cell: &Cell, own_tokens: Rows, own: Rows, shared: &SharedRows, scratch: &mut Scratch) -> Forward {
        let own_as_zero = gather(&shared.rows, cell.own(), self.width);
        let mut contexts = vec![self.first_context(cell, &own, &own_as_zero, shared, &mut scratch.decoder)];
        let Scratch { entered, decoder, .. } = scratch;
        entered.resize_with(self.layers.len(), Rows::default);
        // What enters the first layer is made only where its rows are not shared.
        for rows in entered.iter_mut().skip(usize::from(shared.features.is_some())) {
            rows.resize(self.seq_len, self.width);
        }
        if shared.features.is_none() {
            entered[0].gather(&shared.rows, 0..self.seq_len);
            entered[0].scatter(&own, cell.own());
        }
        for n in 1..self.layers.len() {
            let (before, after) = entered.split_at_mut(n);
            let (layer, out) = (&self.layers[n - 1], &mut after[0]);
            for queries in self.query_rows(n - 1, cell, &own, &before[n - 1], shared) {
                layer.forward(&queries, self.seq_len, &contexts[n - 1], out, decoder);
            }
            let mut sums = self.layers[n].favor().no_keys();
            self.layers[n].add_keys(out, self.seq_len, 1.0, &mut sums, None, decoder);
            contexts.push(self.layers[n].favor().context(&sums, None));
        }
        let last = self.layers.len() - 1;
        let queries = gather(&entered[last], cell.masked(), self.width);
        let masked = cell.example.masked.len();
        let mut answers = Rows::new(masked.max(1), self.width);
        let rows = QueryRows::rows(&queries, &self.all[..masked]);
        self.layers[last].forward(&rows, masked, &contexts[last], &mut answers, decoder);
        Forward { own_tokens, own, own_as_zero, contexts, queries, answers }
    }

    /// Query rows of a layer that is not the last: every position. In the first layer the cell's own positions come
    /// apart from the others, whose features are shared.
    fn query_rows<'a>(
        &'a self,
        layer: usize,
        cell: &'a Cell,
        own: &'a Rows,
        entered: &'a Rows,
        shared: &'a SharedRows,
    ) -> Vec<QueryRows<'a>> {
        if layer > 0 {
            return vec![QueryRows::rows(entered, &self.all)];
        }
        let zero = QueryRows {
            from: &shared.rows,
            features: shared.features.as_ref(),
            at: &cell.zero,
            to: &cell.zero,
            after: 0,
        };
        let at = &self.all[..cell.own.len()];
        vec![zero, QueryRows { from: own, features: None, at, to: &cell.own, after: cell.zero.len() }]
    }

    /// The first layer's key sums: those of a cell without expression, minus its keys at the cell's own positions, plus
    /// the cell's own keys.
    fn first_context(
        &self,
        cell: &Cell,
        own: &Rows,
        own_as_zero: &Rows,
        shared: &SharedRows,
        scratch: &mut decoder::Scratch,
    ) -> TrainableContext {
        let (layer, count) = (&self.layers[0], cell.own().len());
        let (mut sums, mut added) = (shared.sums.clone(), layer.favor().no_keys());
        layer.add_keys(own_as_zero, count, -1.0, &mut sums, None, scratch);
        layer.add_keys(own, count, 1.0, &mut added, None, scratch);
        // Subtracted keys do not count towards the largest.
        let largest = cell.zero.iter().map(|p| shared.largest[*p]).fold(added.max, f32::max);
        sums.add(&added);
        layer.favor().context(&sums, Some(largest))
    }

    /// Visits every masked position: its row, the row after each of the two norms, and the error of its prediction.
    fn for_each_prediction(&self, cell: &Cell, answers: &Rows, mut visit: impl FnMut(usize, &[f32], &[f32], f32)) {
        let (mut first, mut second) = (Rows::default(), Rows::default());
        for (block, rows) in blocks(cell.example.masked.len()) {
            self.norms[0].forward(answers.view(block), rows, &mut first);
            self.norms[1].forward(first.view(0), rows, &mut second);
            for i in 0..rows {
                let target = cell.example.target[cell.example.masked[block + i] as usize];
                let predicted = dot(second.row(i), self.last.0) + self.last.1;
                visit(block + i, first.row(i), second.row(i), predicted - target);
            }
        }
    }

    /// Adds the loss; returns the gradient of the last layer's output, `[masked, width]`.
    fn loss_backward(&self, cell: &Cell, forward: &Forward, state: &mut ThreadState) -> Rows {
        let (gradient, loss) = (&mut state.gradient, &mut state.loss);
        let mut d = Rows::new(cell.example.masked.len().max(1), self.width);
        let (mut d_second, mut d_first) = (vec![0.0; self.width], vec![0.0; self.width]);
        self.for_each_prediction(cell, &forward.answers, |i, first, second, error| {
            loss.squares += f64::from(error).powi(2);
            let d_predicted = 2.0 * error;
            add_scaled(&mut gradient.last.0, second, d_predicted);
            gradient.last.1 += d_predicted;
            d_second.fill(0.0);
            d_first.fill(0.0);
            add_scaled(&mut d_second, self.last.0, d_predicted);
            let [norm, after] = &mut gradient.norms;
            let (x, dy) = (RowsView::of_row(first), RowsView::of_row(&d_second));
            self.norms[1].backward(x, dy, 1, RowsViewMut::of_row(&mut d_first), after);
            let (x, dy) = (forward.answers.view(i), RowsView::of_row(&d_first));
            self.norms[0].backward(x, dy, 1, d.view_mut(i), norm);
        });
        d
    }

    /// Backward pass of the decoder. Returns the gradient of the encoded tokens, `[tokens, dim]`.
    fn decode_backward(
        &self,
        cell: &Cell,
        forward: &Forward,
        d_answers: &mut Rows,
        shared: &SharedRows,
        state: &mut ThreadState,
    ) -> Rows {
        let (all, last) = (self.seq_len, self.layers.len() - 1);
        let ThreadState { gradient, scratch, shared_keys, shared: d_shared, .. } = state;
        let Scratch { entered, d, decoder, .. } = scratch;
        d.resize(all, self.width);
        d.clear();
        let (contexts, masked) = (&forward.contexts, cell.example.masked.len());
        let layer = &self.layers[last];
        let mut sums = layer.favor().no_queries();
        let of_layer = &mut gradient.layers[last];
        let queries = QueryRows::rows(&forward.queries, &self.all[..masked]);
        layer.backward(&queries, &contexts[last], d_answers, None, &mut sums, of_layer, decoder);
        d.scatter(d_answers, cell.masked());
        for n in (1..=last).rev() {
            let keys = self.layers[n].favor().key_gradient(&contexts[n], sums);
            self.layers[n].keys_backward(&entered[n], all, 1.0, &keys, d, &mut gradient.layers[n], decoder);
            let (layer, of_layer) = (&self.layers[n - 1], &mut gradient.layers[n - 1]);
            sums = layer.favor().no_queries();
            for queries in self.query_rows(n - 1, cell, &forward.own, &entered[n - 1], shared) {
                let shared = queries
                    .features
                    .is_some()
                    .then_some(SharedQueries { rows: &mut d_shared.rows, features: &mut d_shared.features });
                layer.backward(&queries, &contexts[n - 1], d, shared, &mut sums, of_layer, decoder);
            }
        }
        if shared.features.is_none() {
            cell.zero.iter().for_each(|p| add_scaled(d_shared.rows.row_mut(*p), d.row(*p), 1.0));
        }
        let keys = self.layers[0].favor().key_gradient(&contexts[0], sums);
        let as_zero = keys.against(shared.sums.max);
        shared_keys.add(&as_zero);
        let count = cell.own.len();
        let mut d_own = gather(d, cell.own(), self.width);
        let mut d_zero = Rows::new(count, self.width);
        let (layer, of_layer) = (&self.layers[0], &mut gradient.layers[0]);
        layer.keys_backward(&forward.own, count, 1.0, &keys, &mut d_own, of_layer, decoder);
        layer.keys_backward(&forward.own_as_zero, count, -1.0, &as_zero, &mut d_zero, of_layer, decoder);
        cell.own().enumerate().for_each(|(i, p)| add_scaled(d_shared.rows.row_mut(p), d_zero.row(i), 1.0));
        self.own_backward(cell, forward, &d_own, state)
    }

    /// From the gradient of the cell's own rows to those of gene embeddings, the mask token, and the encoded tokens
    /// (returned).
    fn own_backward(&self, cell: &Cell, forward: &Forward, d_own: &Rows, state: &mut ThreadState) -> Rows {
        let (gradient, scratch) = (&mut state.gradient, &mut state.scratch);
        let (tokens, own) = (cell.positions.len(), &cell.own);
        let (mut d_encoded, mut d_tokens) = (Rows::new(tokens, self.dim), Rows::new(BLOCK, self.dim));
        for (first, rows) in blocks(own.len()) {
            gradient.embed.add(d_own.view(first), forward.own_tokens.view(first), rows, &mut scratch.linear);
            let activations = &mut scratch.activations;
            self.embed.linear.backward(d_own.view(first), rows, Then::Bias, d_tokens.view_mut(0), activations);
            for i in 0..rows {
                let d = d_tokens.row(i);
                gradient.tokens.add_position(own[first + i], d);
                match first + i < tokens {
                    true => d_encoded.row_mut(first + i).copy_from_slice(d),
                    false => add_scaled(&mut gradient.tokens.values.mask, d, 1.0),
                }
            }
        }
        d_encoded
    }
}
