//! The models that come with the program: `human_pca`, principal components, and `human_3m`, a transformer of size 3M.
//! Both are made from public human cells.
//!
//! Their weights are stored as f16. models/README.md describes the cells, how the models were made, and their scores.

use bytes::Bytes;
use cellql_model::{FileBytes, Provenance};
use cellql_store::Store;

use crate::error::{Error, Result};
use crate::model_registry::{self, ModelEntry};

/// Names of the shipped models in a store. `embed(expr)` without a model uses the first of them that the store has.
pub const NAMES: [&str; 2] = ["human_pca", "human_3m"];

/// What `cellql info` says of the shipped models; models/README.md has the figures.
pub const ACCURACY: &str = "embed(expr) means human_pca: the 15 nearest neighbours of cells that it never saw name \
                            their type in 97 % (pancreas) and 95 % (blood) of cases, as PCA fitted to those cells \
                            does; human_3m: 97 % and 94 %";

/// A model that comes with the program.
#[derive(Debug, Clone, Copy)]
pub struct ShippedModel {
    /// Its name in a store.
    pub name: &'static str,
    /// Its file (safetensors).
    pub file: &'static [u8],
    /// Its provenance, as JSON.
    provenance: &'static str,
}

/// The shipped models, in the order of [`NAMES`].
pub const SHIPPED: [ShippedModel; 2] = [
    ShippedModel {
        name: NAMES[0],
        file: include_bytes!("../models/human_pca.safetensors"),
        provenance: include_str!("../models/human_pca.json"),
    },
    ShippedModel {
        name: NAMES[1],
        file: include_bytes!("../models/human_3m.safetensors"),
        provenance: include_str!("../models/human_3m.json"),
    },
];

impl ShippedModel {
    /// How the model was made.
    ///
    /// # Errors
    /// Only if the program was built with a wrong file in `models/`.
    pub fn provenance(&self) -> Result<Provenance> {
        serde_json::from_str(self.provenance).map_err(Error::internal("reading the provenance of a shipped model"))
    }
}

/// Adds the shipped models that a store lacks, under their names. Returns the new version of the store and the rows of
/// the models that were added.
///
/// # Errors
/// The store cannot be written.
pub async fn add(store: &Store) -> Result<(Store, Vec<ModelEntry>)> {
    let there = model_registry::list(store).await?;
    let (mut store, mut added) = (store.clone(), Vec::new());
    for shipped in SHIPPED.iter().filter(|shipped| there.iter().all(|m| m.name != shipped.name)) {
        let bytes = FileBytes::Held(Bytes::from_static(shipped.file));
        let (next, entry) = model_registry::add_file(&store, shipped.name, bytes, &shipped.provenance()?).await?;
        store = next;
        added.push(entry);
    }
    Ok((store, added))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellql_model::Model;

    #[test]
    fn shipped_models_are_valid_small_and_have_their_provenance() {
        assert!(SHIPPED.iter().map(|shipped| shipped.file.len()).sum::<usize>() < 12_000_000);
        for shipped in SHIPPED {
            let model = Model::load(shipped.name, shipped.file.to_vec()).unwrap();
            model.check().unwrap();
            match (shipped.provenance().unwrap(), model.config()) {
                (Provenance::Trained { steps, .. }, Some(_)) => assert!(steps > 0),
                (Provenance::Fitted { cells, .. }, None) => assert!(cells.0 > 10_000),
                other => panic!("{other:?}"),
            }
        }
    }
}
