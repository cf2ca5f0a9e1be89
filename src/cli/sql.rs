//! `cellql sql`: a script of statements, or the shell.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use clap::Args;

use super::console::Console;
use super::output::{Format, Sheet, terminal_size};
use super::shared_args::{DeviceArgs, ReadArgs, name_and_value};
use super::shell::{self, Runner};
use crate::error::{Error, Result};
use crate::query::{Parameters, Session};

#[derive(Debug, Args)]
pub(super) struct SqlArgs {
    #[command(flatten)]
    store: ReadArgs,
    /// SQL statements to run, separated by ';'
    #[arg(short, long, value_name = "SQL", conflicts_with = "file")]
    command: Option<String>,
    /// File of SQL statements to run; '-' is standard input [default: standard input, if it is not a terminal]
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// Value of $NAME in the statements. Numbers, true, false and null are typed; everything else is a string
    #[arg(long = "param", short, value_name = "NAME=VALUE", value_parser = name_and_value)]
    parameters: Vec<(String, String)>,
    /// Format of the results
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Print the number of rows and the time of each statement to stderr; in the shell: \timing
    #[arg(long)]
    timing: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) async fn run(args: SqlArgs, console: &Console) -> Result<()> {
    let mut parameters = Parameters::default();
    for (name, value) in &args.parameters {
        parameters.set(name, value)?;
    }
    let script = script(&args)?;
    let session = Session::open_on(args.store.open().await?, args.device.device).await?;
    let sheet = Sheet { format: args.format, expanded: false, terminal: None };
    let mut runner =
        Runner { session, console, sheet, parameters, timing: args.timing, interrupts: None, depth: 0, results: 0 };
    match script {
        Some(script) => {
            runner.sheet.terminal = terminal_size();
            runner.script(&script).await.map(drop)
        }
        None => {
            runner.timing = true;
            shell::run(runner).await
        }
    }
}

/// The statements to run; `None` opens the shell.
fn script(args: &SqlArgs) -> Result<Option<String>> {
    match (&args.command, &args.file) {
        (Some(command), _) => Ok(Some(command.clone())),
        (None, Some(file)) if file.as_os_str() != "-" => shell::read_script(file).map(Some),
        (None, None) if std::io::stdin().is_terminal() => Ok(None),
        _ => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|e| {
                Error::input("standard input", "statements", format!("cannot be read as UTF-8 text: {e}"))
            })?;
            Ok(Some(text))
        }
    }
}
