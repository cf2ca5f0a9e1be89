//! Lines from a terminal, with editing, history and completion. [`super::complete`] computes the candidates.

use std::cell::LazyCell;
use std::path::PathBuf;
use std::sync::Arc;

use clap::ValueEnum;
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Behavior, CompletionType, Config, Context, Helper};

use super::complete::{Names, complete};
use super::runner::Runner;
use crate::cli::output::{self, Format, TerminalSize};
use crate::error::{Error, Result};

/// Maximum number of statements in the history.
const HISTORY_SIZE: usize = 10_000;

/// Input at the prompt.
pub(super) enum Input {
    Line(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D.
    End,
}

/// The terminal.
pub(super) struct Editor {
    lines: rustyline::Editor<Tab, FileHistory>,
    history: Option<PathBuf>,
}

impl Editor {
    /// Opens the terminal with the history of earlier shells. A history that cannot be read or written is ignored.
    ///
    /// # Errors
    /// The terminal cannot be used, or the store's tables cannot be read.
    pub(super) async fn open(runner: &Runner<'_>) -> Result<Self> {
        let fail = |e: ReadlineError| Error::internal("opening the terminal")(e);
        let builder = Config::builder().max_history_size(HISTORY_SIZE).map_err(fail)?;
        // Lines are read from the terminal even if stdout is a file: cellql sql STORE --format csv > rows.csv
        let config = builder.behavior(Behavior::PreferTerm).completion_type(CompletionType::List).build();
        let mut lines = rustyline::Editor::with_config(config).map_err(fail)?;
        lines.set_helper(Some(Tab {
            names: names(runner).await?,
            before: String::new(),
            files: FilenameCompleter::new(),
        }));
        let history = history_file();
        if let Some(file) = &history {
            let _ = file.parent().map(std::fs::create_dir_all);
            let _ = lines.load_history(file);
        }
        Ok(Self { lines, history })
    }

    /// Reads a line; `before` is the statement so far.
    ///
    /// # Errors
    /// The terminal cannot be read.
    pub(super) fn line(&mut self, prompt: &str, before: &str) -> Result<Input> {
        if let Some(tab) = self.lines.helper_mut() {
            before.clone_into(&mut tab.before);
        }
        match self.lines.readline(prompt) {
            Ok(line) => Ok(Input::Line(line)),
            Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
            Err(ReadlineError::Eof) => Ok(Input::End),
            Err(error) => Err(Error::internal("reading the terminal")(error)),
        }
    }

    /// Adds to history.
    pub(super) fn remember(&mut self, text: &str) {
        let _ = self.lines.add_history_entry(text);
        if let Some(file) = &self.history {
            let _ = self.lines.append_history(file);
        }
    }

    /// Size of the terminal, if results go to it.
    pub(super) fn size(&mut self) -> Option<TerminalSize> {
        let (columns, rows) = self.lines.dimensions().filter(|_| output::is_terminal())?;
        Some(TerminalSize { rows: usize::from(rows), columns })
    }

    /// Updates the names that are completed after a statement or command.
    pub(super) fn update_names(&mut self, runner: &Runner<'_>) {
        if let Some(tab) = self.lines.helper_mut() {
            tab.names.parameters = runner.parameters.list().map(|(name, _)| name.to_owned()).collect();
        }
    }
}

async fn names(runner: &Runner<'_>) -> Result<Names> {
    let session = &runner.session;
    let engine = Arc::clone(session.engine());
    Ok(Names {
        tables: session.tables().await?,
        functions: session.function_names(),
        models: engine.models().iter().map(|m| m.name.clone()).collect(),
        recipes: engine.recipes(),
        parameters: runner.parameters.list().map(|(name, _)| name.to_owned()).collect(),
        formats: Format::value_variants().iter().map(|f| f.name().to_owned()).collect(),
        genes: LazyCell::new(Box::new(move || engine.genes().names().into_iter().map(str::to_owned).collect())),
    })
}

/// `$XDG_STATE_HOME/cellql/history`; without that variable `~/.local/state/cellql/history`.
fn history_file() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = folder("XDG_STATE_HOME").or_else(|| folder("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("cellql/history"))
}

/// Completion with the Tab key.
struct Tab {
    names: Names,
    /// The lines of the statement before this one.
    before: String,
    files: FilenameCompleter,
}

impl Completer for Tab {
    type Candidate = Pair;

    fn complete(&self, line: &str, cursor: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        if self.before.is_empty() && line.starts_with("\\i ") {
            return self.files.complete_path(line, cursor);
        }
        let above = self.before.len();
        let found = complete(&format!("{}{line}", self.before), above + cursor, &self.names);
        let pair = |text: String| Pair { display: text.trim_end_matches('\'').to_owned(), replacement: text };
        match found.start.checked_sub(above) {
            Some(start) => Ok((start, found.candidates.into_iter().map(pair).collect())),
            // The word starts on an earlier line, which cannot be edited any more.
            None => Ok((cursor, Vec::new())),
        }
    }
}

impl Helper for Tab {}
impl Hinter for Tab {
    type Hint = String;
}
impl Highlighter for Tab {}
impl Validator for Tab {}
