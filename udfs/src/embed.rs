//! `embed(expr, model => , pool => , depth => , input => )`: the embedding of a cell.
//!
//! ```sql
//! SELECT cell_id, embed(expr, model => 'pancreas', pool => 'max') FROM cells;
//! ```
//!
//! Gives a vector of Float32 of fixed size, NULL where the cell expresses no gene of the model's vocabulary or its
//! counts sum to one or less (the model needs log10 of the total above zero).

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, FieldRef};
use cellql_schemas::embeddings::vector_type;
use cellql_schemas::expr::Profiles;
use cellql_schemas::recipe::Recipe;
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::prelude::Expr;

use crate::engine::{Embedded, Engine};
use crate::options;

/// Name in SQL.
pub const NAME: &str = "embed";
/// Parameters in order.
pub const PARAMETERS: &[&str] = &["expr", "model", "pool", "depth", "input"];

/// The function, bound to an engine.
#[derive(Debug)]
pub struct Embed {
    engine: Arc<dyn Engine>,
    signature: Signature,
}

impl Embed {
    /// Binds it.
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        Self { engine, signature: Signature::user_defined(Volatility::Immutable) }
    }
}

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

// One engine is bound per session, so equal arguments mean equal results.
impl PartialEq for Embed {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.engine, &other.engine)
    }
}
impl Eq for Embed {}
impl Hash for Embed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        NAME.hash(state);
    }
}

impl ScalarUDFImpl for Embed {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        options::check_types(NAME, PARAMETERS, types, 1)
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        internal_err!("the type of embed() depends on its constants")
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let recipe = options::recipe(NAME, args.scalar_arguments, self.engine.as_ref())?;
        let dim = self.engine.dim(&recipe)?;
        Ok(Arc::new(Field::new(NAME, vector_type(dim), true)))
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        Ok(options::display(NAME, PARAMETERS, args, 1))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constants: Vec<Option<&ScalarValue>> = args
            .args
            .iter()
            .map(|a| match a {
                ColumnarValue::Scalar(value) => Some(value),
                ColumnarValue::Array(_) => None,
            })
            .collect();
        let recipe: Recipe = options::recipe(NAME, &constants, self.engine.as_ref())?;
        let column = args.args[0].to_array(args.number_rows)?;
        let cells = Profiles::new(&column).map_err(|e| DataFusionError::Execution(format!("{NAME}: {e}")))?;
        let embedded = self.engine.embed(&recipe, &cells)?;
        let dim = self.engine.dim(&recipe)?;
        Ok(ColumnarValue::Array(Arc::new(vector_column(embedded, dim)?)))
    }
}
