//! The additional objectives on the CPU: views of cells go through the encoder, their pooled vectors through the heads;
//! losses of the whole batch give the gradient of each pooled vector, and the views go back one per thread.
//!
//! The activations of every view are stored from the forward pass to the backward pass, because the contrast of a view
//! depends on all others.

use std::sync::{Mutex, PoisonError};

use cellql_kernels::{Dtype, Rows, add_scaled, dot};
use cellql_model::Tokens;
use rayon::prelude::*;

use super::pooling::{Pooled, pool, pool_backward};
use super::tokens::{TokenEncoder, TokenGradient};
use super::view_losses::{component_loss, contrast_loss};
use super::{Loss, encoder, values};
use crate::error::Result;
use crate::flat_weights::FlatWeights;
use crate::heads::{COMPONENTS, CONTRAST, HeadPlace};
use crate::objectives::Objectives;
use crate::views::{CellViews, targets};

/// Activations of views that are used again in the next step.
#[derive(Debug, Default)]
pub struct ViewBuffers(Mutex<Vec<encoder::Scratch>>);

impl ViewBuffers {
    fn take(&self) -> encoder::Scratch {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn put(&self, scratch: encoder::Scratch) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
    }
}

/// A linear layer over pooled vectors.
#[derive(Debug)]
struct Head<'a> {
    weight: &'a [f32],
    bias: &'a [f32],
    place: HeadPlace,
}

impl<'a> Head<'a> {
    fn pack(parameters: &'a FlatWeights, name: &str, outputs: usize) -> Result<Self> {
        let place = HeadPlace::find(parameters, name, outputs)?;
        let (weight, bias) = (&parameters.values[place.weight.clone()], &parameters.values[place.bias.clone()]);
        Ok(Self { weight, bias, place })
    }

    /// `[views, outputs]`.
    fn forward(&self, views: &[View]) -> Vec<f32> {
        let of_view = |view: &View| {
            let rows = self.weight.chunks_exact(view.pooled.vector.len()).zip(self.bias);
            rows.map(|(row, bias)| dot(row, &view.pooled.vector) + bias).collect::<Vec<f32>>()
        };
        views.par_iter().flat_map_iter(of_view).collect()
    }

    /// Adds the gradients of weight and bias to `flat` and that of the pooled vectors to `d_pooled`, from the gradient
    /// `d` of the outputs.
    fn backward(&self, views: &[View], d: &[f32], d_pooled: &mut [f32], flat: &mut [f32]) {
        let inputs = self.weight.len() / self.place.outputs;
        let of_views = || views.iter().zip(d.chunks_exact(self.place.outputs));
        let weight = flat[self.place.weight.clone()].par_chunks_mut(inputs).enumerate();
        weight.for_each(|(o, row)| of_views().for_each(|(view, d)| add_scaled(row, &view.pooled.vector, d[o])));
        of_views().for_each(|(_, d)| add_scaled(&mut flat[self.place.bias.clone()], d, 1.0));
        let pooled = d_pooled.par_chunks_mut(inputs).zip(d.par_chunks(self.place.outputs));
        pooled.for_each(|(out, d)| {
            self.weight.chunks_exact(inputs).zip(d).for_each(|(row, d)| add_scaled(out, row, *d));
        });
    }
}

/// A view after the forward pass.
struct View<'a> {
    tokens: &'a Tokens,
    pooled: Pooled,
    scratch: encoder::Scratch,
}

/// The encoder and the heads, packed for a step.
#[derive(Debug)]
pub struct ViewNetwork<'a> {
    tokens: TokenEncoder<'a>,
    objectives: &'a Objectives,
    components: Option<Head<'a>>,
    contrast: Option<Head<'a>>,
    recomputes: bool,
}

impl<'a> ViewNetwork<'a> {
    /// Packs weights for a step, products of the encoder in f32 or bf16. `components` is the length of the targets.
    ///
    /// # Errors
    /// [`TrainingError::Weight`](crate::TrainingError::Weight) where a weight is missing or misshapen.
    pub fn pack(
        parameters: &'a FlatWeights,
        dtype: Dtype,
        objectives: &'a Objectives,
        components: usize,
    ) -> Result<Self> {
        let head = |is_used: bool, name: &str, outputs: usize| {
            is_used.then(|| Head::pack(parameters, name, outputs)).transpose()
        };
        Ok(Self {
            tokens: TokenEncoder::pack(parameters, dtype)?,
            components: head(objectives.components > 0.0, COMPONENTS, components)?,
            contrast: head(objectives.contrast > 0.0, CONTRAST, objectives.contrast_dim)?,
            objectives,
            recomputes: false,
        })
    }

