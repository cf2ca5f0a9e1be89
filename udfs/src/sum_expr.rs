//! `sum_expr(expr)`: the sum of the expressions of a group's cells, gene by gene: a pseudobulk.
//!
//! ```sql
//! SELECT donor_id, cell_type, expression(sum_expr(expr), 'INS') AS ins FROM cells GROUP BY donor_id, cell_type;
//! ```

use std::sync::Arc;

use datafusion::logical_expr::AggregateUDF;

use crate::description::{Description, Kind};
use crate::engine::Engine;
use crate::gene_sums::{Finish, OverGenes};
use crate::parameters::ONLY_EXPR;

/// Name in SQL.
pub const NAME: &str = "sum_expr";
/// What it is.
pub const DESCRIPTION: Description = Description {
    name: NAME,
    kind: Kind::Aggregate,
    parameters: ONLY_EXPR,
    returns: "an `expr`; NULL where no cell of the group has an expression.",
    summary: "The sum of a group's expressions, gene by gene (pseudobulk). Cells whose expression is NULL are left \
         out.",
    example: "SELECT donor_id, cell_type, expression(sum_expr(expr), 'INS') AS ins FROM cells GROUP BY donor_id, \
         cell_type;",
};

/// The function.
pub fn function(engine: &Arc<dyn Engine>) -> AggregateUDF {
    AggregateUDF::from(OverGenes::new(&DESCRIPTION, Finish::Sum, engine))
}

#[cfg(test)]
mod tests {
    use crate::fixture::{shown, wrong};

    #[test]
    fn values_are_summed_per_group_and_gene() {
        let sql = "SELECT expression(sum_expr(expr), ['A', 'B', 'C']) AS v FROM cells GROUP BY kind ORDER BY kind";
        assert_eq!(shown(sql), ["[4.0, 2.0, 5.0]", "[0.0, 0.0, 0.0]"]);
        let sql = "SELECT sum_expr(expr) FILTER (WHERE cell_id < 2) AS v FROM cells";
        assert_eq!(shown(sql), ["{gene_id: [0, 1, 2], value: [4.0, 2.0, 5.0], dataset_ids: NULL}"]);
    }

    #[test]
    fn without_expressions_there_is_no_sum() {
        assert_eq!(shown("SELECT sum_expr(expr) AS v FROM cells WHERE cell_id = 2"), ["NULL"]);
        assert_eq!(shown("SELECT sum_expr(expr) AS v FROM cells WHERE false"), ["NULL"]);
        let sql = "SELECT sum_expr(expr) IS NULL AS v FROM cells GROUP BY cell_id ORDER BY cell_id";
        assert_eq!(shown(sql), ["false", "false", "true", "false"]);
    }

    #[test]
    fn only_expressions_are_summed() {
        let error = wrong("SELECT sum_expr(cell_id) FROM cells");
        assert!(error.contains("sum_expr(expr): 'expr' must be the expression of a cell"), "{error}");
        let error = wrong("SELECT sum_expr(DISTINCT expr), sum_expr(expr) FROM cells");
        assert!(error.contains("distinct cells in a subquery"), "{error}");
        let unsorted =
            "named_struct('gene_id', arrow_cast([2, 1], 'List(UInt32)'), 'value', arrow_cast([1, 1], 'List(Float32)'))";
        let error = wrong(&format!("SELECT sum_expr({unsorted})"));
        assert!(error.contains("do not ascend"), "{error}");
    }
}
