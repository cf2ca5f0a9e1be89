//! Which genes each data set measured, for functions that tell zero from unknown.

use std::collections::HashMap;

use arrow::array::{AsArray, ListArray};
use arrow::datatypes::UInt32Type;
use cellql_schemas::datasets;
use cellql_store::Store;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;

use crate::error::Result;

/// The measured genes of every data set of a store.
#[derive(Debug, Default)]
pub(super) struct MeasuredGenes {
    lists: Vec<ListArray>,
    /// List and row of each data set.
    at: HashMap<u32, (usize, usize)>,
}

impl MeasuredGenes {
    /// Reads them.
    ///
    /// # Errors
    /// The table `datasets` cannot be read.
    pub(super) async fn read(store: &Store) -> Result<Self> {
        let mut measured = Self::default();
        let columns = [datasets::DATASET_ID, datasets::MEASURED_GENES];
        for batch in store.read(datasets::TABLE, &columns, None).await? {
            let ids = batch.column(0).as_primitive::<UInt32Type>().values();
            measured.at.extend(ids.iter().copied().zip((0..).map(|row| (measured.lists.len(), row))));
            measured.lists.push(batch.column(1).as_list::<i32>().clone());
        }
        Ok(measured)
    }

    /// Whether a data set measured a gene; false for an unknown data set.
    pub(super) fn contains(&self, dataset_id: u32, gene_id: u32) -> bool {
        let Some((list, row)) = self.at.get(&dataset_id) else { return false };
        let list = &self.lists[*list];
        let offsets = list.value_offsets();
        let genes =
            &list.values().as_primitive::<UInt32Type>().values()[offsets[*row] as usize..offsets[row + 1] as usize];
        genes.binary_search(&gene_id).is_ok()
    }
}

/// True for a plan that calls a function which asks for measured genes.
pub(super) fn is_asked_for(plan: &LogicalPlan) -> Result<bool, DataFusionError> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            found |= cellql_udfs::asks_for_measured(expr);
            Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
    })?;
    Ok(found)
}
