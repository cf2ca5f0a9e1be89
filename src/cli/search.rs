//! `cellql search`.

use cellql_schemas::suggest::did_you_mean;

use super::args::SearchArgs;
use super::output;
use super::talk::Talk;
use crate::error::{Error, Result};
use crate::ingest::{IngestOptions, inputs};
use crate::jobs::{AnnotateOptions, annotate};
use crate::query::Session;

pub(super) async fn run(args: SearchArgs, talk: &Talk) -> Result<()> {
    let session = Session::open_on(super::open(&args.store).await?, args.device).await?;
    let query = match &args.query {
        None => near_one(&session, &args).await?,
        Some(file) => near_many(&session, &args, file, talk).await?,
    };
    let written = output::write(session.sql(&query).await?, args.format).await;
    talk.notices(&session.take_notices());
    written
}

fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Columns of cells to show, after checking that there are such.
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
    let given = [("where", &args.filter), ("recipe", &args.recipe), ("metric", &metric), ("group", &args.group)];
    for (name, value) in given {
        if let Some(value) = value {
            options.push_str(&format!(", {name} => {}", text(value)));
        }
    }
    if let Some(gene) = &args.gene {
        return Ok(format!("SELECT * FROM vector_search('genes', {}, {options})", text(gene)));
    }
    let cell = args.cell.ok_or_else(|| Error::Request("search from what? --cell, --gene or --query".into()))?;
    let shown: String = columns(session, args).await?.iter().map(|c| format!(", {}", quoted(c))).collect();
    Ok(format!("SELECT cell_id, _distance{shown} FROM vector_search('cells', {cell}, {options})"))
}

/// Neighbours of every cell of a file, or what they vote for.
async fn near_many(session: &Session, args: &SearchArgs, file: &str, talk: &Talk) -> Result<String> {
    let shown = columns(session, args).await?;
    let (mut found, _) = inputs(file).await?;
    let (Some(input), true) = (found.pop(), found.is_empty()) else {
        return Err(Error::Request(format!("--query {file}: name one file of cells")));
    };
    let asked =
        AnnotateOptions { recipe: args.recipe.clone(), k: args.k, metric: args.metric, condition: args.filter.clone() };
    let options = IngestOptions { min_genes: 0, ..IngestOptions::default() };
    let progress = talk.progress("embedding cells", "cells");
    let found = annotate(session.engine(), &input, &options, &asked, progress).await?;
    talk.say(&format!("{} cells of {file}, {} neighbours each: {}", found.barcodes.len(), args.k, found.method));
    session.put("query_cells", found.queries()?)?;
    session.put("nearest", found.rows()?)?;
    Ok(match &args.vote {
        Some(column) => votes(column),
        None => {
            let shown: String = shown.iter().map(|c| format!(", c.{}", quoted(c))).collect();
            format!(
                "SELECT q.barcode AS query, n.rank, n.cell_id, n._distance{shown} FROM query_cells q \
                 JOIN nearest n ON n.query_row = q.query_row JOIN cells c ON c.cell_id = n.cell_id ORDER BY q.query_row, n.rank"
            )
        }
    })
}

/// For each cell the value that most of its neighbours have; of equally many, that of the nearer ones. Neighbours without a
/// value do not vote. `confidence` is the share of the votes.
fn votes(column: &str) -> String {
    let column = quoted(column);
    format!(
        "SELECT q.barcode AS query, v.value AS {column}, v.confidence, v.votes, v.nearest FROM query_cells q LEFT JOIN \
         (SELECT query_row, value, CAST(votes AS DOUBLE) / sum(votes) OVER (PARTITION BY query_row) AS confidence, votes, nearest, \
         row_number() OVER (PARTITION BY query_row ORDER BY votes DESC, away, value) AS place FROM \
         (SELECT n.query_row AS query_row, c.{column} AS value, count(*) AS votes, avg(n._distance) AS away, \
         min(n._distance) AS nearest FROM nearest n JOIN cells c ON c.cell_id = n.cell_id WHERE c.{column} IS NOT NULL \
         GROUP BY n.query_row, c.{column})) v ON v.query_row = q.query_row AND v.place = 1 ORDER BY q.query_row"
    )
}
