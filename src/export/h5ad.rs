//! Writes `.h5ad`: counts as CSR, obs, var, an `obsm` entry for each embedding table, and provenance in `uns/cellql`.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, StringArray};
use arrow::datatypes::{Float32Type, Schema, UInt64Type};
use arrow::record_batch::RecordBatch;
use cellql_formats::write::h5ad::{Column, H5adWriter, ObsmArray, columns_of};
use cellql_schemas::exported::ExportedDataset;
use cellql_schemas::expr::Profiles;
use cellql_schemas::{cells, embeddings};
use futures::StreamExt;

use super::obs::Obs;
use super::{Selection, no_column};
use crate::error::{Error, Result};
use crate::query::Session;
use cellql_store::progress::OnProgress;
use cellql_store::{Store, embedding_table};

/// Writes the file. Returns the names of the `obsm` entries.
pub(super) async fn write(
    session: &Session,
    selection: &Selection,
    path: &Path,
    on_progress: &OnProgress,
) -> Result<Vec<String>> {
    let gene_ids: Vec<u32> = selection.genes.iter().map(|(gene, _)| *gene).collect();
    let table = selection.store.table(cells::TABLE).await?;
    let schema = Schema::from(table.schema());
    let mut obs = Obs::new(schema.fields().iter().map(AsRef::as_ref));
    let mut writer = H5adWriter::create(path, selection.genes.len())?;
    let (mut ids, total) = (Vec::new(), selection.cell_ids.len() as u64);
    let mut batches = pin!(selection.rows(cells::TABLE).await?);
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        if batch.num_rows() == 0 {
            continue;
        }
        append(&mut writer, &batch, &gene_ids, &selection.store)?;
        ids.extend_from_slice(batch.column(0).as_primitive::<UInt64Type>().values());
        obs.add(&batch);
        on_progress(ids.len() as u64, Some(total));
    }
    let (barcodes, mut columns) = obs.finish(&selection.obs)?;
    let index = unique(&barcodes, &columns, &ids);
    if index.iter().map(String::as_str).ne(barcodes.iter().map(Option::unwrap_or_default)) {
        columns.push(Column::new(cells::BARCODE, Arc::new(barcodes)));
    }
    let (genes, mut var) = var(session, &selection.genes);
    if selection.datasets.len() > 1 {
        var.extend(selection.datasets.iter().map(|dataset| measured(dataset, &selection.genes)));
    }
    let mut provenance = selection.provenance.clone();
    let mut obsm = Vec::new();
    for recipe in session.engine().recipes() {
        let (embedding, made_by) = vectors(selection, &recipe, &ids).await?;
        obsm.push(embedding);
        provenance.insert(format!("X_{recipe}"), made_by);
    }
    writer.finish((&index, &columns), (&genes, &var), &obsm, &provenance)?;
    Ok(obsm.into_iter().map(|entry| entry.name).collect())
}

/// Appends the expression of a batch of `cells`. `gene_ids` are those of the columns, ascending.
fn append(writer: &mut H5adWriter, batch: &RecordBatch, gene_ids: &[u32], store: &Store) -> Result<()> {
    let missing = || no_column(store, cells::TABLE, cells::EXPR);
    let expr = batch.column_by_name(cells::EXPR).ok_or_else(missing)?;
    let profiles = Profiles::new(expr).map_err(Error::internal("reading expressions"))?;
    let (mut starts, mut columns, mut values) = (vec![0], Vec::new(), Vec::new());
    for profile in profiles.iter() {
        if let Some(profile) = profile {
            columns_of(profile.gene_ids, gene_ids, &mut columns).map_err(|gene| {
                let problem = format!(
                    "a cell expresses gene {gene}, which its data set does not measure; ingest that data set again"
                );
                Error::damaged(format!("table {} of {}", cells::TABLE, store.uri()), problem)
            })?;
            values.extend_from_slice(profile.values);
        }
        starts.push(values.len());
    }
    Ok(writer.append(&starts, &columns, &values)?)
}

