//! `cellql ingest`.

use cellql_formats::OpenOptions;
use comfy_table::{ContentArrangement, Table, presets};

use super::args::IngestArgs;
use super::talk::Talk;
use crate::error::{Error, Result};
use crate::ingest::{IngestOptions, IngestReport, ObsReport, ingest, inputs};

pub(super) async fn run(args: IngestArgs, talk: &Talk) -> Result<()> {
    if args.name.is_some() && args.files.len() > 1 {
        return Err(Error::Request("--name names one data set, but several files are given".into()));
    }
    let wrong = |e: cellql_schemas::recipe::RecipeError| Error::Request(format!("--{e}"));
    let options = IngestOptions {
        name: args.name.clone(),
        min_genes: args.min_genes,
        allow_unresolved: args.allow_unresolved,
        skip_duplicates: args.skip_duplicates,
        values: args.input.as_deref().map(str::parse).transpose().map_err(wrong)?,
        open: OpenOptions {
            layer: args.layer,
            raw: args.raw,
            genome: args.genome,
            genes: args.genes,
            barcodes: args.barcodes,
        },
    };
    let mut store = super::open_to_write(&args.store, talk).await?;
    let mut reports = Vec::new();
    for file in &args.files {
        let (found, other) = inputs(file).await?;
        if args.name.is_some() && found.len() > 1 {
            return Err(Error::Request(format!("--name names one data set, but {file} holds {}", found.len())));
        }
        for path in &other {
            talk.say(&format!("{}: no file of cells, left alone", path.display()));
        }
        for input in &found {
            let progress = talk.progress("reading cells", "cells");
            let (next, report) = ingest(&store, input, &options, progress).await?;
            store = next;
            tell(&report, talk);
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

/// Tells a person what became of a file.
pub(super) fn tell(report: &IngestReport, talk: &Talk) {
    let file = &report.source_uri;
    let Some(id) = report.dataset_id else {
        talk.say(&format!("{file}: already in the store as data set '{}'; nothing was done", report.name));
        return;
    };
    talk.say(&format!(
        "{file}: data set {id} '{}': {} of {} cells kept, values are {}",
        report.name, report.cells_kept, report.cells_read, report.value_kind
    ));
    for note in &report.notes {
        talk.say(&format!("  {note}"));
    }
    if report.cells_duplicate > 0 {
        let of = report.cells_duplicate;
        talk.say(&format!(
            "  {of} cells are in another data set too (duplicate_of tells which; --skip-duplicates drops them)"
        ));
    }
    let renamed: Vec<String> = report.obs_columns.iter().filter(|c| c.source != c.name).map(renamed).collect();
    if !renamed.is_empty() {
        talk.say(&format!("  obs columns under other names: {}", renamed.join(", ")));
    }
    for (reason, cells) in &report.cells_dropped {
        talk.say(&format!("  dropped {cells} cells: {reason}"));
    }
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["genes known by", "number", "for example"]);
    for (what, number, examples) in report.genes.rows().into_iter().filter(|(_, n, _)| *n > 0) {
        table.add_row([what.to_owned(), number.to_string(), examples]);
    }
    let of = format!("{} of {}", report.genes.resolved(), report.genes.features);
    table.add_row(["genes with an identity".to_owned(), of, String::new()]);
    talk.say(&table.to_string());
}
