//! `mean_expr(expr)`: the mean of the expressions of a group's cells, gene by gene, over the cells whose data set
//! measured the gene; of these, a cell that does not express it counts with 0.
//!
//! ```sql
//! SELECT cell_type, top_genes(mean_expr(log_normalise(expr)), 5) AS genes FROM cells GROUP BY cell_type;
//! ```

use std::sync::Arc;

use datafusion::logical_expr::AggregateUDF;

use crate::description::{Description, Kind};
use crate::engine::Engine;
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
    summary: "The mean of a group's expressions, gene by gene, over the cells whose data set measured the gene; of \
              these, a cell that does not express it counts with 0. A cell whose expression is NULL does not count.",
    example: "SELECT cell_type, top_genes(mean_expr(log_normalise(expr)), 5) AS genes FROM cells GROUP BY cell_type;",
};

/// The function.
pub fn function(engine: &Arc<dyn Engine>) -> AggregateUDF {
    AggregateUDF::from(OverGenes::new(&DESCRIPTION, Finish::Mean, engine))
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

    #[test]
    fn a_mean_is_over_the_cells_that_measured_the_gene() {
        // Cells 1 and 3 are of the data set that measured C, with 5 and 0; three cells measured A, with 1, 3 and 0.
        let sql = "SELECT expression(mean_expr(expr), ['C', 'A']) AS v FROM of_two";
        assert_eq!(shown(sql), ["[2.5, 1.3333334]"]);
        let sql = "SELECT expression(mean_expr(expr), ['C', 'A']) AS v FROM of_two WHERE cell_id = 0";
        assert_eq!(shown(sql), ["[NULL, 1.0]"]);
        // A sum is over all cells of the group; it is unknown where none of them measured the gene.
        let sql = "SELECT expression(sum_expr(expr), ['C', 'A']) AS v FROM of_two WHERE cell_id = 0";
        assert_eq!(shown(sql), ["[NULL, 1.0]"]);
        // The mean of means of groups that measured different genes.
        let sql = "SELECT expression(mean_expr(m), 'C') AS v FROM \
                   (SELECT mean_expr(expr) AS m FROM of_two WHERE cell_id <> 2 GROUP BY cell_id)";
        assert_eq!(shown(sql), ["2.5"]);
    }
}
