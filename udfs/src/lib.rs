//! SQL functions over single cells, for DataFusion.
//!
//! One file per function. What a function needs of a model or a store it asks through the traits in [`engine`], so
//! this crate knows neither candle nor lance and can be registered in any DataFusion session.

pub mod embed;
pub mod embed_gene;
pub mod engine;
pub mod enhance;
pub mod expression;
pub mod genes_seen;
pub mod log_normalise;
pub mod named_arguments;
mod options;
pub mod over_cells;
pub mod vector_search;

use std::sync::Arc;

use datafusion::logical_expr::ScalarUDF;
use datafusion::prelude::{Expr, SessionContext};

use engine::Engine;
use over_cells::Function;

/// Names and parameters of every function of this crate, in the order positional arguments are read.
pub const PARAMETERS: &[(&str, &[&str])] = &[
    (embed::NAME, embed::PARAMETERS),
    (embed_gene::NAME, embed_gene::PARAMETERS),
    (enhance::NAME, enhance::PARAMETERS),
    (genes_seen::NAME, genes_seen::PARAMETERS),
    (expression::NAME, expression::PARAMETERS),
    (log_normalise::NAME, log_normalise::PARAMETERS),
    (vector_search::NAME, vector_search::PARAMETERS),
];

/// Arguments of a function of this crate that cannot be left out; they come first.
pub fn required(function: &str) -> usize {
    match function {
        embed_gene::NAME | expression::NAME | vector_search::NAME => 2,
        _ => 1,
    }
}

/// What a function of this crate gives, in a phrase; empty for another function.
pub fn about(function: &str) -> &'static str {
    match function {
        embed::NAME => "the cell's embedding; NULL where no vocabulary gene is expressed",
        embed_gene::NAME => "a gene's embedding in the context of the cell",
        enhance::NAME => "an expr of predicted log-normalised values of every vocabulary gene",
        genes_seen::NAME => "how many genes of the model's vocabulary the cell expresses",
        expression::NAME => "a gene's value, by any of its names",
        log_normalise::NAME => "counts per 10,000, ln(1 + x)",
        vector_search::NAME => "in FROM: the cells nearest to a cell_id or a vector, with their obs columns",
        _ => "",
    }
}

/// Every scalar function, bound to an engine.
pub fn scalar_functions(engine: &Arc<dyn Engine>) -> Vec<ScalarUDF> {
    vec![
        ScalarUDF::from(Function::<embed::Embed>::new(engine)),
        ScalarUDF::from(Function::<embed_gene::EmbedGene>::new(engine)),
        ScalarUDF::from(Function::<enhance::Enhance>::new(engine)),
        ScalarUDF::from(Function::<genes_seen::GenesSeen>::new(engine)),
        ScalarUDF::from(expression::Expression::new(Arc::clone(engine))),
        ScalarUDF::from(log_normalise::LogNormalise::new()),
    ]
}

/// Registers all functions in a session.
pub fn register_all(context: &SessionContext, engine: &Arc<dyn Engine>) {
    for function in scalar_functions(engine) {
        context.register_udf(function);
    }
    context.register_udtf(vector_search::NAME, Arc::new(vector_search::VectorSearch::new(Arc::clone(engine))));
}

/// Functions that run a model.
pub const MODEL_FUNCTIONS: &[&str] = &[embed::NAME, embed_gene::NAME, enhance::NAME];

/// True where an expression runs a model.
pub fn calls_model(expr: &Expr) -> bool {
    calls_any(expr, MODEL_FUNCTIONS)
}

/// True where an expression calls a function of this crate. A storage engine must not be handed such a filter: it
/// would run the model inside its scan, on its own terms.
pub fn calls_our_functions(expr: &Expr) -> bool {
    let names: Vec<&str> = PARAMETERS.iter().map(|(name, _)| *name).collect();
    calls_any(expr, &names)
}

fn calls_any(expr: &Expr, names: &[&str]) -> bool {
    use datafusion::common::tree_node::TreeNode;
    let found = expr.exists(|e| Ok(matches!(e, Expr::ScalarFunction(f) if names.contains(&f.name()))));
    // The closure never fails.
    found.unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_names_collide_and_none_hides_a_function_of_datafusion() {
        let ours: HashSet<&str> = PARAMETERS.iter().map(|(name, _)| *name).collect();
        assert_eq!(ours.len(), PARAMETERS.len());
        let state = SessionContext::new().state();
        for name in ours {
            assert!(!about(name).is_empty(), "{name}");
            assert!(!state.scalar_functions().contains_key(name), "{name}");
            assert!(!state.table_functions().contains_key(name), "{name}");
        }
    }
}
