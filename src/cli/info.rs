//! `cellql info`.

use clap::Args;

use super::output::{self, Format};
use super::shared_args::ReadArgs;
use super::{dataset, index, model};
use crate::error::Result;
use crate::model_registry;
use crate::query::Session;
use crate::shipped_models;

#[derive(Debug, Args)]
pub(super) struct InfoArgs {
    #[command(flatten)]
    store: ReadArgs,
}

pub(super) async fn run(args: InfoArgs) -> Result<()> {
    let store = args.store.open().await?;
    let session = Session::open(store.clone()).await?;
    let (cells, genes) = (session.count("cells").await?, session.measured_genes().await?);
    output::text(&format!("{}, version {}: {cells} cells, {genes} genes", store.uri(), store.version().version))?;
    if session.count("datasets").await? > 0 {
        output::text("\ndata sets")?;
        output::write(session.sql(dataset::SUMMARY).await?, Format::Table).await?;
    }
    let models = model_registry::list(&store).await?;
    if !models.is_empty() {
        output::text("\nmodels")?;
        output::write(model::summary(&session, &models).await?, Format::Table).await?;
        if model_registry::find(&models, None).is_ok_and(|meant| meant.name == shipped_models::NAMES[0]) {
            output::text(&wrapped(shipped_models::ACCURACY))?;
        }
    }
    if session.count("indexes").await? > 0 {
        output::text("\nindexes")?;
        output::write(session.sql(index::SUMMARY).await?, Format::Table).await?;
    }
    Ok(())
}

/// Text in lines of at most [`output::TEXT_WIDTH`] characters.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if !lines[last].is_empty()
            && lines[last].chars().count() + 1 + word.chars().count() > output::TEXT_WIDTH as usize
        {
            lines.push(word.to_owned());
        } else {
            let line = &mut lines[last];
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(word);
        }
    }
    lines.join("\n")
}
