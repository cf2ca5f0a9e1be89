//! The bytes of a store's file, mapped where they lie on this machine.
//!
//! Models, indexes and checkpoints are read through this; it knows none of them.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::Mmap;

use crate::error::{ModelError, Result};

/// A file. Copies share it.
#[derive(Debug, Clone)]
pub enum FileBytes {
    /// In memory, read from elsewhere.
    Held(Bytes),
    /// On this machine's disk; pages are read when first used and can be dropped again.
    Mapped(Arc<Mmap>),
}

impl FileBytes {
    /// Maps a file.
    ///
    /// # Errors
    /// It cannot be opened.
    #[allow(unsafe_code, reason = "a mapping is memory that another process could change")]
    pub fn map(path: &Path) -> Result<Self> {
        let unreadable = |e: std::io::Error| ModelError::input(path, "file", format!("cannot be read: {e}"));
        let file = File::open(path).map_err(unreadable)?;
        // SAFETY: files of models, indexes and checkpoints are written once under another name and renamed into place;
        // nothing of cellql ever changes one that has its name, and one that is replaced stays what it was for who
        // mapped it. What another program does to a store while it is read is beyond us, as with any mapped library.
        let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
        Ok(Self::Mapped(Arc::new(map)))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            FileBytes::Held(bytes) => bytes,
            FileBytes::Mapped(map) => map,
        }
    }
}

impl From<Vec<u8>> for FileBytes {
    fn from(bytes: Vec<u8>) -> Self {
        FileBytes::Held(bytes.into())
    }
}
