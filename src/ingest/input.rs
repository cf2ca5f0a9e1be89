//! Where the cells of a data set come from: a file, a directory, or an object store whose files are downloaded first.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use cellql_formats::{Format, OpenOptions, TableReader, datasets_of, exported_datasets, parts, recognise};
use cellql_schemas::exported::ExportedDataset;
use futures::{StreamExt, TryStreamExt};
use lance::io::ObjectStore;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use super::lance_table::LanceTable;
use crate::error::{Error, Result};

/// The file or directory of one data set to ingest.
#[derive(Debug, Clone)]
pub struct InputFile {
    /// File or directory on this machine.
    pub path: PathBuf,
    /// Where the data set comes from, as recorded in the column `source_uri` of `datasets`.
    pub uri: String,
    /// The data set of an export of cellql that is to be read from the file.
    part: Option<Arc<ExportedDataset>>,
    /// SHA-256s of the export's files. The data sets of an export share them: the first to ask computes them.
    export_sha256s: Arc<OnceLock<Vec<String>>>,
    /// The temporary folder of downloaded files, deleted when the last input from it is dropped.
    _downloaded: Option<Arc<TempDir>>,
}

impl InputFile {
    /// A file or directory of this machine.
    pub fn local(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { uri: path.display().to_string(), path, part: None, export_sha256s: Arc::default(), _downloaded: None }
    }

    /// The same file with another recorded origin.
    pub fn from_elsewhere(self, uri: impl Into<String>) -> Self {
        Self { uri: uri.into(), ..self }
    }

    /// The data set of an export that is to be read, as it was described when it was exported.
    pub(super) fn part(&self) -> Option<&ExportedDataset> {
        self.part.as_deref()
    }

    /// Default name of the data set: its name in an export, else the file's name without its endings.
    pub(super) fn stem(&self) -> String {
        if let Some(part) = &self.part {
            return part.name.clone();
        }
        let name = self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let stem = name.strip_suffix(".gz").unwrap_or(&name);
        let stem = stem.rsplit_once('.').map_or(stem, |(stem, _)| stem);
        match stem {
            // A 10x data set is named after its folder, since its files have the same names everywhere.
            "" | "matrix" | "filtered_feature_bc_matrix" | "raw_feature_bc_matrix" => {
                let folder = self.path.parent().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
                folder.filter(|f| !f.is_empty()).unwrap_or_else(|| "unnamed".to_owned())
            }
            stem => stem.trim_end_matches(['_', '.']).to_owned(),
        }
    }

    /// SHA-256 of its file as hex; of several files, the SHA-256 over their SHA-256s; of a data set of an export, that
    /// over the export's and the id of the data set.
    pub(super) fn sha256(&self, options: &OpenOptions) -> Result<String> {
        let files = parts(&self.path, options)?;
        if let ([only], None) = (files.as_slice(), &self.part) {
            return file_sha256(only);
        }
        let sha256s = match self.export_sha256s.get() {
            Some(known) => known.clone(),
            None => files.iter().map(|file| file_sha256(file)).collect::<Result<Vec<_>>>()?,
        };
        let mut all = Sha256::new();
        if let Some(part) = &self.part {
            let _ = self.export_sha256s.set(sha256s.clone());
            all.update(format!("data set {} of ", part.dataset_id));
        }
        for sha256 in sha256s {
            all.update(sha256);
        }
        Ok(format!("{:x}", all.finalize()))
    }
}

/// The data sets of a file, directory or URI, and the other files of a directory.
///
/// # Errors
/// It cannot be read or downloaded, or holds no data set.
pub async fn inputs(uri: &str) -> Result<(Vec<InputFile>, Vec<PathBuf>)> {
    let (local, fetched) = match uri.split_once("://") {
        None => (PathBuf::from(uri), None),
        Some(("file", path)) => (PathBuf::from(path), None),
        Some(_) => {
            let folder = TempDir::with_prefix("cellql-").map_err(Error::internal(format!("downloading {uri}")))?;
            (fetch(uri, folder.path()).await?, Some(Arc::new(folder)))
        }
    };
    let (found, other) = cellql_formats::inputs(&local)?;
    let several = found.len() > 1;
    let input = |path: PathBuf| {
        let inside = path.strip_prefix(&local).map(|p| p.display().to_string()).unwrap_or_default();
        let uri = match (fetched.is_some(), several) {
            (false, _) => path.display().to_string(),
            (true, false) => uri.to_owned(),
            (true, true) => format!("{}/{inside}", uri.trim_end_matches('/')),
        };
        InputFile { uri, _downloaded: fetched.clone(), ..InputFile::local(path) }
    };
    let mut inputs = Vec::new();
    for path in found {
        inputs.extend(divided(input(path)).await?);
    }
    Ok((inputs, other))
}

/// The data sets of an export, each as an input of its own; any other file as it is.
async fn divided(input: InputFile) -> Result<Vec<InputFile>> {
    let parts = match recognise(&input.path) {
        Ok(Some(Format::Lance)) => datasets_of(&LanceTable::open(&input.path).await?.schema()),
        // A file that cannot be read is refused when it is ingested.
        _ => exported_datasets(&input.path).unwrap_or_default(),
    };
    if parts.is_empty() {
        return Ok(vec![input]);
    }
    let part = |part: ExportedDataset| InputFile { part: Some(Arc::new(part)), ..input.clone() };
    Ok(parts.into_iter().map(part).collect())
}

/// Downloads an object, or all objects below a prefix, into a folder. Returns the path of the object or prefix there.
async fn fetch(uri: &str, folder: &Path) -> Result<PathBuf> {
    let doing = || format!("downloading {uri}");
    let (objects, base) =
        ObjectStore::from_uri(uri).await.map_err(|e| Error::Request(format!("{uri} cannot be downloaded: {e}")))?;
    let listed: Vec<_> = objects.inner.list(Some(&base)).try_collect().await.map_err(Error::internal(doing()))?;
    let name = base.filename().unwrap_or("data").to_owned();
    let target = folder.join(&name);
    if listed.is_empty() {
        download(&objects, &base, &target).await.map_err(Error::internal(doing()))?;
        return Ok(target);
    }
    for object in &listed {
        let inside: PathBuf = match object.location.prefix_match(&base) {
            Some(parts) => parts.map(|p| p.as_ref().to_owned()).collect(),
            None => continue,
        };
        download(&objects, &object.location, &target.join(inside)).await.map_err(Error::internal(doing()))?;
    }
    Ok(target)
}

async fn download(
    objects: &ObjectStore,
    from: &object_store::path::Path,
    to: &Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    use object_store::ObjectStoreExt;
    if let Some(folder) = to.parent() {
        tokio::fs::create_dir_all(folder).await?;
    }
    let mut file = tokio::fs::File::create(to).await?;
    let mut bytes = objects.inner.get(from).await?.into_stream();
    while let Some(part) = bytes.next().await {
        file.write_all(&part?).await?;
    }
    file.flush().await?;
    Ok(())
}

/// SHA-256 of a file as lower-case hex.
pub(crate) fn file_sha256(file: &Path) -> Result<String> {
    let fail = |e: std::io::Error| Error::input(file, "file", format!("cannot be read: {e}"));
    // Opening a pipe can block, and a device has no end.
    if cellql_formats::is_directory(file)? {
        return Err(Error::input(file, "file", "is a directory; name a file in it"));
    }
    let mut handle = std::fs::File::open(file).map_err(fail)?;
    let mut hash = Sha256::new();
    std::io::copy(&mut handle, &mut hash).map_err(fail)?;
    Ok(format!("{:x}", hash.finalize()))
}
