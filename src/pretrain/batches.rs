//! The cells of each batch: of all data sets mixed, or of one data set that is drawn anew for each batch.
//!
//! Depends on [`super::loader`]. Each data set has a loader of its own, whose chunks are smaller the more there are, so
//! that memory does not grow with their number.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::{UInt32Type, UInt64Type};
use cellql_schemas::cells;
use cellql_store::Store;
use cellql_training::{Batches, Cell, LoaderPosition, Mixing, seeded};
use futures::TryStreamExt;
use rand::Rng;
use roaring::RoaringTreemap;

use super::loader::{CellReading, Loader};
use super::split::Split;
use crate::error::{Error, Result};

/// Positions of the loaders of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Positions {
    /// The next cell, where batches mix data sets.
    pub mixed: LoaderPosition,
    /// The next cell of each data set by id, where batches are of one.
    pub of_datasets: BTreeMap<u32, LoaderPosition>,
}

/// Yields the cells of batches without end.
#[derive(Debug)]
pub enum CellBatches {
    /// From all data sets.
    Mixed(Loader),
    /// From one data set each.
    OfDatasets {
        /// A loader for each data set that has cells to train on, with the chance of its being drawn, not normalised.
        loaders: Vec<(u32, f64, Loader)>,
        /// Seed of the draws, and rank of this process.
        seed: (u64, usize),
        /// Number of cells to train on.
        cells: u64,
    },
}

impl CellBatches {
    /// Starts to read the cells to train on, from some positions on.
    ///
    /// # Errors
    /// As [`Loader::start`].
    pub async fn start(
        store: &Store,
        split: &Split,
        reading: &CellReading,
        batches: Batches,
        mixing: Mixing,
        from: &Positions,
    ) -> Result<Self> {
        let first = LoaderPosition { chunk: mixing.rank as u64, ..LoaderPosition::default() };
        let from_or_first = |position: Option<LoaderPosition>| match position {
            None => first,
            Some(position) if position == LoaderPosition::default() => first,
            Some(position) => position,
        };
        if !batches.of_one_dataset {
            let from = from_or_first(Some(from.mixed));
            return Ok(Self::Mixed(Loader::start(store, split, reading, mixing, from).await?));
        }
        let (mut loaders, of_datasets) = (Vec::new(), by_dataset(store, &split.train).await?);
        let blocks = (mixing.blocks / of_datasets.len().max(1)).max(1);
        for (dataset_id, rows) in of_datasets {
            let chance = (rows.len() as f64).powf(batches.exponent);
            let of_dataset = Split { train: rows, ..Split::default() };
            let from = from_or_first(from.of_datasets.get(&dataset_id).copied());
            let loader = Loader::start(store, &of_dataset, reading, Mixing { blocks, ..mixing }, from).await?;
            loaders.push((dataset_id, chance, loader));
        }
        if loaders.is_empty() {
            return Err(Error::Request(super::loader::NO_CELLS.into()));
        }
        Ok(Self::OfDatasets { loaders, seed: (mixing.seed, mixing.rank), cells: split.train.len() })
    }

    /// The next `count` cells, for a part of a step, which decides the data set. Blocks the thread; must not be called
    /// on an async one.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn next(&mut self, count: usize, (step, part): (u64, usize)) -> Result<Vec<Cell>> {
        match self {
            Self::Mixed(loader) => loader.next(count),
            Self::OfDatasets { loaders, seed: (seed, rank), .. } => {
                let numbers = [*seed, step, part as u64, *rank as u64].map(u64::to_le_bytes);
                let mut rng = seeded(&[b"data set", &numbers.concat()]);
                let mut left = rng.random::<f64>() * loaders.iter().map(|(_, chance, _)| chance).sum::<f64>();
                let last = loaders.len() - 1;
                let drawn = loaders.iter().position(|(_, chance, _)| {
                    left -= chance;
                    left < 0.0
                });
                loaders[drawn.unwrap_or(last)].2.next(count)
            }
        }
    }

    /// Positions of the next cells.
    pub fn positions(&self) -> Positions {
        match self {
            Self::Mixed(loader) => Positions { mixed: loader.place(), of_datasets: BTreeMap::new() },
            Self::OfDatasets { loaders, .. } => Positions {
                mixed: LoaderPosition::default(),
                of_datasets: loaders.iter().map(|(id, _, loader)| (*id, loader.place())).collect(),
            },
        }
    }

    /// Completed passes over the cells, after so many cells. Where data sets are drawn, cells of small ones are read
    /// more often.
    pub fn epoch(&self, cells_read: u64) -> u64 {
        match self {
            Self::Mixed(loader) => loader.place().epoch,
            Self::OfDatasets { cells, .. } => cells_read / (*cells).max(1),
        }
    }
}

/// Divides row addresses of `cells` by data set.
async fn by_dataset(store: &Store, rows: &RoaringTreemap) -> Result<BTreeMap<u32, RoaringTreemap>> {
    let doing = || Error::internal(format!("dividing cells of {} by data set", store.uri()));
    let mut scan = store.table(cells::TABLE).await?.scan();
    scan.project(&[cells::DATASET_ID]).map_err(doing())?;
    scan.with_row_id();
    let mut batches = scan.try_into_stream().await.map_err(doing())?;
    let mut divided: BTreeMap<u32, RoaringTreemap> = BTreeMap::new();
    while let Some(batch) = batches.try_next().await.map_err(doing())? {
        let Some(addresses) = batch.column_by_name("_rowid") else { continue };
        let ids = batch.column(0).as_primitive::<UInt32Type>();
        for (row, id) in addresses.as_primitive::<UInt64Type>().values().iter().zip(ids.values()) {
            if rows.contains(*row) {
                divided.entry(*id).or_default().insert(*row);
            }
        }
    }
    Ok(divided)
}
