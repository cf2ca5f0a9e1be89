//! Analyses of embeddings over plain numbers: nearest neighbours and their graph, Leiden communities, principal components,
//! silhouettes, agreement of labels, errors of predictions.
//!
//! Every function takes slices and gives numbers, and is held to scikit-learn, umap-learn, igraph or numpy. Depends on rayon
//! and rand. Knows nothing of cells, genes, stores or models.

pub mod agreement;
pub mod connectivities;
mod dense;
mod distance;
pub mod graph;
pub mod knn;
pub mod leiden;
pub mod pca;
pub mod recovery;
pub mod silhouette;
