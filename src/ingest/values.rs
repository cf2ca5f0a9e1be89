//! How the values of a file are interpreted: as counts, as normalised counts to be recovered, or as they are.
//!
//! The numeric part is in [`cellql_formats::counts`].

use cellql_formats::counts::{self, Normalisation, Rounding, TOLERANCE};
use cellql_schemas::cells::ValueKind;

/// How the values of a file are interpreted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Interpretation {
    /// Whole numbers, stored as they are.
    Counts,
    /// Normalised counts; the counts are recovered and stored.
    Recovered(Normalisation, Rounding),
    /// Values that are not counts, stored as they are.
    AsGiven,
}

impl Interpretation {
    /// The interpretation that the first cells of a file suggest if they are not counts.
    pub(super) fn detect<'a>(cells: impl Iterator<Item = &'a [f32]> + Clone) -> Self {
        counts::detect(cells)
            .map_or(Self::AsGiven, |(normalisation, rounding)| Self::Recovered(normalisation, rounding))
    }

    /// The value of the column `value_kind`.
    pub(super) fn kind(self) -> ValueKind {
        match self {
            Self::Counts => ValueKind::Counts,
            Self::Recovered(..) => ValueKind::Recovered,
            Self::AsGiven => ValueKind::Normalised,
        }
    }

    /// A note for the report if counts were recovered.
    pub(super) fn note(self) -> Option<String> {
        let Self::Recovered(normalisation, rounding) = self else { return None };
        let undone = match normalisation {
            Normalisation::Scale => "a factor per cell".to_owned(),
            Normalisation::Log(base) => format!("log{}(1 + x) and a factor per cell", base.suffix()),
        };
        let rounding = rounding
            .decimals()
            .map_or_else(String::new, |decimals| format!(" plus the file's rounding to {decimals} decimals"));
        Some(format!(
            "counts were recovered by undoing {undone}; the smallest value of a cell is one count, and every value is \
             whole within {TOLERANCE}{rounding}"
        ))
    }
}
