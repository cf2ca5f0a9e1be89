//! Values of genes that tell zero from unknown: a gene that is absent from an expression has the value 0 if a data set
//! of the expression measured it.

use cellql_schemas::expr::Profiles;
use datafusion::common::Result;

use crate::engine::{Engine, EngineError};

/// Whether one of some data sets measured a gene. `None` stands for data sets that measured every gene.
pub(crate) fn is_measured(engine: &dyn Engine, dataset_ids: Option<&[u32]>, gene: u32) -> Result<bool, EngineError> {
    let Some(dataset_ids) = dataset_ids else { return Ok(true) };
    for dataset in dataset_ids {
        if engine.is_measured(*dataset, gene)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The values of some genes in the rows of a column, one row after the other.
pub(crate) struct GeneValues<'a> {
    engine: &'a dyn Engine,
    profiles: &'a Profiles,
    genes: &'a [u32],
    /// The data sets of the last row, and which of the genes they measured: rows of one data set follow each other.
    last: Option<(Vec<u32>, Vec<bool>)>,
}

impl<'a> GeneValues<'a> {
    pub(crate) fn new(engine: &'a dyn Engine, profiles: &'a Profiles, genes: &'a [u32]) -> Self {
        Self { engine, profiles, genes, last: None }
    }

    /// Calls `value` with the value of each gene in a row: `None` where it is unknown. False for a NULL expression, for
    /// which `value` is not called.
    pub(crate) fn of_row(&mut self, row: usize, mut value: impl FnMut(Option<f32>)) -> Result<bool> {
        let Some(profile) = self.profiles.get(row) else { return Ok(false) };
        let dataset_ids = self.profiles.dataset_ids(row);
        for (at, gene) in self.genes.iter().enumerate() {
            let known = match profile.get(*gene) {
                Some(there) => Some(there),
                None => self.measured(dataset_ids, at)?.then_some(0.0),
            };
            value(known);
        }
        Ok(true)
    }

    fn measured(&mut self, dataset_ids: Option<&[u32]>, gene: usize) -> Result<bool> {
        let Some(dataset_ids) = dataset_ids else { return Ok(true) };
        if let Some((last, measured)) = &self.last
            && last == dataset_ids
        {
            return Ok(measured[gene]);
        }
        let of = |gene: &u32| is_measured(self.engine, Some(dataset_ids), *gene);
        let measured = self.genes.iter().map(of).collect::<Result<Vec<bool>, _>>()?;
        let found = measured[gene];
        self.last = Some((dataset_ids.to_vec(), measured));
        Ok(found)
    }
}
