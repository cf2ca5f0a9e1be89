//! The list of backslash commands, and their parser. [`super::runner`] runs them.

use std::path::PathBuf;

use cellql_schemas::suggest::did_you_mean;
use clap::ValueEnum;

use crate::cli::output::Format;
use crate::error::{Error, Result};

/// Name, arguments and help of each command.
pub(super) const COMMANDS: &[(&str, &str, &str)] = &[
    ("\\d", "[NAME]", "list tables and views with their numbers of rows, or the columns of one"),
    ("\\df", "[NAME]", "list the functions of cellql, or describe one function"),
    ("\\dm", "", "list models"),
    ("\\di", "", "list nearest-neighbour indexes"),
    ("\\g", "GENE", "show the gene that a name stands for"),
    ("\\set", "[NAME VALUE]", "set parameter $NAME, or list the parameters"),
    ("\\format", "[FORMAT]", "set the format of results: table, csv, ndjson, parquet or arrow"),
    ("\\x", "[on|off]", "expanded display: each row of a table as a block of lines"),
    ("\\timing", "[on|off]", "print the number of rows and the time of each statement"),
    ("\\i", "FILE", "run the statements of a file"),
    ("\\?", "", "show this list"),
    ("\\q", "", "leave the shell; also Ctrl-D"),
];

/// A parsed command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Tables,
    Columns(String),
    Functions(Option<String>),
    Models,
    Indexes,
    Gene(String),
    /// `None` lists the parameters.
    Set(Option<(String, String)>),
    /// `None` prints the current one.
    Format(Option<Format>),
    /// `None` toggles it.
    Expanded(Option<bool>),
    Timing(Option<bool>),
    Include(PathBuf),
    Help,
    Quit,
}

/// Parses a line that begins with a backslash. A semicolon at its end is ignored.
///
/// # Errors
/// [`Error::Request`]: an unknown command, with similar ones, or wrong arguments.
pub(super) fn parse(line: &str) -> Result<Command> {
    let line = line.trim().trim_end_matches(';').trim_end();
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let given = (!rest.is_empty()).then(|| rest.to_owned());
    match name {
        "\\d" => Ok(given.map_or(Command::Tables, Command::Columns)),
        "\\df" => Ok(Command::Functions(given)),
        "\\dm" => none(name, given, Command::Models),
        "\\di" => none(name, given, Command::Indexes),
        "\\g" => given.map(|g| Command::Gene(unquoted(&g))).ok_or_else(|| usage(name)),
        "\\set" => set(rest),
        "\\format" => given.map(|f| format(&f)).transpose().map(Command::Format),
        "\\x" => switch(name, rest).map(Command::Expanded),
        "\\timing" => switch(name, rest).map(Command::Timing),
        "\\i" => given.map(|f| Command::Include(unquoted(&f).into())).ok_or_else(|| usage(name)),
        "\\?" | "\\h" | "\\help" => none(name, given, Command::Help),
        "\\q" | "\\quit" => none(name, given, Command::Quit),
        _ => Err(unknown(name)),
    }
}

/// The list of commands, for `\?`.
pub(super) fn help() -> String {
    let call = |(name, arguments, _): &(&str, &str, &str)| format!("{name} {arguments}");
    let width = COMMANDS.iter().map(|c| call(c).len()).max().unwrap_or(0);
    let lines = COMMANDS.iter().map(|c| format!("  {:width$}  {}\n", call(c), c.2));
    format!(
        "{}Everything else is SQL; a statement ends with ;.\nTab completes names of tables, columns, functions and \
         options, and\ngene names in quotes. Ctrl-C clears the line or stops the query.",
        lines.collect::<String>()
    )
}

fn none(name: &str, given: Option<String>, command: Command) -> Result<Command> {
    if given.is_some() { Err(usage(name)) } else { Ok(command) }
}

fn usage(name: &str) -> Error {
    let arguments = COMMANDS.iter().find(|(known, ..)| *known == name).map_or("", |(_, arguments, _)| arguments);
    Error::Request(match arguments {
        "" => format!("{name} takes no argument"),
        _ => format!("usage: {name} {arguments}"),
    })
}

fn unknown(name: &str) -> Error {
    // Names are too short to compare by edit distance, so names that start with the same letter are suggested.
    let names = || COMMANDS.iter().map(|(known, ..)| *known);
    let mut hint = did_you_mean(name, names());
    if hint.is_empty() {
        let first: String = name.chars().take(2).collect();
        let alike: Vec<String> = names().filter(|n| n.starts_with(&first)).map(|n| format!("'{n}'")).collect();
        hint = if alike.is_empty() { String::new() } else { format!(" Did you mean {}?", alike.join(", ")) };
    }
    Error::Request(format!("there is no command {name}.{hint} \\? lists the commands"))
}

fn set(rest: &str) -> Result<Command> {
    if rest.is_empty() {
        return Ok(Command::Set(None));
    }
    let (name, value) = rest.split_once(char::is_whitespace).ok_or_else(|| usage("\\set"))?;
    Ok(Command::Set(Some((name.to_owned(), value.trim().to_owned()))))
}

fn format(name: &str) -> Result<Format> {
    Format::from_str(name, true).map_err(|_| {
        let names: Vec<&str> = Format::value_variants().iter().map(|f| f.name()).collect();
        let hint = did_you_mean(name, names.iter().copied());
        Error::Request(format!("there is no format '{name}': {}.{hint}", names.join(", ")))
    })
}

fn switch(name: &str, text: &str) -> Result<Option<bool>> {
    match text {
        "" => Ok(None),
        "on" => Ok(Some(true)),
        "off" => Ok(Some(false)),
        _ => Err(usage(name)),
    }
}

fn unquoted(text: &str) -> String {
    text.strip_prefix('\'').and_then(|t| t.strip_suffix('\'')).unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed() {
        let text = |t: &str| t.to_owned();
        let lines = [
            ("\\d", Command::Tables),
            ("\\d  cells ;", Command::Columns(text("cells"))),
            ("\\df", Command::Functions(None)),
            ("\\g 'HLA-A'", Command::Gene(text("HLA-A"))),
            ("\\set tissue lymph node", Command::Set(Some((text("tissue"), text("lymph node"))))),
            ("\\format CSV", Command::Format(Some(Format::Csv))),
            ("\\timing off", Command::Timing(Some(false))),
            ("\\x", Command::Expanded(None)),
            ("\\i my file.sql", Command::Include("my file.sql".into())),
            ("\\q;", Command::Quit),
        ];
        for (line, command) in lines {
            assert_eq!(parse(line).unwrap(), command, "{line}");
        }
    }

    #[test]
    fn errors_name_what_would_be_right() {
        let says = |line: &str, words: &str| {
            let text = parse(line).unwrap_err().to_string();
            assert!(text.contains(words), "{line}: {text}");
        };
        says("\\fromat csv", "'\\format'");
        says("\\dx", "'\\d'");
        says("\\zz", "\\? lists the commands");
        says("\\format tabel", "Did you mean 'table'");
        says("\\g", "\\g GENE");
        says("\\dm x", "\\dm takes no argument");
        says("\\x maybe", "[on|off]");
        says("\\set x", "[NAME VALUE]");
    }

    #[test]
    fn every_command_that_is_listed_is_understood() {
        for (name, ..) in COMMANDS {
            let text = parse(name).map_or_else(|e| e.to_string(), |_| String::new());
            assert!(!text.contains("there is no command"), "{name}");
            assert!(help().contains(name));
        }
    }
}
