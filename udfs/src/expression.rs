//! `expression(expr, gene)`: the value of a gene in a cell, by any of the gene's names; 0 where it is not expressed.
//!
//! ```sql
//! SELECT cell_id, expression(expr, 'INS') AS ins FROM cells ORDER BY ins DESC LIMIT 5;
//! ```

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::Float32Array;
use arrow::datatypes::{DataType, Field, FieldRef};
use cellql_schemas::expr::Profiles;
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::prelude::Expr;

use crate::engine::Engine;
use crate::options;

/// Name in SQL.
pub const NAME: &str = "expression";
/// Parameters in order.
pub const PARAMETERS: &[&str] = &["expr", "gene"];

/// The function, bound to an engine.
#[derive(Debug)]
pub struct Expression {
    engine: Arc<dyn Engine>,
    signature: Signature,
}

impl Expression {
    /// Binds it.
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        Self { engine, signature: Signature::user_defined(Volatility::Immutable) }
    }

    fn gene(&self, constant: Option<&ScalarValue>) -> Result<u32> {
        match options::text(NAME, "gene", Some(&constant))? {
            Some(name) => Ok(self.engine.gene(name)?),
            None => plan_err!("{NAME}: name a gene, for example {NAME}(expr, 'INS')"),
        }
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.engine, &other.engine)
    }
}
impl Eq for Expression {}
impl Hash for Expression {
    fn hash<H: Hasher>(&self, state: &mut H) {
        NAME.hash(state);
    }
}

impl ScalarUDFImpl for Expression {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        options::check_types(NAME, PARAMETERS, types, 2)
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float32)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.gene(args.scalar_arguments.get(1).copied().flatten())?;
        Ok(Arc::new(Field::new(NAME, DataType::Float32, true)))
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        Ok(options::display(NAME, PARAMETERS, args, 2))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = match args.args.get(1) {
            Some(ColumnarValue::Scalar(value)) => Some(value),
            _ => None,
        };
        let gene = self.gene(constant)?;
        let column = args.args[0].to_array(args.number_rows)?;
        let cells = Profiles::new(&column).map_err(|e| DataFusionError::Execution(format!("{NAME}: {e}")))?;
        let values: Float32Array = cells.iter().map(|cell| cell.map(|c| c.value_of(gene))).collect();
        Ok(ColumnarValue::Array(Arc::new(values)))
    }
}
