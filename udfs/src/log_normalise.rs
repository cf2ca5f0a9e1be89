//! `log_normalise(expr)`: counts scaled to 10,000 per cell, then ln(1 + x), over every gene the cell measured.
//!
//! ```sql
//! SELECT cell_id, expression(log_normalise(expr), 'INS') AS ins FROM cells ORDER BY ins DESC LIMIT 5;
//! ```

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use cellql_schemas::expr::{self, ProfileBuilder, Profiles, TARGET_SUM};
use datafusion::common::Result;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

use crate::description::{Description, Kind};
use crate::parameters::{self, ONLY_EXPR};

/// Name in SQL.
pub const NAME: &str = "log_normalise";
/// What it is.
pub const DESCRIPTION: Description = Description {
    name: NAME,
    kind: Kind::Scalar,
    parameters: ONLY_EXPR,
    returns: "an `expr`; NULL for a NULL expression.",
    summary: "Counts scaled to 10,000 per cell, then ln(1 + x), over every gene the cell measured.",
    example: "SELECT cell_id, expression(log_normalise(expr), 'INS') AS ins FROM cells ORDER BY ins DESC LIMIT 5;",
};

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct LogNormalise {
    signature: Signature,
}

impl LogNormalise {
    /// Makes it; it needs no engine.
    #[allow(clippy::new_without_default, reason = "a function is made once, by name")]
    pub fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for LogNormalise {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        parameters::check_types(&DESCRIPTION, types)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let has_dataset_ids = types.first().is_some_and(expr::has_dataset_ids);
        Ok(if has_dataset_ids { expr::query_type() } else { expr::data_type() })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let column = args.args[0].to_array(args.number_rows)?;
        let cells = Profiles::new(&column).map_err(|e| DataFusionError::Execution(format!("{NAME}: {e}")))?;
        let mut out = ProfileBuilder::default();
        let mut scaled = Vec::new();
        for cell in cells.iter() {
            match cell {
                None => out.push_null(),
                Some(cell) => {
                    let scale = TARGET_SUM / cell.total();
                    scaled.clear();
                    scaled.extend(cell.values.iter().map(|&v| (f64::from(v) * scale).ln_1p() as f32));
                    out.push(cell.gene_ids, &scaled);
                }
            }
        }
        let normalised: ArrayRef = Arc::new(out.finish());
        if !expr::has_dataset_ids(column.data_type()) {
            return Ok(ColumnarValue::Array(normalised));
        }
        let dataset_ids = (0..cells.len()).map(|row| cells.dataset_ids(row));
        let normalised = expr::with_dataset_ids(&normalised, dataset_ids);
        Ok(ColumnarValue::Array(normalised.map_err(|e| DataFusionError::Execution(format!("{NAME}: {e}")))?))
    }
}
