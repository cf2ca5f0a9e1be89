//! `cellql demo`: real cells, a model, an index, and the questions they answer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, UInt64Type};
use cellql_schemas::recipe::{Depth, Dtype, Pool};
use clap::Args;

use super::console::Console;
use super::embed::RecipeArgs;
use super::output::{self, Format, text as say};
use super::shared_args::DeviceArgs;
use super::{index, ingest, model};
use crate::error::{Error, Result};
use crate::evaluate::scatter::{principal_plane, scatter};
use crate::ingest::{IngestOptions, InputFile, ingest as ingest_file};
use crate::jobs::Shard;
use crate::query::Session;
use cellql_store::Store;

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Store to create: a directory
    store: String,
}

/// Human pancreas cells of Baron et al. 2016; see demo/README.md.
const CELLS: &[u8] = include_bytes!("../../demo/baron_pancreas.h5ad");
const FILE: &str = "baron_pancreas.h5ad";

/// The questions of the demo, with the queries that answer them.
const QUESTIONS: &[(&str, &str)] = &[
    (
        "How many cells of each type, and how much insulin and glucagon do they express?",
        "SELECT cell_type, count(*) AS cells,
       round(avg(expression(log_normalise(expr), 'INS')), 2) AS ins,
       round(avg(expression(log_normalise(expr), 'GCG')), 2) AS gcg
FROM cells GROUP BY cell_type ORDER BY cells DESC",
    ),
    (
        "An embedding is a column like any other. embed() reads the stored ones:",
        "SELECT cell_id, cell_type, genes_seen(expr) AS genes_seen, embed(expr) AS embedding
FROM cells ORDER BY cell_id LIMIT 3",
    ),
    (
        "The five cells most like a beta cell of donor {donor}, whom the model never saw:",
        "SELECT cell_id, round(_distance, 4) AS distance, cell_type, donor_id
FROM vector_search('cells', {cell}, k => 5, where => 'donor_id <> ''{donor}''')",
    ),
    (
        "The same question in plain SQL:",
        "SELECT e.cell_id, round(cosine_distance(e.vector, q.vector), 4) AS distance, c.cell_type, c.donor_id
FROM embeddings e JOIN cells c USING (cell_id), embeddings q
WHERE q.cell_id = {cell} AND c.donor_id <> '{donor}'
ORDER BY cosine_distance(e.vector, q.vector) LIMIT 5",
    ),
];

pub(super) async fn run(args: DemoArgs, console: &Console) -> Result<()> {
    let uri = &args.store;
    say(&format!("# cellql init {uri}"))?;
    let store = model::add_shipped(&Store::init(uri).await?, console).await?;
    say(&format!("\n# cellql ingest: {FILE}, human pancreas, Baron et al. 2016"))?;
    let folder = tempfile::tempdir().map_err(Error::internal("unpacking the demo's cells"))?;
    let file = folder.path().join(FILE);
    std::fs::write(&file, CELLS).map_err(Error::internal("unpacking the demo's cells"))?;
    let progress = console.on_progress("reading cells", "cells");
    let input = InputFile::local(&file).from_elsewhere(format!("demo/{FILE}"));
    let (store, report) = ingest_file(&store, &input, &IngestOptions::default(), progress).await?;
    ingest::print_report(&report, console);

    say(&format!("\n# cellql index build {uri}"))?;
    let recipe = RecipeArgs {
        store: uri.to_owned(),
        model: None,
        pool: Pool::default(),
        depth: Depth::default(),
        input: cellql_schemas::recipe::Input::default(),
        precision: Dtype::default(),
        total: None,
        condition: None,
        shard: Shard::default(),
        publish_every: 30.0,
        memory: None,
        device: DeviceArgs { device: cellql_model::Device::Cpu },
    };
    let store = index::build_over(&store, &recipe, None, None, console).await?;
    let session = Session::open(store).await?;
    ask(&session, console).await?;
    let picture = PathBuf::from(format!("{}.svg", uri.trim_end_matches('/')));
    draw(&session, &picture).await?;
    say(&format!(
        "\n# The cells, drawn by the first two principal components of their embeddings:\n{}",
        picture.display()
    ))?;
    say(&format!(
        "\nThe store is {uri}. Go on with:\n  cellql sql {uri} -c \"SELECT cell_type, count(*) FROM cells \
         GROUP BY 1\"\n  \
         cellql search {uri} --cell 0 -k 10"
    ))
}

