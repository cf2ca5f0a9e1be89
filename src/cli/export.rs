//! `cellql export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::console::Console;
use super::shared_args::ReadArgs;
use super::shell::Interrupts;
use crate::error::{Error, Result};
use crate::export::{FileFormat, export};
use crate::query::Session;

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    store: ReadArgs,
    /// File to write: .h5ad, .parquet or .lance
    #[arg(value_name = "FILE")]
    out: PathBuf,
    /// Export only cells that satisfy this SQL condition [default: all cells]
    #[arg(long = "where", value_name = "CONDITION")]
    condition: Option<String>,
    /// File format [default: by the extension of FILE]
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: Option<ExportFormat>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ExportFormat {
    /// AnnData file
    H5ad,
    /// Apache Parquet file, a row per cell
    Parquet,
    /// Lance table, a row per cell
    Lance,
}

pub(super) async fn run(args: ExportArgs, console: &Console) -> Result<()> {
    let session = Session::open(args.store.open().await?).await?;
    let target = match args.to {
        Some(ExportFormat::H5ad) => FileFormat::H5ad,
        Some(ExportFormat::Parquet) => FileFormat::Parquet,
        Some(ExportFormat::Lance) => FileFormat::Lance,
        None => FileFormat::of(&args.out)?,
    };
    let progress = console.on_progress("writing cells", "cells");
    let interrupts = Interrupts::listen()?;
    let report = tokio::select! {
        done = export(&session, &args.out, target, args.condition.as_deref(), progress) => done,
        // What was written so far is deleted when the export is dropped.
        () = interrupts.next() => Err(Error::Request("the export was stopped by Ctrl-C".into())),
    };
    let report = match report {
        Ok(report) => report,
        Err(error) => return Err(session.explained(error).await),
    };
    let mut text = format!("{}: {} cells, {} genes", report.path.display(), report.cells, report.genes);
    if !report.embeddings.is_empty() {
        text.push_str(&format!(", embeddings {}", report.embeddings.join(", ")));
    }
    console.say(&text);
    console.notices(&session.take_notices());
    Ok(())
}
