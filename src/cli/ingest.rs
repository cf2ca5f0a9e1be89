//! `cellql ingest`.

use comfy_table::{ContentArrangement, Table, presets};

use super::args::IngestArgs;
use super::talk::Talk;
use crate::error::{Error, Result};
use crate::ingest::{IngestOptions, IngestReport, ingest};
use crate::store::Store;

pub(super) async fn run(args: IngestArgs, talk: &Talk) -> Result<()> {
    if args.name.is_some() && args.files.len() > 1 {
        return Err(Error::Request("--name names one data set, but several files are given".into()));
    }
    let options = IngestOptions {
        name: args.name,
        min_genes: args.min_genes,
        allow_unresolved: args.allow_unresolved,
        ..IngestOptions::default()
    };
    let mut store = Store::open(&args.store).await?;
    let mut reports = Vec::new();
    for file in &args.files {
        let progress = talk.progress("reading cells", "cells");
        let (next, report) = ingest(&store, file, &options, progress).await?;
        store = next;
        tell(&report, talk);
        reports.push(report);
    }
    if let Some(path) = args.report {
        let json = serde_json::to_vec_pretty(&reports).map_err(Error::store("writing the report"))?;
        std::fs::write(&path, json).map_err(Error::store(format!("writing the report to {}", path.display())))?;
    }
    Ok(())
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
