//! `gene_score(expr, genes)`: how strongly a cell expresses a set of genes: the mean of ln(1 + counts per 10,000) over
//! them.
//!
//! ```sql
//! SELECT cell_type, avg(gene_score(expr, ['INS', 'GCG', 'SST'])) AS endocrine FROM cells GROUP BY cell_type;
//! ```
//!
//! No background genes are taken off, as scanpy's `score_genes` does.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array};
use arrow::datatypes::DataType;
use cellql_schemas::expr::{Profiles, TARGET_SUM, log_normalise};
use datafusion::common::{Result, plan_err};

use crate::description::{Description, Kind};
use crate::engine::Engine;
use crate::measured::GeneValues;
use crate::options::Arguments;
use crate::over_cells::{Cells, OverCells};
use crate::parameters::{EXPR, GENES};

/// Name in SQL.
pub const NAME: &str = "gene_score";
/// What it is.
pub const DESCRIPTION: Description = Description {
    name: NAME,
    kind: Kind::Scalar,
    parameters: &[EXPR, GENES],
    returns: "Float32; NULL for a NULL expression, and where the cell's data set measured none of the genes.",
    summary: "The mean over an array of genes of ln(1 + counts per 10,000), as `log_normalise` gives it. Genes that \
              the cell's data set did not measure are left out, genes that were measured and are not expressed count \
              as 0, a gene named twice counts twice, and no background is taken off.",
    example: "SELECT cell_type, avg(gene_score(expr, ['INS', 'GCG', 'SST'])) AS endocrine FROM cells GROUP BY \
         cell_type;",
};

#[derive(Debug)]
pub(crate) struct GeneScore;

fn genes(engine: &dyn Engine, arguments: &Arguments) -> Result<Vec<u32>> {
    match arguments.genes(engine, GENES.name)? {
        Some(genes) => Ok(genes),
        None => plan_err!("{NAME}: name the genes, for example {NAME}(expr, ['INS', 'GCG'])"),
    }
}

/// The score of each cell.
fn scores(engine: &dyn Engine, profiles: &Profiles, genes: &[u32]) -> Result<Float32Array> {
    let mut values = GeneValues::new(engine, profiles, genes);
    let mut scores: Vec<Option<f32>> = Vec::with_capacity(profiles.len());
    for row in 0..profiles.len() {
        let total = profiles.get(row).map_or(0.0, |cell| cell.total());
        let (mut sum, mut measured) = (0.0, 0u32);
        values.of_row(row, |value| {
            let Some(value) = value else { return };
            measured += 1;
            sum += if value == 0.0 { 0.0 } else { log_normalise(value, total, TARGET_SUM) };
        })?;
        scores.push((measured > 0).then(|| (sum / f64::from(measured)) as f32));
    }
    Ok(Float32Array::from(scores))
}

impl OverCells for GeneScore {
    const DESCRIPTION: &'static Description = &DESCRIPTION;

    fn data_type(engine: &dyn Engine, arguments: &Arguments) -> Result<DataType> {
        if !arguments.is_list_to_come(GENES.name) {
            genes(engine, arguments)?;
        }
        Ok(DataType::Float32)
    }

    fn check_arrays(engine: &dyn Engine, arguments: &Arguments) -> Result<()> {
        genes(engine, arguments).map(|_| ())
    }

    fn call(engine: &dyn Engine, arguments: &Arguments, cells: Cells) -> Result<ArrayRef> {
        let genes = genes(engine, arguments)?;
        Ok(Arc::new(scores(engine, cells.profiles, &genes)?))
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::{shown, wrong};

    /// ln(1 + 10000/3), ln(1 + 20000/3) and ln(1 + 30000/8) are 8.11203, 8.80503 and 8.22978.
    #[test]
    fn a_score_is_the_mean_of_normalised_values() {
        let sql = "SELECT round(gene_score(expr, ['A', 'B']), 3) AS v FROM cells ORDER BY cell_id";
        assert_eq!(shown(sql), ["8.459", "4.115", "NULL", "0.0"]);
    }

    #[test]
    fn genes_that_were_not_measured_do_not_count() {
        // C was not measured in the cell 0: the score is that of A alone, ln(1 + 10000/3) = 8.11203.
        let sql = "SELECT round(gene_score(expr, ['A', 'C']), 3) AS v FROM of_two WHERE cell_id = 0";
        assert_eq!(shown(sql), ["8.112"]);
        assert_eq!(shown("SELECT gene_score(expr, ['C']) AS v FROM of_two WHERE cell_id = 0"), ["NULL"]);
    }

    #[test]
    fn wrong_genes_are_errors_before_anything_runs() {
        let error = wrong("EXPLAIN SELECT gene_score(expr, ['A', 'X']) FROM cells");
        assert!(error.contains("unknown gene 'X'"), "{error}");
        let error = wrong("EXPLAIN SELECT gene_score(expr, 'A') FROM cells");
        assert!(error.contains("'genes' must be an array of strings"), "{error}");
    }
}
