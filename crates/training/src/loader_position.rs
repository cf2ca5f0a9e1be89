//! How cells are shuffled, and a position in the shuffled order, as plain numbers.

use serde::{Deserialize, Serialize};

/// How cells are shuffled, and which part of them a loader reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mixing {
    /// Cells of a block: neighbours on disk, which are read together.
    pub block: usize,
    /// Blocks shuffled together.
    pub blocks: usize,
    /// Seed of the order.
    pub seed: u64,
    /// This loader's rank, from 0.
    pub rank: usize,
    /// Number of loaders.
    pub ranks: usize,
}

impl Default for Mixing {
    fn default() -> Self {
        Self { block: 64, blocks: 256, seed: 0, rank: 0, ranks: 1 }
    }
}

/// Position of a loader in the shuffled order: the next cell. Another loader can continue from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LoaderPosition {
    /// Completed passes over the cells.
    pub epoch: u64,
    /// Chunk within the epoch.
    pub chunk: u64,
    /// Cell within the chunk.
    pub cell: u64,
}
