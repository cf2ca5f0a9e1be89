//! The model that comes with the program: 3M sizes, trained by `cellql pretrain` on public human cells.
//!
//! models/README.md says on which, how, and how good it is. Its weights are half-precision numbers.

use crate::error::{Error, Result};
use cellql_model::Provenance;

/// Its name in a store.
pub const NAME: &str = "human_3m";

/// Its file.
pub(crate) const WEIGHTS: &[u8] = include_bytes!("../models/human_3m.safetensors");
/// The run that made it.
const PROVENANCE: &str = include_str!("../models/human_3m.json");

/// The run that made it.
///
/// # Errors
/// None, unless the program was built from a damaged source.
pub fn provenance() -> Result<Provenance> {
    serde_json::from_str(PROVENANCE).map_err(Error::internal("reading what the shipped model was trained on"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellql_model::{Model, decode};

    #[test]
    fn the_shipped_model_is_whole_small_and_says_where_it_comes_from() {
        assert!(WEIGHTS.len() < 10_000_000, "{} bytes", WEIGHTS.len());
        Model::load(NAME, WEIGHTS.to_vec()).unwrap().check().unwrap();
        let weights = decode(NAME, WEIGHTS).unwrap();
        assert!((3_000_000..4_500_000).contains(&weights.parameters()));
        assert!(matches!(provenance().unwrap(), Provenance::Trained { steps, .. } if steps > 0));
    }
}
