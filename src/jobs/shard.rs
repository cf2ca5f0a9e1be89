//! Shards: parts of a job that run in several processes or on several machines over one store.

use std::fmt;
use std::str::FromStr;

use cellql_schemas::cells;

/// Number of consecutive cells that stay in one shard, because they are stored in the same pages of the table.
const RUN: u64 = 1024;

/// The `index`-th of `of` shards, counted from 1. The shard of a cell depends only on its id, so shards never overlap.
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
            _ => Err(format!(
                "'{text}' is not a shard; write INDEX/COUNT, for example 2/8 for the second of eight shards"
            )),
        }
    }
}

impl Shard {
    /// SQL condition on `cells`; `None` if there is only one shard.
    pub(super) fn condition(self) -> Option<String> {
        let Self { index, of } = self;
        // No division: Lance and DataFusion differ in how they divide integers.
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
