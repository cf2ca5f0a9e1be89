//! The cells a model is judged by: counts, and labels where there are some.

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use cellql_schemas::cells;
use cellql_schemas::expr::{Profile, Profiles, TARGET_SUM};
use roaring::RoaringTreemap;

use crate::error::{Error, Result};
use crate::pretrain::split;
use crate::query::condition;
use crate::registry::Entry;
use cellql_model::Provenance;
use cellql_store::Store;
use cellql_store::sql::quote_filter_column;
use cellql_training::{HoldOut, Settings};

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

/// What is known of chosen cells and the model that they judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It did not learn from them.
    HeldOut,
    /// It may have, as was asked for.
    AsAsked,
    /// What it learned from is not recorded.
    NotRecorded,
}

/// Cells with counts that satisfy a choice. Where the model was trained by `pretrain`, those that its run held out (by content
/// and condition) unless others are asked for too; of other models it is not known what they saw.
///
/// # Errors
/// A condition or column that does not fit `cells`, no cell, a trained model of which it cannot be told which cells of this
/// store it held out, or a store that cannot be read.
pub async fn choose(store: &Store, entries: &[Entry], entry: &Entry, choice: &Choice) -> Result<(Vec<Cell>, Known)> {
    let table = store.table(cells::TABLE).await?;
    if let Some(label) = choice.label.as_deref().filter(|label| table.schema().field(label).is_none()) {
        return Err(Error::Request(format!("the table cells has no column '{label}'")));
    }
    if choice.label.as_deref() == Some(cells::EXPR) {
        return Err(Error::Request("the column 'expr' holds no labels; name one of obs, as cell_type".into()));
    }
    let (rows, known) = addresses(store, entries, entry, choice).await?;
    let mut chosen: Vec<u64> = rows.iter().collect();
    if let Some(most) = choice.at_most.filter(|most| *most < chosen.len()) {
        chosen = (0..most).map(|i| chosen[i * chosen.len() / most]).collect();
    }
    let columns: Vec<&str> = [cells::EXPR].into_iter().chain(choice.label.as_deref()).collect();
    let mut found = Vec::with_capacity(chosen.len());
    for rows in chosen.chunks(BATCH) {
        const DOING: &str = "reading cells to judge by";
        let batch = store.take(cells::TABLE, &columns, rows).await?;
        let profiles = Profiles::new(batch.column(0)).map_err(Error::internal(DOING))?;
        let labels = match &choice.label {
            None => None,
            Some(_) => Some(cast(batch.column(1), &DataType::Utf8).map_err(Error::internal(DOING))?),
        };
        for (i, profile) in profiles.iter().enumerate() {
            let label = labels.as_ref().map(|labels| labels.as_string::<i32>());
            let label = label.and_then(|labels| labels.is_valid(i).then(|| labels.value(i).to_owned()));
            let (Some(profile), true) = (profile, choice.label.is_none() || label.is_some()) else { continue };
            found.push(Cell { gene_ids: profile.gene_ids.to_vec(), values: profile.values.to_vec(), label });
        }
    }
    match (found.is_empty(), known) {
        (false, _) => Ok((found, known)),
        (true, Known::HeldOut) => Err(Error::Request(
            "the model held out no such cells with counts; --all-cells judges by all of the store's".into(),
        )),
        (true, _) => Err(Error::Request("there are no such cells with counts".into())),
    }
}

/// What a trained model held out, if that can be told of cells of this store.
async fn held_out(store: &Store, entries: &[Entry], entry: &Entry) -> Result<Option<HoldOut>> {
    let unknown = |why: &str| {
        Err(Error::Request(format!(
            "model '{}' {why}, so it cannot be told which of these cells it learned from; --all-cells judges by all",
            entry.name
        )))
    };
    let (settings, from, numbering) = match serde_json::from_str(&entry.provenance) {
        Ok(Provenance::Trained { settings, from, numbering, .. }) => (settings, from, numbering),
        Ok(Provenance::Untrained { .. }) => return Ok(Some(HoldOut { share: 1.0, condition: None })),
        _ => return Ok(None),
    };
    let Ok(Settings { hold_out, .. }) = serde_json::from_value::<Settings>(settings) else {
        return unknown("was trained by another version of the program");
    };
    if numbering.is_empty() {
        return unknown("does not record how genes were numbered where it was trained");
    }
    let genes = store.genes().await?;
    let trained_on = numbering.last().map_or(0, |(count, _)| *count);
    let common = trained_on.min(genes.len());
    let here = genes.numbering(common);
    if !numbering.iter().any(|(count, sha256)| *count == common && Some(sha256) == here.as_ref()) {
        return unknown("was trained in a store that numbers genes otherwise");
    }
    let Some(from) = from else { return Ok(Some(hold_out)) };
    let Some(parent) = entries.iter().find(|other| other.sha256 == from) else {
        return unknown("began with a model that this store does not have");
    };
    match Box::pin(held_out(store, entries, parent)).await? {
        Some(of_parent) if of_parent == hold_out || of_parent.share >= 1.0 => Ok(Some(hold_out)),
        Some(_) => unknown(&format!("began with '{}', which held out other cells", parent.name)),
        None => unknown(&format!("began with '{}', of which it is not recorded what it learned from", parent.name)),
    }
}

async fn addresses(
    store: &Store,
    entries: &[Entry],
    entry: &Entry,
    choice: &Choice,
) -> Result<(RoaringTreemap, Known)> {
    let labelled = choice.label.as_ref().map(|label| format!("{} IS NOT NULL", quote_filter_column(label)));
    let asked = match &choice.condition {
        Some(condition) => Some(condition::on_cells(store, condition).await?),
        None => None,
    };
    let conditions: Vec<String> = asked.into_iter().chain(labelled).collect();
    let condition = (!conditions.is_empty()).then(|| conditions.join(" AND "));
    let condition = condition.as_deref();
    let known = if choice.with_learned { None } else { held_out(store, entries, entry).await? };
    let Some(hold_out) = known else {
        let all = split(store, condition, &HoldOut { share: 0.0, condition: None }, 0).await?;
        let known = if choice.with_learned { Known::AsAsked } else { Known::NotRecorded };
        return Ok((all.train, known));
    };
    let by_content = HoldOut { condition: None, ..hold_out.clone() };
    let divided = match split(store, condition, &hold_out, 0).await {
        // What the run held out besides may be told by a column that this store lacks.
        Err(Error::Request(_)) if hold_out.condition.is_some() => split(store, condition, &by_content, 0).await?,
        divided => divided?,
    };
    Ok((divided.held, Known::HeldOut))
}

/// A count, log-normalised: `ln(1 + count / total · 10,000)`, where `total` is the sum of counts of the cell.
///
/// The quotient is taken before the product, unlike in [`cellql_schemas::expr::log_normalise`]: published scores rest on these
/// bits.
pub(super) fn log_normalised(count: f64, total: f64) -> f32 {
    (count / total * TARGET_SUM).ln_1p() as f32
}
