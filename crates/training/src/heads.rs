//! Linear layers from the pooled vector of a cell, `[4·dim]`, for the additional objectives. They are tensors of the
//! model beside the authors', and nothing but training reads them.

use std::ops::Range;

use candle_core::{Device, Tensor};
use cellql_model::Weights;
use rand::Rng;

use crate::error::{Result, TrainingError};
use crate::flat_weights::FlatWeights;
use crate::objectives::Objectives;
use crate::seed::seeded;

/// Name of the layer that predicts components.
pub(crate) const COMPONENTS: &str = "heads.components";
/// Name of the layer to the vectors that are contrasted.
pub(crate) const CONTRAST: &str = "heads.contrast";

/// Adds the heads that objectives need and a model lacks, or has in another size, to its weights: drawn from a seed as
/// torch.nn.Linear draws them. `components` is the number of components to predict.
///
/// # Errors
/// [`TrainingError::Model`] where memory does not suffice.
pub fn add_heads(weights: &mut Weights, objectives: &Objectives, components: usize, seed: u64) -> Result<()> {
    let inputs = 4 * weights.config.encoder.hidden_dim;
    let heads = [
        (COMPONENTS, components, objectives.components > 0.0),
        (CONTRAST, objectives.contrast_dim, objectives.contrast > 0.0),
    ];
    for (name, outputs, _) in heads.into_iter().filter(|(_, _, is_used)| *is_used) {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        if weights.tensors.get(&weight).is_some_and(|tensor| tensor.dims() == [outputs, inputs]) {
            continue;
        }
        let bound = 1.0 / (inputs as f32).sqrt();
        let mut rng = seeded(&[&seed.to_le_bytes(), name.as_bytes()]);
        let mut draw = |shape: &[usize]| {
            let values = (0..shape.iter().product()).map(|_| rng.random_range(-bound..bound)).collect();
            Tensor::from_vec(values, shape, &Device::Cpu).map_err(TrainingError::compute("drawing weights of a head"))
        };
        let drawn = [draw(&[outputs, inputs])?, draw(&[outputs])?];
        weights.tensors.extend([weight, bias].into_iter().zip(drawn));
    }
    Ok(())
}

/// Largest value of a gene embedding that is set from loadings: a few genes have most of some components.
const LARGEST: f32 = 4.0;

/// Replaces gene embeddings by the loadings of a linear model, `[genes, components]` in the order of the vocabulary,
/// `None` for genes that it does not have: each component scaled to a root mean square of 1, as drawn values have, and
/// 0 where there is none. Components beyond the width of an embedding are left out; dimensions beyond the components
/// keep their random values.
///
/// # Errors
/// [`TrainingError::Weight`] if the model has no gene embeddings.
pub fn set_gene_embeddings(weights: &mut Weights, loadings: &[Option<&[f32]>]) -> Result<()> {
    const NAME: &str = "pos_emb.weight";
    let missing = || TrainingError::Weight { weight: NAME.to_owned(), problem: "is missing".into() };
    let tensor = weights.tensors.get(NAME).ok_or_else(missing)?;
    let (dim, shape) = (weights.config.encoder.hidden_dim, tensor.dims().to_vec());
    let doing = || TrainingError::compute("setting gene embeddings");
    let mut values: Vec<f32> = tensor.flatten_all().and_then(|t| t.to_vec1()).map_err(doing())?;
    let components = loadings.iter().flatten().map(|row| row.len()).next().unwrap_or_default();
    let scales: Vec<f32> = (0..components.min(dim))
        .map(|c| {
            let squares: f64 = loadings.iter().flatten().map(|row| f64::from(row[c]).powi(2)).sum();
            let mean = squares / loadings.iter().flatten().count().max(1) as f64;
            if mean > 0.0 { (1.0 / mean.sqrt()) as f32 } else { 0.0 }
        })
        .collect();
    for (embedding, loadings) in values.chunks_exact_mut(dim).zip(loadings) {
        for (c, (value, scale)) in embedding.iter_mut().zip(&scales).enumerate() {
            *value = loadings.map_or(0.0, |row| (row[c] * scale).clamp(-LARGEST, LARGEST));
        }
    }
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).map_err(doing())?;
    weights.tensors.insert(NAME.to_owned(), tensor);
    Ok(())
}

