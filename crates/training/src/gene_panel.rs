//! Random parts of the vocabulary, so that read-depth-aware regression computes fewer positions in a step.
//!
//! A panel is a model of fewer genes: its gene embeddings are some rows of the whole model's, all other weights are the
//! same. Examples are made of whole cells, so depths and values are those of all genes, and then restricted.

use rand::Rng;
use rand::seq::index;

use crate::error::Result;
use crate::flat_weights::FlatWeights;
use crate::read_depth::Example;

/// Some genes of a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenePanel {
    /// Their positions, ascending.
    positions: Vec<u32>,
    /// Number of genes in the vocabulary.
    genes: usize,
}

impl GenePanel {
    /// Draws `count` of the genes of a vocabulary, or takes all if it has fewer.
    pub fn draw(genes: usize, count: usize, rng: &mut impl Rng) -> Self {
        let mut positions: Vec<u32> =
            index::sample(rng, genes, count.min(genes)).into_iter().map(|position| position as u32).collect();
        positions.sort_unstable();
        Self { positions, genes }
    }

    /// The weights of the model of these genes.
    ///
    /// # Errors
    /// [`TrainingError::Weight`](crate::TrainingError::Weight) if the model lacks gene embeddings of its size.
    pub fn weights(&self, whole: &FlatWeights) -> Result<FlatWeights> {
        whole.with_genes(&self.rows())
    }

    /// Adds a gradient of [`GenePanel::weights`], `of_panel`, to one of the whole model, `whole`.
    ///
    /// # Errors
    /// As [`GenePanel::weights`].
    pub fn add_gradient(&self, model: &FlatWeights, of_panel: &[f32], whole: &mut [f32]) -> Result<()> {
        model.add_from_genes(&self.rows(), of_panel, whole)
    }

    /// Rows of the gene embeddings: the genes, then those of T, S and padding.
    fn rows(&self) -> Vec<usize> {
        let depths = self.genes..self.genes + 3;
        self.positions.iter().map(|position| *position as usize).chain(depths).collect()
    }

    /// An example restricted to the genes. Its positions are those of the panel.
    pub fn restrict(&self, example: &Example) -> Example {
        let of = |values: &[f32]| self.positions.iter().map(|position| values[*position as usize]).collect();
        let among = |positions: &[u32]| {
            let found = positions.iter().filter_map(|position| self.positions.binary_search(position).ok());
            found.map(|place| place as u32).collect()
        };
        Example {
            input: of(&example.input),
            target: of(&example.target),
            masked: among(&example.masked),
            hidden: among(&example.hidden),
            target_depth: example.target_depth,
            source_depth: example.source_depth,
        }
    }
}

/// Name of the gene embeddings.
const GENES: &str = "pos_emb.weight";

impl FlatWeights {
    /// The same weights with some rows of the gene embeddings, the last three those of T, S and padding.
    fn with_genes(&self, rows: &[usize]) -> Result<Self> {
        let (dim, seq_len) = (self.config().encoder.hidden_dim, self.config().seq_len);
        let at = self.at(GENES, &[seq_len + 1, dim])?;
        let names = self.vocabulary().names();
        let kept = rows.iter().take(rows.len() - 3).filter_map(|row| names.get(*row).cloned()).collect();
        let mut config = self.config().clone();
        config.seq_len = rows.len() - 1;
        let embeddings = rows.iter().flat_map(|row| &self.values[at.start + row * dim..][..dim]).copied();
        self.with_tensor(GENES, (config, kept), vec![rows.len(), dim], embeddings.collect())
    }

