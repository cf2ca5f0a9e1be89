//! Analyses of vectors and labels: exact k-nearest-neighbour graphs, UMAP connectivities, Leiden communities, principal
//! components, silhouettes, agreement of labellings, errors of predictions.
//!
//! Every function takes slices of numbers and returns numbers. Tests compare results with scikit-learn, scipy,
//! umap-learn, igraph or numpy. The crate depends on rayon and rand. It knows nothing of cells, genes, stores or
//! models.
//!
//! ```
//! use cellql_analysis::{connectivities::connectivities, knn::nearest_neighbours, leiden::leiden};
//!
//! // Six points in a plane, in two groups of three.
//! let points = [0.0, 0.0, 0.1, 0.0, 0.0, 0.1, 5.0, 5.0, 5.1, 5.0, 5.0, 5.1];
//! let knn = nearest_neighbours(&points, 2, 2);
//! assert_eq!(knn.indices[..2], [1, 2]);
//! let clusters = leiden(&connectivities(&knn), 1.0, 0);
//! assert_eq!(clusters, [0, 0, 0, 1, 1, 1]);
//! ```

pub mod agreement;
pub mod connectivities;
mod dense;
mod distance;
pub mod graph;
pub mod grouped_pca;
pub mod knn;
pub mod knn_labels;
pub mod leiden;
pub mod lisi;
pub mod pca;
pub mod recovery;
pub mod silhouette;
pub mod variable_genes;
pub mod whitening;
