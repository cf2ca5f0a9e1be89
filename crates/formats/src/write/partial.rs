//! Files that appear under their name only when they are complete.

use std::path::{Path, PathBuf};

use crate::error::{FormatError, Result};

/// A file or directory that is being written under its name with `.partial` appended. It gets its name by
/// [`PartialFile::finish`]; dropped before, it is deleted.
#[derive(Debug)]
pub struct PartialFile {
    target: PathBuf,
    partial: PathBuf,
    finished: bool,
}

impl PartialFile {
    /// For a file or directory of this name. What an earlier, killed process left under the `.partial` name is
    /// deleted.
    ///
    /// # Errors
    /// It cannot be deleted.
    pub fn new(target: &Path) -> Result<Self> {
        let mut partial = target.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        delete(&partial).map_err(|e| FormatError::new(&partial, "file", format!("cannot be deleted: {e}")))?;
        Ok(Self { target: target.to_owned(), partial, finished: false })
    }

    /// The path to write to.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Renames it to its name.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub fn finish(mut self) -> Result<()> {
        let renamed = std::fs::rename(&self.partial, &self.target);
        self.finished = renamed.is_ok();
        renamed.map_err(|e| {
            FormatError::new(&self.target, "file", format!("cannot be renamed from its .partial name: {e}"))
        })
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.finished {
            // There is nobody to tell.
            let _ = delete(&self.partial);
        }
    }
}

fn delete(path: &Path) -> std::io::Result<()> {
    let deleted = match std::fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(e) => Err(e),
    };
    match deleted {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_when_it_is_finished_and_leaves_nothing_when_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out.h5ad");
        let unfinished = PartialFile::new(&target).unwrap();
        std::fs::write(unfinished.path(), "half").unwrap();
        drop(unfinished);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

        let whole = PartialFile::new(&target).unwrap();
        std::fs::write(whole.path(), "all").unwrap();
        whole.finish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"all");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_process_left_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join("out.lance.partial");
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("data"), "half").unwrap();
        let partial = PartialFile::new(&folder.path().join("out.lance")).unwrap();
        assert!(!partial.path().exists());
    }
}
