//! `list_functions()`: a row per function of cellql.
//!
//! ```sql
//! SELECT function, arguments, summary FROM list_functions() WHERE kind = 'aggregate';
//! ```
//!
//! The table `information_schema.routines` lists DataFusion's own functions beside these.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::record_batch::RecordBatch;
use datafusion::catalog::{MemTable, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{Result, plan_err};

use crate::FUNCTIONS;
use crate::description::{Description, Kind};

/// Name in SQL.
pub const NAME: &str = "list_functions";
/// What it is.
pub const DESCRIPTION: Description = Description {
    name: NAME,
    kind: Kind::Table,
    parameters: &[],
    returns: "columns `function`, `kind` (`scalar`, `aggregate` or `table`), `arguments`, `returns`, `summary`, \
         `example`.",
    summary: "The functions that cellql adds to SQL. Arguments with an arrow can be left out.",
    example: "SELECT function, arguments, summary FROM list_functions() WHERE kind = 'aggregate';",
};

/// The table function.
#[derive(Debug)]
pub struct ListFunctions;

fn table() -> Result<RecordBatch> {
    let column = |of: fn(&Description) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(FUNCTIONS.iter().map(of)))
    };
    Ok(RecordBatch::try_from_iter([
        ("function", column(|f| f.name.to_owned())),
        ("kind", column(|f| f.kind.name().to_owned())),
        ("arguments", column(Description::arguments)),
        ("returns", column(|f| f.returns.to_owned())),
        ("summary", column(|f| f.summary.to_owned())),
        ("example", column(|f| f.example.to_owned())),
    ])?)
}

impl TableFunctionImpl for ListFunctions {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        if !args.exprs().is_empty() {
            return plan_err!("{} takes no arguments, not {}", DESCRIPTION.usage(), args.exprs().len());
        }
        let table = table()?;
        Ok(Arc::new(MemTable::try_new(table.schema(), vec![vec![table]])?))
    }
}

#[cfg(test)]
mod tests {
    use crate::FUNCTIONS;
    use crate::fixture::{shown, wrong};

    #[test]
    fn it_has_a_row_per_function() {
        let sql = format!("SELECT count(*) = {} AS v FROM list_functions()", FUNCTIONS.len());
        assert_eq!(shown(&sql), ["true"]);
        let sql = "SELECT arguments AS v FROM list_functions() WHERE function = 'genes_seen' AND kind = 'scalar'";
        assert_eq!(shown(sql), ["expr, model =>"]);
        assert!(wrong("SELECT * FROM list_functions('x')").contains("takes no arguments"));
    }
}
