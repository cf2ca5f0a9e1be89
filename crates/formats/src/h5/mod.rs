//! HDF5: files and datasets with errors that name them, dataframes, matrices.

pub(crate) mod chunks;
pub(crate) mod compound;
pub(crate) mod file;
pub(crate) mod frame;
pub(crate) mod matrix;