    /// Adds a gradient of [`FlatWeights::with_genes`] to one of these weights.
    fn add_from_genes(&self, rows: &[usize], from: &[f32], to: &mut [f32]) -> Result<()> {
        let (dim, seq_len) = (self.config().encoder.hidden_dim, self.config().seq_len);
        let at = self.at(GENES, &[seq_len + 1, dim])?;
        let (before, rest) = from.split_at(at.start);
        let (embeddings, after) = rest.split_at(rows.len() * dim);
        cellql_kernels::add_scaled(&mut to[..at.start], before, 1.0);
        cellql_kernels::add_scaled(&mut to[at.end..], after, 1.0);
        for (row, gradient) in rows.iter().zip(embeddings.chunks_exact(dim)) {
            cellql_kernels::add_scaled(&mut to[at.start + row * dim..][..dim], gradient, 1.0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{BufferPool, Network};
    use crate::{ReadDepthAware, seeded};
    use cellql_kernels::Dtype;
    use cellql_model::{Config, DecoderConfig, EncoderConfig, Size, initialise};
    use cellql_schemas::vocabulary::Vocabulary;

    const GENES: usize = 120;

    fn model() -> FlatWeights {
        let mut config = Config::of_size(Size::M3, GENES);
        config.encoder = EncoderConfig { hidden_dim: 16, depth: 1, heads: 2 };
        config.decoder = DecoderConfig { hidden_dim: 16, depth: 2, heads: 2, dim_head: 8 };
        let vocabulary = Vocabulary::new((0..GENES).map(|i| format!("gene{i}")).collect()).unwrap();
        FlatWeights::of(&initialise(&config, vocabulary, 3).unwrap()).unwrap()
    }

    fn example() -> Example {
        let counts: Vec<(u32, f32)> = (0..60).map(|i| (2 * i, (i % 5 + 1) as f32)).collect();
        ReadDepthAware::default().example(&counts, GENES, None, &mut seeded(&[b"x"])).unwrap().unwrap()
    }

    fn learn(weights: &FlatWeights, example: &Example) -> (f64, Vec<f32>) {
        let mut flat = vec![0.0; weights.values.len()];
        let network = Network::pack(weights, Dtype::F32).unwrap();
        let loss = network.learn(std::slice::from_ref(example), &mut flat, &BufferPool::default());
        (loss.squares, flat)
    }

    #[test]
    fn the_panel_of_all_genes_is_the_model() {
        let (model, example) = (model(), example());
        let panel = GenePanel::draw(GENES, 10 * GENES, &mut seeded(&[b"all"]));
        assert_eq!(panel.restrict(&example), example);
        let small = panel.weights(&model).unwrap();
        assert_eq!((&small.values, small.slots()), (&model.values, model.slots()));
        let (loss, flat) = learn(&model, &example);
        let (of_panel, small_flat) = learn(&small, &panel.restrict(&example));
        let mut whole = vec![0.0; flat.len()];
        panel.add_gradient(&model, &small_flat, &mut whole).unwrap();
        assert_eq!((loss, flat), (of_panel, whole));
    }

    #[test]
    fn gradients_reach_the_genes_of_the_panel_alone() {
        let (model, example) = (model(), example());
        let panel = GenePanel::draw(GENES, 40, &mut seeded(&[b"some"]));
        let restricted = panel.restrict(&example);
        assert_eq!((restricted.input.len(), restricted.target_depth), (40, example.target_depth));
        assert!(!restricted.masked.is_empty() && restricted.masked.len() < example.masked.len());
        for (place, position) in panel.positions.iter().enumerate() {
            assert_eq!(restricted.target[place], example.target[*position as usize]);
            let (here, there) = (&restricted.hidden, &example.hidden);
            assert_eq!(here.contains(&(place as u32)), there.contains(position));
        }
        let (_, small_flat) = learn(&panel.weights(&model).unwrap(), &restricted);
        let mut whole = vec![0.0; model.values.len()];
        panel.add_gradient(&model, &small_flat, &mut whole).unwrap();
        let at = model.at(super::GENES, &[GENES + 3, 16]).unwrap();
        for (gene, gradient) in whole[at.clone()].chunks_exact(16).enumerate().take(GENES) {
            let is_zero = gradient.iter().all(|g| *g == 0.0);
            assert_eq!(is_zero, !panel.positions.contains(&(gene as u32)), "gene {gene}");
        }
        let outside: f64 =
            whole.iter().map(|g| f64::from(*g)).sum::<f64>() - whole[at].iter().map(|g| f64::from(*g)).sum::<f64>();
        assert!(outside != 0.0);
    }
}
