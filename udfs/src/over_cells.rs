//! What every function over the expression of cells shares: its arguments, its types, its identity.

use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use cellql_schemas::expr::Profiles;
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::prelude::Expr;

use crate::description::Description;
use crate::engine::Engine;
use crate::options::{self, Arguments};
use crate::parameters::{self, TOTAL_NAME};

/// Cells of a batch, with the number beside each where a call gives one.
#[derive(Debug, Clone, Copy)]
pub struct Cells<'a> {
    /// Their expressions.
    pub profiles: &'a Profiles,
    /// See `Input::needs_total`.
    pub totals: Option<&'a Float64Array>,
}

impl Cells<'_> {
    /// The number beside a cell.
    pub fn total(&self, row: usize) -> Option<f64> {
        use arrow::array::Array;
        self.totals.filter(|totals| totals.is_valid(row)).map(|totals| totals.value(row))
    }
}

/// A function from the expression of a cell and constants to a value.
pub(crate) trait OverCells: Debug + Send + Sync + 'static {
    /// What it is called and what it takes, `expr` first.
    const DESCRIPTION: &'static Description;

    /// The type of its values. Wrong constants are errors here, before any work.
    fn data_type(engine: &dyn Engine, arguments: &Arguments) -> Result<DataType>;

    /// Refuses wrong arrays, which are constants only once the planner has folded them: later than
    /// [`OverCells::data_type`], but still before any work.
    fn check_arrays(_: &dyn Engine, _: &Arguments) -> Result<()> {
        Ok(())
    }

    /// Its values.
    fn call(engine: &dyn Engine, arguments: &Arguments, cells: Cells) -> Result<ArrayRef>;
}

/// A function bound to an engine.
#[derive(Debug)]
pub(crate) struct Function<F> {
    engine: Arc<dyn Engine>,
    signature: Signature,
    what: PhantomData<F>,
}

impl<F: OverCells> Function<F> {
    pub(crate) fn new(engine: &Arc<dyn Engine>) -> Self {
        let signature = Signature::user_defined(Volatility::Immutable);
        Self { engine: Arc::clone(engine), signature, what: PhantomData }
    }
}

// One engine is bound per session, so equal arguments mean equal results.
impl<F: OverCells> PartialEq for Function<F> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.engine, &other.engine)
    }
}
impl<F: OverCells> Eq for Function<F> {}
impl<F: OverCells> Hash for Function<F> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        F::DESCRIPTION.name.hash(state);
    }
}

impl<F: OverCells> ScalarUDFImpl for Function<F> {
    fn name(&self) -> &str {
        F::DESCRIPTION.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        parameters::check_types(F::DESCRIPTION, types)
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        internal_err!("the type of {}() depends on its constants", F::DESCRIPTION.name)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let arguments =
            Arguments { function: F::DESCRIPTION, constants: args.scalar_arguments, fields: args.arg_fields };
        Ok(Arc::new(Field::new(F::DESCRIPTION.name, F::data_type(self.engine.as_ref(), &arguments)?, true)))
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        Ok(options::display(F::DESCRIPTION, args))
    }

    fn simplify(&self, args: Vec<Expr>, _: &SimplifyContext) -> Result<ExprSimplifyResult> {
        let constants: Vec<Option<&ScalarValue>> = args
            .iter()
            .map(|arg| match arg {
                Expr::Literal(value, _) => Some(value),
                _ => None,
            })
            .collect();
        let arguments = Arguments { function: F::DESCRIPTION, constants: &constants, fields: &[] };
        F::check_arrays(self.engine.as_ref(), &arguments)?;
        Ok(ExprSimplifyResult::Original(args))
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
        let arguments = Arguments { function: F::DESCRIPTION, constants: &constants, fields: &args.arg_fields };
        let column = args.args[0].to_array(args.number_rows)?;
        let profiles =
            Profiles::new(&column).map_err(|e| DataFusionError::Execution(format!("{}: {e}", F::DESCRIPTION.name)))?;
        let at = F::DESCRIPTION.position(TOTAL_NAME).and_then(|at| args.args.get(at));
        let totals = at.map(|total| total.to_array(args.number_rows)).transpose()?;
        let totals = totals.as_ref().and_then(|column| column.as_primitive_opt::<Float64Type>());
        let cells = Cells { profiles: &profiles, totals };
        Ok(ColumnarValue::Array(F::call(self.engine.as_ref(), &arguments, cells)?))
    }
}
