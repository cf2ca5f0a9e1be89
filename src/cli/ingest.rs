//! `cellql ingest`.

use std::io::IsTerminal;
use std::path::PathBuf;

use cellql_formats::OpenOptions;
use cellql_schemas::recipe::Input;
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};

use super::console::Console;
use super::output::TEXT_WIDTH;
use super::shared_args::{CELLS, OUTPUT, check_writable, one_of, open_to_write};
use crate::error::{Error, Result};
use crate::ingest::{IngestOptions, IngestReport, ObsReport, ingest, inputs};

/// Heading of options about the content of the files.
const FILES: &str = "Reading files";

#[derive(Debug, Args)]
pub(super) struct IngestArgs {
    /// Store: a directory
    store: String,
    /// Files or directories: .h5ad, 10x .h5, matrix.mtx, .loom, .csv/.tsv, .npz, Parquet, Lance
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
    /// Name of the data set, if FILE is one file [default: the file's name]
    #[arg(long)]
    name: Option<String>,
    /// Keep only cells that express more than this number of genes [default: 200; 0 for exports of cellql]
    #[arg(long, value_name = "N", help_heading = CELLS)]
    min_genes: Option<u32>,
    /// Leave out cells that another data set of the store already has
    #[arg(long, help_heading = CELLS)]
    skip_duplicates: bool,
    /// Kind of the values [default: counts where the file has or allows them, else log]
    #[arg(long, value_parser = one_of::<Input>(Input::ALL.map(Input::name)), help_heading = FILES)]
    input: Option<Input>,
    /// Read this layer of an AnnData or loom file [default: the matrix with raw counts, if there is one]
    #[arg(long, conflicts_with = "raw", help_heading = FILES)]
    layer: Option<String>,
    /// Read raw.X of an AnnData file
    #[arg(long, help_heading = FILES)]
    raw: bool,
    /// Genome to read from a 10x file that has several [default: the human one]
    #[arg(long, help_heading = FILES)]
    genome: Option<String>,
    /// Gene names for an .npz file or an .mtx file without them: a text file with one name per line
    #[arg(long, value_name = "FILE", help_heading = FILES)]
    genes: Option<PathBuf>,
    /// Barcodes for an .npz file or an .mtx file without them: a text file with one barcode per line
    #[arg(long, value_name = "FILE", help_heading = FILES)]
    barcodes: Option<PathBuf>,
    /// Accept a file even if most of its gene names are not names of human genes
    #[arg(long, help_heading = FILES)]
    allow_unresolved: bool,
    /// Write a report on each file as JSON to this file
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    report: Option<PathBuf>,
}

pub(super) async fn run(args: IngestArgs, console: &Console) -> Result<()> {
    if args.name.is_some() && args.files.len() > 1 {
        return Err(Error::Request("--name names one data set, but several files are given".into()));
    }
    let options = IngestOptions {
        name: args.name.clone(),
        min_genes: args.min_genes,
        allow_unresolved: args.allow_unresolved,
        skip_duplicates: args.skip_duplicates,
        values: args.input,
        open: OpenOptions {
            layer: args.layer,
            raw: args.raw,
            genome: args.genome,
            genes: args.genes,
            barcodes: args.barcodes,
            part: None,
        },
    };
    if let Some(path) = &args.report {
        check_writable(path, "report", "--report")?;
    }
    let mut store = open_to_write(&args.store, console).await?;
    let mut reports = Vec::new();
    for file in &args.files {
        let (found, other) = inputs(file).await?;
        if args.name.is_some() && found.len() > 1 {
            return Err(Error::Request(format!("--name names one data set, but {file} holds {}", found.len())));
        }
        for path in &other {
            console.say(&format!("{}: skipped, not a file of cells", path.display()));
        }
        for input in &found {
            let progress = console.on_progress("reading cells", "cells");
            let (next, report) = ingest(&store, input, &options, progress).await?;
            store = next;
            print_report(&report, console);
            reports.push(report);
        }
    }
    if let Some(path) = args.report {
        let json = serde_json::to_vec_pretty(&reports).map_err(Error::internal("writing the report"))?;
        std::fs::write(&path, json).map_err(Error::internal(format!("writing the report to {}", path.display())))?;
    }
    Ok(())
}

fn renamed(column: &ObsReport) -> String {
    format!("{} → {}", column.source, column.name)
}

/// Prints what was read of a file, and how its genes were resolved.
pub(super) fn print_report(report: &IngestReport, console: &Console) {
    let file = &report.source_uri;
    let Some(id) = report.dataset_id else {
        console.say(&format!("{file}: already in the store as data set '{}'; skipped", report.name));
        return;
    };
    console.say(&format!(
        "{file}: data set {id} '{}': {} of {} cells kept, values are {}",
        report.name, report.cells_kept, report.cells_read, report.value_kind
    ));
    for note in &report.notes {
        console.say(&format!("  {note}"));
    }
    if report.cells_duplicate > 0 {
        console.say(&format!(
            "  {} cells are also in another data set (column duplicate_of; --skip-duplicates leaves them out)",
            report.cells_duplicate
        ));
    }
    let renamed: Vec<String> = report.obs_columns.iter().filter(|c| c.source != c.name).map(renamed).collect();
    if !renamed.is_empty() {
        console.say(&format!("  renamed obs columns: {}", renamed.join(", ")));
    }
    for (reason, cells) in &report.cells_dropped {
        console.say(&format!("  dropped {cells} cells: {reason}"));
    }
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    if !std::io::stderr().is_terminal() {
        table.set_width(TEXT_WIDTH);
    }
    table.set_header(["genes resolved by", "number", "examples"]);
    for (what, number, examples) in report.genes.rows().into_iter().filter(|(_, n, _)| *n > 0) {
        table.add_row([what.to_owned(), number.to_string(), examples]);
    }
    let of = format!("{} of {}", report.genes.resolved(), report.genes.features);
    table.add_row(["resolved".to_owned(), of, String::new()]);
    console.say(&table.to_string());
}
