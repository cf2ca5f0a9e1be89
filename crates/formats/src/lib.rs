//! Readers of single-cell expression files (`.h5ad`, 10x HDF5, loom, Matrix Market, CSV, `.npz`, Parquet), and a writer
//! of `.h5ad`.
//!
//! [`open()`] recognises the format by the file's content and returns a [`CellSource`]: the features, the obs columns,
//! and then the cells in blocks. Memory use depends on the size of a block, not on the size of the file. Sizes stated
//! in a file are checked against the file before memory is allocated for them. Every error names the file and the
//! object in it.
//!
//! Common types (`block`, `options`, `error`, `rows`, `spill`) are at the bottom; each format module uses them, and
//! `recognise`, `inputs` and `open` use the format modules. The crate depends on `schemas` to decide which axis of a
//! table holds genes. It knows nothing of stores, models or SQL, so readers can be fuzzed without building these.
//!
//! ```
//! use cellql_formats::{Format, OpenOptions, open, recognise};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("counts.csv");
//! std::fs::write(&path, "barcode,INS,GCG,SST\nAAAC,3,0,1\nAAAG,0,7,0\n")?;
//! assert_eq!(recognise(&path)?, Some(Format::Dense));
//!
//! let mut source = open(&path, &OpenOptions::default())?;
//! let genes: Vec<&str> = source.features().iter().map(|f| f.name.as_str()).collect();
//! assert_eq!(genes, ["INS", "GCG", "SST"]);
//! let block = source.next_block()?.ok_or("the file has two cells")?;
//! assert_eq!(block.barcodes.value(1), "AAAG");
//! assert_eq!(block.cell(0), (&[0, 2][..], &[3.0, 1.0][..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod block;
pub mod counts;
mod delimited;
mod error;
mod exported;
mod features;
mod gene_order;
mod gzip;
mod h5;
mod h5ad;
mod inputs;
mod loom;
mod matrix_market;
mod name_tables;
mod npz;
mod open;
mod options;
mod parquet_file;
mod recognise;
mod rows;
mod spill;
mod table;
mod tenx;
pub mod write;

pub use block::{Block, CellSource, ObsColumn};
pub use error::{FormatError, Result};
pub use exported::{datasets_of, exported_datasets, part_of};
pub use gene_order::{GeneSorter, ValueError};
pub use inputs::{inputs, parts};
pub use open::open;
pub use options::OpenOptions;
pub use recognise::{Format, is_directory, recognise};
pub use table::{Batches, TableReader, TableSource};
