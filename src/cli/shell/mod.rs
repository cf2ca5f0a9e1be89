//! Statements and backslash commands, from a script or typed in the shell.
//!
//! [`runner`] runs statements and commands one after another. [`commands`] parses a command, [`describe`] runs those
//! about the store. [`complete`] completes words. [`editor`] reads lines from the terminal and [`interrupts`] listens
//! for Ctrl-C; the other modules do not depend on a terminal.

mod commands;
mod complete;
mod describe;
mod editor;
mod interrupts;
mod runner;

pub(super) use runner::{Runner, read_script};

use crate::error::Result;
use crate::query::script;
use editor::{Editor, Input};
pub(super) use interrupts::Interrupts;
use runner::Next;

const PROMPT: &str = "cellql> ";
const CONTINUATION: &str = "   ...> ";

/// Runs the shell until the person leaves it. A statement that fails prints its error and the shell goes on.
///
/// # Errors
/// The terminal cannot be read.
pub(super) async fn run(mut runner: Runner<'_>) -> Result<()> {
    let mut editor = Editor::open(&runner).await?;
    // Opening the editor installs a handler for Ctrl-C, so ours is installed after it.
    runner.interrupts = Some(Interrupts::listen()?);
    let store = runner.session.engine().store();
    runner.console.say(&format!(
        "cellql {}: {}, version {}. Type \\? for a list of commands, Ctrl-D to leave.",
        env!("CARGO_PKG_VERSION"),
        store.uri(),
        store.version().version
    ));
    let mut text = String::new();
    loop {
        match editor.line(if text.is_empty() { PROMPT } else { CONTINUATION }, &text)? {
            Input::Line(line) if text.is_empty() && line.trim().is_empty() => continue,
            // Leaving discards an unfinished statement.
            Input::Line(line) if !text.is_empty() && line.trim() == "\\q" => return Ok(()),
            Input::Line(line) => text.push_str(&line),
            Input::Interrupted => {
                text.clear();
                continue;
            }
            Input::End => return Ok(()),
        }
        if !script::is_complete(&text) {
            text.push('\n');
            continue;
        }
        editor.remember(text.trim());
        runner.sheet.terminal = editor.size();
        match runner.script(&std::mem::take(&mut text)).await {
            Ok(Next::Leave) => return Ok(()),
            Ok(Next::GoOn) => {}
            Err(error) if super::is_broken_pipe(&error) => {}
            Err(error) => runner.console.error(&error.to_string()),
        }
        editor.update_names(&runner);
    }
}
