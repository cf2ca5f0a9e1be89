//! SQL functions over single cells, for DataFusion.
//!
//! One file per function. A function asks for models and stores through the trait in [`engine`], so this crate knows
//! neither candle nor lance, and its functions can be registered in any DataFusion session. The [`description`] of a
//! function is the only place with its name, its parameters and their values.
//!
//! ```
//! let pooled = cellql_udfs::FUNCTIONS.iter().find(|function| function.name == "embed").unwrap();
//! assert!(pooled.usage().starts_with("embed(expr, model =>, pool =>"));
//! assert_eq!(pooled.values("pool"), ["all", "max"]);
//! ```

pub mod centroid;
pub mod constants;
pub mod correlation_distance;
pub mod description;
mod distances;
pub mod embed;
pub mod embed_gene;
pub mod engine;
pub mod enhance;
pub mod expression;
#[cfg(test)]
mod fixture;
pub mod gene_score;
mod gene_sums;
pub mod genes_seen;
pub mod l2_distance;
pub mod list_functions;
pub mod log_normalise;
pub mod mean_expr;
mod measured;
pub mod named_arguments;
mod options;
mod origins;
pub mod over_cells;
pub mod parameters;
pub mod sum_expr;
pub mod top_genes;
pub mod vector_search;
mod vectors;

use std::sync::Arc;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use datafusion::prelude::{Expr, SessionContext};

use description::Description;
use distances::DistanceFunction;
use engine::Engine;
use over_cells::Function;

/// Every function of this crate.
pub const FUNCTIONS: &[Description] = &[
    embed::DESCRIPTION,
    embed_gene::DESCRIPTION,
    enhance::DESCRIPTION,
    genes_seen::DESCRIPTION,
    expression::DESCRIPTION,
    gene_score::DESCRIPTION,
    top_genes::DESCRIPTION,
    log_normalise::DESCRIPTION,
    l2_distance::DESCRIPTION,
    correlation_distance::DESCRIPTION,
    sum_expr::DESCRIPTION,
    mean_expr::DESCRIPTION,
    centroid::DESCRIPTION,
    vector_search::DESCRIPTION,
    list_functions::DESCRIPTION,
];

/// Every scalar function, bound to an engine.
pub fn scalar_functions(engine: &Arc<dyn Engine>) -> Vec<ScalarUDF> {
    vec![
        ScalarUDF::from(Function::<embed::Embed>::new(engine)),
        ScalarUDF::from(Function::<embed_gene::EmbedGene>::new(engine)),
        ScalarUDF::from(Function::<enhance::Enhance>::new(engine)),
        ScalarUDF::from(Function::<genes_seen::GenesSeen>::new(engine)),
        ScalarUDF::from(Function::<expression::Expression>::new(engine)),
        ScalarUDF::from(Function::<gene_score::GeneScore>::new(engine)),
        ScalarUDF::from(Function::<top_genes::TopGenes>::new(engine)),
        ScalarUDF::from(log_normalise::LogNormalise::new()),
        ScalarUDF::from(DistanceFunction::<l2_distance::L2Distance>::new()),
        ScalarUDF::from(DistanceFunction::<correlation_distance::CorrelationDistance>::new()),
    ]
}

/// Every aggregate function, bound to an engine.
pub fn aggregate_functions(engine: &Arc<dyn Engine>) -> Vec<AggregateUDF> {
    vec![sum_expr::function(engine), mean_expr::function(engine), centroid::function()]
}

/// Registers all functions in a session.
pub fn register_all(context: &SessionContext, engine: &Arc<dyn Engine>) {
    for function in scalar_functions(engine) {
        context.register_udf(function);
    }
    for function in aggregate_functions(engine) {
        context.register_udaf(function);
    }
    context.register_udtf(vector_search::NAME, Arc::new(vector_search::VectorSearch::new(Arc::clone(engine))));
    context.register_udtf(list_functions::NAME, Arc::new(list_functions::ListFunctions));
}

/// Functions that run a model.
pub const MODEL_FUNCTIONS: &[&str] = &[embed::NAME, embed_gene::NAME, enhance::NAME];

/// Functions whose results depend on which genes the data sets measured.
pub const MEASURING_FUNCTIONS: &[&str] = &[expression::NAME, gene_score::NAME, mean_expr::NAME];

/// True where an expression asks which genes a data set measured.
pub fn asks_for_measured(expr: &Expr) -> bool {
    calls_any(expr, MEASURING_FUNCTIONS)
}

/// True where an expression runs a model.
pub fn calls_model(expr: &Expr) -> bool {
    calls_any(expr, MODEL_FUNCTIONS)
}

/// True where an expression calls a function of this crate. A storage engine must not be handed such a filter: it
/// would run the model inside its scan, on its own terms.
pub fn calls_our_functions(expr: &Expr) -> bool {
    let names: Vec<&str> = FUNCTIONS.iter().map(|function| function.name).collect();
    calls_any(expr, &names)
}

fn calls_any(expr: &Expr, names: &[&str]) -> bool {
    use datafusion::common::tree_node::TreeNode;
    let found = expr.exists(|e| {
        Ok(match e {
            Expr::ScalarFunction(call) => names.contains(&call.name()),
            Expr::AggregateFunction(call) => names.contains(&call.func.name()),
            Expr::WindowFunction(call) => names.contains(&call.fun.name()),
            _ => false,
        })
    });
    // The closure never fails.
    found.unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use description::Kind;

    use super::*;

    /// Names of a session's functions, by kind.
    fn names(context: &SessionContext, kind: Kind) -> BTreeSet<String> {
        let state = context.state();
        match kind {
            Kind::Scalar => state.scalar_functions().keys().chain(state.window_functions().keys()).cloned().collect(),
            Kind::Aggregate => state.aggregate_functions().keys().cloned().collect(),
            Kind::Table => state.table_functions().keys().cloned().collect(),
        }
    }

    #[test]
    fn what_is_registered_is_described_and_hides_nothing_of_datafusion() {
        let (plain, ours) = (SessionContext::new(), fixture::context());
        let kinds = [Kind::Scalar, Kind::Aggregate, Kind::Table];
        for kind in kinds {
            let added: BTreeSet<String> = names(&ours, kind).difference(&names(&plain, kind)).cloned().collect();
            let described = FUNCTIONS.iter().filter(|f| f.kind == kind).map(|f| f.name.to_owned()).collect();
            assert_eq!(added, described, "{kind:?}");
        }
        let known: BTreeSet<String> = kinds.iter().flat_map(|kind| names(&plain, *kind)).collect();
        let names: BTreeSet<&str> = FUNCTIONS.iter().map(|f| f.name).collect();
        assert_eq!(names.len(), FUNCTIONS.len());
        assert!(names.iter().all(|name| !known.contains(*name)), "{names:?}");
    }
}
