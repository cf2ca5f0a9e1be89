//! `mean_expr(expr)`: the mean of the expressions of a group's cells, gene by gene; a cell that does not express a gene
//! counts with 0.
//!
//! ```sql
//! SELECT cell_type, top_genes(mean_expr(log_normalise(expr)), 5) AS genes FROM cells GROUP BY cell_type;
//! ```

use datafusion::logical_expr::AggregateUDF;

use crate::description::{Description, Kind};
use crate::gene_sums::{Finish, OverGenes};
use crate::parameters::ONLY_EXPR;

/// Name in SQL.
pub const NAME: &str = "mean_expr";
/// What it is.
pub const DESCRIPTION: Description = Description {
    name: NAME,
    kind: Kind::Aggregate,
    parameters: ONLY_EXPR,
    returns: "an `expr`; NULL where no cell of the group has an expression.",
    summary: "The mean of a group's expressions, gene by gene; a cell that does not express a gene counts with 0, \
              a cell whose expression is NULL does not count.",
    example: "SELECT cell_type, top_genes(mean_expr(log_normalise(expr)), 5) AS genes FROM cells GROUP BY cell_type;",
};

/// The function.
pub fn function() -> AggregateUDF {
    AggregateUDF::from(OverGenes::new(&DESCRIPTION, Finish::Mean))
}

#[cfg(test)]
mod tests {
    use crate::fixture::shown;

    #[test]
    fn zeros_count_and_nulls_do_not() {
        let sql = "SELECT expression(mean_expr(expr), ['A', 'B', 'C']) AS v FROM cells GROUP BY kind ORDER BY kind";
        assert_eq!(shown(sql), ["[2.0, 1.0, 2.5]", "[0.0, 0.0, 0.0]"]);
        // A cell of no genes is a cell: three of them now.
        let sql = "SELECT expression(mean_expr(expr), 'B') * 3 AS v FROM cells";
        assert_eq!(shown(sql), ["2.0"]);
        assert_eq!(shown("SELECT mean_expr(expr) AS v FROM cells WHERE cell_id = 2"), ["NULL"]);
    }
}
