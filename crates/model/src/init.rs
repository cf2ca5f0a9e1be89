//! Untrained weights, drawn as PyTorch draws them for this model, from a seed.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use cellql_schemas::vocabulary::Vocabulary;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use crate::error::{ModelError, Result};
use crate::{Config, Weights};

/// Draws the weights of a configuration. The same seed gives the same weights on every machine.
///
/// # Errors
/// [`ModelError::Compute`] where memory does not suffice.
pub fn initialise(config: &Config, vocabulary: Vocabulary, seed: u64) -> Result<Weights> {
    let mut draw = Draw { rng: ChaCha8Rng::seed_from_u64(seed), tensors: HashMap::new() };
    draw.all(config).map_err(ModelError::compute("new", "drawing weights"))?;
    Ok(Weights { config: config.clone(), vocabulary, tensors: draw.tensors })
}

struct Draw {
    rng: ChaCha8Rng,
    tensors: HashMap<String, Tensor>,
}

impl Draw {
    fn all(&mut self, config: &Config) -> candle_core::Result<()> {
        let (encoder, decoder, bins) = (&config.encoder, &config.decoder, config.bin_num);
        let dim = encoder.hidden_dim;
        self.linear("token_emb.mlp", 1, bins)?;
        self.linear("token_emb.mlp2", bins, bins)?;
        self.normal("token_emb.emb.weight", (bins, dim))?;
        self.normal("token_emb.emb_mask.weight", (1, dim))?;
        self.normal("token_emb.emb_pad.weight", (1, dim))?;
        self.normal("pos_emb.weight", (config.seq_len + 1, dim))?;
        for layer in 0..encoder.depth {
            let at = format!("encoder.transformer_encoder.{layer}");
            // Xavier over the packed projection, zero bias: torch.nn.MultiheadAttention.
            let bound = (6.0 / (4 * dim) as f64).sqrt();
            self.uniform(&format!("{at}.self_attn.in_proj_weight"), (3 * dim, dim), bound)?;
            self.constant(&format!("{at}.self_attn.in_proj_bias"), 3 * dim, 0.0)?;
            self.linear(&format!("{at}.self_attn.out_proj"), dim, dim)?;
            self.linear(&format!("{at}.linear1"), dim, 4 * dim)?;
            self.linear(&format!("{at}.linear2"), 4 * dim, dim)?;
            self.layer_norm(&format!("{at}.norm1"), dim)?;
            self.layer_norm(&format!("{at}.norm2"), dim)?;
        }
        self.layer_norm("encoder.norm", dim)?;
        self.linear("decoder_embed", dim, decoder.hidden_dim)?;
        for layer in 0..decoder.depth {
            self.performer_layer(config, &format!("decoder.performer.net.layers.{layer}"))?;
        }
        self.layer_norm("decoder.norm", decoder.hidden_dim)?;
        self.layer_norm("norm", decoder.hidden_dim)?;
        self.linear("to_final", decoder.hidden_dim, 1)
    }

    fn performer_layer(&mut self, config: &Config, at: &str) -> candle_core::Result<()> {
        let decoder = &config.decoder;
        let (width, inner) = (decoder.hidden_dim, decoder.heads * decoder.dim_head);
        self.layer_norm(&format!("{at}.0.norm"), width)?;
        for part in ["to_q", "to_k", "to_v"] {
            self.linear(&format!("{at}.0.fn.{part}"), width, inner)?;
        }
        self.linear(&format!("{at}.0.fn.to_out"), inner, width)?;
        let matrix = format!("{at}.0.fn.fast_attention.projection_matrix");
        self.orthogonal_features(&matrix, config.nb_features(), decoder.dim_head)?;
        self.layer_norm(&format!("{at}.1.norm"), width)?;
        self.linear(&format!("{at}.1.fn.fn.w1"), width, 4 * width)?;
        self.linear(&format!("{at}.1.fn.fn.w2"), 4 * width, width)
    }

    fn put(&mut self, name: &str, values: Vec<f32>, shape: &[usize]) -> candle_core::Result<()> {
        self.tensors.insert(name.to_owned(), Tensor::from_vec(values, shape, &Device::Cpu)?);
        Ok(())
    }

