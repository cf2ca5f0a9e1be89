//! Checkpoints: the state of a run after a step, in one file that is replaced atomically.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainingError};
use crate::loader_position::LoaderPosition;
use crate::optimiser::Moments;
use crate::settings::Settings;
use cellql_model::FileBytes;

/// Name of the checkpoint in the folder of a run.
pub const FILE: &str = "checkpoint.safetensors";
/// Key of the header entry that holds [`Progress`] as JSON.
const HEADER: &str = "cellql";

/// How far a run has come, and what it depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The run's settings.
    pub settings: Settings,
    /// SHA-256 of the model it began with.
    pub start: String,
    /// Version of the store it reads.
    pub store_version: u64,
    /// Digest of the cells that are read. Empty in checkpoints of earlier versions.
    #[serde(default)]
    pub cells_read: String,
    /// Completed steps.
    pub step: u64,
    /// SHA-256 of the linear model whose embeddings are predicted.
    #[serde(default)]
    pub target: Option<String>,
    /// The next cell, where batches mix data sets.
    #[serde(rename = "place")]
    pub position: LoaderPosition,
    /// The next cell of each data set by id, where batches are of one.
    #[serde(rename = "places", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub positions_by_dataset: BTreeMap<u32, LoaderPosition>,
    /// Completed passes over the cells.
    #[serde(default)]
    pub epoch: u64,
    /// Cells learned from.
    pub cells: u64,
    /// Exponential moving average of the loss.
    pub mean_loss: f64,
    /// The last loss on held-out cells.
    pub validation_loss: Option<f64>,
    /// Mean number of encoder tokens per cell, T and S included.
    pub mean_tokens: f64,
    /// Seconds of computation.
    pub seconds: f64,
}

/// Replaces a file atomically: writes it under another name, syncs it, and renames it.
///
/// # Errors
/// The folder cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let doing = || TrainingError::file(format!("writing {}", path.display()));
    let beside = path.with_extension("tmp");
    let mut file = File::create(&beside).map_err(doing())?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(doing())?;
    std::fs::rename(&beside, path).map_err(doing())?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(doing())
}

/// Writes weights, moments and progress to the folder of a run.
///
/// # Errors
/// The folder cannot be written.
pub fn save(folder: &Path, progress: &Progress, weights: &[f32], moments: &Moments) -> Result<()> {
    let doing = format!("writing the checkpoint in {}", folder.display());
    let header = serde_json::to_string(progress).map_err(TrainingError::file(&doing))?;
    let tensors = [
        ("mean", view(&moments.mean, &doing)?),
        ("square", view(&moments.square, &doing)?),
        ("weights", view(weights, &doing)?),
    ];
    let header = HashMap::from([(HEADER.to_owned(), header)]);
    let bytes = safetensors::serialize(tensors, Some(header)).map_err(TrainingError::file(&doing))?;
    write_whole(&folder.join(FILE), &bytes)
}

fn view<'a>(values: &'a [f32], doing: &str) -> Result<TensorView<'a>> {
    TensorView::new(Dtype::F32, vec![values.len()], bytemuck::cast_slice(values)).map_err(TrainingError::file(doing))
}

/// Reads the progress of a run without its weights; `None` if there is no checkpoint.
///
/// # Errors
/// As [`load`].
pub fn progress(folder: &Path) -> Result<Option<Progress>> {
    match bytes(folder)? {
        Some(bytes) => header(folder, &bytes).map(Some),
        None => Ok(None),
    }
}

/// Reads the checkpoint that [`save`] wrote; `None` if there is none.
///
/// # Errors
/// [`TrainingError::Checkpoint`] where the file is no checkpoint.
pub fn load(folder: &Path) -> Result<Option<(Progress, Vec<f32>, Moments)>> {
    let Some(bytes) = bytes(folder)? else { return Ok(None) };
    let progress = header(folder, &bytes)?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| damaged(folder, &e))?;
    let read = |name: &str| -> Result<Vec<f32>> {
        let tensor = tensors.tensor(name).map_err(|e| damaged(folder, &e))?;
        Ok(tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    };
    let (weights, moments) = (read("weights")?, Moments { mean: read("mean")?, square: read("square")? });
    if moments.mean.len() != weights.len() || moments.square.len() != weights.len() {
        return Err(damaged(folder, &"its parts differ in length"));
    }
    Ok(Some((progress, weights, moments)))
}

/// The file, mapped, so that reading the header reads nothing else.
fn bytes(folder: &Path) -> Result<Option<FileBytes>> {
    let path = folder.join(FILE);
    let is_there = path.try_exists().map_err(TrainingError::file(format!("reading {}", path.display())))?;
    Ok(is_there.then(|| FileBytes::map(&path)).transpose()?)
}

fn header(folder: &Path, bytes: &[u8]) -> Result<Progress> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| damaged(folder, &e))?;
    let header =
        metadata.metadata().as_ref().and_then(|m| m.get(HEADER)).ok_or_else(|| damaged(folder, &"no header"))?;
    serde_json::from_str(header).map_err(|e| damaged(folder, &e))
}

fn damaged(folder: &Path, why: &dyn std::fmt::Display) -> TrainingError {
    let problem = format!("it is damaged ({why}); remove the folder to begin anew");
    TrainingError::checkpoint(folder.join(FILE), problem)
}
