//! The output map of a model: a mean and a matrix that turn its embeddings into those of fewer dimensions, for example
//! by whitening.

use crate::error::Result;
use crate::weights::Tensors;

/// Names of the tensors of an output map.
pub(crate) const PREFIX: &str = "output_map.";
pub(crate) const MEAN: &str = "output_map.mean";
pub(crate) const MATRIX: &str = "output_map.matrix";

/// Turns a vector v into `matrix · (v − mean)`.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputMap {
    /// `[inputs]`.
    pub mean: Vec<f32>,
    /// `[outputs, inputs]`.
    pub matrix: Vec<f32>,
}

impl OutputMap {
    /// Of a model's file, for embeddings of `inputs` dimensions and with `outputs` after it.
    pub(crate) fn load(tensors: &Tensors, inputs: usize, outputs: usize) -> Result<Self> {
        let mean = tensors.get(MEAN, &[inputs])?.into_owned();
        Ok(Self { mean, matrix: tensors.get(MATRIX, &[outputs, inputs])?.into_owned() })
    }

    /// Dimensions before the map.
    pub fn inputs(&self) -> usize {
        self.mean.len()
    }

    /// Dimensions after the map.
    pub fn outputs(&self) -> usize {
        self.matrix.len() / self.mean.len().max(1)
    }

    /// Maps vectors, `[n, inputs]` to `[n, outputs]`. Sums are in f64, so that the result does not depend on the order
    /// of additions beyond the precision of f32.
    pub fn apply(&self, vectors: &[f32]) -> Vec<f32> {
        let inputs = self.inputs().max(1);
        let mut out = Vec::with_capacity(vectors.len() / inputs * self.outputs());
        for vector in vectors.chunks_exact(inputs) {
            let centred: Vec<f64> = vector.iter().zip(&self.mean).map(|(v, m)| f64::from(v - m)).collect();
            let along = |row: &[f32]| row.iter().zip(&centred).map(|(r, c)| f64::from(*r) * c).sum::<f64>() as f32;
            out.extend(self.matrix.chunks_exact(inputs).map(along));
        }
        out
    }
}
