//! `genes_seen(expr, model => )`: how many genes of the model's vocabulary a cell expresses.
//!
//! ```sql
//! SELECT dataset_id, avg(genes_seen(expr)) FROM cells GROUP BY dataset_id;
//! ```

use std::sync::Arc;

use arrow::array::{ArrayRef, UInt32Array};
use arrow::datatypes::DataType;
use datafusion::common::Result;

use crate::engine::Engine;
use crate::options::Arguments;
use crate::over_cells::{Cells, OverCells};

/// Name in SQL.
pub const NAME: &str = "genes_seen";
/// Parameters in order.
pub const PARAMETERS: &[&str] = &["expr", "model"];

#[derive(Debug)]
pub(crate) struct GenesSeen;

impl OverCells for GenesSeen {
    const NAME: &'static str = NAME;
    const PARAMETERS: &'static [&'static str] = PARAMETERS;

    fn data_type(engine: &dyn Engine, arguments: &Arguments) -> Result<DataType> {
        engine.model(arguments.text("model")?)?;
        Ok(DataType::UInt32)
    }

    fn call(engine: &dyn Engine, arguments: &Arguments, cells: Cells) -> Result<ArrayRef> {
        let model = engine.model(arguments.text("model")?)?;
        Ok(Arc::new(UInt32Array::from(engine.genes_seen(&model, cells.profiles)?)))
    }
}
