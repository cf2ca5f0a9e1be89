//! The model that comes with the program: size 3M, trained with `cellql pretrain` on public human cells.
//!
//! Its weights are stored as f16. models/README.md describes its training data, its training and its scores.

use crate::error::{Error, Result};
use cellql_model::Provenance;

/// Name of the shipped model in a store.
pub const NAME: &str = "human_3m";

/// The file of the shipped model (safetensors).
pub(crate) const WEIGHTS: &[u8] = include_bytes!("../models/human_3m.safetensors");
/// Provenance of the shipped model, as JSON.
const PROVENANCE: &str = include_str!("../models/human_3m.json");

/// Provenance of the shipped model: the run that trained it.
///
/// # Errors
/// Only if the program was built with a wrong models/human_3m.json.
pub fn provenance() -> Result<Provenance> {
    serde_json::from_str(PROVENANCE).map_err(Error::internal("reading the provenance of the shipped model"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellql_model::{Model, decode};

    #[test]
    fn the_shipped_model_is_valid_small_and_has_its_provenance() {
        assert!(WEIGHTS.len() < 10_000_000, "{} bytes", WEIGHTS.len());
        Model::load(NAME, WEIGHTS.to_vec()).unwrap().check().unwrap();
        let weights = decode(NAME, WEIGHTS).unwrap();
        assert!((3_000_000..4_500_000).contains(&weights.parameters()));
        assert!(matches!(provenance().unwrap(), Provenance::Trained { steps, .. } if steps > 0));
    }
}
