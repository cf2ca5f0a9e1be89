//! The cells on which a model is evaluated: counts, and labels if there are any.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use cellql_schemas::cells;
use cellql_schemas::expr::{Profile, Profiles, TARGET_SUM};
use cellql_schemas::suggest::did_you_mean;
use roaring::RoaringTreemap;

use crate::error::{Error, Result};
use crate::fit::FitSettings;
use crate::model_registry::ModelEntry;
use crate::pretrain::split;
use crate::query::condition;
use cellql_model::Provenance;
use cellql_store::sql::quote_filter_column;
use cellql_store::{HASH_VERSION, Store};
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
    /// Batch; `None` if no column of batches was asked for.
    pub batch: Option<String>,
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
    /// Column of batches; cells without a batch are left out.
    pub batch: Option<String>,
    /// Maximum number of cells, spread evenly over the table.
    pub at_most: Option<usize>,
}

/// Whether the selected cells were held out when the model was trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldOutStatus {
    /// No model was trained on any of the cells.
    HeldOut,
    /// All cells were asked for; the model may have been trained on them.
    AllCells,
    /// It is not recorded which cells the model was trained on.
    NotRecorded,
}

/// Selects cells with counts. For models that `pretrain` or `model fit` made, these are the cells that all of them held
/// out, by content and condition, unless the query asks for the others too. For other models it is not known which
/// cells they were trained on.
///
/// # Errors
/// A condition or column that does not fit `cells`, no such cell, a trained model whose held-out cells cannot be
/// determined in this store, or a store that cannot be read.
pub async fn select_cells(
    store: &Store,
    entries: &[ModelEntry],
    models: &[&ModelEntry],
    query: &CellQuery,
) -> Result<(Vec<LabelledCell>, HeldOutStatus)> {
    let table = store.table(cells::TABLE).await?;
    for (option, column) in [("--label", &query.label), ("--batch", &query.batch)] {
        let Some(column) = column.as_deref() else { continue };
        if table.schema().field(column).is_none() {
            let hint = did_you_mean(column, table.schema().fields.iter().map(|f| f.name.as_str()));
            return Err(Error::Request(format!("{option} {column}: the table cells has no such column.{hint}")));
        }
        if table.schema().field(column).is_some_and(|field| field.data_type().is_floating()) {
            return Err(Error::Request(format!(
                "{option} {column}: this column holds numbers; name a column with labels, for example cell_type"
            )));
        }
        if column == cells::EXPR {
            return Err(Error::Request(format!(
                "{option} expr: this column holds expression; name a column with labels, for example cell_type"
            )));
        }
    }
    let (mut rows, mut status) = (None, HeldOutStatus::HeldOut);
    for model in models {
        let (of_model, known) = addresses(store, entries, model, query).await?;
        rows = Some(rows.map_or_else(|| of_model.clone(), |rows: RoaringTreemap| rows & of_model.clone()));
        status = if known == HeldOutStatus::HeldOut { status } else { known };
    }
    let rows = rows.ok_or_else(|| Error::Request("there is no model to evaluate; name one".into()))?;
    let mut chosen: Vec<u64> = rows.iter().collect();
    if let Some(most) = query.at_most.filter(|most| *most < chosen.len()) {
        chosen = (0..most).map(|i| chosen[i * chosen.len() / most]).collect();
    }
    let columns: Vec<&str> =
        [cells::EXPR].into_iter().chain(query.label.as_deref()).chain(query.batch.as_deref()).collect();
    let mut found = Vec::with_capacity(chosen.len());
    for rows in chosen.chunks(BATCH_CELLS) {
        const DOING: &str = "reading cells of the table cells to evaluate a model";
        let batch = store.take(cells::TABLE, &columns, rows).await?;
        let profiles = Profiles::new(batch.column(0)).map_err(Error::internal(DOING))?;
        let text = |asked: &Option<String>, at: usize| match asked {
            None => Ok(None),
            Some(_) => cast(batch.column(at), &DataType::Utf8).map(Some).map_err(Error::internal(DOING)),
        };
        let (labels, batches) = (text(&query.label, 1)?, text(&query.batch, columns.len() - 1)?);
        let of = |column: &Option<ArrayRef>, i: usize| {
            let column = column.as_ref()?.as_string_opt::<i32>()?;
            column.is_valid(i).then(|| column.value(i).to_owned())
        };
        for (i, profile) in profiles.iter().enumerate() {
            let (label, batch) = (of(&labels, i), of(&batches, i));
            let is_complete = label.is_some() == query.label.is_some() && batch.is_some() == query.batch.is_some();
            let (Some(profile), true) = (profile, is_complete) else { continue };
            let (gene_ids, values) = (profile.gene_ids.to_vec(), profile.values.to_vec());
            found.push(LabelledCell { gene_ids, values, label, batch });
        }
    }
    match (found.is_empty(), status) {
        (false, _) => Ok((found, status)),
        (true, HeldOutStatus::HeldOut) => Err(Error::Request(
            "the store has no such cell with counts that the models held out; use all cells with --all-cells".into(),
        )),
        (true, _) => Err(Error::Request("the store has no such cell with counts".into())),
    }
}

