//! `cellql verify`.

use clap::Args;

use super::console::Console;
use super::output;
use super::shared_args::ReadArgs;
use crate::error::{Error, Result};

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    store: ReadArgs,
}

pub(super) async fn run(args: VerifyArgs, console: &Console) -> Result<()> {
    let store = args.store.open().await?;
    let files = console.on_progress("checking files", "files");
    let cells = console.on_progress("checking cells", "cells");
    let found = store.verify(&files, &cells).await?;
    drop((files, cells));
    for file in &found.damaged_files {
        output::text(&format!("damaged file: {}: {}", file.path, file.problem))?;
    }
    if found.damaged_cells > 0 {
        let named: Vec<String> = found.named_cells.iter().map(u64::to_string).collect();
        let more = if found.damaged_cells > found.named_cells.len() as u64 { ", …" } else { "" };
        output::text(&format!("damaged cells: {}: cell_id {}{more}", found.damaged_cells, named.join(", ")))?;
    }
    let megabytes = found.bytes as f64 / 1e6;
    console.say(&format!(
        "{}: checked {} files ({megabytes:.1} MB) and {} cells",
        store.uri(),
        found.files,
        found.cells
    ));
    if found.unrecorded > 0 {
        console.say(&format!(
            "  {} files have no recorded checksum, because an earlier version of the program wrote them",
            found.unrecorded
        ));
    }
    if found.is_whole() {
        console.say("  everything is as it was written");
        return Ok(());
    }
    let (files, cells) = (found.damaged_files.len(), found.damaged_cells);
    let problem = format!(
        "{files} files and {cells} cells are not what was written; get the files back from a copy of the store, or \
         remove the data sets of the cells (cellql dataset remove) and ingest them again"
    );
    Err(Error::damaged(store.uri(), problem))
}
