//! `cellql init`.

use clap::Args;

use super::console::Console;
use super::model::add_shipped;
use crate::error::Result;
use cellql_store::Store;

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Store to create: a directory
    store: String,
    /// Do not add the model that comes with the program
    #[arg(long)]
    no_model: bool,
}

pub(super) async fn run(args: InitArgs, console: &Console) -> Result<()> {
    let store = Store::init(&args.store).await?;
    console.say(&format!("{}: an empty store", store.uri()));
    if !args.no_model {
        add_shipped(&store, console).await?;
    }
    Ok(())
}