/// Checks that the cells that a model held out can be determined, or that it is not recorded what it was made from.
///
/// # Errors
/// The model was made by `pretrain` or `model fit`, but its held-out cells cannot be determined.
pub fn check_held_out(entries: &[ModelEntry], entry: &ModelEntry) -> Result<()> {
    held_out(entries, entry).map(drop)
}

/// What a model held out; `None` if it is not recorded what the model was made from.
///
/// # Errors
/// The model was made by `pretrain` or `model fit`, but its held-out cells cannot be determined.
fn held_out(entries: &[ModelEntry], entry: &ModelEntry) -> Result<Option<HoldOut>> {
    let unknown = |why: &str| {
        Err(Error::Request(format!(
            "model '{}' {why}, so its held-out cells cannot be determined; use all cells with --all-cells",
            entry.name
        )))
    };
    let (hold_out, parent, cell_hash) = match entry.provenance() {
        Ok(Provenance::Trained { settings, from, cell_hash, .. }) => {
            let settings = serde_json::from_value::<Settings>(settings);
            (settings.map(|settings| settings.hold_out), from, cell_hash)
        }
        Ok(Provenance::Fitted { settings, of, cell_hash, .. }) => {
            let settings = serde_json::from_value::<FitSettings>(settings);
            (settings.map(|settings| settings.hold_out), of, cell_hash)
        }
        Ok(Provenance::Untrained { .. }) => return Ok(Some(HoldOut { share: 1.0, condition: None })),
        _ => return Ok(None),
    };
    let Ok(hold_out) = hold_out else { return unknown("was made by another version of the program") };
    if cell_hash != HASH_VERSION {
        return unknown("was made by a version of the program that hashed cells in another way");
    }
    let Some(parent) = parent else { return Ok(Some(hold_out)) };
    let Some(parent) = entries.iter().find(|other| other.sha256 == parent) else {
        return unknown("was made from a model that this store does not have");
    };
    match held_out(entries, parent)? {
        Some(of_parent) if of_parent == hold_out || of_parent.share >= 1.0 => Ok(Some(hold_out)),
        Some(_) => unknown(&format!("was made from '{}', which held out other cells", parent.name)),
        None => unknown(&format!("was made from '{}', whose training cells are not recorded", parent.name)),
    }
}

async fn addresses(
    store: &Store,
    entries: &[ModelEntry],
    entry: &ModelEntry,
    query: &CellQuery,
) -> Result<(RoaringTreemap, HeldOutStatus)> {
    let complete = query.label.iter().chain(&query.batch);
    let complete = complete.map(|column| format!("{} IS NOT NULL", quote_filter_column(column)));
    let requested = match &query.condition {
        Some(condition) => Some(condition::on_cells(store, condition).await?),
        None => None,
    };
    let conditions: Vec<String> = requested.into_iter().chain(complete).collect();
    let condition = (!conditions.is_empty()).then(|| conditions.join(" AND "));
    let condition = condition.as_deref();
    let hold_out = if query.with_trained { None } else { held_out(entries, entry)? };
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
