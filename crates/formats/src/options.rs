//! Choices a caller makes when opening a file: which matrix, which genome, where the names are.

use std::path::PathBuf;

use cellql_schemas::exported::ExportedDataset;

/// Choices of the caller. The default reads the matrix that holds raw counts and finds companion files by name.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Read this layer instead of `X` (`.h5ad`, loom).
    pub layer: Option<String>,
    /// Read `raw.X` (`.h5ad`).
    pub raw: bool,
    /// Genome to read from a 10x file that holds several.
    pub genome: Option<String>,
    /// File with the gene names, for formats without names or if it is not beside the matrix.
    pub genes: Option<PathBuf>,
    /// File with the barcodes, for formats without names or if it is not beside the matrix.
    pub barcodes: Option<PathBuf>,
    /// Read only the cells of this data set of an export, as they were before the export.
    pub part: Option<ExportedDataset>,
}

impl OpenOptions {
    /// Path of the requested matrix inside an `.h5ad` file (`layers/counts`); `None` if the caller left the choice
    /// open.
    pub fn matrix(&self) -> Option<String> {
        match (&self.layer, self.raw) {
            (Some(layer), _) if layer == "X" => Some("X".to_owned()),
            (Some(layer), _) => Some(format!("layers/{layer}")),
            (None, true) => Some("raw/X".to_owned()),
            (None, false) => None,
        }
    }
}
