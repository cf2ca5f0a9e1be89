//! Recipes: the model and options that, together with the cell, determine an embedding. Only vectors of the same recipe
//! are comparable.

use std::fmt;
use std::str::FromStr;

pub use cellql_dtype::Dtype;
use serde::{Deserialize, Serialize};

use crate::suggest::did_you_mean;

/// An option of a recipe is not valid.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum RecipeError {
    /// A word that is not one of the choices.
    #[error("unknown {option} '{given}': it is one of {choices}.{hint}")]
    Choice {
        /// `pool`, `input`.
        option: &'static str,
        /// What was given.
        given: String,
        /// The valid words.
        choices: String,
        /// `Did you mean …`, or empty.
        hint: String,
    },
    /// Text that is not a depth.
    #[error(
        "unknown depth '{0}': write 't4' (10^4 counts), 'f2' (twice the cell's own counts) or 'a0.5' (its log10 \
             plus 0.5)"
    )]
    Depth(String),
}

/// How token embeddings become one vector per cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// S token, T token, maximum and mean over gene tokens, end to end: 4 × the model's width.
    #[default]
    All,
    /// Maximum over all tokens: the model's width.
    Max,
}

/// Kind of the values of `expr`, which determines how they are converted to model input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Input {
    /// Counts of a cell: whole numbers, normalised here.
    #[default]
    #[serde(rename = "counts")]
    Counts,
    /// A cell, already log1p of counts per 10,000.
    #[serde(rename = "log")]
    Log,
    /// The same, with the cell's total count beside it.
    #[serde(rename = "log+total")]
    LogTotal,
    /// A cell of normalised values that are no logarithms (TPM, FPKM): scaled to 10,000 and log1p'd here.
    #[serde(rename = "linear")]
    Linear,
    /// Counts of a bulk sample, scaled to the median total of its data set.
    #[serde(rename = "bulk")]
    Bulk,
    /// A bulk sample, already log-normalised.
    #[serde(rename = "bulk-log")]
    BulkLog,
}

/// The target depth T handed to the model, as log10 counts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Depth {
    /// `t4`: T itself.
    Target(f64),
    /// `f2`: T = log10(2 × the cell's total).
    Fold(f64),
    /// `a0.5`: T = S + 0.5.
    Add(f64),
}

impl Default for Depth {
    fn default() -> Self {
        Depth::Target(4.0)
    }
}

impl Depth {
    /// T for a cell: `total` is the sum of its values over the vocabulary, `source` is S.
    pub fn target(self, total: f64, source: f64) -> f64 {
        match self {
            Depth::Target(t) => t,
            Depth::Fold(f) => (total * f).log10(),
            Depth::Add(a) => source + a,
        }
    }
}

impl fmt::Display for Depth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Depth::Target(v) => write!(f, "t{v}"),
            Depth::Fold(v) => write!(f, "f{v}"),
            Depth::Add(v) => write!(f, "a{v}"),
        }
    }
}

impl FromStr for Depth {
    type Err = RecipeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || RecipeError::Depth(text.to_owned());
        let mut chars = text.chars();
        let mode = chars.next().ok_or_else(wrong)?;
        let number: f64 = chars.as_str().parse().map_err(|_| wrong())?;
        match mode {
            't' if number.is_finite() && number > 0.0 => Ok(Depth::Target(number)),
            'f' if number.is_finite() && number > 0.0 => Ok(Depth::Fold(number)),
            'a' if number.is_finite() => Ok(Depth::Add(number)),
            _ => Err(wrong()),
        }
    }
}

impl From<Depth> for String {
    fn from(depth: Depth) -> Self {
        depth.to_string()
    }
}

impl TryFrom<String> for Depth {
    type Error = RecipeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

fn choose<T: Copy>(option: &'static str, given: &str, choices: &[(&'static str, T)]) -> Result<T, RecipeError> {
    choices.iter().find(|(word, _)| *word == given).map(|(_, value)| *value).ok_or_else(|| {
        let words = choices.iter().map(|(word, _)| *word);
        RecipeError::Choice {
            option,
            given: given.to_owned(),
            choices: words.clone().map(|w| format!("'{w}'")).collect::<Vec<_>>().join(", "),
            hint: did_you_mean(given, words),
        }
    })
}

impl Pool {
    /// Every pooling.
    pub const ALL: [Pool; 2] = [Pool::All, Pool::Max];

