//! `cellql compact`.

use clap::Args;

use super::console::Console;
use super::shared_args::open_to_write;
use crate::error::Result;

#[derive(Debug, Args)]
pub(super) struct CompactArgs {
    /// Store: a directory
    store: String,
    /// Number of newest versions to keep; older ones are deleted [default: keep all]
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
}

pub(super) async fn run(args: CompactArgs, console: &Console) -> Result<()> {
    let uri = &args.store;
    let store = open_to_write(uri, console).await?;
    let progress = console.progress("compacting", "files");
    let (_, done) = store.compact(args.keep).await?;
    drop(progress);
    let mut text = format!("{uri}: merged {} data files into {}", done.files_before, done.files_after);
    if done.versions_forgotten > 0 {
        text.push_str(&format!(", deleted {} versions", done.versions_forgotten));
    }
    if done.bytes_freed > 0 {
        text.push_str(&format!(", freed {:.1} MB", done.bytes_freed as f64 / 1e6));
    }
    console.say(&text);
    Ok(())
}
