//! `cellql sql`.

use std::io::{IsTerminal, Read};

use super::args::SqlArgs;
use super::output;
use super::talk::Talk;
use crate::error::{Error, Result};
use crate::query::Session;

pub(super) async fn run(args: SqlArgs, talk: &Talk) -> Result<()> {
    let script = match (args.command, args.file) {
        (Some(command), _) => command,
        (None, Some(file)) if file.as_os_str() != "-" => {
            std::fs::read_to_string(&file).map_err(|e| Error::input(&file, "file", format!("cannot be read: {e}")))?
        }
        _ if std::io::stdin().is_terminal() => {
            return Err(Error::Request("give SQL with -c \"…\" or -f FILE".into()));
        }
        _ => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|e| Error::input("standard input", "text", e))?;
            text
        }
    };
    let session = Session::open_on(super::open(&args.store).await?, args.device).await?;
    for frame in session.statements(&script).await? {
        let written = output::write(frame, args.format).await;
        talk.notices(&session.take_notices());
        written?;
    }
    Ok(())
}
