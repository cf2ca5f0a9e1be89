//! `cellql search`.

use cellql_schemas::suggest::did_you_mean;
use cellql_store::sql::{quote_identifier, quote_literal};
use clap::Args;

use super::console::Console;
use super::output::{self, Format};
use super::shared_args::{CELLS, DeviceArgs, OUTPUT, ReadArgs, one_of};
use crate::error::{Error, Result};
use crate::index::Metric;
use crate::ingest::{IngestOptions, inputs};
use crate::jobs::{AnnotateOptions, annotate};
use crate::query::Session;

/// Heading of options that say what neighbours are searched for.
const START: &str = "Search from";

#[derive(Debug, Args)]
pub(super) struct SearchArgs {
    #[command(flatten)]
    store: ReadArgs,
    /// Find the neighbours of this cell
    #[arg(long, value_name = "CELL_ID", value_parser = cell_id, help_heading = START,
          required_unless_present_any = ["gene", "query"], conflicts_with_all = ["gene", "query"])]
    cell: Option<u64>,
    /// Find genes whose embeddings are near that of this gene, given by any of its names
    #[arg(long, conflicts_with = "query", help_heading = START)]
    gene: Option<String>,
    /// Find the neighbours of each cell of this file; its cells are embedded first
    #[arg(long, value_name = "FILE", help_heading = START)]
    query: Option<String>,
    /// Number of neighbours
    #[arg(short, value_name = "N", default_value_t = 10)]
    k: usize,
    /// Distance metric
    #[arg(long, value_parser = one_of::<Metric>(Metric::ALL.map(Metric::name)), default_value = "cosine")]
    metric: Metric,
    /// Name of the embeddings to search in [default: the only ones of the store]
    #[arg(long)]
    recipe: Option<String>,
    /// Find only neighbours that satisfy this SQL condition
    #[arg(long = "where", value_name = "CONDITION", help_heading = CELLS)]
    condition: Option<String>,
    /// With --gene: search the gene embeddings of this group of cells [default: the only group]
    #[arg(long, requires = "gene", help_heading = CELLS)]
    group: Option<String>,
    /// With --query: predict this column of each cell by majority vote of its neighbours
    #[arg(long, value_name = "COLUMN", requires = "query", help_heading = OUTPUT)]
    vote: Option<String>,
    /// Columns of `cells` to show, separated by commas [default: barcode and all obs columns]
    #[arg(long, value_name = "COLUMN", value_delimiter = ',', help_heading = OUTPUT)]
    columns: Vec<String>,
    /// Format of the result
    #[arg(long, value_enum, default_value_t = Format::Table, help_heading = OUTPUT)]
    format: Format,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Parses a cell_id.
fn cell_id(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| {
        format!(
            "--cell takes a cell_id (a number); find it with: cellql sql STORE -c \"SELECT cell_id FROM cells WHERE \
             barcode = {}\"",
            quote_literal(text)
        )
    })
}

pub(super) async fn run(args: SearchArgs, console: &Console) -> Result<()> {
    let session = Session::open_on(args.store.open().await?, args.device.device).await?;
    let query = match &args.query {
        None => near_one(&session, &args).await?,
        Some(file) => near_many(&session, &args, file, console).await?,
    };
    let written = match session.sql(&query).await {
        Ok(frame) => output::write(frame, args.format).await,
        Err(error) => Err(error),
    };
    console.notices(&session.take_notices());
    match written {
        Err(error) => Err(session.explained(error).await),
        Ok(()) => Ok(()),
    }
}

/// Columns of `cells` to show. The error names one that does not exist.
async fn columns(session: &Session, args: &SearchArgs) -> Result<Vec<String>> {
    let all: Vec<String> = std::iter::once("barcode".to_owned()).chain(session.obs_columns().await?).collect();
    let mut asked = args.columns.iter().chain(&args.vote);
    if let Some(name) = asked.find(|name| !all.contains(name)) {
        let hint = did_you_mean(name, all.iter().map(String::as_str));
        return Err(Error::Request(format!("the table cells has no column '{name}'.{hint}")));
    }
    Ok(if args.columns.is_empty() { all } else { args.columns.clone() })
}

