//! Obs of exported cells, collected batch by batch. Categorical columns keep the categories of their files and their
//! order.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, DictionaryArray, Int32Array, StringArray};
use arrow::compute::{cast, concat};
use arrow::datatypes::{DataType, Field, UInt64Type};
use arrow::record_batch::RecordBatch;
use cellql_formats::write::h5ad::Column;
use cellql_schemas::cells;

use crate::error::{Error, Result};
use crate::ingest::ObsReport;

/// Adds the columns of another data set. Categories are in order of appearance; a column is ordered only if all data
/// sets have the same ordered categories.
pub(super) fn merge(all: &mut Vec<ObsReport>, of: Vec<ObsReport>) {
    for column in of {
        match all.iter_mut().find(|c| c.name == column.name) {
            None => all.push(column),
            Some(held) => {
                let same = held.categories == column.categories;
                held.ordered = held.ordered && column.ordered && same;
                if let (Some(categories), Some(more)) = (&mut held.categories, column.categories) {
                    let new: Vec<String> = more.into_iter().filter(|c| !categories.contains(c)).collect();
                    categories.extend(new);
                }
            }
        }
    }
}

/// Collects the columns of `cells` that become obs.
pub(super) struct Obs {
    fields: Vec<Field>,
    parts: Vec<Vec<ArrayRef>>,
}

impl Obs {
    /// For a table of these columns. The expression is left out.
    pub(super) fn new<'a>(fields: impl Iterator<Item = &'a Field>) -> Self {
        let fields: Vec<Field> = fields.filter(|f| f.name() != cells::EXPR).cloned().collect();
        Self { parts: fields.iter().map(|_| Vec::new()).collect(), fields }
    }

    pub(super) fn add(&mut self, batch: &RecordBatch) {
        for (field, parts) in self.fields.iter().zip(&mut self.parts) {
            if let Some(column) = batch.column_by_name(field.name()) {
                parts.push(plain(column));
            }
        }
    }

    /// The barcodes, and the other columns of these data sets.
    pub(super) fn finish(self, reports: &[ObsReport]) -> Result<(StringArray, Vec<Column>)> {
        let fail = Error::internal::<arrow::error::ArrowError>;
        let (mut barcodes, mut columns) = (StringArray::from(Vec::<&str>::new()), Vec::new());
        for (field, parts) in self.fields.into_iter().zip(self.parts) {
            let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
            let mut values = concat(&parts).map_err(fail("gathering obs"))?;
            if *values.data_type() == DataType::UInt64 && fits_i64(&values) {
                values = cast(&values, &DataType::Int64).map_err(fail("gathering obs"))?;
            }
            if field.name() == cells::BARCODE {
                barcodes = values.as_string::<i32>().clone();
                continue;
            }
            let report = reports.iter().find(|r| r.name == *field.name());
            // A column of other data sets, or one of our own without a value.
            if report.is_none() && values.null_count() == values.len() {
                continue;
            }
            let categorical =
                matches!(field.data_type(), DataType::Dictionary(_, _)) || field.name() == cells::VALUE_KIND;
            columns.push(match categorical {
                true => categorize(field.name(), &values, report)?,
                false => Column::new(field.name(), values),
            });
        }
        Ok((barcodes, columns))
    }
}

/// Converts a column to one of the types that obs can have.
fn plain(column: &ArrayRef) -> ArrayRef {
    let to = match column.data_type() {
        DataType::Dictionary(_, _) => DataType::Utf8,
        // Which of them fit in 64 bits with a sign is known at the end.
        DataType::UInt64 => return Arc::clone(column),
        of if of.is_integer() => DataType::Int64,
        of if of.is_floating() => DataType::Float64,
        _ => return Arc::clone(column),
    };
    cast(column, &to).unwrap_or_else(|_| Arc::clone(column))
}

fn fits_i64(column: &ArrayRef) -> bool {
    column.as_primitive::<UInt64Type>().iter().flatten().all(|value| i64::try_from(value).is_ok())
}

/// Converts text to a categorical column: first the recorded categories, then others in order of appearance.
fn categorize(name: &str, values: &ArrayRef, report: Option<&ObsReport>) -> Result<Column> {
    let mut categories: Vec<String> = report.and_then(|r| r.categories.clone()).unwrap_or_default();
    let mut codes: HashMap<String, i32> = categories.iter().cloned().zip(0..).collect();
    let keys: Int32Array = values
        .as_string::<i32>()
        .iter()
        .map(|text| {
            let text = text?;
            Some(codes.get(text).copied().unwrap_or_else(|| {
                categories.push(text.to_owned());
                codes.insert(text.to_owned(), categories.len() as i32 - 1);
                categories.len() as i32 - 1
            }))
        })
        .collect();
    let dictionary = DictionaryArray::try_new(keys, Arc::new(StringArray::from(categories)));
    let dictionary = dictionary.map_err(Error::internal(format!("gathering obs column {name}")))?;
    Ok(Column { name: name.to_owned(), values: Arc::new(dictionary), ordered: report.is_some_and(|r| r.ordered) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_keep_their_order_and_lose_it_where_data_sets_differ() {
        let column = |categories: &[&str]| ObsReport {
            source: "stage".into(),
            name: "stage".into(),
            categories: Some(categories.iter().map(ToString::to_string).collect()),
            ordered: true,
        };
        let mut all = Vec::new();
        merge(&mut all, vec![column(&["late", "early"])]);
        let values: ArrayRef = Arc::new(StringArray::from(vec![Some("early"), None, Some("new")]));
        let made = categorize("stage", &values, all.first()).unwrap();
        let dictionary = made.values.as_dictionary::<arrow::datatypes::Int32Type>();
        assert_eq!(dictionary.keys().iter().collect::<Vec<_>>(), [Some(1), None, Some(2)]);
        assert!(made.ordered);
        merge(&mut all, vec![column(&["late", "last"])]);
        assert_eq!(all[0].categories.as_deref().unwrap(), ["late", "early", "last"]);
        assert!(!all[0].ordered);
    }
}
