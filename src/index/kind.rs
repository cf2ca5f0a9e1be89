//! Kinds of indexes.

use std::str::FromStr;

use crate::memory;

/// Kind of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexKind {
    /// An HNSW graph in files of its own, searched in memory.
    Hnsw,
    /// Lance's IVF_SQ: partitions of similar vectors in 8-bit codes, searched on disk.
    Ivf,
}

const NAMES: [(IndexKind, &str); 2] = [(IndexKind::Hnsw, "hnsw"), (IndexKind::Ivf, "ivf")];

impl FromStr for IndexKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = NAMES.iter().find(|(_, name)| *name == text);
        known.map(|(kind, _)| *kind).ok_or_else(|| format!("unknown kind of index '{text}'; there are: hnsw, ivf"))
    }
}

impl IndexKind {
    /// Name of the kind in the table `indexes`.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(kind, _)| *kind == self).map_or("hnsw", |(_, name)| name)
    }

    /// The kind for `n_vectors` vectors of dimension `dim`: HNSW if the graph and its vectors take at most half of the
    /// memory that this process may use, IVF otherwise.
    pub fn fitting(n_vectors: usize, dim: usize) -> Self {
        Self::fitting_in(memory::limit(), n_vectors, dim)
    }

    fn fitting_in(memory: Option<u64>, n_vectors: usize, dim: usize) -> Self {
        // A vector in f32 and in 8-bit codes, and some 40 links of four bytes.
        let graph = n_vectors as u64 * (5 * dim as u64 + 160);
        if memory.is_some_and(|memory| graph > memory / 2) { IndexKind::Ivf } else { IndexKind::Hnsw }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_takes_at_most_half_of_the_memory() {
        let bytes = 1_000 * (5 * 512 + 160);
        assert_eq!(IndexKind::fitting_in(Some(2 * bytes), 1_000, 512), IndexKind::Hnsw);
        assert_eq!(IndexKind::fitting_in(Some(2 * bytes - 2), 1_000, 512), IndexKind::Ivf);
        assert_eq!(IndexKind::fitting_in(None, 1_000_000_000_000, 512), IndexKind::Hnsw);
    }

    #[test]
    fn names_and_kinds_convert_into_each_other() {
        for (kind, name) in NAMES {
            assert_eq!((name.parse(), kind.name()), (Ok(kind), name));
        }
    }
}
