//! `genes_seen(expr, model => )`: how many genes of the model's vocabulary a cell expresses.
//!
//! ```sql
//! SELECT dataset_id, avg(genes_seen(expr)) FROM cells GROUP BY dataset_id;
//! ```

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::UInt32Array;
use arrow::datatypes::{DataType, Field, FieldRef};
use cellql_schemas::expr::Profiles;
use datafusion::common::Result;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::prelude::Expr;

use crate::engine::Engine;
use crate::options;

/// Name in SQL.
pub const NAME: &str = "genes_seen";
/// Parameters in order.
pub const PARAMETERS: &[&str] = &["expr", "model"];

/// The function, bound to an engine.
#[derive(Debug)]
pub struct GenesSeen {
    engine: Arc<dyn Engine>,
    signature: Signature,
}

impl GenesSeen {
    /// Binds it.
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        Self { engine, signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl PartialEq for GenesSeen {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.engine, &other.engine)
    }
}
impl Eq for GenesSeen {}
impl Hash for GenesSeen {
    fn hash<H: Hasher>(&self, state: &mut H) {
        NAME.hash(state);
    }
}

impl ScalarUDFImpl for GenesSeen {
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
        Ok(DataType::UInt32)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let model = options::text(NAME, "model", args.scalar_arguments.get(1))?;
        self.engine.model(model)?;
        Ok(Arc::new(Field::new(NAME, DataType::UInt32, true)))
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        Ok(options::display(NAME, PARAMETERS, args, 1))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let model = match args.args.get(1) {
            Some(ColumnarValue::Scalar(value)) => options::text(NAME, "model", Some(&Some(value)))?,
            _ => None,
        };
        let model = self.engine.model(model)?;
        let column = args.args[0].to_array(args.number_rows)?;
        let cells = Profiles::new(&column).map_err(|e| DataFusionError::Execution(format!("{NAME}: {e}")))?;
        let seen = self.engine.genes_seen(&model, &cells)?;
        Ok(ColumnarValue::Array(Arc::new(UInt32Array::from(seen))))
    }
}
