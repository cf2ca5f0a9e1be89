//! Stdout, through a pager where it is a terminal and the text is taller than it.
//!
//! Knows lines, not their content. Text passes through as it comes: only the first screen of it is held.

use std::io::{BufWriter, ErrorKind, IsTerminal, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) struct TerminalSize {
    pub(in crate::cli) rows: usize,
    pub(in crate::cli) columns: u16,
}

/// True if stdout is a terminal.
pub(in crate::cli) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Size of the terminal that is stdout; `None` if stdout is not a terminal.
pub(in crate::cli) fn terminal_size() -> Option<TerminalSize> {
    if !is_terminal() {
        return None;
    }
    let (columns, rows) = rustyline::Editor::<(), rustyline::history::MemHistory>::with_history(
        rustyline::Config::default(),
        rustyline::history::MemHistory::new(),
    )
    .ok()?
    .dimensions()?;
    Some(TerminalSize { rows: usize::from(rows), columns })
}

/// Whether the reader of stdout has closed it.
///
/// Writers of data formats turn the error into text, so the fact is recorded where the error occurs.
#[derive(Debug, Clone, Default)]
pub(super) struct Closed(Arc<AtomicBool>);

impl Closed {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn note<T>(&self, result: std::io::Result<T>) -> std::io::Result<T> {
        if result.as_ref().is_err_and(|error| error.kind() == ErrorKind::BrokenPipe) {
            self.0.store(true, Ordering::Relaxed);
        }
        result
    }
}

/// The destination of text: undecided until the terminal is full.
enum Destination {
    Undecided,
    Direct(BufWriter<std::io::Stdout>),
    Pager(Pager),
}

/// Stdout.
pub(super) struct Stdout {
    rows: usize,
    held: Vec<u8>,
    lines: usize,
    to: Destination,
    closed: Closed,
}

impl Stdout {
    /// Stdout on a terminal of that many rows; `None` if it is not a terminal.
    pub(super) fn new(rows: Option<usize>) -> Self {
        let to = match rows {
            Some(_) => Destination::Undecided,
            None => Destination::Direct(BufWriter::new(std::io::stdout())),
        };
        Self { rows: rows.unwrap_or(0), held: Vec::new(), lines: 0, to, closed: Closed::default() }
    }

    /// Tells later whether the reader has closed stdout, also when this writer is gone.
    pub(super) fn closed(&self) -> Closed {
        self.closed.clone()
    }

    /// Writes what is held, and waits until the person has left the pager.
    ///
    /// # Errors
    /// Stdout cannot be written.
    pub(super) fn finish(mut self) -> std::io::Result<()> {
        if matches!(self.to, Destination::Undecided) {
            self.to = Destination::Direct(BufWriter::new(std::io::stdout()));
            self.write_held()?;
        }
        self.flush()
    }

    /// Chooses the destination once the text is taller than the terminal, whose last row is for the prompt.
    fn decide(&mut self) -> std::io::Result<()> {
        if self.lines + 1 < self.rows {
            return Ok(());
        }
        self.to = match Pager::open() {
            Some(pager) => Destination::Pager(pager),
            None => Destination::Direct(BufWriter::new(std::io::stdout())),
        };
        self.write_held()
    }

    fn write_held(&mut self) -> std::io::Result<()> {
        let held = std::mem::take(&mut self.held);
        self.write_all(&held)
    }
}

impl Write for Stdout {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        match &mut self.to {
            Destination::Direct(out) => self.closed.note(out.write(text)),
            Destination::Pager(pager) => self.closed.note(pager.write(text)),
            Destination::Undecided => {
                self.held.extend_from_slice(text);
                self.lines += text.iter().filter(|byte| **byte == b'\n').count();
                self.decide()?;
                Ok(text.len())
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match &mut self.to {
            Destination::Undecided => Ok(()),
            Destination::Direct(out) => self.closed.note(out.flush()),
            Destination::Pager(pager) => self.closed.note(pager.flush()),
        }
    }
}

/// A running pager. Dropping it waits until the person leaves it.
struct Pager {
    child: Child,
    input: Option<BufWriter<ChildStdin>>,
    /// Ctrl-C is for the pager while it runs. Listening for it keeps it from ending this process.
    _interrupt: Option<Signal>,
}

impl Pager {
    fn open() -> Option<Self> {
        let mut command = match std::env::var("PAGER") {
            Ok(pager) if pager.trim().is_empty() => return None,
            Ok(pager) => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(pager);
                shell
            }
            Err(_) => {
                let mut less = Command::new("less");
                less.arg("-SFRX");
                less
            }
        };
        if std::env::var_os("LESSCHARSET").is_none() {
            command.env("LESSCHARSET", "utf-8");
        }
        let interrupt = signal(SignalKind::interrupt()).ok();
        let mut child = command.stdin(Stdio::piped()).spawn().ok()?;
        let input = child.stdin.take().map(BufWriter::new);
        Some(Self { child, input, _interrupt: interrupt })
    }

    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.input.as_mut().map_or(Ok(text.len()), |input| input.write(text))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.input.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        drop(self.input.take());
        // The exit status of a pager says nothing about the result.
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_than_a_screen_is_held_until_the_end() {
        let mut out = Stdout::new(Some(4));
        out.write_all(b"a\nb\n").unwrap();
        assert!(matches!(out.to, Destination::Undecided) && out.held == b"a\nb\n");
        assert!(matches!(Stdout::new(None).to, Destination::Direct(_)));
    }

    #[test]
    fn only_a_broken_pipe_means_that_the_reader_is_gone() {
        let closed = Closed::default();
        let failed = |kind: ErrorKind| Err::<(), _>(std::io::Error::from(kind));
        assert!(closed.note(failed(ErrorKind::StorageFull)).is_err() && !closed.get());
        assert!(closed.note(failed(ErrorKind::BrokenPipe)).is_err() && closed.get());
    }
}
