//! `enhance(expr, model => , depth => , input => , precision => , total => )`: what the model expects of every gene.
//!
//! ```sql
//! SELECT cell_id, expression(enhance(expr, model => 'gene', depth => 'f5'), 'CD8A') FROM cells;
//! ```
//!
//! Gives an `expr` of predicted log-normalised values, log1p of counts per 10,000 at the target depth, for every gene of the
//! vocabulary that the store knows; NULL where the cell has no embedding. Predictions can be below zero.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use cellql_schemas::expr::{ProfileBuilder, data_type};
use datafusion::common::Result;

use crate::engine::Engine;
use crate::options::Arguments;
use crate::over_cells::{Cells, OverCells};

/// Name in SQL.
pub const NAME: &str = "enhance";
/// Parameters in order.
pub const PARAMETERS: &[&str] = &["expr", "model", "depth", "input", "precision", "total"];

#[derive(Debug)]
pub(crate) struct Enhance;

impl OverCells for Enhance {
    const NAME: &'static str = NAME;
    const PARAMETERS: &'static [&'static str] = PARAMETERS;

    fn data_type(engine: &dyn Engine, arguments: &Arguments) -> Result<DataType> {
        arguments.recipe(engine)?;
        Ok(data_type())
    }

    fn call(engine: &dyn Engine, arguments: &Arguments, cells: Cells) -> Result<ArrayRef> {
        let enhanced = engine.enhance(&arguments.recipe(engine)?, cells)?;
        let genes = &enhanced.gene_ids;
        let mut profiles = ProfileBuilder::default();
        for (row, valid) in enhanced.valid.iter().enumerate() {
            match valid {
                true => profiles.push(genes, &enhanced.values[row * genes.len()..(row + 1) * genes.len()]),
                false => profiles.push_null(),
            }
        }
        Ok(Arc::new(profiles.finish()))
    }
}
