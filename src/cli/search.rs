//! `cellql search`.

use super::args::SearchArgs;
use super::output;
use super::talk::Talk;
use crate::error::Result;
use crate::query::Session;

pub(super) async fn run(args: SearchArgs, talk: &Talk) -> Result<()> {
    let session = Session::open(super::open(&args.store).await?).await?;
    let columns = match args.columns.is_empty() {
        true => std::iter::once("barcode".to_owned()).chain(session.obs_columns().await?).collect(),
        false => args.columns.clone(),
    };
    let quoted: Vec<String> = columns.iter().map(|c| format!(", \"{}\"", c.replace('"', "\"\""))).collect();
    let text = |value: &str| format!("'{}'", value.replace('\'', "''"));
    let mut options = format!("k => {}", args.k);
    for (name, value) in [("where", &args.filter), ("recipe", &args.recipe)] {
        if let Some(value) = value {
            options.push_str(&format!(", {name} => {}", text(value)));
        }
    }
    let query =
        format!("SELECT cell_id, _distance{} FROM vector_search('cells', {}, {options})", quoted.join(""), args.cell);
    let written = output::write(session.sql(&query).await?, args.format).await;
    talk.notices(&session.take_notices());
    written
}