async fn ask(session: &Session, console: &Console) -> Result<()> {
    let (cell, donor) = first_beta_cell(session).await?;
    for (why, query) in QUESTIONS {
        let query = query.replace("{cell}", &cell.to_string()).replace("{donor}", &donor);
        show(session, &why.replace("{donor}", &donor), &query).await?;
    }
    let votes = "SELECT cell_type, count(*) AS cells\nFROM vector_search('cells', {cell}, k => 10)\n\
                 GROUP BY cell_type ORDER BY cells DESC";
    for kind in ["alpha", "ductal", "endothelial"] {
        let Some(cell) = first_of_type(session, kind).await? else { continue };
        let query = votes.replace("{cell}", &cell.to_string());
        show(session, &format!("Types of the ten nearest neighbours of cell {cell}, a cell of type {kind}:"), &query)
            .await?;
    }
    console.notices(&crate::query::Notices { searches: Vec::new(), ..session.take_notices() });
    Ok(())
}

/// Draws the cells by the first two principal components of their embeddings, coloured by type.
async fn draw(session: &Session, out: &Path) -> Result<()> {
    const DOING: &str = "drawing the demo's cells";
    let query = "SELECT e.vector, c.cell_type FROM embeddings e JOIN cells c USING (cell_id) ORDER BY c.cell_id";
    let (mut vectors, mut labels) = (Vec::new(), Vec::new());
    for batch in session.sql(query).await?.collect().await? {
        let kinds = cast(batch.column(1), &DataType::Utf8).map_err(Error::internal(DOING))?;
        labels.extend(kinds.as_string::<i32>().iter().map(|kind| kind.unwrap_or_default().to_owned()));
        let values = Arc::clone(batch.column(0).as_fixed_size_list().values());
        vectors.extend_from_slice(values.as_primitive::<Float32Type>().values());
    }
    let dim = vectors.len() / labels.len().max(1);
    let points = principal_plane(&vectors, dim);
    let failed = |e| Error::input(out, "picture", format!("cannot be written: {e}"));
    std::fs::write(out, scatter("Embeddings of the demo's cells, by type", &points, &labels)).map_err(failed)
}

async fn show(session: &Session, why: &str, query: &str) -> Result<()> {
    say(&format!("\n# {why}\n{query};"))?;
    output::write(session.sql(query).await?, Format::Table).await
}

async fn first_beta_cell(session: &Session) -> Result<(u64, String)> {
    let query = "SELECT cell_id, donor_id FROM cells WHERE cell_type = 'beta' AND donor_id = 'human2' ORDER BY cell_id \
                 LIMIT 1";
    let rows = session.sql(query).await?.collect().await?;
    let row = rows.iter().find(|b| b.num_rows() > 0);
    let row = row.ok_or_else(|| Error::Request("the demo's cells hold no beta cell".into()))?;
    let donor = cast(row.column(1), &DataType::Utf8).map_err(Error::internal("reading the demo's cells"))?;
    Ok((row.column(0).as_primitive::<UInt64Type>().value(0), donor.as_string::<i32>().value(0).to_owned()))
}

async fn first_of_type(session: &Session, kind: &str) -> Result<Option<u64>> {
    let query = format!("SELECT cell_id FROM cells WHERE cell_type = '{kind}' ORDER BY cell_id LIMIT 1");
    let rows = session.sql(&query).await?.collect().await?;
    Ok(rows.iter().find(|b| b.num_rows() > 0).map(|b| b.column(0).as_primitive::<UInt64Type>().value(0)))
}