    /// Whether the backward pass recomputes activations instead of storing them (activation checkpointing).
    #[must_use]
    pub fn recomputing(self, recomputes: bool) -> Self {
        Self { recomputes, ..self }
    }

    /// The losses of a batch.
    pub fn loss(&self, batch: &[CellViews]) -> Loss {
        let views = self.forward(batch, &ViewBuffers::default());
        self.losses(batch, &views, None)
    }

    /// The losses of a batch, and the gradient of their weighted sum, added to `flat` in the parameters' order. With
    /// one number of threads the sums have one order.
    pub fn learn(&self, batch: &[CellViews], flat: &mut [f32], buffers: &ViewBuffers) -> Loss {
        let mut views = self.forward(batch, buffers);
        let mut d_pooled = vec![0f32; views.len() * 4 * self.tokens.dim];
        let loss = self.losses(batch, &views, Some((&mut d_pooled, flat)));
        self.backward(&mut views, &d_pooled, flat);
        views.into_iter().for_each(|view| buffers.put(view.scratch));
        loss
    }

    fn forward<'b>(&self, batch: &'b [CellViews], buffers: &ViewBuffers) -> Vec<View<'b>> {
        let all: Vec<&Tokens> = batch.iter().flat_map(|cell| &cell.views).collect();
        let of_view = |of_values: &mut values::Scratch, tokens: &&'b Tokens| {
            let mut scratch = buffers.take();
            scratch.keeps = !self.recomputes;
            let encoded = self.tokens.forward(&tokens.positions, &tokens.values, of_values, &mut scratch);
            let pooled = pool(&encoded, tokens.len(), self.tokens.dim);
            View { tokens, pooled, scratch }
        };
        all.par_iter().map_init(values::Scratch::default, of_view).collect()
    }

    /// The losses; gradients of heads and pooled vectors where they are asked for.
    fn losses(&self, batch: &[CellViews], views: &[View], gradients: Option<(&mut [f32], &mut [f32])>) -> Loss {
        let mut loss = Loss { view_batches: 1, ..Loss::default() };
        let (mut d_components, mut d_contrast) = (Vec::new(), Vec::new());
        if let Some(head) = &self.components {
            let targets = targets(batch);
            d_components = vec![0.0; targets.len()];
            let (predicted, weight) = (head.forward(views), self.objectives.components);
            loss.components = component_loss(&predicted, &targets, head.place.outputs, weight, &mut d_components);
        }
        if let Some(head) = &self.contrast {
            let z = head.forward(views);
            d_contrast = vec![0.0; z.len()];
            let Objectives { contrast, temperature, .. } = *self.objectives;
            loss.contrast = contrast_loss(&z, head.place.outputs, temperature, contrast, &mut d_contrast);
        }
        if let Some((d_pooled, flat)) = gradients {
            for (head, d) in [(&self.components, d_components), (&self.contrast, d_contrast)] {
                head.iter().for_each(|head| head.backward(views, &d, d_pooled, flat));
            }
        }
        loss
    }

    fn backward(&self, views: &mut [View], d_pooled: &[f32], flat: &mut [f32]) {
        let threads = rayon::current_num_threads().min(views.len()).max(1);
        let mut dealt: Vec<Vec<(&mut View, &[f32])>> = (0..threads).map(|_| Vec::new()).collect();
        // By length, so that threads finish together.
        let mut order: Vec<_> = views.iter_mut().zip(d_pooled.chunks_exact(4 * self.tokens.dim)).collect();
        order.sort_by_key(|(view, _)| std::cmp::Reverse(view.tokens.len()));
        order.into_iter().enumerate().for_each(|(i, view)| dealt[i % threads].push(view));
        let of_thread = |views: Vec<(&mut View, &[f32])>| {
            let (mut gradient, mut of_values) = (self.tokens.gradient(), values::Scratch::default());
            for (View { tokens, pooled, scratch }, d) in views {
                let mut d: Rows = pool_backward(pooled, d, tokens.len());
                let at = (&*tokens.positions, &*tokens.values);
                self.tokens.backward(at, &mut d, &mut gradient, &mut of_values, scratch);
            }
            gradient
        };
        let gradients: Vec<TokenGradient> = dealt.into_par_iter().map(of_thread).collect();
        gradients.iter().for_each(|gradient| self.tokens.add_to(gradient, flat));
    }
}
