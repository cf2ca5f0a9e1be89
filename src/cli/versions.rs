//! `cellql versions`.

use clap::Args;

use super::output::{self, FormatArgs};
use crate::error::Result;
use crate::query::Session;
use cellql_store::Store;

#[derive(Debug, Args)]
pub(super) struct VersionsArgs {
    /// Store: a directory
    store: String,
    #[command(flatten)]
    output: FormatArgs,
}

pub(super) async fn run(args: VersionsArgs) -> Result<()> {
    let session = Session::open(Store::open(&args.store).await?).await?;
    output::write(session.versions().await?, args.output.format).await
}
