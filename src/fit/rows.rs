//! The cells that a linear model is fitted to, read in passes: log-normalised values, and the group of each cell.
//!
//! Cells are read in the order of their addresses, by several tasks at once. If all of them fit into [`HELD_BYTES`],
//! they are kept after the first pass.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use cellql_analysis::grouped_pca::{RowBatch, RowSource};
use cellql_analysis::pca::SparseRows;
use cellql_schemas::cells;
use cellql_schemas::expr::{Profiles, TARGET_SUM, log_normalise};
use cellql_store::progress::OnProgress;
use cellql_store::{RowReader, Store, runs};
use futures::StreamExt;
use roaring::RoaringTreemap;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::error::{Error, Result};

/// Cells that are read and used together.
const PIECE: u64 = 512;
/// Maximum number of unwanted rows between two wanted ones that are read with them.
const GAP: u64 = 16;
/// Number of concurrent reading tasks.
const TASKS: usize = 8;
/// Bytes of values that are kept between passes.
const HELD_BYTES: usize = 1 << 30;

/// How cells are divided into groups that are centred by themselves and weighted alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Grouping {
    /// One group.
    None,
    /// A group for each value of this column of `cells`; cells without a value are a group.
    Column(String),
}

/// Cells that were read together. `genes` are gene ids, or columns once genes were selected.
#[derive(Debug, Clone, Default)]
pub(super) struct Piece {
    pub(super) offsets: Vec<usize>,
    pub(super) genes: Vec<u32>,
    pub(super) values: Vec<f32>,
    pub(super) groups: Vec<u32>,
}

/// Cells as they were read, before groups have numbers.
struct ReadPiece {
    piece: Piece,
    labels: Vec<Option<String>>,
}

/// The cells to fit to.
pub(super) struct TrainingRows {
    reader: Arc<RowReader>,
    rows: RoaringTreemap,
    runtime: Handle,
    groups: HashMap<Option<String>, u32>,
    held: Option<Vec<Piece>>,
    /// Column of each gene, if genes were selected.
    columns: Option<Arc<Vec<Option<u32>>>>,
    dim: usize,
    on_progress: OnProgress,
    /// Cells that were read or used so far, over all passes, and that there will be.
    done: u64,
    total: u64,
}

impl TrainingRows {
    /// The cells of `cells` at some addresses. `passes` is the number of passes that will be made, for progress.
    pub(super) async fn open(
        store: &Store,
        rows: RoaringTreemap,
        grouping: &Grouping,
        passes: usize,
        on_progress: OnProgress,
    ) -> Result<Self> {
        let columns: Vec<&str> = match grouping {
            Grouping::None => vec![cells::EXPR],
            Grouping::Column(name) => vec![cells::EXPR, name],
        };
        let reader = Arc::new(store.row_reader(cells::TABLE, &columns).await?);
        let (done, total) = (0, rows.len() * passes as u64);
        let (groups, held, runtime) = (HashMap::new(), Some(Vec::new()), Handle::current());
        Ok(Self { reader, rows, runtime, groups, held, columns: None, dim: 0, on_progress, done, total })
    }

    /// The first pass: visits all cells with their gene ids, and keeps them if they fit into memory. Blocks the thread.
    pub(super) fn first_pass(&mut self, mut visit: impl FnMut(&Piece)) -> Result<()> {
        let (mut held, mut bytes) = (Vec::new(), 0);
        let mut groups = std::mem::take(&mut self.groups);
        self.read(&mut |read| {
            let piece = read.numbered(&mut groups);
            visit(&piece);
            bytes += 8 * piece.genes.len();
            if bytes <= HELD_BYTES {
                held.push(piece);
            } else {
                held = Vec::new();
            }
        })?;
        self.groups = groups;
        self.held = (bytes <= HELD_BYTES).then_some(held);
        Ok(())
    }

    /// Selects genes: those that have a column, below `dim`.
    pub(super) fn select(&mut self, columns: Vec<Option<u32>>, dim: usize) {
        for piece in self.held.iter_mut().flatten() {
            piece.select(&columns);
        }
        (self.columns, self.dim) = (Some(Arc::new(columns)), dim);
    }

    /// Reads every cell, in order. Blocks the thread.
    fn read(&mut self, take: &mut dyn FnMut(ReadPiece)) -> Result<()> {
        let (give, mut pieces) = mpsc::channel(2);
        let (reader, rows) = (Arc::clone(&self.reader), self.rows.clone());
        self.runtime.spawn(read_all(reader, rows, give));
        let mut read = 0;
        while let Some(piece) = pieces.blocking_recv() {
            let piece = piece?;
            read += piece.labels.len() as u64;
            self.done += piece.labels.len() as u64;
            take(piece);
            (self.on_progress)(self.done, Some(self.total));
        }
        match read == self.rows.len() {
            true => Ok(()),
            false => Err(Error::internal("reading cells to fit a model")("the task that reads cells ended early")),
        }
    }
}

