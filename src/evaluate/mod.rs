//! How good a model is: what it recovers of thinned cells ([`enhancement`]), whether its embeddings keep labelled cells
//! together ([`clustering`]), and what a loss costs ([`scaling`]).
//!
//! Around these three stand plain functions of numbers, each held to scikit-learn, umap-learn, igraph or numpy: agreement of
//! labels, silhouettes, nearest neighbours and their graph, Leiden communities, principal components, errors.
//!
//! Depends on `model`, on `store` for cells, and on `pretrain` for which cells a model never saw. Knows nothing of SQL or the
//! terminal.

pub mod agreement;
pub mod cells;
pub mod clustering;
pub mod connectivities;
mod dense;
mod distance;
pub mod enhancement;
pub mod graph;
pub mod knn;
pub mod leiden;
pub mod pca;
pub mod recovery;
pub mod scaling;
pub mod silhouette;
