//! The foundation model: scFoundation / xTrimoGene, a masked autoencoder over one cell's genes.
//!
//! Paper: Hao et al., Nature Methods 2024, doi 10.1038/s41592-024-02305-7; authors' code:
//! github.com/biomap-research/scFoundation. Cells come in as profiles, are aligned to the vocabulary ([`input`]), packed end
//! to end ([`batch`]), encoded ([`encoder`]) and pooled ([`pool`]), or decoded to a context embedding and a predicted
//! expression of every gene ([`decoder`]).
//!
//! Depends on candle, `schemas` and `kernels`. Knows nothing of stores, tables or SQL: a model is bytes, a cell is two slices.

mod batch;
mod checkpoint;
mod config;
mod custom_ops;
mod decoder;
mod device;
mod embedding;
mod encoder;
mod error;
mod export;
mod file;
mod file_bytes;
mod fused;
mod init;
mod input;
mod model;
mod pickle;
mod pool;
mod runner;
mod weights;
mod xtrimogene;

pub use batch::DEFAULT_TOKEN_BUDGET;
pub use batch::Packed;
pub use checkpoint::{CheckpointKey, read_checkpoint, read_safetensors};
pub use config::{Config, Decoder as DecoderConfig, Encoder as EncoderConfig, Size};
pub use device::Device;
pub use error::{ModelError, Result};
pub use export::write_checkpoint;
pub use file::{Provenance, Weights, decode, encode};
pub use file_bytes::FileBytes;
pub use fused::FusedOps;
pub use init::initialise;
pub use input::{NotCounts, NotEmbeddable, Sample, Tokens};
pub use model::{Embeddings, Model};
pub use xtrimogene::{DecoderInput, XTrimoGene};
