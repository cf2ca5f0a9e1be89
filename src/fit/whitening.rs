//! An output map that whitens a model's embeddings.

use std::collections::HashMap;
use std::time::Instant;

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use cellql_analysis::whitening::whitening;
use cellql_model::{DEFAULT_TOKEN_BUDGET, OutputMap, Provenance, Sample};
use cellql_schemas::cells;
use cellql_schemas::expr::Profiles;
use cellql_schemas::recipe::{Pool, Recipe};
use cellql_store::Store;
use cellql_store::progress::OnProgress;

use super::FitSettings;
use super::pca::spread;
use super::rows::Grouping;
use crate::error::{Error, Result};
use crate::model_registry::{self, ModelEntry};
use crate::pretrain::{SplitCounts, split};

/// Cells that are read and embedded together.
const BATCH_CELLS: usize = 512;

/// A fitted output map, and how it was fitted.
#[derive(Debug, Clone)]
pub struct FittedWhitening {
    /// The map.
    pub map: OutputMap,
    /// Provenance of the model with the map.
    pub provenance: Provenance,
    /// Numbers of cells.
    pub cells: SplitCounts,
    /// Cells whose embeddings the map was fitted to.
    pub embedded: u64,
    /// Share of the variance of the embeddings that the map keeps.
    pub explained: f64,
    /// Seconds of work.
    pub seconds: f64,
}

/// Fits a map from a model's embeddings (pool `all`, default depth) of the cells of a store to whitened components:
/// mean 0, variance 1 and no correlation over the cells, each group centred by itself.
///
/// # Errors
/// Settings that are invalid, a model that has an output map, too few cells, or a store that cannot be read.
pub async fn fit_whitening(
    store: &Store,
    entry: &ModelEntry,
    settings: &FitSettings,
    on_progress: OnProgress,
) -> Result<FittedWhitening> {
    let began = Instant::now();
    let grouping = settings.check(store).await?;
    let model = model_registry::load(store, entry).await?;
    if model.output_map().is_some() {
        return Err(Error::Request(format!(
            "model '{}' has an output map already; fit the whitening of the model without it",
            entry.name
        )));
    }
    let dim = model.dim(Pool::All);
    if settings.components > dim {
        let components = settings.components;
        return Err(Error::Request(format!("--components {components}: model '{}' has {dim} dimensions", entry.name)));
    }
    let placement = store.genes().await?.place(model.vocabulary());
    let split = split(store, settings.condition.as_deref(), &settings.hold_out, 0).await?;
    let counts = split.counts();
    let rows: Vec<u64> = spread(split.train, settings.cells).iter().collect();
    let columns: Vec<&str> = match &grouping {
        Grouping::None => vec![cells::EXPR],
        Grouping::Column(name) => vec![cells::EXPR, name],
    };
    let (mut vectors, mut groups, mut numbers) = (Vec::new(), Vec::new(), HashMap::new());
    let recipe = Recipe::of_model(&entry.name);
    const READING: &str = "reading cells to fit an output map";
    for (done, part) in rows.chunks(BATCH_CELLS).enumerate() {
        let batch = store.take(cells::TABLE, &columns, part).await?;
        let profiles = Profiles::new(batch.column(0)).map_err(Error::internal(READING))?;
        let samples = profiles.iter().map(|cell| cell.map(|profile| Sample { profile, total: None }));
        let embed = || model.embed(&recipe, samples, &placement, DEFAULT_TOKEN_BUDGET);
        let found = tokio::task::block_in_place(embed)?;
        let labels = batch.columns().get(1).map(|column| cast(column, &DataType::Utf8)).transpose();
        let labels = labels.map_err(Error::internal(READING))?;
        for (i, _) in found.refused.iter().enumerate().filter(|(_, refused)| refused.is_none()) {
            let label = labels.as_ref().map(|labels| labels.as_string::<i32>());
            let label = label.and_then(|labels| labels.is_valid(i).then(|| labels.value(i).to_owned()));
            let next = numbers.len() as u32;
            groups.push(*numbers.entry(label).or_insert(next));
            vectors.extend_from_slice(&found.vectors[i * dim..(i + 1) * dim]);
        }
        on_progress((done * BATCH_CELLS + part.len()) as u64, Some(rows.len() as u64));
    }
    let found = tokio::task::block_in_place(|| whitening(&vectors, dim, &groups, settings.components));
    if found.count == 0 {
        return Err(Error::Request(format!(
            "the embeddings of {} cells do not vary within their groups; select more cells, or another --balance",
            groups.len()
        )));
    }
    if found.count < settings.components {
        return Err(Error::Request(format!(
            "the embeddings of {} cells have {} directions, fewer than the {} components that were asked for; \
             select more cells or ask for fewer components",
            groups.len(),
            found.count,
            settings.components
        )));
    }
    Ok(FittedWhitening {
        map: OutputMap { mean: found.mean, matrix: found.matrix },
        provenance: settings.provenance(
            store,
            "whiten",
            SplitCounts { train: groups.len() as u64, ..counts },
            Some(entry.sha256.clone()),
        )?,
        cells: counts,
        embedded: groups.len() as u64,
        explained: found.explained,
        seconds: began.elapsed().as_secs_f64(),
    })
}
