//! Reads the cells of a store in random order without loading the whole store.
//!
//! The rows to read are divided into blocks of rows that are neighbours on disk. In each epoch the blocks are shuffled,
//! a number of them is read together as a chunk, and the cells of the chunk are shuffled. So the cells of a batch come
//! from as many blocks as a chunk has. Chunks are independent of each other: a place in the order is three numbers
//! ([`LoaderPosition`]), and a loader that starts at a place yields the same cells as one that reached it. Chunks are
//! assigned to ranks in turn. While a chunk is used, the next ones are read, the blocks of a chunk in parallel.
//!
//! Cells may come with their embedding by a linear model ([`Targets`]).
//!
//! Depends on the store and on the vocabulary's placement; the order of cells ([`Mixing`], [`LoaderPosition`]) is
//! defined by `cellql_training`. Knows nothing of what is trained.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::UInt32Type;
use arrow::record_batch::RecordBatch;
use cellql_schemas::cells;
use cellql_schemas::expr::{Profile, Profiles};
use cellql_schemas::vocabulary::Placement;
use futures::{StreamExt, TryStreamExt};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use roaring::RoaringTreemap;
use tokio::sync::mpsc;

use super::split::Split;
use super::targets::Targets;
use crate::error::{Error, Result};
use cellql_store::{RowReader, Store, runs};
use cellql_training::{Cell, LoaderPosition, Mixing, counts_by_position, seeded};

/// Columns that are read.
const COLUMNS: [&str; 2] = [cells::DATASET_ID, cells::EXPR];
/// Maximum number of unwanted rows between two wanted ones that are read with them, because one larger read is faster.
const GAP: u64 = 16;
/// Number of chunks that wait to be used, beside the one that is being read.
const AHEAD: usize = 1;
/// Maximum number of rows that one task reads.
const PIECE: u64 = 256;
/// Number of concurrent tasks: enough to keep every core busy while others wait for the disk.
const TASKS: usize = 16;

/// Why there is nothing to read.
pub(super) const NO_CELLS: &str =
    "there are no cells to train on: none has counts, satisfies the condition and is not held out";

/// What cells are read as.
#[derive(Debug, Clone)]
pub struct CellReading {
    placement: Placement,
    targets: Option<Arc<Targets>>,
}

impl CellReading {
    /// Counts at the positions of a vocabulary and, where there are targets, embeddings.
    pub fn new(placement: Placement, targets: Option<Arc<Targets>>) -> Self {
        Self { placement, targets }
    }
}

/// Cells that are shuffled together.
struct Chunk {
    /// Position of its first cell.
    place: LoaderPosition,
    cells: Vec<Cell>,
}

/// Yields cells without end, epoch after epoch.
#[derive(Debug)]
pub struct Loader {
    chunks: mpsc::Receiver<Result<Chunk>>,
    current: std::vec::IntoIter<Cell>,
    place: LoaderPosition,
}

/// What a chunk needs to be read.
struct Source {
    reader: RowReader,
    rows: RoaringTreemap,
    reading: CellReading,
    mixing: Mixing,
}

impl Loader {
    /// Starts to read the cells to train on, from a place on.
    ///
    /// # Errors
    /// No cells or too few for the ranks, an invalid mixing, or a table that cannot be opened.
    pub async fn start(
        store: &Store,
        split: &Split,
        reading: &CellReading,
        mixing: Mixing,
        from: LoaderPosition,
    ) -> Result<Self> {
        if mixing.block == 0 || mixing.blocks == 0 || mixing.rank >= mixing.ranks {
            return Err(Error::Request(format!(
                "cells cannot be shuffled with {mixing:?}: block and blocks must be above 0, and rank below ranks"
            )));
        }
        let reader = store.row_reader(cells::TABLE, &COLUMNS).await?;
        let source = Source { reader, rows: split.train.clone(), reading: reading.clone(), mixing };
        let chunks = source.chunks();
        if source.rows.is_empty() {
            return Err(Error::Request(NO_CELLS.into()));
        }
        if (chunks as usize) < mixing.ranks {
            let (cells, ranks) = (source.rows.len(), mixing.ranks);
            return Err(Error::Request(format!(
                "there are {cells} cells to train on, too few for {ranks} processes with {} cells shuffled together",
                mixing.block * mixing.blocks
            )));
        }
        let (give, chunks) = mpsc::channel(AHEAD);
        tokio::spawn(source.read_all(from, give));
        Ok(Self { chunks, current: Vec::new().into_iter(), place: from })
    }

    /// Position of the next cell.
    pub fn place(&self) -> LoaderPosition {
        self.place
    }

    /// The next `count` cells. Blocks the thread; must not be called on an async one.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn next(&mut self, count: usize) -> Result<Vec<Cell>> {
        let mut cells = Vec::with_capacity(count);
        while cells.len() < count {
            match self.current.next() {
                Some(cell) => {
                    cells.push(cell);
                    self.place.cell += 1;
                }
                None => {
                    let ended =
                        || Error::internal("reading cells to train on")("the task that reads cells ended early");
                    let chunk = self.chunks.blocking_recv().ok_or_else(ended)??;
                    self.place = chunk.place;
                    self.current = chunk.cells.into_iter();
                }
            }
        }
        Ok(cells)
    }
}

/// The cells at some row addresses of `cells`, in the order of the addresses.
///
/// # Errors
/// The table cannot be read.
pub async fn read_cells(store: &Store, rows: &[u64], reading: &CellReading) -> Result<Vec<Cell>> {
    let batch = store.take(cells::TABLE, &COLUMNS, rows).await?;
    to_cells(&batch, rows.iter().copied().map(Some), reading)
}

