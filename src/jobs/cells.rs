//! The cells whose data set has the input of a recipe, and the total counts that some inputs need.

use std::collections::HashMap;

use arrow::array::{Array, AsArray, Float64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, UInt32Type};
use arrow::record_batch::RecordBatch;
use cellql_schemas::expr::Profiles;
use cellql_schemas::recipe::{Input, Recipe};
use cellql_schemas::suggest::did_you_mean;
use cellql_schemas::{cells, datasets};
use futures::TryStreamExt;

use crate::error::{Error, Result};
use crate::query::StoreEngine;
use cellql_store::is_one_of;

/// Cells of a batch that is read.
pub(super) const BATCH_CELLS: usize = 256;

/// The cells of a store whose data set has the input of a recipe.
#[derive(Debug, Clone)]
pub(super) struct EligibleCells {
    /// SQL condition on `cells`.
    pub(super) filter: String,
    totals: Totals,
}

/// Where the total count of a cell comes from.
#[derive(Debug, Clone)]
enum Totals {
    /// The input needs no total.
    None,
    /// From this column of `cells`.
    Column(String),
    /// From the data set (by id): the median total of its samples.
    Median(HashMap<u32, f64>),
}

impl EligibleCells {
    /// The cells of data sets whose input is the recipe's. `total` names the column of `cells` with total counts.
    ///
    /// # Errors
    /// The input needs a total and none is given or the other way round, or the column does not exist.
    pub(super) async fn of(engine: &StoreEngine, recipe: &Recipe, total: Option<&str>) -> Result<Self> {
        let input = recipe.input;
        let store = engine.store();
        if let (Some(total), false) = (total, input == Input::LogTotal) {
            return Err(Error::Request(format!(
                "--total {total} is for --input log+total; the input of this recipe is '{}', leave --total out",
                input.name()
            )));
        }
        let is_input = format!("{} = '{}'", datasets::INPUT, input.name());
        let found = store.read(datasets::TABLE, &[datasets::DATASET_ID], Some(&is_input)).await?;
        let ids = found
            .iter()
            .flat_map(|b| b.column(0).as_primitive::<UInt32Type>().values().iter().map(|id| u64::from(*id)));
        let filter = is_one_of(cells::DATASET_ID, ids);
        let totals = match (input, total) {
            (Input::LogTotal, None) => {
                return Err(Error::Request(
                    "input 'log+total' needs the total count of each cell; name the column of cells that holds it, for \
                     example: \
                     --total n_counts".into(),
                ));
            }
            (Input::LogTotal, Some(column)) => {
                let table = store.table(cells::TABLE).await?;
                if table.schema().field(column).is_none() {
                    let hint = did_you_mean(column, table.schema().fields.iter().map(|f| f.name.as_str()));
                    return Err(Error::Request(format!("--total {column}: the table cells has no such column.{hint}")));
                }
                Totals::Column(column.to_owned())
            }
            (Input::Bulk, _) => Totals::Median(medians(engine, &recipe.model, &filter).await?),
            _ => Totals::None,
        };
        Ok(Self { filter, totals })
    }

    /// Columns to read: `cell_id`, `expr`, and a third one if totals need it.
    pub(super) fn columns(&self) -> Vec<&str> {
        let mut columns = vec![cells::CELL_ID, cells::EXPR];
        match &self.totals {
            Totals::None => {}
            Totals::Column(name) => columns.push(name),
            Totals::Median(_) => columns.push(cells::DATASET_ID),
        }
        columns
    }

    /// The total count of each cell of a batch of [`EligibleCells::columns`]; `None` if the input needs none or it is
    /// unknown.
    pub(super) fn totals(&self, batch: &RecordBatch) -> Result<Vec<Option<f64>>> {
        let Some(column) = batch.columns().get(2) else { return Ok(vec![None; batch.num_rows()]) };
        match &self.totals {
            Totals::Median(by_dataset) => {
                let ids = column.as_primitive::<UInt32Type>();
                Ok(ids.values().iter().map(|id| by_dataset.get(id).copied()).collect())
            }
            _ => {
                let numbers = cast(column, &DataType::Float64).map_err(Error::internal("reading total counts"))?;
                let numbers: &Float64Array = numbers.as_primitive::<Float64Type>();
                Ok((0..numbers.len()).map(|i| numbers.is_valid(i).then(|| numbers.value(i))).collect())
            }
        }
    }
}

/// The median total count of each data set's cells, over the genes of the model's vocabulary.
async fn medians(engine: &StoreEngine, model: &str, filter: &str) -> Result<HashMap<u32, f64>> {
    let doing = || Error::internal("reading totals");
    let mut scan = engine.store().table(cells::TABLE).await?.scan();
    scan.project(&[cells::DATASET_ID, cells::EXPR]).map_err(doing())?;
    scan.filter(filter).map_err(doing())?;
    scan.batch_size(BATCH_CELLS);
    let mut batches = scan.try_into_stream().await.map_err(doing())?;
    let mut totals: HashMap<u32, Vec<f64>> = HashMap::new();
    while let Some(batch) = batches.try_next().await.map_err(doing())? {
        let profiles = Profiles::new(batch.column(1)).map_err(Error::internal("reading totals"))?;
        let found = engine.vocabulary_totals(model, &profiles)?;
        for (id, total) in batch.column(0).as_primitive::<UInt32Type>().values().iter().zip(found) {
            totals.entry(*id).or_default().extend(total);
        }
    }
    Ok(totals.into_iter().map(|(id, all)| (id, median(all))).collect())
}

/// The middle value, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn a_median_lies_in_the_middle() {
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
    }
}
