//! The cells on which a model is evaluated: counts, and labels if there are any.

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use cellql_schemas::cells;
use cellql_schemas::expr::{Profile, Profiles, TARGET_SUM};
use cellql_schemas::suggest::did_you_mean;
use roaring::RoaringTreemap;

use crate::error::{Error, Result};
use crate::model_registry::ModelEntry;
use crate::pretrain::split;
use crate::query::condition;
use cellql_model::Provenance;
use cellql_store::Store;
use cellql_store::sql::quote_filter_column;
use cellql_training::{HoldOut, Settings};

/// Number of cells that are read at a time.
const BATCH_CELLS: usize = 1024;

/// A cell with counts and a label.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledCell {
    /// Ids of the expressed genes, ascending.
    pub gene_ids: Vec<u32>,
    /// Count of each of these genes.
    pub values: Vec<f32>,
    /// Label; `None` if no column of labels was asked for.
    pub label: Option<String>,
}

impl LabelledCell {
    /// The expression of the cell, as models read it.
    pub fn profile(&self) -> Profile<'_> {
        Profile { gene_ids: &self.gene_ids, values: &self.values }
    }
}

/// Which cells to select.
#[derive(Debug, Clone, Default)]
pub struct CellQuery {
    /// SQL condition on `cells`.
    pub condition: Option<String>,
    /// Also select cells that the model was trained on.
    pub with_trained: bool,
    /// Column of labels; cells without a label are left out.
    pub label: Option<String>,
    /// Maximum number of cells, spread evenly over the table.
    pub at_most: Option<usize>,
}

/// Whether the selected cells were held out when the model was trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldOutStatus {
    /// The model was not trained on any of the cells.
    HeldOut,
    /// All cells were asked for; the model may have been trained on them.
    AllCells,
    /// It is not recorded which cells the model was trained on.
    NotRecorded,
}

/// Selects cells with counts. For a model that `pretrain` trained, these are the cells that its run held out, by
/// content and condition, unless the query asks for the others too. For other models it is not known which cells they
/// were trained on.
///
/// # Errors
/// A condition or column that does not fit `cells`, no such cell, a trained model whose held-out cells cannot be
/// determined in this store, or a store that cannot be read.
pub async fn select_cells(
    store: &Store,
    entries: &[ModelEntry],
    entry: &ModelEntry,
    query: &CellQuery,
) -> Result<(Vec<LabelledCell>, HeldOutStatus)> {
    let table = store.table(cells::TABLE).await?;
    if let Some(label) = query.label.as_deref().filter(|label| table.schema().field(label).is_none()) {
        let hint = did_you_mean(label, table.schema().fields.iter().map(|f| f.name.as_str()));
        return Err(Error::Request(format!("--label {label}: the table cells has no such column.{hint}")));
    }
    if query.label.as_deref() == Some(cells::EXPR) {
        return Err(Error::Request(
            "--label expr: this column holds expression; name a column with labels, for example cell_type".into(),
        ));
    }
    let (rows, status) = addresses(store, entries, entry, query).await?;
    let mut chosen: Vec<u64> = rows.iter().collect();
    if let Some(most) = query.at_most.filter(|most| *most < chosen.len()) {
        chosen = (0..most).map(|i| chosen[i * chosen.len() / most]).collect();
    }
    let columns: Vec<&str> = [cells::EXPR].into_iter().chain(query.label.as_deref()).collect();
    let mut found = Vec::with_capacity(chosen.len());
    for rows in chosen.chunks(BATCH_CELLS) {
        const DOING: &str = "reading cells of the table cells to evaluate a model";
        let batch = store.take(cells::TABLE, &columns, rows).await?;
        let profiles = Profiles::new(batch.column(0)).map_err(Error::internal(DOING))?;
        let labels = match &query.label {
            None => None,
            Some(_) => Some(cast(batch.column(1), &DataType::Utf8).map_err(Error::internal(DOING))?),
        };
        for (i, profile) in profiles.iter().enumerate() {
            let label = labels.as_ref().map(|labels| labels.as_string::<i32>());
            let label = label.and_then(|labels| labels.is_valid(i).then(|| labels.value(i).to_owned()));
            let (Some(profile), true) = (profile, query.label.is_none() || label.is_some()) else { continue };
            found.push(LabelledCell { gene_ids: profile.gene_ids.to_vec(), values: profile.values.to_vec(), label });
        }
    }
    match (found.is_empty(), status) {
        (false, _) => Ok((found, status)),
        (true, HeldOutStatus::HeldOut) => Err(Error::Request(
            "the store has no such cell with counts that the model held out; use all cells with --all-cells".into(),
        )),
        (true, _) => Err(Error::Request("the store has no such cell with counts".into())),
    }
}