/// Unique names of the cells: their barcodes; if those are not unique, followed by the data set's id; if that is not
/// enough, followed by the cell's id instead.
fn unique(barcodes: &StringArray, columns: &[Column], ids: &[u64]) -> Vec<String> {
    let differ = |names: &[String]| names.iter().collect::<HashSet<_>>().len() == names.len();
    let plain: Vec<String> = barcodes.iter().map(|b| b.unwrap_or_default().to_owned()).collect();
    if differ(&plain) {
        return plain;
    }
    let dataset = columns
        .iter()
        .find(|c| c.name == cells::DATASET_ID)
        .and_then(|c| c.values.as_primitive_opt::<arrow::datatypes::Int64Type>().cloned());
    if let Some(dataset) = dataset {
        let named: Vec<String> = plain.iter().zip(dataset.values()).map(|(b, d)| format!("{b}-{d}")).collect();
        if differ(&named) {
            return named;
        }
    }
    plain.iter().zip(ids).map(|(barcode, id)| format!("{barcode}-{id}")).collect()
}

/// Index and columns of `var`.
fn var(session: &Session, genes: &[(u32, String)]) -> (Vec<String>, Vec<Column>) {
    let exported: Vec<_> = genes.iter().map(|(gene, _)| session.engine().genes().exported(*gene)).collect();
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut index = Vec::with_capacity(genes.len());
    for (gene, (_, name)) in exported.iter().zip(genes) {
        let symbol = gene.as_ref().map_or(name, |g| &g.symbol).clone();
        let times = seen.entry(symbol.clone()).or_insert(0);
        index.push(if *times == 0 { symbol } else { format!("{symbol}-{times}") });
        *times += 1;
    }
    let text = |of: &dyn Fn(usize) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values((0..genes.len()).map(of)))
    };
    let of = |i: usize| exported[i].as_ref();
    let columns = vec![
        Column::new("gene_ids", text(&|i| of(i).and_then(|g| g.ensembl_id.clone()).unwrap_or_default())),
        Column::new("hgnc_id", text(&|i| of(i).and_then(|g| g.hgnc_id.clone()).unwrap_or_default())),
        Column::new("source_name", text(&|i| genes[i].1.clone())),
        Column::new("gene_id", Arc::new(Int64Array::from_iter_values(genes.iter().map(|(g, _)| i64::from(*g))))),
    ];
    (index, columns)
}

/// Whether a data set measured each gene, as a column of `var`: `measured_3` for the data set 3.
fn measured(dataset: &ExportedDataset, genes: &[(u32, String)]) -> Column {
    let flags: BooleanArray = genes.iter().map(|(gene, _)| Some(dataset.has_measured(*gene))).collect();
    Column::new(format!("measured_{}", dataset.dataset_id), Arc::new(flags))
}

/// Vectors of the cells in their order, NaN for a cell without one, and the metadata of the embedding table as JSON.
async fn vectors(selection: &Selection, recipe: &str, ids: &[u64]) -> Result<(ObsmArray, String)> {
    let name = embedding_table(recipe);
    let table = selection.store.table(&name).await?;
    let schema = Schema::from(table.schema());
    let made_by = serde_json::json!(schema.metadata()).to_string();
    let places: HashMap<u64, usize> = ids.iter().copied().zip(0..).collect();
    let (mut width, mut rows) = (0usize, Vec::new());
    let mut batches = pin!(selection.rows(&name).await?);
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        let of = batch.column_by_name(embeddings::CELL_ID).zip(batch.column_by_name(embeddings::VECTOR));
        let Some((ids, vectors)) = of else { continue };
        let vectors = vectors.as_fixed_size_list();
        if rows.is_empty() {
            width = vectors.value_length() as usize;
            rows = vec![f32::NAN; width * places.len()];
        }
        for (i, id) in ids.as_primitive::<UInt64Type>().values().iter().enumerate() {
            if let Some(place) = places.get(id).filter(|_| vectors.is_valid(i)) {
                let vector = vectors.value(i);
                rows[place * width..(place + 1) * width].copy_from_slice(vector.as_primitive::<Float32Type>().values());
            }
        }
    }
    Ok((ObsmArray { name: format!("X_{recipe}"), dim: width, values: rows }, made_by))
}
