//! What goes to stderr: sentences, progress, errors.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use crate::query::Notices;
use cellql_store::OnWait;
use cellql_store::progress::{self, OnProgress};

/// Between two plain lines.
const SECONDS: u64 = 10;

/// Talks to the person at the terminal, or not.
#[derive(Debug, Clone)]
pub(super) struct Talk {
    quiet: bool,
}

impl Talk {
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// A sentence.
    pub(super) fn say(&self, text: &str) {
        if !self.quiet {
            write(text);
        }
    }

    /// What is said when another process is writing to a store.
    pub(super) fn waiting(&self, uri: &str) -> OnWait {
        let (talk, uri) = (self.clone(), uri.to_owned());
        OnWait(Arc::new(move || talk.say(&format!("{uri}: another cellql process is writing; waiting for it"))))
    }

    /// An error; also said when quiet.
    pub(super) fn error(&self, text: &str) {
        write(&format!("error: {text}"));
    }

    /// What a person should know beside an answer.
    pub(super) fn notices(&self, notices: &Notices) {
        for model in &notices.untrained {
            self.say(&format!(
                "note: model '{model}' has untrained weights; its embeddings are a random projection of expression"
            ));
        }
        for (why, cells) in &notices.not_embedded {
            self.say(&format!("note: {cells} cells have no embedding: {why}"));
        }
        for search in &notices.searches {
            self.say(search);
        }
    }

    /// As [`Talk::progress`], with a text beside.
    pub(super) fn progress_with_text(&self, doing: &str, unit: &'static str) -> OnProgressWithText {
        if self.quiet {
            return Box::new(|_, _, _| {});
        }
        if std::io::stderr().is_terminal() { bar_with_text(doing) } else { lines_with_text(doing, unit) }
    }

    /// A bar on a terminal, plain lines now and then elsewhere, nothing when quiet.
    pub(super) fn progress(&self, doing: &str, unit: &'static str) -> OnProgress {
        if self.quiet {
            return progress::silent();
        }
        if std::io::stderr().is_terminal() { bar(doing) } else { lines(doing, unit) }
    }
}

/// Called with what is done, what there is in all, and what else to say.
pub(super) type OnProgressWithText = Box<dyn Fn(u64, u64, &str) + Send + Sync>;

fn write(text: &str) {
    // Nobody left to tell when stderr is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn bar(doing: &str) -> OnProgress {
    let bar = ProgressBar::no_length().with_message(doing.to_owned());
    let style = "{msg:20} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    Arc::new(move |done, total| {
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(done);
        if Some(done) == total {
            bar.finish();
        }
    })
}

fn bar_with_text(doing: &str) -> OnProgressWithText {
    let bar = ProgressBar::no_length().with_prefix(doing.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{prefix} {wide_bar} {human_pos}/{human_len}  {msg}  {eta} left") {
        bar.set_style(style);
    }
    Box::new(move |done, total, text| {
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(text.to_owned());
        if done == total {
            bar.finish();
        }
    })
}

fn lines_with_text(doing: &str, unit: &'static str) -> OnProgressWithText {
    let (doing, start, last) = (doing.to_owned(), Instant::now(), AtomicU64::new(0));
    Box::new(move |done, total, text| {
        let seconds = start.elapsed().as_secs();
        if seconds >= last.load(Ordering::Relaxed) + SECONDS || done == total {
            last.store(seconds, Ordering::Relaxed);
            write(&format!("{doing}: {done} of {total} {unit}, {seconds} s, {text}"));
        }
    })
}

fn lines(doing: &str, unit: &'static str) -> OnProgress {
    let (doing, start, last) = (doing.to_owned(), Instant::now(), AtomicU64::new(0));
    Arc::new(move |done, total| {
        let seconds = start.elapsed().as_secs();
        let due = seconds >= last.load(Ordering::Relaxed) + SECONDS;
        if due || Some(done) == total {
            last.store(seconds, Ordering::Relaxed);
            let of = total.map_or_else(String::new, |t| format!(" of {t}"));
            write(&format!("{doing}: {done}{of} {unit}, {:.1} s", start.elapsed().as_secs_f64()));
        }
    })
}
