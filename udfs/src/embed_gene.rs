//! `embed_gene(expr, gene, model => , depth => , input => , precision => , total => )`: a gene in the context of a cell.
//!
//! ```sql
//! SELECT cell_id, embed_gene(expr, 'CD8A', model => 'gene') FROM cells;
//! ```
//!
//! Gives the decoder's last hidden vector at that gene, whether the cell expresses it or not, as Float32 of fixed size; NULL
//! where the cell has no embedding.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use cellql_schemas::embeddings::vector_type;
use datafusion::common::{Result, plan_err};

use crate::embed::vector_column;
use crate::engine::Engine;
use crate::options::Arguments;
use crate::over_cells::{Cells, OverCells};

/// Name in SQL.
pub const NAME: &str = "embed_gene";
/// Parameters in order.
pub const PARAMETERS: &[&str] = &["expr", "gene", "model", "depth", "input", "precision", "total"];

#[derive(Debug)]
pub(crate) struct EmbedGene;

fn gene(engine: &dyn Engine, arguments: &Arguments, model: &str) -> Result<u32> {
    let Some(name) = arguments.text("gene")? else {
        return plan_err!("{NAME}: name the gene: {NAME}(expr, 'CD8A')");
    };
    Ok(engine.gene_of_model(model, name)?)
}

impl OverCells for EmbedGene {
    const NAME: &'static str = NAME;
    const PARAMETERS: &'static [&'static str] = PARAMETERS;
    const REQUIRED: usize = 2;

    fn data_type(engine: &dyn Engine, arguments: &Arguments) -> Result<DataType> {
        let recipe = arguments.recipe(engine)?;
        gene(engine, arguments, &recipe.model)?;
        Ok(vector_type(engine.context_dim(&recipe.model)?))
    }

    fn call(engine: &dyn Engine, arguments: &Arguments, cells: Cells) -> Result<ArrayRef> {
        let recipe = arguments.recipe(engine)?;
        let position = gene(engine, arguments, &recipe.model)?;
        let embedded = engine.embed_gene(&recipe, position, cells)?;
        Ok(Arc::new(vector_column(embedded, engine.context_dim(&recipe.model)?)?))
    }
}