/// What a trained model held out; `None` if it is not recorded what the model was trained on.
///
/// # Errors
/// The model was trained by `pretrain`, but its held-out cells cannot be determined in this store.
async fn held_out(store: &Store, entries: &[ModelEntry], entry: &ModelEntry) -> Result<Option<HoldOut>> {
    let unknown = |why: &str| {
        Err(Error::Request(format!(
            "model '{}' {why}, so its held-out cells cannot be determined in this store; \
             use all cells with --all-cells",
            entry.name
        )))
    };
    let (settings, from, numbering) = match entry.provenance() {
        Ok(Provenance::Trained { settings, from, numbering, .. }) => (settings, from, numbering),
        Ok(Provenance::Untrained { .. }) => return Ok(Some(HoldOut { share: 1.0, condition: None })),
        _ => return Ok(None),
    };
    let Ok(Settings { hold_out, .. }) = serde_json::from_value::<Settings>(settings) else {
        return unknown("was trained by another version of the program");
    };
    if numbering.is_empty() {
        return unknown("does not record the gene ids of the store in which it was trained");
    }
    let genes = store.genes().await?;
    let trained_on = numbering.last().map_or(0, |(count, _)| *count);
    let common = trained_on.min(genes.len());
    let here = genes.numbering(common);
    if !numbering.iter().any(|(count, sha256)| *count == common && Some(sha256) == here.as_ref()) {
        return unknown("was trained in a store with other gene ids");
    }
    let Some(from) = from else { return Ok(Some(hold_out)) };
    let Some(parent) = entries.iter().find(|other| other.sha256 == from) else {
        return unknown("was trained from a model that this store does not have");
    };
    match Box::pin(held_out(store, entries, parent)).await? {
        Some(of_parent) if of_parent == hold_out || of_parent.share >= 1.0 => Ok(Some(hold_out)),
        Some(_) => unknown(&format!("was trained from '{}', which held out other cells", parent.name)),
        None => unknown(&format!("was trained from '{}', whose training cells are not recorded", parent.name)),
    }
}

async fn addresses(
    store: &Store,
    entries: &[ModelEntry],
    entry: &ModelEntry,
    query: &CellQuery,
) -> Result<(RoaringTreemap, HeldOutStatus)> {
    let labelled = query.label.as_ref().map(|label| format!("{} IS NOT NULL", quote_filter_column(label)));
    let requested = match &query.condition {
        Some(condition) => Some(condition::on_cells(store, condition).await?),
        None => None,
    };
    let conditions: Vec<String> = requested.into_iter().chain(labelled).collect();
    let condition = (!conditions.is_empty()).then(|| conditions.join(" AND "));
    let condition = condition.as_deref();
    let hold_out = if query.with_trained { None } else { held_out(store, entries, entry).await? };
    let Some(hold_out) = hold_out else {
        let all = split(store, condition, &HoldOut { share: 0.0, condition: None }, 0).await?;
        let status = if query.with_trained { HeldOutStatus::AllCells } else { HeldOutStatus::NotRecorded };
        return Ok((all.train, status));
    };
    let by_content = HoldOut { condition: None, ..hold_out.clone() };
    let divided = match split(store, condition, &hold_out, 0).await {
        // The condition of the run may need a column that this store lacks.
        Err(Error::Request(_)) if hold_out.condition.is_some() => split(store, condition, &by_content, 0).await?,
        divided => divided?,
    };
    Ok((divided.held_out, HeldOutStatus::HeldOut))
}

/// A count, log-normalised: `ln(1 + count / total · 10,000)`, where `total` is the sum of counts of the cell.
///
/// The quotient is taken before the product, unlike in [`cellql_schemas::expr::log_normalise`]: published scores rest
/// on these bits.
pub(super) fn log_normalised(count: f64, total: f64) -> f32 {
    (count / total * TARGET_SUM).ln_1p() as f32
}
