//! Messages on stderr: sentences, notes beside a result, errors. Progress of long work is in [`super::progress`].

use std::io::Write;
use std::sync::Arc;

use indicatif::MultiProgress;

use super::progress::Progress;
use crate::query::Notices;
use cellql_store::OnWait;
use cellql_store::progress::OnProgress;

/// Stderr, as one command uses it. With `--quiet` only errors are printed.
#[derive(Debug, Clone)]
pub(super) struct Console {
    quiet: bool,
    /// Bars on the terminal; a message is printed above them.
    bars: MultiProgress,
}

impl Console {
    /// A console that prints only errors if `quiet`.
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet, bars: MultiProgress::new() }
    }

    /// Prints a message, unless quiet.
    pub(super) fn say(&self, text: &str) {
        if !self.quiet {
            self.bars.suspend(|| write(text));
        }
    }

    /// Prints an error, also when quiet.
    pub(super) fn error(&self, text: &str) {
        self.bars.suspend(|| write(&format!("error: {text}")));
    }

    /// Prints a note each time a store waits for another writer.
    pub(super) fn waiting(&self, uri: &str) -> OnWait {
        let (console, uri) = (self.clone(), uri.to_owned());
        OnWait(Arc::new(move || console.say(&format!("{uri}: another cellql process is writing; waiting for it"))))
    }

    /// Prints what a person should know beside the result of a query.
    pub(super) fn notices(&self, notices: &Notices) {
        for model in &notices.untrained {
            self.untrained(model);
        }
        for (why, cells) in &notices.not_embedded {
            self.say(&format!("note: {cells} cells have no embedding: {why}"));
        }
        for search in &notices.searches {
            self.say(search);
        }
    }

    /// Prints that the weights of a model are untrained.
    pub(super) fn untrained(&self, model: &str) {
        self.say(&format!(
            "note: model '{model}' has untrained weights; its embeddings are a random projection of expression"
        ));
    }

    /// Progress of a task that counts `unit`s: a bar on a terminal, a line every ten seconds elsewhere, nothing when
    /// quiet. It ends when dropped.
    pub(super) fn progress(&self, task: &str, unit: &'static str) -> Progress {
        if self.quiet { Progress::hidden() } else { Progress::new(&self.bars, task, unit) }
    }

    /// The same, as the library's jobs take it.
    pub(super) fn on_progress(&self, task: &str, unit: &'static str) -> OnProgress {
        let progress = self.progress(task, unit);
        Arc::new(move |done, total| progress.set(done, total, ""))
    }
}

fn write(text: &str) {
    // A closed stderr is not an error: the result on stdout may still be wanted.
    let _ = writeln!(std::io::stderr(), "{text}");
}
