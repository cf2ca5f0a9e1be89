//! A part of a job, for many processes or machines over one store.

use std::fmt;
use std::str::FromStr;

use cellql_schemas::cells;

/// Neighbouring cells that stay in one part: they lie in the same pages of the table.
const RUN: u64 = 1024;

/// The `index`-th of `of` parts, from 1. Which part a cell belongs to depends on its id alone, so parts never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: u64,
    of: u64,
}

impl Default for Shard {
    fn default() -> Self {
        Self { index: 1, of: 1 }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, of)) if 1 <= index && index <= of => Ok(Self { index, of }),
            _ => Err(format!("'{text}' is no shard: the second of eight parts is 2/8")),
        }
    }
}

impl Shard {
    /// SQL condition on `cells`; `None` for the whole.
    pub(super) fn condition(self) -> Option<String> {
        let Self { index, of } = self;
        // Without a division: storage engines disagree on whether that of whole numbers is whole.
        let place = format!("{} % {}", cells::CELL_ID, of * RUN);
        (of > 1).then(|| format!("{place} >= {} AND {place} < {}", (index - 1) * RUN, index * RUN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_read_as_they_are_written() {
        let shard: Shard = "2/8".parse().unwrap();
        assert_eq!(
            (shard.to_string(), shard.condition().unwrap()),
            ("2/8".into(), "cell_id % 8192 >= 1024 AND cell_id % 8192 < 2048".into())
        );
        assert_eq!(Shard::default().condition(), None);
        for wrong in ["0/2", "3/2", "2", "a/b", "1/0"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}
