//! Views of cells: random parts of their expressed genes, in which the additional objectives read them.
//!
//! The counts of a view are downsampled as those of RDA are ([`ReadDepthAware`]), and its values are normalised by the
//! total of all genes, as they are where the whole cell is embedded.

use cellql_model::Tokens;
use rand::Rng;
use rand::seq::index;

use crate::error::Result;
use crate::objectives::Objectives;
use crate::read_depth::ReadDepthAware;

/// The views of a cell, and what is predicted from each.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CellViews {
    /// Tokens of each view: genes, then T and S.
    pub views: Vec<Tokens>,
    /// The embedding of the whole cell by the linear model; empty where none is predicted.
    pub target: Vec<f32>,
}

/// Length of the targets of a batch.
pub(crate) fn target_len(batch: &[CellViews]) -> usize {
    batch.first().map_or(0, |cell| cell.target.len())
}

/// The target of every view of a batch, `[views, target_len]`.
pub(crate) fn targets(batch: &[CellViews]) -> Vec<f32> {
    batch.iter().flat_map(|cell| cell.target.repeat(cell.views.len())).collect()
}

impl Objectives {
    /// Views of a cell, from counts at ascending positions of a vocabulary of `genes` genes. `None` for a cell of fewer
    /// than two counts.
    ///
    /// # Errors
    /// As [`ReadDepthAware::example`].
    pub fn views_of(
        &self,
        task: &ReadDepthAware,
        counts: &[(u32, f32)],
        target: &[f32],
        genes: usize,
        rng: &mut impl Rng,
    ) -> Result<Option<CellViews>> {
        let mut views = Vec::with_capacity(self.views());
        for _ in 0..self.views() {
            let Some((values, depth, source)) = task.input(counts, genes, rng)? else { return Ok(None) };
            let chosen = self.choose(values.len(), rng);
            let (mut positions, mut chosen_values): (Vec<u32>, Vec<f32>) =
                chosen.into_iter().map(|i| values[i]).unzip();
            positions.extend([genes as u32, genes as u32 + 1]);
            chosen_values.extend([depth, source]);
            views.push(Tokens { positions, values: chosen_values });
        }
        Ok(Some(CellViews { views, target: target.to_vec() }))
    }

    /// Which of some expressed genes a view has, ascending.
    fn choose(&self, expressed: usize, rng: &mut impl Rng) -> Vec<usize> {
        let (fewest, most) = (self.view_genes.0 as f64, self.view_genes.1 as f64);
        let count = (fewest * (most / fewest).powf(rng.random::<f64>())).round() as usize;
        let mut chosen = index::sample(rng, expressed, count.min(expressed)).into_vec();
        chosen.sort_unstable();
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded;

    /// 300 expressed genes of 900, gene 3·i with i % 7 + 1 counts.
    fn cell() -> Vec<(u32, f32)> {
        (0..300).map(|i| (3 * i, (i % 7 + 1) as f32)).collect()
    }

    fn views(objectives: &Objectives, task: &ReadDepthAware, seed: u64) -> CellViews {
        let mut rng = seeded(&[&seed.to_le_bytes()]);
        objectives.views_of(task, &cell(), &[1.0, 2.0], 900, &mut rng).unwrap().unwrap()
    }

    #[test]
    fn a_view_is_a_part_of_the_cell_with_the_values_of_the_whole() {
        let objectives = Objectives { contrast: 1.0, view_genes: (40, 90), ..Objectives::default() };
        let whole = ReadDepthAware { downsampled: 0.0, ..ReadDepthAware::default() };
        let total: f64 = cell().iter().map(|(_, v)| f64::from(*v)).sum();
        let (mut fewest, mut most) = (usize::MAX, 0);
        for seed in 0..200 {
            let made = views(&objectives, &whole, seed);
            assert_eq!((made.views.len(), &*made.target), (2, &[1.0, 2.0][..]));
            assert_ne!(made.views[0], made.views[1]);
            for view in &made.views {
                let genes = view.positions.len() - 2;
                (fewest, most) = (fewest.min(genes), most.max(genes));
                assert_eq!(view.positions[genes..], [900, 901]);
                assert!(view.values[genes..].iter().all(|depth| (f64::from(*depth) - total.log10()).abs() < 1e-6));
                for (position, value) in view.positions[..genes].iter().zip(&view.values) {
                    let count = f64::from(position / 3 % 7 + 1);
                    assert!((f64::from(*value) - (count / total * 1e4).ln_1p()).abs() < 1e-5);
                }
                assert!(view.positions.is_sorted_by(|a, b| a < b));
            }
        }
        assert!((40..=45).contains(&fewest) && (80..=90).contains(&most), "{fewest} {most}");
    }

    #[test]
    fn a_view_of_a_downsampled_cell_says_so() {
        let objectives = Objectives { components: 1.0, ..Objectives::default() };
        let task = ReadDepthAware { downsampled: 1.0, ..ReadDepthAware::default() };
        let view = &views(&objectives, &task, 1).views[0];
        let [depth, source] = view.values[view.values.len() - 2..] else { panic!("T and S are last") };
        assert!(source < depth);
        let left = 10f64.powf(f64::from(source)).round();
        let count = (f64::from(view.values[0]).exp_m1() * left / 1e4).round();
        assert!((f64::from(view.values[0]) - (count / left * 1e4).ln_1p()).abs() < 1e-5, "normalised by what is left");
    }

    #[test]
    fn a_cell_of_few_genes_is_seen_whole_and_one_of_one_count_not_at_all() {
        let objectives = Objectives { components: 1.0, ..Objectives::default() };
        let of = |counts: &[(u32, f32)]| {
            objectives.views_of(&ReadDepthAware::default(), counts, &[], 9, &mut seeded(&[b"a"])).unwrap()
        };
        assert_eq!(of(&[(1, 2.0), (5, 1.0)]).unwrap().views[0].positions, [1, 5, 9, 10]);
        assert_eq!(of(&[(1, 1.0)]), None);
    }
}
