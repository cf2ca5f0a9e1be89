//! Statements and backslash commands, from a script or from a person at a terminal.
//!
//! [`runner`] runs them one after another; [`commands`] reads a command and [`describe`] answers those about the store;
//! [`complete`] knows what Tab offers; [`editor`] is the terminal and [`interrupts`] its Ctrl-C. Only these two know that
//! there is one.

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
use interrupts::Interrupts;
use runner::Next;

const PROMPT: &str = "cellql> ";
const GO_ON: &str = "   ...> ";

/// Runs what a person types until they leave.
///
/// # Errors
/// The terminal cannot be read. What a statement does wrong is said and the shell goes on.
pub(super) async fn run(mut runner: Runner<'_>) -> Result<()> {
    let mut editor = Editor::open(&runner).await?;
    // After the editor is open, for opening it takes the signal.
    runner.interrupts = Some(Interrupts::listen()?);
    let store = runner.session.engine().store();
    runner.talk.say(&format!(
        "cellql {}, {} at version {}. \\? lists the commands, Ctrl-D leaves.",
        env!("CARGO_PKG_VERSION"),
        store.uri(),
        store.version().version
    ));
    let mut text = String::new();
    loop {
        match editor.line(if text.is_empty() { PROMPT } else { GO_ON }, &text)? {
            Input::Line(line) if text.is_empty() && line.trim().is_empty() => continue,
            // A statement that is given up by leaving.
            Input::Line(line) if !text.is_empty() && line.trim() == "\\q" => return Ok(()),
            Input::Line(line) => text.push_str(&line),
            Input::Dropped => {
                text.clear();
                continue;
            }
            Input::Ended => return Ok(()),
        }
        if !script::is_complete(&text) {
            text.push('\n');
            continue;
        }
        editor.remember(text.trim());
        runner.sheet.height = editor.height();
        match runner.script(&std::mem::take(&mut text)).await {
            Ok(Next::Leave) => return Ok(()),
            Ok(Next::GoOn) => {}
            Err(error) if super::is_broken_pipe(&error) => {}
            Err(error) => runner.talk.error(&error.to_string()),
        }
        editor.learn(&runner);
    }
}
