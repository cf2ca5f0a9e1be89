//! `expression(expr, gene)`: the value of a gene in a cell, by any of the gene's names; 0 where it was measured and is
//! not expressed, NULL where the cell's data set did not measure it. With an array of names, the values of all of them
//! in that order.
//!
//! ```sql
//! SELECT cell_id, expression(expr, 'INS') AS ins, expression(expr, ['INS', 'GCG']) AS hormones
//! FROM cells ORDER BY ins DESC LIMIT 5;
//! ```

use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, ListArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, FieldRef};
use cellql_schemas::expr::Profiles;
use datafusion::common::{Result, plan_err};

use crate::description::{Description, Kind};
use crate::engine::Engine;
use crate::measured::GeneValues;
use crate::options::Arguments;
use crate::over_cells::{Cells, OverCells};
use crate::parameters::{Accepts, EXPR, Parameter};

/// Name in SQL.
pub const NAME: &str = "expression";
/// What it is.
pub const DESCRIPTION: Description = Description {
    name: NAME,
    kind: Kind::Scalar,
    parameters: &[EXPR, GENE],
    returns: "Float32, or List(Float32) in the order of an array of genes; NULL for a NULL expression, and for a gene \
              that the cell's data set did not measure.",
    summary: "The value of a gene in a cell: 0 if it was measured and not expressed, NULL if it was not measured. Of \
              an array of genes, the value of each.",
    example: "SELECT cell_id, expression(expr, 'INS') AS ins, expression(expr, ['INS', 'GCG']) AS hormones\n\
              FROM cells ORDER BY ins DESC LIMIT 5;",
};
const GENE: Parameter = Parameter::required(
    "gene",
    "a gene by any of its names, or an array of genes: `['INS', 'GCG']`",
    Accepts::TextOrTexts,
);

#[derive(Debug)]
pub(crate) struct Expression;

/// What the second argument names.
enum Genes {
    One(u32),
    Several(Vec<u32>),
}

fn genes(engine: &dyn Engine, arguments: &Arguments) -> Result<Genes> {
    if let Some(genes) = arguments.genes(engine, GENE.name)? {
        return Ok(Genes::Several(genes));
    }
    match arguments.text(GENE.name)? {
        Some(name) => Ok(Genes::One(engine.gene(name).map_err(|e| e.about(name))?)),
        None => plan_err!("{NAME}: name a gene, for example {NAME}(expr, 'INS')"),
    }
}

fn item() -> FieldRef {
    Arc::new(Field::new_list_field(DataType::Float32, true))
}

/// The value of a gene in each cell.
fn column(engine: &dyn Engine, profiles: &Profiles, gene: u32) -> Result<ArrayRef> {
    let genes = [gene];
    let mut found = GeneValues::new(engine, profiles, &genes);
    let mut values: Vec<Option<f32>> = Vec::with_capacity(profiles.len());
    for row in 0..profiles.len() {
        let mut of_row = None;
        found.of_row(row, |value| of_row = value)?;
        values.push(of_row);
    }
    Ok(Arc::new(Float32Array::from(values)))
}

/// A list of values per cell, in the order of `genes`.
fn lists(engine: &dyn Engine, profiles: &Profiles, genes: &[u32]) -> Result<ArrayRef> {
    let mut found = GeneValues::new(engine, profiles, genes);
    let mut values: Vec<Option<f32>> = Vec::with_capacity(profiles.len() * genes.len());
    let (mut lengths, mut present) = (Vec::with_capacity(profiles.len()), Vec::with_capacity(profiles.len()));
    for row in 0..profiles.len() {
        let is_present = found.of_row(row, |value| values.push(value))?;
        lengths.push(if is_present { genes.len() } else { 0 });
        present.push(is_present);
    }
    let values: ArrayRef = Arc::new(Float32Array::from(values));
    let offsets = OffsetBuffer::from_lengths(lengths);
    Ok(Arc::new(ListArray::try_new(item(), offsets, values, Some(NullBuffer::from(present)))?))
}

impl OverCells for Expression {
    const DESCRIPTION: &'static Description = &DESCRIPTION;

    fn data_type(engine: &dyn Engine, arguments: &Arguments) -> Result<DataType> {
        if arguments.is_list_to_come(GENE.name) {
            return Ok(DataType::List(item()));
        }
        Ok(match genes(engine, arguments)? {
            Genes::One(_) => DataType::Float32,
            Genes::Several(_) => DataType::List(item()),
        })
    }

    fn check_arrays(engine: &dyn Engine, arguments: &Arguments) -> Result<()> {
        genes(engine, arguments).map(|_| ())
    }

    fn call(engine: &dyn Engine, arguments: &Arguments, cells: Cells) -> Result<ArrayRef> {
        match genes(engine, arguments)? {
            Genes::One(gene) => column(engine, cells.profiles, gene),
            Genes::Several(genes) => lists(engine, cells.profiles, &genes),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::{shown, wrong};

    #[test]
    fn an_array_of_genes_gives_values_in_its_order() {
        let sql = "SELECT expression(expr, ['B', 'A', 'C', 'B']) AS v FROM cells ORDER BY cell_id";
        assert_eq!(shown(sql), ["[2.0, 1.0, 0.0, 2.0]", "[0.0, 3.0, 5.0, 0.0]", "NULL", "[0.0, 0.0, 0.0, 0.0]"]);
        let sql = "SELECT expression(expr, array_concat(['B'], ['A']))[2] + expression(expr, 'A') AS v FROM cells \
                   WHERE expression(expr, ['A'])[1] > 2";
        assert_eq!(shown(sql), ["6.0"]);
    }

    #[test]
    fn a_gene_that_was_not_measured_has_no_value() {
        // Data set 7 measured A and B, 8 all three.
        let sql = "SELECT expression(expr, 'C') AS v FROM of_two ORDER BY cell_id";
        assert_eq!(shown(sql), ["NULL", "5.0", "NULL", "0.0"]);
        let sql = "SELECT expression(expr, ['C', 'A']) AS v FROM of_two ORDER BY cell_id";
        assert_eq!(shown(sql), ["[NULL, 1.0]", "[5.0, 3.0]", "NULL", "[0.0, 0.0]"]);
        assert_eq!(shown("SELECT avg(expression(expr, 'C')) AS v FROM of_two"), ["2.5"]);
        assert_eq!(
            shown("SELECT expression(log_normalise(expr), 'C') IS NULL FROM of_two WHERE cell_id = 0"),
            ["true"]
        );
    }

    #[test]
    fn wrong_arrays_are_errors_before_anything_runs() {
        for (gene, why) in [
            ("['A', 'X']", "unknown gene 'X'"),
            ("[kind]", "'gene' must be a constant array of gene names"),
            ("['A', NULL]", "holds a NULL"),
            ("[]", "empty array"),
            ("[1.5]", "'gene' must be a string or an array of strings"),
        ] {
            let error = wrong(&format!("EXPLAIN SELECT expression(expr, {gene}) FROM cells"));
            assert!(error.contains(why), "{gene}: {error}");
        }
        let sql = "SELECT kind FROM cells WHERE cell_id = (SELECT max(expression(expr, ['A', 'X'])[1]) FROM cells)";
        assert!(wrong(sql).contains("unknown gene 'X'"));
    }
}
