//! All weights of a model as one row of numbers, so that gradients, moments and averages over devices are rows too.
//!
//! Depends on `model` for what a model's tensors are. Knows nothing of training.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{Device, Tensor};
use cellql_schemas::vocabulary::Vocabulary;

use crate::error::{Result, TrainingError};
use cellql_model::{Config, Weights};

/// A tensor's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name, as the authors name it.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where its numbers stand.
    pub at: Range<usize>,
}

/// The weights of a model in one row. Buffers, which no gradient changes, stand apart.
#[derive(Debug, Clone)]
pub struct FlatWeights {
    config: Config,
    vocabulary: Vocabulary,
    slots: Vec<Slot>,
    places: HashMap<String, usize>,
    /// Every weight, in the order of the tensors' names.
    pub values: Vec<f32>,
    buffers: HashMap<String, Tensor>,
}

fn is_buffer(name: &str) -> bool {
    name.ends_with("projection_matrix")
}

impl FlatWeights {
    /// Of a model's tensors.
    ///
    /// # Errors
    /// None that well-formed tensors can cause.
    pub fn of(weights: &Weights) -> Result<Self> {
        let (buffers, mut learned): (Vec<_>, Vec<_>) = weights.tensors.iter().partition(|(name, _)| is_buffer(name));
        learned.sort_by_key(|(name, _)| name.as_str());
        let (mut slots, mut values) = (Vec::new(), Vec::new());
        for (name, tensor) in learned {
            let of_tensor: Vec<f32> =
                tensor.flatten_all().and_then(|t| t.to_vec1()).map_err(TrainingError::compute("reading weights"))?;
            let at = values.len()..values.len() + of_tensor.len();
            slots.push(Slot { name: name.clone(), shape: tensor.dims().to_vec(), at });
            values.extend(of_tensor);
        }
        Ok(Self {
            config: weights.config.clone(),
            vocabulary: weights.vocabulary.clone(),
            places: slots.iter().enumerate().map(|(i, slot)| (slot.name.clone(), i)).collect(),
            slots,
            values,
            buffers: buffers.into_iter().map(|(name, tensor)| (name.clone(), tensor.clone())).collect(),
        })
    }

    /// Back to named tensors.
    ///
    /// # Errors
    /// None that memory does not cause.
    pub fn to_weights(&self) -> Result<Weights> {
        let tensor = |slot: &Slot| -> candle_core::Result<(String, Tensor)> {
            let values = &self.values[slot.at.clone()];
            Ok((slot.name.clone(), Tensor::from_slice(values, slot.shape.as_slice(), &Device::Cpu)?))
        };
        let learned: candle_core::Result<HashMap<String, Tensor>> = self.slots.iter().map(tensor).collect();
        let mut tensors = learned.map_err(TrainingError::compute("writing weights"))?;
        tensors.extend(self.buffers.iter().map(|(name, tensor)| (name.clone(), tensor.clone())));
        Ok(Weights { config: self.config.clone(), vocabulary: self.vocabulary.clone(), tensors })
    }

    /// The same weights with another tensor in the place of one, and the sizes and gene names that go with it.
    ///
    /// # Errors
    /// [`TrainingError::Weight`] where there is no such tensor, or two genes have one name.
    pub(crate) fn with_tensor(
        &self,
        name: &str,
        (config, genes): (Config, Vec<String>),
        shape: Vec<usize>,
        tensor: Vec<f32>,
    ) -> Result<Self> {
        let wrong = |problem: String| TrainingError::Weight { weight: name.to_owned(), problem };
        let place = *self.places.get(name).ok_or_else(|| wrong("is missing".into()))?;
        let vocabulary = Vocabulary::new(genes).map_err(|e| wrong(e.to_string()))?;
        let (old, new) = (self.slots[place].at.clone(), tensor.len());
        let values = [&self.values[..old.start], &tensor, &self.values[old.end..]].concat();
        let mut slots = self.slots.clone();
        slots[place].shape = shape;
        slots[place].at = old.start..old.start + new;
        for slot in &mut slots[place + 1..] {
            slot.at = slot.at.start - old.len() + new..slot.at.end - old.len() + new;
        }
        Ok(Self { config, vocabulary, slots, values, places: self.places.clone(), buffers: self.buffers.clone() })
    }

    /// Tensors that are not learned.
    pub fn buffers(&self) -> &HashMap<String, Tensor> {
        &self.buffers
    }

    /// Sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Genes in order.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Every tensor's place, in order.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The place of a tensor of exactly this shape.
    ///
    /// # Errors
    /// [`TrainingError::Weight`] where there is none.
    pub fn at(&self, name: &str, shape: &[usize]) -> Result<Range<usize>> {
        let slot = self.places.get(name).map(|at| &self.slots[*at]);
        let slot =
            slot.ok_or_else(|| TrainingError::Weight { weight: name.to_owned(), problem: "is missing".into() })?;
        if slot.shape != shape {
            let (found, wanted) = (&slot.shape, shape);
            return Err(TrainingError::Weight {
                weight: name.to_owned(),
                problem: format!("has the shape {found:?}; the sizes ask for {wanted:?}"),
            });
        }
        Ok(slot.at.clone())
    }

    /// A buffer of exactly this shape.
    ///
    /// # Errors
    /// [`TrainingError::Weight`] where there is none.
    pub fn buffer(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let found = self.buffers.get(name).filter(|tensor| tensor.dims() == shape);
        let found = found.ok_or_else(|| TrainingError::Weight {
            weight: name.to_owned(),
            problem: format!("is missing or not of shape {shape:?}"),
        })?;
        found.flatten_all().and_then(|t| t.to_vec1()).map_err(TrainingError::compute("reading weights"))
    }
}
