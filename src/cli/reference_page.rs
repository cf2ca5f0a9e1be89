//! The text of `docs/cli.md`, made from the definitions of verbs and options.

use std::fmt::Write;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command, CommandFactory};

use super::command::Cli;

const HEAD: &str = "# Command line

Written from the definitions in `src/cli` by `CELLQL_BLESS=1 cargo test --workspace --locked --lib reference_page`;
`cellql help VERB` gives the same.

Results go to stdout, everything else to stderr. `--quiet` (`-q`), which every verb takes, leaves only errors on stderr.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | the request or a file is wrong, or another process is writing to the store |
| 2 | the command line is wrong |
| 3 | the store is damaged, or the program or the machine failed |

";

fn reference_page() -> String {
    let mut cli = Cli::command();
    cli.build();
    let mut text = String::from(HEAD);
    for verb in verbs(&cli) {
        let _ = writeln!(text, "- [`cellql {0}`](#cellql-{0}): {1}", verb.get_name(), about(verb));
    }
    verbs(&cli).for_each(|verb| write_verb(&mut text, verb, &format!("cellql {}", verb.get_name()), 2));
    text.truncate(text.trim_end().len());
    text + "\n"
}

fn verbs(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|verb| verb.get_name() != "help")
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

/// A section on a verb, then one on each of the verbs below it.
fn write_verb(text: &mut String, command: &Command, name: &str, level: usize) {
    let _ = writeln!(text, "\n{} {name}\n\n{}.", "#".repeat(level), escaped(&about(command)));
    if verbs(command).next().is_none() {
        let usage = command.clone().render_usage().to_string();
        let _ = writeln!(text, "\n```text\n{}\n```", usage.trim_start_matches("Usage: "));
    }
    let arguments: Vec<&Arg> = command.get_arguments().filter(|arg| is_listed(arg)).collect();
    if !arguments.is_empty() {
        text.push_str("\n| argument | meaning | default |\n|---|---|---|\n");
        arguments.iter().for_each(|argument| write_argument(text, argument));
    }
    verbs(command).for_each(|verb| write_verb(text, verb, &format!("{name} {}", verb.get_name()), level + 1));
}

/// `--quiet`, `--help` and `--version` are the same everywhere.
fn is_listed(argument: &Arg) -> bool {
    !argument.is_hide_set() && !["help", "version", "quiet"].contains(&argument.get_id().as_str())
}

fn write_argument(text: &mut String, argument: &Arg) {
    let values = argument.get_value_names().unwrap_or_default().join(" ");
    let takes_value = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    let long = argument.get_long().map(|long| format!("--{long}"));
    let short = argument.get_short().map(|short| format!("-{short}"));
    let flags: Vec<String> = long.into_iter().chain(short).collect();
    let call = match (flags.is_empty(), takes_value) {
        (true, _) => values,
        (false, true) => format!("{} {values}", flags.join(", ")),
        (false, false) => flags.join(", "),
    };
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let (help, stated) = help.split_once(" [default: ").map_or((help.as_str(), None), |(h, d)| (h, Some(d)));
    let set: Vec<String> = argument.get_default_values().iter().map(|v| format!("`{}`", v.to_string_lossy())).collect();
    let default = match stated {
        Some(stated) if stated.contains(' ') => escaped(stated.trim_end_matches(']')),
        Some(stated) => format!("`{}`", stated.trim_end_matches(']')),
        None if takes_value => set.join(", "),
        None => String::new(),
    };
    let words = argument.get_possible_values();
    let words: Vec<String> = words.iter().map(|word| format!("`{}`", word.get_name())).collect();
    let one_of =
        if takes_value && !words.is_empty() { format!(". One of {}", words.join(", ")) } else { String::new() };
    let _ = writeln!(text, "| `{call}` | {}{one_of} | {default} |", escaped(help));
}

/// Text that Markdown shows as it is, in a table too.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('*', "\\*")
}

#[test]
fn the_reference_page_says_what_the_definitions_say() {
    // Where the tests run, not where they were compiled: checkouts may share what cargo built.
    let root = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    let file = root.join("docs/cli.md");
    let wanted = reference_page();
    if std::env::var_os("CELLQL_BLESS").is_some() {
        std::fs::write(&file, &wanted).unwrap();
    }
    assert!(
        std::fs::read_to_string(&file).unwrap_or_default() == wanted,
        "docs/cli.md is not what the definitions say; write it anew with: \
         CELLQL_BLESS=1 cargo test --workspace --locked --lib reference_page"
    );
}

#[test]
fn every_argument_has_a_help_line() {
    fn check(command: &Command) {
        assert!(!about(command).is_empty(), "{}", command.get_name());
        for argument in command.get_arguments().filter(|arg| is_listed(arg)) {
            assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
        }
        verbs(command).for_each(check);
    }
    let mut cli = Cli::command();
    cli.build();
    check(&cli);
}