/// Converts rows of [`COLUMNS`] to cells. Rows without an address are left out.
fn to_cells(batch: &RecordBatch, rows: impl Iterator<Item = Option<u64>>, reading: &CellReading) -> Result<Vec<Cell>> {
    let ids = batch.column(0).as_primitive::<UInt32Type>();
    let profiles = Profiles::new(batch.column(1)).map_err(Error::internal("reading cells to train on"))?;
    let wanted: Vec<(u64, u32, Profile)> =
        rows.enumerate().filter_map(|(i, row)| Some((row?, ids.value(i), profiles.get(i)?))).collect();
    let targets = match &reading.targets {
        None => vec![Vec::new(); wanted.len()],
        Some(targets) => targets.embed(wanted.iter().map(|(_, _, profile)| *profile))?,
    };
    let cell = |((row, dataset_id, profile), target): ((u64, u32, Profile), Vec<f32>)| {
        let counts = counts_by_position(&reading.placement, &profile);
        Cell { row, dataset_id, counts, target }
    };
    Ok(wanted.into_iter().zip(targets).map(cell).collect())
}

fn pieces(run: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    run.clone().step_by(PIECE as usize).map(move |first| first..run.end.min(first + PIECE))
}

impl Source {
    fn blocks(&self) -> u64 {
        self.rows.len().div_ceil(self.mixing.block as u64)
    }

    fn chunks(&self) -> u64 {
        self.blocks().div_ceil(self.mixing.blocks as u64)
    }

    /// Reads the chunks of this rank, one after the other, until the receiver is dropped.
    async fn read_all(self, from: LoaderPosition, give: mpsc::Sender<Result<Chunk>>) {
        let (source, mut place) = (Arc::new(self), from);
        let mut order = source.order(place.epoch);
        loop {
            let Mixing { rank, ranks, .. } = source.mixing;
            if place.chunk >= source.chunks() {
                place = LoaderPosition { epoch: place.epoch + 1, chunk: 0, cell: 0 };
                order = source.order(place.epoch);
            } else if place.chunk % ranks as u64 != rank as u64 {
                place = LoaderPosition { chunk: place.chunk + 1, cell: 0, ..place };
            } else {
                let chunk = Arc::clone(&source).chunk(&order, place).await;
                let failed = chunk.is_err();
                if give.send(chunk).await.is_err() || failed {
                    return;
                }
                place = LoaderPosition { chunk: place.chunk + 1, cell: 0, ..place };
            }
        }
    }

    /// The order of blocks in an epoch.
    fn order(&self, epoch: u64) -> Vec<u64> {
        let mut order: Vec<u64> = (0..self.blocks()).collect();
        order.shuffle(&mut self.rng(epoch, u64::MAX));
        order
    }

    fn rng(&self, epoch: u64, chunk: u64) -> ChaCha8Rng {
        let numbers = [self.mixing.seed, epoch, chunk].map(u64::to_le_bytes);
        seeded(&[&numbers[0], &numbers[1], &numbers[2]])
    }

    /// The shuffled cells of a chunk, from a place in it on.
    async fn chunk(self: Arc<Self>, order: &[u64], place: LoaderPosition) -> Result<Chunk> {
        let Mixing { block, blocks, .. } = self.mixing;
        let first = place.chunk as usize * blocks;
        let mut rows: Vec<u64> = Vec::with_capacity(block * blocks);
        for b in order.iter().skip(first).take(blocks) {
            let start = b * block as u64;
            let end = (start + block as u64).min(self.rows.len());
            // Rows that are not to be read may lie between those of a block.
            if let Some(from) = self.rows.select(start) {
                let mut of_block = self.rows.iter();
                of_block.advance_to(from);
                rows.extend(of_block.take((end - start) as usize));
            }
        }
        rows.sort_unstable();
        let rng = &mut self.rng(place.epoch, place.chunk);
        let mut cells = self.read(&rows).await?;
        cells.shuffle(rng);
        cells.drain(..(place.cell as usize).min(cells.len()));
        Ok(Chunk { place, cells })
    }

    /// The cells at ascending row addresses. Each piece of a run is read by a task, so that decoding uses every core.
    async fn read(self: Arc<Self>, rows: &[u64]) -> Result<Vec<Cell>> {
        let mut rest = rows;
        let part = |run: Range<u64>| {
            let (wanted, others) = rest.split_at(rest.partition_point(|row| *row < run.end));
            rest = others;
            let (source, wanted) = (Arc::clone(&self), wanted.to_vec());
            tokio::spawn(async move { source.read_run(run, wanted).await })
        };
        let pieces = runs(rows.iter().copied(), GAP).into_iter().flat_map(pieces);
        let parts = futures::stream::iter(pieces).map(part).buffered(TASKS);
        let parts: Vec<Result<Vec<Cell>>> =
            parts.try_collect().await.map_err(Error::internal("reading cells to train on"))?;
        parts.into_iter().try_fold(Vec::with_capacity(rows.len()), |mut all, part| {
            all.extend(part?);
            Ok(all)
        })
    }

    /// The wanted cells of a run of rows.
    async fn read_run(&self, run: Range<u64>, wanted: Vec<u64>) -> Result<Vec<Cell>> {
        let mut wanted = wanted.into_iter().peekable();
        let addresses: Vec<Option<u64>> = run.clone().map(|row| wanted.next_if_eq(&row)).collect();
        to_cells(&self.reader.run(run).await?, addresses.into_iter(), &self.reading)
    }
}
