//! `embed(expr, model => , pool => , depth => , input => , precision => , total => )`: the embedding of a cell.
//!
//! ```sql
//! SELECT cell_id, embed(expr, pool => 'max') AS embedding FROM cells LIMIT 5;
//! ```
//!
//! Gives a vector of Float32 of fixed size, NULL where the cell expresses no gene of the model's vocabulary or its
//! counts sum to one or less (the model needs log10 of the total above zero).

use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::DataType;
use cellql_schemas::embeddings::vector_type;
use cellql_schemas::recipe::Recipe;
use datafusion::common::{Result, ScalarValue, internal_err};

use crate::description::{Description, Kind};
use crate::engine::{Embedded, Engine};
use crate::options::Arguments;
use crate::over_cells::{Cells, OverCells};
use crate::parameters::{DEPTH, EXPR, INPUT, MODEL, POOL, PRECISION, TOTAL};

/// Name in SQL.
pub const NAME: &str = "embed";
/// What it is.
pub const DESCRIPTION: Description = Description {
    name: NAME,
    kind: Kind::Scalar,
    parameters: &[EXPR, MODEL, POOL, DEPTH, INPUT, PRECISION, TOTAL],
    returns: "a vector of Float32 of fixed size; NULL where the cell expresses no gene of the model's vocabulary \
              or its counts sum to one or less.",
    summary: "The embedding of a cell.",
    example: "SELECT cell_id, embed(expr, pool => 'max') AS embedding FROM cells LIMIT 5;",
};

#[derive(Debug)]
pub(crate) struct Embed;

/// Embeddings as an arrow column of vectors of `dim` numbers.
///
/// # Errors
/// An engine that returned another number of values than cells × `dim`.
pub fn vector_column(embedded: Embedded, dim: usize) -> Result<FixedSizeListArray> {
    let nulls = embedded.valid.contains(&false).then(|| NullBuffer::from(embedded.valid));
    let DataType::FixedSizeList(item, _) = vector_type(dim) else {
        return internal_err!("a vector is a list of fixed size");
    };
    let values: ArrayRef = Arc::new(Float32Array::from(embedded.vectors));
    Ok(FixedSizeListArray::try_new(item, dim as i32, values, nulls)?)
}

/// The recipe that the constants of a call ask for; `None` in the place of an argument that is no constant.
///
/// # Errors
/// A plan error for wrong options.
pub fn recipe(engine: &dyn Engine, constants: &[Option<&ScalarValue>]) -> Result<Recipe> {
    Arguments { function: &DESCRIPTION, constants, fields: &[] }.recipe(engine)
}

impl OverCells for Embed {
    const DESCRIPTION: &'static Description = &DESCRIPTION;

    fn data_type(engine: &dyn Engine, arguments: &Arguments) -> Result<DataType> {
        Ok(vector_type(engine.dim(&arguments.recipe(engine)?)?))
    }

    fn call(engine: &dyn Engine, arguments: &Arguments, cells: Cells) -> Result<ArrayRef> {
        let recipe = arguments.recipe(engine)?;
        let embedded = engine.embed(&recipe, cells)?;
        Ok(Arc::new(vector_column(embedded, engine.dim(&recipe)?)?))
    }
}
