//! `cellql export`.

use super::args::{ExportArgs, ExportFormat};
use super::talk::Talk;
use crate::error::Result;
use crate::export::{FileFormat, export};
use crate::query::Session;

pub(super) async fn run(args: ExportArgs, talk: &Talk) -> Result<()> {
    let session = Session::open(super::open(&args.store).await?).await?;
    let target = match args.to {
        Some(ExportFormat::H5ad) => FileFormat::H5ad,
        Some(ExportFormat::Parquet) => FileFormat::Parquet,
        Some(ExportFormat::Lance) => FileFormat::Lance,
        None => FileFormat::of(&args.out)?,
    };
    let progress = talk.progress("writing cells", "cells");
    let report = export(&session, &args.out, target, args.condition.as_deref(), progress).await?;
    let mut text = format!("{}: {} cells, {} genes", report.path.display(), report.cells, report.genes);
    if !report.embeddings.is_empty() {
        text.push_str(&format!(", embeddings {}", report.embeddings.join(", ")));
    }
    talk.say(&text);
    talk.notices(&session.take_notices());
    Ok(())
}