    /// The word that names it.
    pub fn name(self) -> &'static str {
        match self {
            Pool::All => "all",
            Pool::Max => "max",
        }
    }
}

impl FromStr for Pool {
    type Err = RecipeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        choose("pool", text, &Pool::ALL.map(|p| (p.name(), p)))
    }
}

impl Input {
    /// Every input, in the order they are offered.
    pub const ALL: [Input; 6] =
        [Input::Counts, Input::Log, Input::LogTotal, Input::Linear, Input::Bulk, Input::BulkLog];

    /// The word that names it.
    pub fn name(self) -> &'static str {
        match self {
            Input::Counts => "counts",
            Input::Log => "log",
            Input::LogTotal => "log+total",
            Input::Linear => "linear",
            Input::Bulk => "bulk",
            Input::BulkLog => "bulk-log",
        }
    }

    /// Whether values must be whole numbers.
    pub fn is_counts(self) -> bool {
        matches!(self, Input::Counts | Input::Bulk)
    }

    /// Whether a number beside `expr` is needed: the cell's total count (`log+total`) or the median total of its data
    /// set (`bulk`).
    pub fn needs_total(self) -> bool {
        matches!(self, Input::LogTotal | Input::Bulk)
    }
}

/// Reads the option `precision`: the dtype of a model's matrix products.
///
/// # Errors
/// [`RecipeError::Choice`] for a word that names no dtype.
pub fn dtype(text: &str) -> Result<Dtype, RecipeError> {
    choose("precision", text, &Dtype::ALL.map(|dtype| (dtype.name(), dtype)))
}

impl FromStr for Input {
    type Err = RecipeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        choose("input", text, &Input::ALL.map(|i| (i.name(), i)))
    }
}

/// Model and options of an embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Name of the model in the store.
    pub model: String,
    /// Pooling.
    #[serde(default)]
    pub pool: Pool,
    /// Target depth.
    #[serde(default)]
    pub depth: Depth,
    /// Kind of the values of `expr`.
    #[serde(default)]
    pub input: Input,
    /// Dtype of matrix products.
    #[serde(default)]
    pub precision: Dtype,
}

impl Recipe {
    /// The default recipe of a model: pool `all`, depth `t4`, counts.
    pub fn of_model(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            pool: Pool::default(),
            depth: Depth::default(),
            input: Input::default(),
            precision: Dtype::default(),
        }
    }

    /// Name of its embedding table: the name of the model, followed by every option that is not the default.
    pub fn name(&self) -> String {
        let mut name = self.model.clone();
        if self.pool != Pool::default() {
            name.push_str(&format!("_{}", self.pool.name()));
        }
        if self.depth != Depth::default() {
            name.push_str(&format!("_{}", self.depth));
        }
        if self.input != Input::default() {
            name.push_str(&format!("_{}", self.input.name()));
        }
        if self.precision != Dtype::default() {
            name.push_str(&format!("_{}", self.precision.name()));
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_are_read_and_written_alike() {
        for text in ["t4", "f2.5", "a0.5", "a-0.25"] {
            assert_eq!(text.parse::<Depth>().unwrap().to_string(), text);
        }
        for text in ["", "4", "t", "t0", "f-1", "x3", "tNaN", "finf", "é4"] {
            assert_eq!(text.parse::<Depth>(), Err(RecipeError::Depth(text.to_owned())));
        }
    }

    #[test]
    fn target_depth_follows_the_mode() {
        assert_eq!(Depth::Target(4.0).target(500.0, 2.7), 4.0);
        assert!((Depth::Fold(2.0).target(500.0, 2.7) - 3.0).abs() < 1e-12);
        assert_eq!(Depth::Add(0.5).target(500.0, 2.5), 3.0);
    }

    #[test]
    fn a_wrong_word_is_answered_with_the_right_ones() {
        let wrong = "maxx".parse::<Pool>().unwrap_err().to_string();
        assert!(wrong.contains("'all', 'max'") && wrong.contains("Did you mean 'max'"), "{wrong}");
    }

    #[test]
    fn recipes_that_differ_have_names_that_differ() {
        let base = Recipe::of_model("m");
        let other = Recipe { pool: Pool::Max, depth: Depth::Fold(2.0), ..base.clone() };
        assert_eq!((base.name().as_str(), other.name().as_str()), ("m", "m_max_f2"));
    }
}
