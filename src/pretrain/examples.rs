//! Cells as the objectives of a run read them. What is drawn of a cell depends on the seed, the step and the number of
//! the cell in the step, or on the content of a held-out cell, and on nothing else.

use cellql_training::{Cell, CellViews, Example, GenePanel, Settings, seeded};
use rayon::prelude::*;

use super::measured::MeasuredGenes;
use crate::error::Result;

/// Makes examples and views for a process of a run.
pub(super) struct ExampleMaker<'a> {
    pub(super) settings: &'a Settings,
    /// Number of genes in the vocabulary.
    pub(super) genes: usize,
    /// This process, from 0.
    pub(super) rank: usize,
    /// Number of processes.
    pub(super) ranks: usize,
}

/// The held-out cells of a run as the objectives read them.
pub(super) struct Validation {
    pub(super) examples: Vec<Example>,
    pub(super) views: Vec<CellViews>,
}

impl ExampleMaker<'_> {
    /// Number of a cell in its step, over all processes.
    fn number(&self, part: usize, i: usize) -> usize {
        (part * self.settings.batch + i) * self.ranks + self.rank
    }

    /// The examples of a batch. Cells of fewer than two counts have none.
    pub(super) fn of_batch(
        &self,
        cells: &[Cell],
        (step, part): (u64, usize),
        measured: &MeasuredGenes,
    ) -> Result<Vec<Example>> {
        let Settings { seed, task, .. } = self.settings;
        let example = |(i, cell): (usize, &Cell)| {
            let number = self.number(part, i);
            let mut rng = seeded(&[&seed.to_le_bytes(), &step.to_le_bytes(), &number.to_le_bytes()]);
            let measured = measured.of_dataset(cell.dataset_id);
            task.example(&cell.counts, self.genes, measured, &mut rng).transpose()
        };
        Ok(cells.par_iter().enumerate().filter_map(example).collect::<Result<_, _>>()?)
    }

    /// The genes that RDA computes in a batch; `None`: all.
    pub(super) fn panel(&self, (step, part): (u64, usize)) -> Option<GenePanel> {
        let count = self.settings.objectives.read_depth_genes?;
        let numbers = [self.settings.seed, step, part as u64, self.rank as u64].map(u64::to_le_bytes);
        Some(GenePanel::draw(self.genes, count, &mut seeded(&[b"genes", &numbers.concat()])))
    }

    /// The views of a batch. Cells of fewer than two counts have none.
    pub(super) fn views(&self, cells: &[Cell], (step, part): (u64, usize)) -> Result<Vec<CellViews>> {
        let Settings { seed, task, objectives, .. } = self.settings;
        let views = |(i, cell): (usize, &Cell)| {
            let numbers = [*seed, step, self.number(part, i) as u64].map(u64::to_le_bytes);
            let mut rng = seeded(&[b"views", &numbers.concat()]);
            objectives.views_of(task, &cell.counts, &cell.target, self.genes, &mut rng).transpose()
        };
        Ok(cells.par_iter().enumerate().filter_map(views).collect::<Result<_, _>>()?)
    }

    /// The validation cells. Masks and views depend only on the content of a cell, so they are the same in every run.
    pub(super) fn validation(&self, cells: &[Cell], measured: &MeasuredGenes) -> Result<Validation> {
        let Settings { task, objectives, .. } = self.settings;
        let drawn = |what: &[u8], cell: &Cell| {
            let counts: Vec<u8> =
                cell.counts.iter().flat_map(|(p, v)| [p.to_le_bytes(), v.to_le_bytes()].concat()).collect();
            seeded(&[what, &counts])
        };
        let example = |cell: &Cell| {
            let (mut rng, measured) = (drawn(b"held out", cell), measured.of_dataset(cell.dataset_id));
            task.example(&cell.counts, self.genes, measured, &mut rng).transpose()
        };
        let views = |cell: &Cell| {
            let mut rng = drawn(b"held-out views", cell);
            objectives.views_of(task, &cell.counts, &cell.target, self.genes, &mut rng).transpose()
        };
        let learned = if objectives.read_depth > 0.0 { cells } else { &[] };
        let viewed = if objectives.use_views() { cells } else { &[] };
        Ok(Validation {
            examples: learned.par_iter().filter_map(example).collect::<Result<_, _>>()?,
            views: viewed.par_iter().filter_map(views).collect::<Result<_, _>>()?,
        })
    }
}
