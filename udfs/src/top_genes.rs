//! `top_genes(expr, n)`: symbols of the genes a cell expresses most, the highest value first.
//!
//! ```sql
//! SELECT cell_id, cell_type, top_genes(expr, 5) AS genes FROM cells LIMIT 5;
//! ```
//!
//! Of equal values the gene with the lower `gene_id` comes first. A cell that expresses fewer genes has a shorter list.

use std::sync::Arc;

use arrow::array::{ArrayRef, ListBuilder, StringBuilder};
use arrow::datatypes::{DataType, Field};
use cellql_schemas::expr::Profile;
use datafusion::common::{Result, plan_err};

use crate::description::{Description, Kind};
use crate::engine::Engine;
use crate::options::Arguments;
use crate::over_cells::{Cells, OverCells};
use crate::parameters::{Accepts, EXPR, Parameter};

/// Name in SQL.
pub const NAME: &str = "top_genes";
/// What it is.
pub const DESCRIPTION: Description = Description {
    name: NAME,
    kind: Kind::Scalar,
    parameters: &[EXPR, N],
    returns: "List(Utf8), shorter where the cell expresses fewer genes; NULL for a NULL expression.",
    summary: "Symbols of the `n` genes with the highest values, highest first; \
              of equal values the lower `gene_id` comes first.",
    example: "SELECT cell_id, cell_type, top_genes(expr, 5) AS genes FROM cells LIMIT 5;",
};
const N: Parameter = Parameter::required("n", "how many genes", Accepts::WholeNumber);

#[derive(Debug)]
pub(crate) struct TopGenes;

fn count(arguments: &Arguments) -> Result<usize> {
    match arguments.count(N.name)? {
        Some(n) => Ok(n),
        None => plan_err!("{NAME}: say how many genes, for example {NAME}(expr, 10)"),
    }
}

/// Gene ids of the `n` highest values.
fn highest(cell: Profile, n: usize) -> Vec<u32> {
    let mut genes: Vec<(f32, u32)> = cell.values.iter().copied().zip(cell.gene_ids.iter().copied()).collect();
    let higher = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if n < genes.len() {
        genes.select_nth_unstable_by(n, higher);
        genes.truncate(n);
    }
    genes.sort_unstable_by(higher);
    genes.into_iter().map(|(_, gene)| gene).collect()
}

impl OverCells for TopGenes {
    const DESCRIPTION: &'static Description = &DESCRIPTION;

    fn data_type(_: &dyn Engine, arguments: &Arguments) -> Result<DataType> {
        count(arguments)?;
        Ok(DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true))))
    }

    fn call(engine: &dyn Engine, arguments: &Arguments, cells: Cells) -> Result<ArrayRef> {
        let n = count(arguments)?;
        let mut lists = ListBuilder::new(StringBuilder::new());
        for cell in cells.profiles.iter() {
            let genes = cell.map(|cell| highest(cell, n).into_iter().map(|gene| engine.symbol(gene)));
            lists.append_option(genes);
        }
        Ok(Arc::new(lists.finish()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{shown, wrong};

    #[test]
    fn of_equal_values_the_lower_gene_comes_first() {
        let cell = Profile { gene_ids: &[2, 5, 7, 9, 11], values: &[1.0, 4.0, 2.0, 4.0, 2.0] };
        assert_eq!(highest(cell, 3), [5, 9, 7]);
        assert_eq!(highest(cell, 4), [5, 9, 7, 11]);
        assert_eq!(highest(cell, 50), [5, 9, 7, 11, 2]);
    }

    #[test]
    fn genes_are_shown_by_symbol() {
        let sql = "SELECT top_genes(expr, n => 2) AS genes FROM cells ORDER BY cell_id";
        assert_eq!(shown(sql), ["[B, A]", "[C, A]", "NULL", "[]"]);
    }

    #[test]
    fn how_many_must_be_a_constant_above_zero() {
        for (n, why) in [
            ("0", "'n' must be a whole number above 0, not 0"),
            ("-1", "above 0"),
            ("1.5", "'n' must be a whole number, not Float64"),
            ("cell_id", "'n' must be a constant whole number"),
            ("NULL", "say how many genes"),
        ] {
            let error = wrong(&format!("SELECT top_genes(expr, {n}) FROM cells"));
            assert!(error.contains(why), "{n}: {error}");
        }
    }
}
