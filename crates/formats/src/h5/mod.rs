//! HDF5: files and datasets whose errors name them, AnnData dataframes, matrices.

pub(crate) mod categorical;
pub(crate) mod chunks;
pub(crate) mod compound;
pub(crate) mod file;
pub(crate) mod frame;
pub(crate) mod half;
pub(crate) mod matrix;
pub(crate) mod members;
