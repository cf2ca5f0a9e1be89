//! Functions of DataFusion that fail when the planner asks whether they keep an order.
//!
//! `ln`, `sqrt` and others keep the order of their argument only in a part of its range, and answer with an error where
//! the range reaches beyond it. The planner takes that for an error of the plan, so that `ORDER BY ln(x)` over a filter
//! cannot be planned. Here the answer is that no order is known.

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::Result;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use datafusion::prelude::{Expr, SessionContext};

const FUNCTIONS: &[&str] = &["acos", "acosh", "asin", "atanh", "ln", "log", "log10", "log2", "sqrt"];

/// Replaces the functions in a session.
pub(super) fn mend(context: &SessionContext) {
    let state = context.state();
    for name in FUNCTIONS {
        if let Some(function) = state.scalar_functions().get(*name) {
            context.register_udf(ScalarUDF::from(Mended { inner: Arc::clone(function) }));
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Mended {
    inner: Arc<ScalarUDF>,
}

impl ScalarUDFImpl for Mended {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.inner().return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.inner().return_field_from_args(args)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.inner.inner().invoke_with_args(args)
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        self.inner.inner().simplify(args, info)
    }

    fn evaluate_bounds(&self, input: &[&Interval]) -> Result<Interval> {
        self.inner.inner().evaluate_bounds(input)
    }

    fn propagate_constraints(&self, interval: &Interval, inputs: &[&Interval]) -> Result<Option<Vec<Interval>>> {
        self.inner.inner().propagate_constraints(interval, inputs)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        Ok(self.inner.inner().output_ordering(inputs).unwrap_or(SortProperties::Unordered))
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.inner().coerce_types(types)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.inner().documentation()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rows_are_ordered_by_functions_of_a_part_of_the_numbers() {
        let context = SessionContext::new();
        mend(&context);
        for name in FUNCTIONS.iter().filter(|name| **name != "log") {
            let sql = format!(
                "SELECT value FROM generate_series(1, 20000) WHERE value % 3 = 1 \
                 ORDER BY {name}(value) NULLS LAST LIMIT 1"
            );
            let rows = context.sql(&sql).await.unwrap().collect().await;
            assert_eq!(rows.map(|rows| rows.iter().map(|b| b.num_rows()).sum::<usize>()).unwrap(), 1, "{name}");
        }
        let rows = context.sql("SELECT ln(10.0), log(100), log2(8), sqrt(9)").await.unwrap().collect().await.unwrap();
        assert_eq!(rows[0].num_columns(), 4);
    }
}
