//! One cell there and back: encoder, decoder, loss at the masked positions, and the gradient of everything.

use cellql_kernels::{
    Activations, BLOCK, DenseGradient, DenseScratch, KeyGradient, LearningContext, Rows, Then, add_scaled, dot,
};

use super::decoder::{self, Asked, LayerGradient, SharedQueries};
use super::encoder::{self, EncoderGradient, blocks};
use super::layers::NormGradient;
use super::shared::{Shared, gather};
use super::values::{self, ValuesGradient};
use super::{Loss, Network};
use crate::task::Example;

/// Gradients of every weight, as the products sum them.
#[derive(Debug)]
pub(super) struct Gradient {
    pub(super) values: ValuesGradient,
    pub(super) encoder: EncoderGradient,
    pub(super) embed: DenseGradient,
    pub(super) layers: Vec<LayerGradient>,
    pub(super) norms: [NormGradient; 2],
    /// `[width]`, then of its bias.
    pub(super) last: (Vec<f32>, f32),
    /// Of the vector of a value of zero, `[dim]`.
    pub(super) zero: Vec<f32>,
    /// `[seq_len + 1, dim]`.
    pub(super) positions: Vec<f32>,
}

impl Gradient {
    pub(super) fn add_position(&mut self, position: usize, d: &[f32]) {
        add_scaled(&mut self.positions[position * d.len()..][..d.len()], d, 1.0);
    }
}

/// Memory of one thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) values: values::Scratch,
    pub(super) encoder: encoder::Scratch,
    pub(super) decoder: decoder::Scratch,
    pub(super) activations: Activations,
    pub(super) dense: DenseScratch,
    /// What enters each decoder layer, and its gradient.
    entered: Vec<Rows>,
    d: Rows,
}

/// A thread's share of a batch.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) gradient: Gradient,
    pub(super) shared: SharedGradient,
    pub(super) shared_keys: KeyGradient,
    pub(super) loss: Loss,
    pub(super) scratch: Scratch,
}

/// What cells ask of the rows they share.
#[derive(Debug, Default)]
pub(super) struct SharedGradient {
    /// `[positions, width]`.
    pub(super) rows: Rows,
    /// t of shared queries, `[positions, features]`; not in use where none are shared.
    pub(super) features: Rows,
}

/// What a thread leaves for the next step: memory that is given back to the system comes again page by page.
pub(super) type Left = (Scratch, SharedGradient);

/// A cell's tokens, and the positions of the decoder at which it differs from a cell that expresses nothing.
struct Cell<'a> {
    example: &'a Example,
    /// Seen genes, then T and S.
    positions: Vec<u32>,
    values: Vec<f32>,
    /// Positions of tokens, then hidden ones.
    own: Vec<usize>,
    /// All others.
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

/// What the way back needs of the way there.
struct Forward {
    own_tokens: Rows,
    own: Rows,
    /// The shared rows at the cell's own positions.
    own_as_zero: Rows,
    contexts: Vec<LearningContext>,
    /// Masked positions before and after the last layer, `[masked, width]`.
    asked: Rows,
    answered: Rows,
}

