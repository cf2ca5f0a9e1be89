//! Models that turn a cell into a vector. The foundation model is scFoundation / xTrimoGene, a masked autoencoder over
//! one cell's genes; linear models ([`linear`]) are fitted principal components.
//!
//! Paper: Hao et al., Nature Methods 2024, doi 10.1038/s41592-024-02305-7; authors' code:
//! github.com/biomap-research/scFoundation. Cells are aligned to the vocabulary ([`input`]), packed into ragged batches
//! ([`batch`]), encoded ([`encoder`]) and pooled ([`pool`]), or decoded to a context embedding and a predicted
//! expression of every gene ([`decoder`]).
//!
//! Depends on candle, `schemas` and `kernels`. Knows nothing of stores, tables or SQL: a model is bytes, a cell is two
//! slices.
//!
//! ```
//! use std::collections::HashMap;
//!
//! use cellql_model::{Config, DecoderConfig, EncoderConfig, Model, Sample, Size, encode, initialise};
//! use cellql_schemas::expr::Profile;
//! use cellql_schemas::nomenclature::Nomenclature;
//! use cellql_schemas::recipe::Recipe;
//! use cellql_schemas::vocabulary::Vocabulary;
//!
//! // A tiny untrained model of three genes.
//! let vocabulary = Vocabulary::new(vec!["A".into(), "B".into(), "C".into()])?;
//! let config = Config {
//!     encoder: EncoderConfig { hidden_dim: 8, depth: 1, heads: 2 },
//!     decoder: DecoderConfig { hidden_dim: 8, depth: 1, heads: 2, dim_head: 4 },
//!     ..Config::of_size(Size::M3, 3)
//! };
//! let (bytes, _sha256) = encode(&initialise(&config, vocabulary, 1)?)?;
//! let model = Model::load("tiny", bytes)?;
//!
//! // Genes of the store: number 0 is A, number 1 is C. One cell has 5 counts of A and 10 of C.
//! let by_name = HashMap::from([("A".to_owned(), vec![0]), ("C".to_owned(), vec![1])]);
//! let placement = model.vocabulary().place(Nomenclature::hgnc(), &by_name, |_| None);
//! let cell = Sample { profile: Profile { gene_ids: &[0, 1], values: &[5.0, 10.0] }, total: None };
//! let found = model.embed(&Recipe::of_model("tiny"), [Some(cell)].into_iter(), &placement, 1000)?;
//! assert_eq!((found.vectors.len(), found.genes_seen[0]), (4 * 8, 2));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batch;
mod config;
mod custom_ops;
mod decoder;
mod device;
mod embedding;
mod embeddings;
mod encoder;
mod error;
mod export;
mod file;
mod file_bytes;
mod fused;
mod import;
mod init;
mod input;
mod linear;
mod model;
mod output_map;
mod pickle;
mod pool;
mod position_order;
mod runner;
mod transformer;
mod value_bins;
mod weights;
mod xtrimogene;

pub use batch::DEFAULT_TOKEN_BUDGET;
pub use batch::Packed;
pub use config::{Config, DecoderConfig, EncoderConfig, Size};
pub use device::Device;
pub use embeddings::Embeddings;
pub use error::{ModelError, Result};
pub use export::write_checkpoint;
pub use file::{HEADS, Provenance, Weights, decode, encode, encode_linear, halved, with_output_map};
pub use file_bytes::FileBytes;
pub use fused::FusedOps;
pub use import::{CheckpointKey, read_checkpoint, read_safetensors};
pub use init::initialise;
pub use input::{NotCounts, NotEmbeddable, Sample, Tokens};
pub use linear::{LinearConfig, LinearWeights};
pub use model::Model;
pub use output_map::OutputMap;
pub use position_order::sort_by_position;
pub use value_bins::{LEAK, mix_bins, value_bins};
pub use xtrimogene::{DecoderInput, XTrimoGene};
