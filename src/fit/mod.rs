//! Fitting linear models and output maps to the cells of a store.
//!
//! [`pca`] fits principal components of log-normalised counts, [`whitening`] fits an output map to a model's
//! embeddings. Both leave out held-out cells as pretraining does ([`crate::pretrain::split()`]), centre each group of
//! cells by itself and weight groups alike.
//!
//! Depends on `analysis` for the numbers and on `store`. Knows nothing of SQL or the terminal.

mod genes;
mod pca;
mod rows;
mod whitening;

use cellql_model::Provenance;
use cellql_store::{HASH_VERSION, Store};
use cellql_training::HoldOut;
use serde::{Deserialize, Serialize};

pub use genes::GeneSelection;
pub use pca::{FittedPca, fit_pca};
pub use whitening::{FittedWhitening, fit_whitening};

use crate::error::{Error, Result};
use crate::pretrain::SplitCounts;
use cellql_schemas::cells;
use cellql_schemas::suggest::did_you_mean;
use rows::Grouping;

/// Value of [`FitSettings::balance`] for one group per data set.
pub const BY_DATASET: &str = "dataset";
/// Value of [`FitSettings::balance`] for one group of all cells.
pub const NO_BALANCE: &str = "none";

/// Settings of a fit: with the store they determine its result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FitSettings {
    /// Number of components.
    pub components: usize,
    /// Genes of the model. Only for principal components.
    pub genes: GeneSelection,
    /// Exponent from 0 to 1 of the division by each component's standard deviation. Only for principal components.
    pub whitening: f64,
    /// Groups of cells that are centred by themselves and weighted alike: `dataset`, `none` (one group), or a column of
    /// `cells`.
    pub balance: String,
    /// SQL condition on `cells` that selects the cells to fit to.
    pub condition: Option<String>,
    /// Cells that are held out.
    pub hold_out: HoldOut,
    /// Maximum number of cells, spread evenly over the table.
    pub cells: Option<u64>,
    /// Seed of the random start.
    pub seed: u64,
}

impl Default for FitSettings {
    fn default() -> Self {
        Self {
            components: 64,
            genes: GeneSelection::default(),
            whitening: 0.0,
            balance: BY_DATASET.to_owned(),
            condition: None,
            hold_out: HoldOut { share: 0.0, condition: None },
            cells: None,
            seed: 0,
        }
    }
}

impl FitSettings {
    /// Checks every setting, and that the column to balance by exists.
    async fn check(&self, store: &Store) -> Result<Grouping> {
        if self.components == 0 {
            return Err(Error::Request("--components 0: a model needs one component at least".into()));
        }
        if !(0.0..=1.0).contains(&self.whitening) {
            return Err(Error::Request(format!("--whitening {}: it must be from 0 to 1", self.whitening)));
        }
        let column = match self.balance.as_str() {
            NO_BALANCE => return Ok(Grouping::None),
            BY_DATASET => cells::DATASET_ID,
            column => column,
        };
        let table = store.table(cells::TABLE).await?;
        match table.schema().field(column) {
            Some(_) if column != cells::EXPR => Ok(Grouping::Column(column.to_owned())),
            _ => {
                let hint = did_you_mean(column, table.schema().fields.iter().map(|f| f.name.as_str()));
                Err(Error::Request(format!(
                    "--balance {column}: it must be dataset, none, or a column of the table cells with groups.{hint}"
                )))
            }
        }
    }

    /// Provenance of a model that was fitted with these settings.
    ///
    /// # Errors
    /// Never for settings that were checked.
    fn provenance(&self, store: &Store, method: &str, cells: SplitCounts, of: Option<String>) -> Result<Provenance> {
        Ok(Provenance::Fitted {
            method: method.to_owned(),
            store_version: store.version().version,
            cells: (cells.train, cells.held_out),
            of,
            cell_hash: HASH_VERSION,
            settings: serde_json::to_value(self).map_err(Error::internal("recording the fit"))?,
            program: format!("cellql {} {}", env!("CARGO_PKG_VERSION"), env!("CELLQL_COMMIT")),
        })
    }
}
