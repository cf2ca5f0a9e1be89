//! `enhance(expr, model => , depth => , input => , precision => , total => )`: what the model expects of every gene.
//!
//! ```sql
//! SELECT cell_id, expression(enhance(expr, depth => 'f5'), 'INS') AS ins FROM cells LIMIT 5;
//! ```
//!
//! Gives an `expr` of predicted log-normalised values, log1p of counts per 10,000 at the target depth, for every gene
//! of the vocabulary that the store knows; NULL where the cell has no embedding. Predictions can be below zero.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use cellql_schemas::expr::{ProfileBuilder, data_type};
use datafusion::common::Result;

use crate::description::{Description, Kind};
use crate::engine::Engine;
use crate::options::Arguments;
use crate::over_cells::{Cells, OverCells};
use crate::parameters::{DEPTH, EXPR, INPUT, MODEL, PRECISION, TOTAL};

/// Name in SQL.
pub const NAME: &str = "enhance";
/// What it is.
pub const DESCRIPTION: Description = Description {
    name: NAME,
    kind: Kind::Scalar,
    parameters: &[EXPR, MODEL, DEPTH, INPUT, PRECISION, TOTAL],
    returns: "an `expr` of log1p of counts per 10,000 at the target depth, which can be below zero; \
              NULL where the cell has no embedding.",
    summary: "What the model expects of every gene of its vocabulary that the store knows.",
    example: "SELECT cell_id, expression(enhance(expr, depth => 'f5'), 'INS') AS ins FROM cells LIMIT 5;",
};

/// What only transformers have.
const WHAT: &str = "enhanced expression";

#[derive(Debug)]
pub(crate) struct Enhance;

impl OverCells for Enhance {
    const DESCRIPTION: &'static Description = &DESCRIPTION;

    fn data_type(engine: &dyn Engine, arguments: &Arguments) -> Result<DataType> {
        arguments.transformer_recipe(engine, WHAT)?;
        Ok(data_type())
    }

    fn call(engine: &dyn Engine, arguments: &Arguments, cells: Cells) -> Result<ArrayRef> {
        let enhanced = engine.enhance(&arguments.transformer_recipe(engine, WHAT)?, cells)?;
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
