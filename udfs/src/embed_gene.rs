//! `embed_gene(expr, gene, model => , depth => , input => , precision => , total => )`: a gene in the context of a
//! cell.
//!
//! ```sql
//! SELECT cell_id, embed_gene(expr, 'INS') AS ins FROM cells LIMIT 5;
//! ```
//!
//! Gives the decoder's last hidden vector at that gene, whether the cell expresses it or not, as Float32 of fixed size;
//! NULL where the cell has no embedding.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use cellql_schemas::embeddings::vector_type;
use datafusion::common::{Result, plan_err};

use crate::description::{Description, Kind};
use crate::embed::vector_column;
use crate::engine::Engine;
use crate::options::Arguments;
use crate::over_cells::{Cells, OverCells};
use crate::parameters::{Accepts, DEPTH, EXPR, INPUT, MODEL, PRECISION, Parameter, TOTAL};

/// Name in SQL.
pub const NAME: &str = "embed_gene";
const GENE: Parameter = Parameter::required("gene", "the gene, by any of its names", Accepts::Text);
/// What it is.
pub const DESCRIPTION: Description = Description {
    name: NAME,
    kind: Kind::Scalar,
    parameters: &[EXPR, GENE, MODEL, DEPTH, INPUT, PRECISION, TOTAL],
    returns: "a vector of Float32 of fixed size; NULL where the cell has no embedding.",
    summary: "The embedding of a gene in the context of a cell, whether the cell expresses it or not: \
              the decoder's last hidden vector there.",
    example: "SELECT cell_id, embed_gene(expr, 'INS') AS ins FROM cells LIMIT 5;",
};

/// What only transformers have.
const WHAT: &str = "gene embeddings";

#[derive(Debug)]
pub(crate) struct EmbedGene;

fn gene(engine: &dyn Engine, arguments: &Arguments, model: &str) -> Result<u32> {
    let Some(name) = arguments.text("gene")? else {
        return plan_err!("{NAME}: name the gene: {NAME}(expr, 'CD8A')");
    };
    Ok(engine.gene_of_model(model, name).map_err(|e| e.about(name))?)
}

impl OverCells for EmbedGene {
    const DESCRIPTION: &'static Description = &DESCRIPTION;

    fn data_type(engine: &dyn Engine, arguments: &Arguments) -> Result<DataType> {
        let recipe = arguments.transformer_recipe(engine, WHAT)?;
        gene(engine, arguments, &recipe.model)?;
        Ok(vector_type(engine.context_dim(&recipe.model)?))
    }

    fn call(engine: &dyn Engine, arguments: &Arguments, cells: Cells) -> Result<ArrayRef> {
        let recipe = arguments.transformer_recipe(engine, WHAT)?;
        let position = gene(engine, arguments, &recipe.model)?;
        let embedded = engine.embed_gene(&recipe, position, cells)?;
        Ok(Arc::new(vector_column(embedded, engine.context_dim(&recipe.model)?)?))
    }
}
