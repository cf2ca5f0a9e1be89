//! From a cell's expression to the tokens that the encoder reads.

use std::fmt;

use cellql_schemas::expr::{Profile, TARGET_SUM, log_normalise};
use cellql_schemas::recipe::{Input, Recipe};
use cellql_schemas::vocabulary::Placement;

use crate::position_order::sort_by_position;

/// Why a cell has no embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotEmbeddable {
    /// The expression is NULL.
    Missing,
    /// No gene of the vocabulary is expressed.
    NoGenes,
    /// The depth tokens T or S are not above zero: a total of one count or less, or a depth option that makes T so.
    NoDepth,
    /// The input needs a total beside the values, and it is missing or not above zero.
    NoTotal,
}

impl fmt::Display for NotEmbeddable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotEmbeddable::Missing => "no expression",
            NotEmbeddable::NoGenes => "no gene of the vocabulary is expressed",
            NotEmbeddable::NoDepth => "the depth T or S is not above zero",
            NotEmbeddable::NoTotal => "the total beside the values is missing or not above zero",
        })
    }
}

/// A value that the recipe's input does not allow: a fraction where counts are expected.
#[derive(Debug, thiserror::Error)]
#[error(
    "the value {0} is no count; for log-normalised values say input => 'log' (for bulk samples 'bulk-log'), for \
     normalised values that are no logarithms input => 'linear', or normalise counts with log_normalise(expr)"
)]
pub struct NotCounts(f32);

/// One cell or bulk sample as it is stored.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// Its expression.
    pub profile: Profile<'a>,
    /// The total that [`Input::needs_total`] requires.
    pub total: Option<f64>,
}

/// One cell as the encoder reads it: ascending positions with values above zero, T and S last.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokens {
    /// Positions in the vocabulary; then N (T) and N + 1 (S).
    pub positions: Vec<u32>,
    /// log1p-normalised values; then T and S in log10 counts.
    pub values: Vec<f32>,
}

impl Tokens {
    /// Tokens, T and S included.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Never true: T and S are always there.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Expressed genes of the vocabulary.
    pub fn n_genes(&self) -> usize {
        self.positions.len().saturating_sub(2)
    }
}

/// Aligns a cell to the vocabulary, normalises it, and adds T and S. Totals are over the vocabulary's genes.
///
/// # Errors
/// Outer: [`NotCounts`]. Inner: why this cell cannot be embedded, which is no fault of the query.
pub(crate) fn align(
    sample: Sample<'_>,
    placement: &Placement,
    recipe: &Recipe,
    n_genes: usize,
) -> Result<Result<Tokens, NotEmbeddable>, NotCounts> {
    let mut placed = placed(sample.profile, placement, recipe.input, n_genes)?;
    if placed.is_empty() {
        return Ok(Err(NotEmbeddable::NoGenes));
    }
    let beside = sample.total.filter(|total| total.is_finite() && *total > 0.0);
    if recipe.input.needs_total() && beside.is_none() {
        return Ok(Err(NotEmbeddable::NoTotal));
    }
    let (source, target) = normalise(&mut placed, recipe, beside.unwrap_or(0.0));
    // The encoder drops every position that is not above zero, T and S too, and pooling would take gene tokens for
    // them.
    let above_zero = |depth: f64| (depth as f32).is_finite() && depth as f32 > 0.0;
    if !above_zero(source) || !above_zero(target) {
        return Ok(Err(NotEmbeddable::NoDepth));
    }
    placed.push((n_genes as u32, target as f32));
    placed.push((n_genes as u32 + 1, source as f32));
    let (positions, values) = placed.into_iter().unzip();
    Ok(Ok(Tokens { positions, values }))
}

/// The values above zero of a cell at the positions of a vocabulary of `n_genes`, ascending.
///
/// # Errors
/// [`NotCounts`] for a fraction, also at another gene, where the input is counts.
pub(crate) fn placed(
    cell: Profile<'_>,
    placement: &Placement,
    input: Input,
    n_genes: usize,
) -> Result<Vec<(u32, f32)>, NotCounts> {
    // Two more, for T and S.
    let mut placed: Vec<(u32, f32)> = Vec::with_capacity(cell.gene_ids.len() + 2);
    for (&gene, &value) in cell.gene_ids.iter().zip(cell.values) {
        if input.is_counts() && value.fract() != 0.0 {
            return Err(NotCounts(value));
        }
        if let Some(position) = placement.position(gene)
            && value > 0.0
        {
            placed.push((position, value));
        }
    }
    sort_by_position(&mut placed, n_genes);
    Ok(placed)
}

/// Normalises values in place; returns S and T.
fn normalise(placed: &mut [(u32, f32)], recipe: &Recipe, beside: f64) -> (f64, f64) {
    let total: f64 = placed.iter().map(|(_, v)| f64::from(*v)).sum();
    let mut scale = |to: f64| {
        placed.iter_mut().for_each(|(_, v)| *v = log_normalise(*v, total, to) as f32);
        placed.iter().map(|(_, v)| f64::from(*v)).sum::<f64>()
    };
    let single = |total: f64| (total.log10(), recipe.depth.target(total, total.log10()));
    match recipe.input {
        Input::Counts => {
            scale(TARGET_SUM);
            single(total)
        }
        Input::Log => single(total),
        Input::Linear => {
            // What `log` reads: the depth is that of the logarithms.
            let total = scale(TARGET_SUM);
            single(total)
        }
        Input::LogTotal => single(beside),
        Input::Bulk => {
            let depth = scale(beside).log10();
            (depth, depth)
        }
        Input::BulkLog => (total, total),
    }
}