/// A head among the weights of a model.
#[derive(Debug, Clone)]
pub(crate) struct HeadPlace {
    pub(crate) weight: Range<usize>,
    pub(crate) bias: Range<usize>,
    pub(crate) outputs: usize,
}

impl HeadPlace {
    /// # Errors
    /// [`TrainingError::Weight`] where the model lacks it, or has it in another size.
    pub(crate) fn find(parameters: &FlatWeights, name: &str, outputs: usize) -> Result<Self> {
        let inputs = 4 * parameters.config().encoder.hidden_dim;
        Ok(Self {
            weight: parameters.at(&format!("{name}.weight"), &[outputs, inputs])?,
            bias: parameters.at(&format!("{name}.bias"), &[outputs])?,
            outputs,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read, Seek};

    use super::*;
    use cellql_model::{CheckpointKey, Config, Size, initialise};
    use cellql_schemas::vocabulary::Vocabulary;

    fn weights() -> Weights {
        let vocabulary = Vocabulary::new(["A", "B", "C"].map(str::to_owned).to_vec()).unwrap();
        initialise(&Config::of_size(Size::M3, 3), vocabulary, 1).unwrap()
    }

    #[test]
    fn gene_embeddings_are_scaled_loadings_and_the_rest_stays() {
        let (mut changed, before) = (weights(), weights());
        let loadings: [Option<&[f32]>; 3] = [Some(&[0.3, -8.0]), None, Some(&[-0.4, 0.0])];
        set_gene_embeddings(&mut changed, &loadings).unwrap();
        let of = |weights: &Weights| weights.tensors["pos_emb.weight"].to_vec2::<f32>().unwrap();
        let (after, before) = (of(&changed), of(&before));
        let rms = (0.25f32 / 2.0).sqrt();
        assert!((after[0][0] - 0.3 / rms).abs() < 1e-6 && (after[2][0] + 0.4 / rms).abs() < 1e-6);
        assert!((after[0][1] + 2f32.sqrt()).abs() < 1e-6 && after[1][..2] == [0.0, 0.0]);
        assert_eq!(after[0][2..], before[0][2..]);
        assert_eq!(after[3..], before[3..], "those of T and S stay");
    }

    #[test]
    fn heads_are_added_once() {
        let objectives =
            Objectives { components: 1.0, contrast: 1.0, target: Some("l".into()), ..Objectives::default() };
        let mut all = weights();
        let plain = all.tensors.len();
        add_heads(&mut all, &objectives, 5, 1).unwrap();
        assert_eq!(all.tensors.len(), plain + 4);
        let drawn = all.tensors["heads.components.weight"].to_vec2::<f32>().unwrap();
        add_heads(&mut all, &objectives, 5, 2).unwrap();
        assert_eq!(all.tensors["heads.components.weight"].to_vec2::<f32>().unwrap(), drawn, "kept");
        add_heads(&mut all, &objectives, 6, 2).unwrap();
        assert_eq!(all.tensors["heads.components.weight"].dims(), [6, 512], "of another target: drawn anew");
        // The authors' layout has no place for them.
        let mut file = cellql_model::write_checkpoint(&all, CheckpointKey::Cell, Cursor::new(Vec::new())).unwrap();
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        let holds = |name: &[u8]| bytes.windows(name.len()).any(|window| window == name);
        assert!(holds(b"pos_emb.weight") && !holds(b"heads."));
        let mut without = weights();
        add_heads(&mut without, &Objectives::default(), 0, 1).unwrap();
        assert_eq!(without.tensors.len(), plain);
    }
}