/// Neighbours of a cell or a gene of the store.
async fn near_one(session: &Session, args: &SearchArgs) -> Result<String> {
    let mut options = format!("k => {}", args.k);
    let metric = Some(args.metric.name().to_owned());
    let given = [("where", &args.condition), ("recipe", &args.recipe), ("metric", &metric), ("group", &args.group)];
    for (name, value) in given {
        if let Some(value) = value {
            options.push_str(&format!(", {name} => {}", quote_literal(value)));
        }
    }
    if let Some(gene) = &args.gene {
        return Ok(format!("SELECT * FROM vector_search('genes', {}, {options})", quote_literal(gene)));
    }
    let cell = args.cell.ok_or_else(|| Error::Request("give one of --cell, --gene or --query".into()))?;
    let shown: String = columns(session, args).await?.iter().map(|c| format!(", {}", quote_identifier(c))).collect();
    Ok(format!("SELECT cell_id, _distance{shown} FROM vector_search('cells', {cell}, {options})"))
}

/// Neighbours of each cell of a file, or the result of their votes.
async fn near_many(session: &Session, args: &SearchArgs, file: &str, console: &Console) -> Result<String> {
    let shown = columns(session, args).await?;
    let (mut found, _) = inputs(file).await?;
    let (Some(input), true) = (found.pop(), found.is_empty()) else {
        return Err(Error::Request(format!("--query {file}: expected one file of cells")));
    };
    let asked = AnnotateOptions {
        recipe: args.recipe.clone(),
        k: args.k,
        metric: args.metric,
        condition: args.condition.clone(),
    };
    let options = IngestOptions { min_genes: Some(0), ..IngestOptions::default() };
    let progress = console.on_progress("embedding cells", "cells");
    let found = annotate(session.engine(), &input, &options, &asked, progress).await?;
    console.say(&format!("{} cells of {file}, {} neighbours each: {}", found.barcodes.len(), args.k, found.method));
    session.put("query_cells", found.queries()?)?;
    session.put("nearest", found.rows()?)?;
    Ok(match &args.vote {
        Some(column) => votes(column),
        None => {
            let shown: String = shown.iter().map(|c| format!(", c.{}", quote_identifier(c))).collect();
            format!(
                "SELECT q.barcode AS query, n.rank, n.cell_id, n._distance{shown} FROM query_cells q \
                 JOIN nearest n ON n.query_row = q.query_row JOIN cells c ON c.cell_id = n.cell_id \
                 ORDER BY q.query_row, n.rank"
            )
        }
    })
}

/// A query that gives, for each cell, the value that most of its neighbours have. If several values have as many votes,
/// the one of the nearer neighbours wins. Neighbours without a value do not vote. `confidence` is the winner's share of
/// the votes.
fn votes(column: &str) -> String {
    let column = quote_identifier(column);
    let counted = format!(
        "SELECT n.query_row AS query_row, c.{column} AS value, count(*) AS votes, avg(n._distance) AS away, \
         min(n._distance) AS nearest FROM nearest n JOIN cells c ON c.cell_id = n.cell_id \
         WHERE c.{column} IS NOT NULL GROUP BY n.query_row, c.{column}"
    );
    let ranked = format!(
        "SELECT query_row, value, CAST(votes AS DOUBLE) / sum(votes) OVER (PARTITION BY query_row) AS confidence, \
         votes, nearest, row_number() OVER (PARTITION BY query_row ORDER BY votes DESC, away, value) AS place \
         FROM ({counted})"
    );
    format!(
        "SELECT q.barcode AS query, v.value AS {column}, v.confidence, v.votes, v.nearest FROM query_cells q \
         LEFT JOIN ({ranked}) v ON v.query_row = q.query_row AND v.place = 1 ORDER BY q.query_row"
    )
}