    fn uniform(&mut self, name: &str, shape: (usize, usize), bound: f64) -> candle_core::Result<()> {
        let values = (0..shape.0 * shape.1).map(|_| self.rng.random_range(-bound..bound) as f32).collect();
        self.put(name, values, &[shape.0, shape.1])
    }

    fn normal(&mut self, name: &str, shape: (usize, usize)) -> candle_core::Result<()> {
        let values = (0..shape.0 * shape.1).map(|_| self.rng.sample::<f32, _>(StandardNormal)).collect();
        self.put(name, values, &[shape.0, shape.1])
    }

    fn constant(&mut self, name: &str, len: usize, value: f32) -> candle_core::Result<()> {
        self.put(name, vec![value; len], &[len])
    }

    /// torch.nn.Linear: uniform within 1/√inputs, weight and bias.
    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) -> candle_core::Result<()> {
        let bound = 1.0 / (inputs as f64).sqrt();
        self.uniform(&format!("{name}.weight"), (outputs, inputs), bound)?;
        let bias = (0..outputs).map(|_| self.rng.random_range(-bound..bound) as f32).collect();
        self.put(&format!("{name}.bias"), bias, &[outputs])
    }

    fn layer_norm(&mut self, name: &str, dim: usize) -> candle_core::Result<()> {
        self.constant(&format!("{name}.weight"), dim, 1.0)?;
        self.constant(&format!("{name}.bias"), dim, 0.0)
    }

    /// Gaussian orthogonal random features (Choromanski et al. 2021, FAVOR+): blocks of orthonormal rows, each row
    /// scaled to the length of an independent Gaussian vector.
    fn orthogonal_features(&mut self, name: &str, rows: usize, dim: usize) -> candle_core::Result<()> {
        let mut values: Vec<f32> = Vec::with_capacity(rows * dim);
        while values.len() < rows * dim {
            let block = self.orthonormal(dim);
            let wanted = dim.min(rows - values.len() / dim);
            for row in block.into_iter().take(wanted) {
                let length = (0..dim).map(|_| self.rng.sample::<f64, _>(StandardNormal).powi(2)).sum::<f64>().sqrt();
                values.extend(row.into_iter().map(|v| (v * length) as f32));
            }
        }
        self.put(name, values, &[rows, dim])
    }

    /// `dim` orthonormal vectors by Gram–Schmidt on Gaussian draws.
    fn orthonormal(&mut self, dim: usize) -> Vec<Vec<f64>> {
        let mut basis: Vec<Vec<f64>> = Vec::with_capacity(dim);
        while basis.len() < dim {
            let mut v: Vec<f64> = (0..dim).map(|_| self.rng.sample(StandardNormal)).collect();
            for b in &basis {
                let dot: f64 = v.iter().zip(b).map(|(x, y)| x * y).sum();
                v.iter_mut().zip(b).for_each(|(x, y)| *x -= dot * y);
            }
            let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
            if norm > 1e-6 {
                basis.push(v.into_iter().map(|x| x / norm).collect());
            }
        }
        basis
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Size;

    #[test]
    fn the_paper_sizes_have_the_papers_numbers_of_weights() {
        let genes = |n: usize| Vocabulary::new((0..n).map(|i| i.to_string()).collect()).unwrap();
        for (size, low, high) in [(Size::M3, 3.5e6, 3.7e6), (Size::M10, 9.5e6, 10.5e6)] {
            let weights = initialise(&Config::of_size(size, 19_264), genes(19_264), 0).unwrap();
            let n = weights.parameters() as f64;
            assert!((low..high).contains(&n), "{size:?}: {n}");
        }
    }

    #[test]
    fn a_seed_fixes_every_weight_and_another_seed_changes_them() {
        let vocabulary = Vocabulary::new(vec!["A".into(), "B".into()]).unwrap();
        let config = Config::of_size(Size::M3, 2);
        let bytes = |seed| crate::encode(&initialise(&config, vocabulary.clone(), seed).unwrap()).unwrap().1;
        assert_eq!(bytes(1), bytes(1));
        assert_ne!(bytes(1), bytes(2));
    }
}