impl Network<'_> {
    /// Zero gradients, in memory of a step before where there is some.
    pub(super) fn part(&self, shared: &Shared, left: Option<Left>) -> Part {
        let (mut scratch, mut asked) = left.unwrap_or_default();
        asked.rows.resize(self.seq_len, self.width);
        asked.rows.clear();
        if shared.features.is_some() {
            asked.features.resize(self.seq_len, self.layers[0].favor().width());
            asked.features.clear();
        }
        scratch.encoder.keeps = !self.recomputes;
        scratch.decoder.keeps = !self.recomputes;
        let gradient = Gradient {
            values: self.values.gradient(),
            encoder: self.encoder.gradient(),
            embed: self.embed.gradient(),
            layers: self.layers.iter().map(decoder::Layer::gradient).collect(),
            norms: [self.norms[0].gradient(), self.norms[1].gradient()],
            last: (vec![0.0; self.width], 0.0),
            zero: vec![0.0; self.dim],
            positions: vec![0.0; (self.seq_len + 1) * self.dim],
        };
        Part {
            gradient,
            shared: asked,
            shared_keys: self.layers[0].favor().no_key_gradient(shared.sums.max),
            loss: Loss::default(),
            scratch,
        }
    }

    /// The loss of a cell alone.
    pub(super) fn ask(&self, example: &Example, shared: &Shared, scratch: &mut Scratch) -> Loss {
        let cell = Cell::new(example);
        let forward = self.forward(&cell, shared, scratch);
        let mut loss = Loss { squares: 0.0, masked: example.masked.len() as u64 };
        self.judge(&cell, &forward.answered, |_, _, _, error| loss.squares += f64::from(error).powi(2));
        loss
    }

    /// Adds the loss of a cell and the gradient of its sum of squares.
    pub(super) fn learn_cell(&self, example: &Example, shared: &Shared, part: &mut Part) {
        let cell = Cell::new(example);
        let forward = self.forward(&cell, shared, &mut part.scratch);
        part.loss.masked += example.masked.len() as u64;
        let mut d = self.loss_back(&cell, &forward, part);
        let d_encoded = self.decode_back(&cell, &forward, &mut d, shared, part);
        self.encode_back(&cell, d_encoded, part);
    }

    fn forward(&self, cell: &Cell, shared: &Shared, scratch: &mut Scratch) -> Forward {
        let tokens = cell.positions.len();
        let mut x = Rows::new(tokens, self.dim);
        for (first, rows) in blocks(tokens) {
            self.values.forward(&cell.values[first..first + rows], x.part_mut(first), &mut scratch.values);
        }
        for (i, p) in cell.positions.iter().enumerate() {
            add_scaled(x.row_mut(i), self.position(*p as usize), 1.0);
        }
        let encoded = self.encoder.forward(x, tokens, &mut scratch.encoder);
        let own_tokens = self.own_tokens(cell, &encoded);
        let mut own = Rows::new(own_tokens.1, self.width);
        for (first, rows) in blocks(own_tokens.1) {
            let x = own_tokens.0.part(first);
            self.embed.dense.forward(x, rows, Then::Bias, own.part_mut(first), &mut scratch.activations);
        }
        self.decode(cell, own_tokens.0, own, shared, scratch)
    }

    /// Tokens of the decoder that differ from zero's, and how many.
    fn own_tokens(&self, cell: &Cell, encoded: &Rows) -> (Rows, usize) {
        let (tokens, own) = (cell.positions.len(), cell.own());
        let count = own.len();
        let mut rows = Rows::new(count, self.dim);
        for (i, p) in own.enumerate() {
            let row = rows.row_mut(i);
            row.copy_from_slice(if i < tokens { encoded.row(i) } else { self.mask });
            add_scaled(row, self.position(p), 1.0);
        }
        (rows, count)
    }

    /// Every decoder layer; the last one for masked positions alone.
    fn decode(&self, cell: &Cell, own_tokens: Rows, own: Rows, shared: &Shared, scratch: &mut Scratch) -> Forward {
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
            for asked in self.asked(n - 1, cell, &own, &before[n - 1], shared) {
                layer.forward(&asked, self.seq_len, &contexts[n - 1], out, decoder);
            }
            let mut sums = self.layers[n].favor().no_keys();
            self.layers[n].add_keys(out, self.seq_len, 1.0, &mut sums, None, decoder);
            contexts.push(self.layers[n].favor().context(&sums, None));
        }
        let last = self.layers.len() - 1;
        let asked = gather(&entered[last], cell.masked(), self.width);
        let masked = cell.example.masked.len();
        let mut answered = Rows::new(masked.max(1), self.width);
        let rows = Asked::rows(&asked, &self.all[..masked]);
        self.layers[last].forward(&rows, masked, &contexts[last], &mut answered, decoder);
        Forward { own_tokens, own, own_as_zero, contexts, asked, answered }
    }

    /// What asks a layer that is not the last: every position, and in the first layer the cell's own ones and the others, with
    /// the features that those share.
    fn asked<'a>(
        &'a self,
        layer: usize,
        cell: &'a Cell,
        own: &'a Rows,
        entered: &'a Rows,
        shared: &'a Shared,
    ) -> Vec<Asked<'a>> {
        if layer > 0 {
            return vec![Asked::rows(entered, &self.all)];
        }
        let zero =
            Asked { from: &shared.rows, features: shared.features.as_ref(), at: &cell.zero, to: &cell.zero, after: 0 };
        let at = &self.all[..cell.own.len()];
        vec![zero, Asked { from: own, features: None, at, to: &cell.own, after: cell.zero.len() }]
    }

    /// The first layer's sums: those of zeros, less what stands at the cell's own positions, and its own.
    fn first_context(
        &self,
        cell: &Cell,
        own: &Rows,
        own_as_zero: &Rows,
        shared: &Shared,
        scratch: &mut decoder::Scratch,
    ) -> LearningContext {
        let (layer, count) = (&self.layers[0], cell.own().len());
        let (mut sums, mut added) = (shared.sums.clone(), layer.favor().no_keys());
        layer.add_keys(own_as_zero, count, -1.0, &mut sums, None, scratch);
        layer.add_keys(own, count, 1.0, &mut added, None, scratch);
        // Keys that were taken off do not count towards the largest.
        let largest = cell.zero.iter().map(|p| shared.largest[*p]).fold(added.max, f32::max);
        sums.add(&added);
        layer.favor().context(&sums, Some(largest))
    }

    /// Goes through the answers: the row, both normalised forms of it, and how far its prediction is off.
    fn judge(&self, cell: &Cell, answered: &Rows, mut tell: impl FnMut(usize, &[f32], &[f32], f32)) {
        let (mut first, mut second) = (Rows::default(), Rows::default());
        for (block, rows) in blocks(cell.example.masked.len()) {
            self.norms[0].forward(answered.part(block), rows, &mut first);
            self.norms[1].forward(first.part(0), rows, &mut second);
            for i in 0..rows {
                let target = cell.example.target[cell.example.masked[block + i] as usize];
                let predicted = dot(second.row(i), self.last.0) + self.last.1;
                tell(block + i, first.row(i), second.row(i), predicted - target);
            }
        }
    }

    /// The loss, and the gradient of what the last layer answered, `[masked, width]`.
    fn loss_back(&self, cell: &Cell, forward: &Forward, part: &mut Part) -> Rows {
        let (gradient, loss) = (&mut part.gradient, &mut part.loss);
        let mut d = Rows::new(cell.example.masked.len().max(1), self.width);
        let (mut d_second, mut d_first) = (vec![0.0; self.width], vec![0.0; self.width]);
        self.judge(cell, &forward.answered, |i, first, second, error| {
            loss.squares += f64::from(error).powi(2);
            let d_predicted = 2.0 * error;
            add_scaled(&mut gradient.last.0, second, d_predicted);
            gradient.last.1 += d_predicted;
            d_second.fill(0.0);
            d_first.fill(0.0);
            add_scaled(&mut d_second, self.last.0, d_predicted);
            let [norm, after] = &mut gradient.norms;
            self.norms[1].back((first, self.width), (&d_second, self.width), 1, (&mut d_first, self.width), after);
            let (x, d_first) = ((forward.answered.row(i), self.width), (&d_first[..], self.width));
            self.norms[0].back(x, d_first, 1, (d.row_mut(i), self.width), norm);
        });
        d
    }

    /// Back through the decoder; gives the gradient of the encoded tokens, `[tokens, dim]`.
    fn decode_back(
        &self,
        cell: &Cell,
        forward: &Forward,
        d_answered: &mut Rows,
        shared: &Shared,
        part: &mut Part,
    ) -> Rows {
        let (all, last) = (self.seq_len, self.layers.len() - 1);
        let Part { gradient, scratch, shared_keys, shared: asked_of_shared, .. } = part;
        let Scratch { entered, d, decoder, .. } = scratch;
        d.resize(all, self.width);
        d.clear();
        let (contexts, masked) = (&forward.contexts, cell.example.masked.len());
        let layer = &self.layers[last];
        let mut sums = layer.favor().no_queries();
        let (of_layer, asked) = (&mut gradient.layers[last], Asked::rows(&forward.asked, &self.all[..masked]));
        layer.back(&asked, &contexts[last], d_answered, None, &mut sums, of_layer, decoder);
        d.scatter(d_answered, cell.masked());
        for n in (1..=last).rev() {
            let keys = self.layers[n].favor().key_gradient(&contexts[n], sums);
            self.layers[n].keys_back(&entered[n], all, 1.0, &keys, d, &mut gradient.layers[n], decoder);
            let (layer, of_layer) = (&self.layers[n - 1], &mut gradient.layers[n - 1]);
            sums = layer.favor().no_queries();
            for asked in self.asked(n - 1, cell, &forward.own, &entered[n - 1], shared) {
                let shared = asked.features.is_some().then_some(SharedQueries {
                    rows: &mut asked_of_shared.rows,
                    features: &mut asked_of_shared.features,
                });
                layer.back(&asked, &contexts[n - 1], d, shared, &mut sums, of_layer, decoder);
            }
        }
        if shared.features.is_none() {
            cell.zero.iter().for_each(|p| add_scaled(asked_of_shared.rows.row_mut(*p), d.row(*p), 1.0));
        }
        let keys = self.layers[0].favor().key_gradient(&contexts[0], sums);
        let as_zero = keys.against(shared.sums.max);
        shared_keys.add(&as_zero);
        let count = cell.own.len();
        let mut d_own = gather(d, cell.own(), self.width);
        let mut d_zero = Rows::new(count, self.width);
        let (layer, of_layer) = (&self.layers[0], &mut gradient.layers[0]);
        layer.keys_back(&forward.own, count, 1.0, &keys, &mut d_own, of_layer, decoder);
        layer.keys_back(&forward.own_as_zero, count, -1.0, &as_zero, &mut d_zero, of_layer, decoder);
        cell.own().enumerate().for_each(|(i, p)| add_scaled(asked_of_shared.rows.row_mut(p), d_zero.row(i), 1.0));
        self.own_back(cell, forward, &d_own, part)
    }

    /// From the gradient of the cell's own rows to those of its tokens: genes, what is hidden, and what was encoded.
    fn own_back(&self, cell: &Cell, forward: &Forward, d_own: &Rows, part: &mut Part) -> Rows {
        let (gradient, scratch) = (&mut part.gradient, &mut part.scratch);
        let (tokens, own) = (cell.positions.len(), &cell.own);
        let (mut d_encoded, mut d_tokens) = (Rows::new(tokens, self.dim), Rows::new(BLOCK, self.dim));
        for (first, rows) in blocks(own.len()) {
            gradient.embed.add(d_own.part(first), forward.own_tokens.part(first), rows, &mut scratch.dense);
            let activations = &mut scratch.activations;
            self.embed.dense.back(d_own.part(first), rows, Then::Bias, d_tokens.part_mut(0), activations);
            for i in 0..rows {
                let d = d_tokens.row(i);
                gradient.add_position(own[first + i], d);
                match first + i < tokens {
                    true => d_encoded.row_mut(first + i).copy_from_slice(d),
                    false => add_scaled(&mut gradient.values.mask, d, 1.0),
                }
            }
        }
        d_encoded
    }

    fn encode_back(&self, cell: &Cell, mut d: Rows, part: &mut Part) {
        let (gradient, scratch) = (&mut part.gradient, &mut part.scratch);
        let tokens = cell.positions.len();
        self.encoder.back(tokens, &mut d, &mut gradient.encoder, &mut scratch.encoder);
        for (i, p) in cell.positions.iter().enumerate() {
            gradient.add_position(*p as usize, d.row(i));
        }
        for (first, rows) in blocks(tokens) {
            let values = &cell.values[first..first + rows];
            self.values.back(values, d.part(first), &mut gradient.values, &mut scratch.values);
        }
    }
}