impl RowSource for TrainingRows {
    type Error = Error;

    fn pass(&mut self, visit: &mut dyn FnMut(RowBatch<'_>)) -> Result<()> {
        let dim = self.dim;
        if let Some(held) = &self.held {
            for piece in held {
                visit(piece.batch(dim));
                self.done += piece.groups.len() as u64;
                (self.on_progress)(self.done, Some(self.total));
            }
            return Ok(());
        }
        let (columns, mut groups) = (self.columns.clone(), self.groups.clone());
        self.read(&mut |read| {
            let mut piece = read.numbered(&mut groups);
            if let Some(columns) = &columns {
                piece.select(columns);
            }
            visit(piece.batch(dim));
        })
    }
}

impl Piece {
    fn batch(&self, dim: usize) -> RowBatch<'_> {
        let rows = SparseRows { dim, offsets: &self.offsets, columns: &self.genes, values: &self.values };
        RowBatch { rows, groups: &self.groups }
    }

    /// Keeps the values of genes that have a column.
    fn select(&mut self, columns: &[Option<u32>]) {
        let (mut kept, mut first) = (0, 0);
        for end in self.offsets.iter_mut().skip(1) {
            for at in first..*end {
                if let Some(Some(column)) = columns.get(self.genes[at] as usize) {
                    (self.genes[kept], self.values[kept]) = (*column, self.values[at]);
                    kept += 1;
                }
            }
            (first, *end) = (*end, kept);
        }
        self.genes.truncate(kept);
        self.values.truncate(kept);
        self.genes.shrink_to_fit();
        self.values.shrink_to_fit();
    }
}

impl ReadPiece {
    /// The piece with the numbers of its cells' groups, which are given in the order of the cells.
    fn numbered(self, groups: &mut HashMap<Option<String>, u32>) -> Piece {
        let mut number = |label: Option<String>| {
            let next = groups.len() as u32;
            *groups.entry(label).or_insert(next)
        };
        Piece { groups: self.labels.into_iter().map(&mut number).collect(), ..self.piece }
    }
}

/// Reads cells piece by piece, several at once, and gives them in order, until the receiver is dropped.
async fn read_all(reader: Arc<RowReader>, rows: RoaringTreemap, give: mpsc::Sender<Result<ReadPiece>>) {
    let ranges = runs(rows.iter(), GAP).into_iter().flat_map(|run| {
        let end = run.end;
        run.step_by(PIECE as usize).map(move |first| first..end.min(first + PIECE))
    });
    let rows = Arc::new(rows);
    let read = |range: Range<u64>| {
        let (reader, rows) = (Arc::clone(&reader), Arc::clone(&rows));
        tokio::spawn(async move { to_piece(&reader.run(range.clone()).await?, range, &rows) })
    };
    let mut pieces = std::pin::pin!(futures::stream::iter(ranges).map(read).buffered(TASKS));
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(Error::internal("reading cells to fit a model")).and_then(|piece| piece);
        let failed = piece.is_err();
        if give.send(piece).await.is_err() || failed {
            return;
        }
    }
}

/// The wanted cells of a range of rows, log-normalised with the total of all their genes.
fn to_piece(batch: &RecordBatch, range: Range<u64>, rows: &RoaringTreemap) -> Result<ReadPiece> {
    const DOING: &str = "reading cells to fit a model";
    let profiles = Profiles::new(batch.column(0)).map_err(Error::internal(DOING))?;
    let labels = batch.columns().get(1).map(|column| cast(column, &DataType::Utf8)).transpose();
    let labels = labels.map_err(Error::internal(DOING))?;
    let mut read = ReadPiece { piece: Piece { offsets: vec![0], ..Piece::default() }, labels: Vec::new() };
    for (i, _) in range.enumerate().filter(|(_, row)| rows.contains(*row)) {
        if let Some(profile) = profiles.get(i) {
            let total = profile.total();
            read.piece.genes.extend_from_slice(profile.gene_ids);
            read.piece.values.extend(profile.values.iter().map(|v| log_normalise(*v, total, TARGET_SUM) as f32));
        }
        read.piece.offsets.push(read.piece.genes.len());
        let label = labels.as_ref().map(|labels| labels.as_string::<i32>());
        read.labels.push(label.and_then(|labels| labels.is_valid(i).then(|| labels.value(i).to_owned())));
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_keeps_the_values_of_its_genes_cell_by_cell() {
        let mut piece = Piece {
            offsets: vec![0, 3, 3, 5],
            genes: vec![0, 2, 4, 2, 9],
            values: vec![1.0, 2.0, 3.0, 4.0, 5.0],
            groups: vec![0; 3],
        };
        piece.select(&[None, None, Some(1), None, Some(0)]);
        assert_eq!((piece.offsets, piece.genes), (vec![0, 2, 2, 3], vec![1, 0, 1]));
        assert_eq!(piece.values, [2.0, 3.0, 4.0]);
    }
}
