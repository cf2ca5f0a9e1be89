//! Which genes of a vocabulary each data set measured. A zero of another gene is no observation and must not be trained
//! on.

use std::collections::HashMap;

use arrow::array::AsArray;
use arrow::datatypes::UInt32Type;
use cellql_schemas::datasets;
use cellql_schemas::vocabulary::Placement;

use crate::error::Result;
use cellql_store::Store;

/// For each data set (by id), one flag per position of a vocabulary: whether it measured that gene.
#[derive(Debug, Clone, Default)]
pub struct MeasuredGenes(HashMap<u32, Vec<bool>>);

impl MeasuredGenes {
    /// For every data set of a store, and a vocabulary of `genes` genes.
    ///
    /// # Errors
    /// The table of data sets cannot be read.
    pub async fn of(store: &Store, placement: &Placement, genes: usize) -> Result<Self> {
        let columns = [datasets::DATASET_ID, datasets::MEASURED_GENES];
        let mut all = HashMap::new();
        for batch in store.read(datasets::TABLE, &columns, None).await? {
            let (ids, lists) = (batch.column(0).as_primitive::<UInt32Type>(), batch.column(1).as_list::<i32>());
            for (id, list) in ids.values().iter().zip(lists.iter()) {
                let mut flags = vec![false; genes];
                let measured = list.iter().flat_map(|list| list.as_primitive::<UInt32Type>().values().to_vec());
                for position in measured.filter_map(|gene| placement.position(gene)) {
                    if let Some(flag) = flags.get_mut(position as usize) {
                        *flag = true;
                    }
                }
                all.insert(*id, flags);
            }
        }
        Ok(Self(all))
    }

    /// The flags of a data set, one per position of the vocabulary; `None` if there is no such data set.
    pub fn of_dataset(&self, dataset_id: u32) -> Option<&[bool]> {
        self.0.get(&dataset_id).map(Vec::as_slice)
    }
}
