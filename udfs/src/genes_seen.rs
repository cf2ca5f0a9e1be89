//! `genes_seen(expr, model => )`: how many genes of the model's vocabulary a cell expresses.
//!
//! ```sql
//! SELECT dataset_id, avg(genes_seen(expr)) FROM cells GROUP BY dataset_id;
//! ```

use std::sync::Arc;

use arrow::array::{ArrayRef, UInt32Array};
use arrow::datatypes::DataType;
use datafusion::common::Result;

use crate::description::{Description, Kind};
use crate::engine::Engine;
use crate::options::Arguments;
use crate::over_cells::{Cells, OverCells};
use crate::parameters::{EXPR, MODEL};

/// Name in SQL.
pub const NAME: &str = "genes_seen";
/// What it is.
pub const DESCRIPTION: Description = Description {
    name: NAME,
    kind: Kind::Scalar,
    parameters: &[EXPR, MODEL],
    returns: "UInt32; NULL for a NULL expression.",
    summary: "How many genes of the model's vocabulary the cell expresses.",
    example: "SELECT dataset_id, avg(genes_seen(expr)) FROM cells GROUP BY dataset_id;",
};

#[derive(Debug)]
pub(crate) struct GenesSeen;

impl OverCells for GenesSeen {
    const DESCRIPTION: &'static Description = &DESCRIPTION;

    fn data_type(engine: &dyn Engine, arguments: &Arguments) -> Result<DataType> {
        arguments.model(engine)?;
        Ok(DataType::UInt32)
    }

    fn call(engine: &dyn Engine, arguments: &Arguments, cells: Cells) -> Result<ArrayRef> {
        let model = arguments.model(engine)?;
        Ok(Arc::new(UInt32Array::from(engine.genes_seen(&model, cells.profiles)?)))
    }
}
