//! Kinds of indexes, and which of them fits a table.

use std::str::FromStr;

use super::file::{self, Built};
use super::graph::GraphOptions;
use super::{ivf, vectors};
use crate::error::{Error, Result};
use cellql_store::progress::OnProgress;
use cellql_store::{Store, embedding_table};

/// What an index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A navigable graph in files of its own, searched in memory.
    Graph,
    /// Partitions of like vectors, by Lance, searched on disk.
    Ivf,
}

const NAMES: [(Kind, &str); 2] = [(Kind::Graph, "hnsw"), (Kind::Ivf, "ivf")];

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = NAMES.iter().find(|(_, name)| *name == text);
        known.map(|(kind, _)| *kind).ok_or_else(|| format!("unknown kind of index '{text}'"))
    }
}

impl Kind {
    /// Its name in `indexes`.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(kind, _)| *kind == self).map_or("hnsw", |(_, name)| name)
    }

    /// The kind for so many vectors of so many numbers: a graph where it takes no more than half of this machine's memory.
    pub fn fitting(n_vectors: usize, dim: usize) -> Self {
        // A vector in f32 and in codes of a byte, and some 40 links of four bytes.
        let graph = n_vectors as u64 * (5 * dim as u64 + 160);
        if memory().is_some_and(|memory| graph > memory / 2) { Kind::Ivf } else { Kind::Graph }
    }
}

/// Bytes of memory of this machine, where the system says.
fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(1024 * line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?)
}

/// Builds an index over an embedding table and puts it in the place of any of the same name. Without a kind, the one that fits.
///
/// # Errors
/// The table does not exist or holds no vector, or the index cannot be written.
pub async fn build(
    store: &Store,
    name: &str,
    recipe: &str,
    kind: Option<Kind>,
    on_progress: OnProgress,
) -> Result<(Store, Built)> {
    let name_of_table = embedding_table(recipe);
    let table = store.table(&name_of_table).await?;
    let dim = vectors::dimension(&table, &name_of_table)?;
    let rows = table.count_rows(None).await.map_err(Error::internal(format!("counting {name_of_table}")))?;
    match kind.unwrap_or_else(|| Kind::fitting(rows, dim)) {
        Kind::Graph => file::build(store, name, recipe, GraphOptions::default(), on_progress).await,
        Kind::Ivf => ivf::build(store, name, recipe).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_memory_cannot_hold_is_not_made_a_graph() {
        assert_eq!(Kind::fitting(1_000, 512), Kind::Graph);
        if memory().is_some() {
            assert_eq!(Kind::fitting(1_000_000_000_000, 512), Kind::Ivf);
        }
        for (kind, name) in NAMES {
            assert_eq!((name.parse(), kind.name()), (Ok(kind), name));
        }
    }
}
