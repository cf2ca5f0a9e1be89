//! `cellql sql`: a script, or the shell.

use std::io::{IsTerminal, Read};

use super::args::SqlArgs;
use super::output::{Sheet, height};
use super::shell::{self, Runner};
use super::talk::Talk;
use crate::error::{Error, Result};
use crate::query::{Parameters, Session};

pub(super) async fn run(args: SqlArgs, talk: &Talk) -> Result<()> {
    let mut parameters = Parameters::default();
    for (name, value) in &args.parameters {
        parameters.set(name, value)?;
    }
    let script = script(&args)?;
    let session = Session::open_on(super::open(&args.store).await?, args.device).await?;
    let sheet = Sheet { format: args.format, expanded: false, height: None };
    let mut runner = Runner { session, talk, sheet, parameters, timing: args.timing, interrupts: None, depth: 0 };
    match script {
        Some(script) => {
            runner.sheet.height = height();
            runner.script(&script).await.map(drop)
        }
        None => {
            runner.timing = true;
            shell::run(runner).await
        }
    }
}

/// The statements to run; `None` where a person is to type them.
fn script(args: &SqlArgs) -> Result<Option<String>> {
    match (&args.command, &args.file) {
        (Some(command), _) => Ok(Some(command.clone())),
        (None, Some(file)) if file.as_os_str() != "-" => shell::read_script(file).map(Some),
        (None, None) if std::io::stdin().is_terminal() => Ok(None),
        _ => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|e| Error::input("standard input", "text", e))?;
            Ok(Some(text))
        }
    }
}
