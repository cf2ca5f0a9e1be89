//! Progress of long work on stderr: a bar with rate and remaining time on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressFinish, ProgressState, ProgressStyle};

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Time between two redraws of a bar whose count stands still.
const REDRAW_EVERY: Duration = Duration::from_millis(200);

/// Progress of one task. Dropping it removes its bar.
pub(super) struct Progress(Shown);

enum Shown {
    Nothing,
    Bar { bar: ProgressBar, unit: &'static str },
    Lines { lines: Arc<Lines>, _running: Sender<()> },
}

impl Progress {
    /// Shows nothing.
    pub(super) fn hidden() -> Self {
        Self(Shown::Nothing)
    }

    /// A bar among `bars` where stderr is a terminal, else lines.
    pub(super) fn new(bars: &MultiProgress, task: &str, unit: &'static str) -> Self {
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::no_length().with_finish(ProgressFinish::AndClear).with_prefix(task.to_owned());
            let bar = bars.add(bar);
            set_template(&bar, &format!("{{prefix}} {{spinner}} {{human_pos}} {unit}, {{elapsed}} {{msg}}"));
            bar.enable_steady_tick(REDRAW_EVERY);
            return Self(Shown::Bar { bar, unit });
        }
        let lines = Arc::new(Lines { task: task.to_owned(), unit, start: Instant::now(), state: Mutex::default() });
        let (running, stopped) = channel();
        let seen = Arc::downgrade(&lines);
        std::thread::spawn(move || print_lines(&seen, &stopped));
        Self(Shown::Lines { lines, _running: running })
    }

    /// Reports what is done, the total where it is known, and a text to show beside them.
    pub(super) fn set(&self, done: u64, total: Option<u64>, text: &str) {
        match &self.0 {
            Shown::Nothing => {}
            Shown::Bar { bar, unit } => set_bar(bar, unit, done, total, text),
            Shown::Lines { lines, .. } => {
                *lines.state() = State { done, total, text: text.to_owned() };
                if Some(done) == total {
                    lines.print();
                }
            }
        }
    }
}

fn set_bar(bar: &ProgressBar, unit: &str, done: u64, total: Option<u64>, text: &str) {
    if let (Some(total), None) = (total, bar.length()) {
        bar.set_length(total);
        let figures = "{human_pos}/{human_len}";
        set_template(bar, &format!("{{prefix}} {{wide_bar}} {figures} {unit}, {{rate}}, {{eta}} left {{msg}}"));
    }
    bar.set_position(done);
    bar.set_message(text.to_owned());
}

fn set_template(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        // Text cannot fail to be written into the line of a bar.
        let rate = |state: &ProgressState, line: &mut dyn std::fmt::Write| {
            let _ = write!(line, "{:.1}/s", state.per_sec());
        };
        bar.set_style(style.with_key("rate", rate));
    }
}

/// The state of a task, for plain lines.
struct Lines {
    task: String,
    unit: &'static str,
    start: Instant,
    state: Mutex<State>,
}

#[derive(Clone, Default)]
struct State {
    done: u64,
    total: Option<u64>,
    text: String,
}

impl Lines {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn print(&self) {
        let line = line(&self.task, self.unit, &self.state(), self.start.elapsed().as_secs_f64());
        // A closed stderr is not an error.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// Prints a line at each interval until the task ends.
fn print_lines(lines: &Weak<Lines>, stopped: &Receiver<()>) {
    while stopped.recv_timeout(LINE_EVERY) == Err(RecvTimeoutError::Timeout) {
        let Some(lines) = lines.upgrade() else { return };
        lines.print();
    }
}

/// `embedding cells: 200 of 1000 cells, 20.0 s, 10.0 cells/s, 80 s left`.
fn line(task: &str, unit: &str, state: &State, seconds: f64) -> String {
    let State { done, total, text } = state;
    let mut line = match (done, total) {
        (0, None) => format!("{task}: {seconds:.1} s"),
        (_, None) => format!("{task}: {done} {unit}, {seconds:.1} s"),
        (_, Some(total)) => format!("{task}: {done} of {total} {unit}, {seconds:.1} s"),
    };
    if *done > 0 && seconds > 0.0 {
        let rate = *done as f64 / seconds;
        line.push_str(&format!(", {rate:.1} {unit}/s"));
        if let Some(left) = total.and_then(|total| total.checked_sub(*done)).filter(|left| *left > 0) {
            line.push_str(&format!(", {:.0} s left", left as f64 / rate));
        }
    }
    if !text.is_empty() {
        line.push_str(&format!(", {text}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_rate_and_the_time_left_where_they_are_known() {
        let state = |done, total| State { done, total, text: String::new() };
        let line = |state| line("reading", "cells", &state, 20.0);
        assert_eq!(line(state(200, Some(1000))), "reading: 200 of 1000 cells, 20.0 s, 10.0 cells/s, 80 s left");
        assert_eq!(line(state(1000, Some(1000))), "reading: 1000 of 1000 cells, 20.0 s, 50.0 cells/s");
        assert_eq!(line(state(200, None)), "reading: 200 cells, 20.0 s, 10.0 cells/s");
        assert_eq!(line(state(0, None)), "reading: 20.0 s");
    }

    #[test]
    fn a_hidden_bar_takes_reports() {
        let bar = ProgressBar::hidden();
        set_bar(&bar, "cells", 3, None, "");
        assert_eq!((bar.position(), bar.length()), (3, None));
        set_bar(&bar, "cells", 4, Some(8), "loss 0.1");
        assert_eq!((bar.position(), bar.length(), bar.message().as_str()), (4, Some(8), "loss 0.1"));
    }
}
