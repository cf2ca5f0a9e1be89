//! The cells a model is judged by: counts, and labels where there are some.

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use cellql_schemas::cells;
use cellql_schemas::expr::{Profile, Profiles};
use roaring::RoaringTreemap;

use crate::error::{Error, Result};
use crate::model::Provenance;
use crate::model::registry::Entry;
use crate::pretrain::{HoldOut, Settings, split};
use crate::store::Store;

/// Cells of one read.
const BATCH: usize = 1024;

/// A cell.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Genes of the store, ascending.
    pub gene_ids: Vec<u32>,
    /// Their counts.
    pub values: Vec<f32>,
    /// What it is labelled with.
    pub label: Option<String>,
}

impl Cell {
    /// As models read it.
    pub fn profile(&self) -> Profile<'_> {
        Profile { gene_ids: &self.gene_ids, values: &self.values }
    }
}

/// Which cells.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// SQL condition on `cells`.
    pub condition: Option<String>,
    /// Also cells that the model learned from.
    pub with_learned: bool,
    /// Column of labels; cells without one are left out.
    pub label: Option<String>,
    /// At most so many, spread evenly over the table.
    pub at_most: Option<usize>,
}

/// Cells with counts that satisfy a choice. Where the model was trained by `pretrain` on a store, those that such a run holds
/// out (by content and condition) unless others are asked for too; of other models it is not known what they saw.
///
/// # Errors
/// A condition or column that does not fit `cells`, no cell, or a store that cannot be read.
pub async fn choose(store: &Store, entry: &Entry, choice: &Choice) -> Result<Vec<Cell>> {
    let table = store.table(cells::TABLE).await?;
    if let Some(label) = choice.label.as_deref().filter(|label| table.schema().field(label).is_none()) {
        return Err(Error::Request(format!("the table cells has no column '{label}'")));
    }
    let rows = addresses(store, entry, choice).await?;
    let mut chosen: Vec<u64> = rows.iter().collect();
    if let Some(most) = choice.at_most.filter(|most| *most < chosen.len()) {
        chosen = (0..most).map(|i| chosen[i * chosen.len() / most]).collect();
    }
    let columns: Vec<&str> = [cells::EXPR].into_iter().chain(choice.label.as_deref()).collect();
    let mut found = Vec::with_capacity(chosen.len());
    for rows in chosen.chunks(BATCH) {
        const DOING: &str = "reading cells to judge by";
        let batch = store.take(cells::TABLE, &columns, rows).await?;
        let profiles = Profiles::new(batch.column(0)).map_err(Error::store(DOING))?;
        let labels = match &choice.label {
            None => None,
            Some(_) => Some(cast(batch.column(1), &DataType::Utf8).map_err(Error::store(DOING))?),
        };
        for (i, profile) in profiles.iter().enumerate() {
            let label = labels.as_ref().map(|labels| labels.as_string::<i32>());
            let label = label.and_then(|labels| labels.is_valid(i).then(|| labels.value(i).to_owned()));
            let (Some(profile), true) = (profile, choice.label.is_none() || label.is_some()) else { continue };
            found.push(Cell { gene_ids: profile.gene_ids.to_vec(), values: profile.values.to_vec(), label });
        }
    }
    if found.is_empty() {
        return Err(Error::Request("there are no such cells; all of a store are judged with --all-cells".into()));
    }
    Ok(found)
}

async fn addresses(store: &Store, entry: &Entry, choice: &Choice) -> Result<RoaringTreemap> {
    let trained = match serde_json::from_str(&entry.provenance) {
        Ok(Provenance::Trained { settings, .. }) => serde_json::from_value::<Settings>(settings).ok(),
        _ => None,
    };
    let labelled = choice.label.as_ref().map(|label| format!("{label} IS NOT NULL"));
    let conditions: Vec<String> = choice.condition.iter().map(|c| format!("({c})")).chain(labelled).collect();
    let condition = (!conditions.is_empty()).then(|| conditions.join(" AND "));
    let condition = condition.as_deref();
    let hold_out = trained.as_ref().map(|settings| settings.hold_out.clone()).unwrap_or_default();
    let by_content = HoldOut { condition: None, ..hold_out.clone() };
    let divided = match split(store, condition, &hold_out, 0).await {
        // What the run held out besides may be told by a column that this store lacks.
        Err(Error::Request(_)) if hold_out.condition.is_some() => split(store, condition, &by_content, 0).await?,
        divided => divided?,
    };
    match choice.with_learned || trained.is_none() {
        true => Ok(divided.held | divided.train),
        false => Ok(divided.held),
    }
}
