//! The order in which cells are learned from, and a place in it, as plain numbers.

use serde::{Deserialize, Serialize};

/// How cells are mixed, and which part of them this loader gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mixing {
    /// Cells read together, as they lie on disk.
    pub block: usize,
    /// Blocks shuffled together.
    pub blocks: usize,
    /// Seed of every order.
    pub seed: u64,
    /// This loader's rank, from 0.
    pub rank: usize,
    /// Loaders there are.
    pub ranks: usize,
}

impl Default for Mixing {
    fn default() -> Self {
        Self { block: 64, blocks: 256, seed: 0, rank: 0, ranks: 1 }
    }
}

/// The next cell: where a loader is, and where another can go on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Times the cells were gone through.
    pub epoch: u64,
    /// Chunk of the epoch.
    pub chunk: u64,
    /// Cell of the chunk.
    pub cell: u64,
}
