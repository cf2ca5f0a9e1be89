//! Standard output, through a pager where that is a terminal and the text is taller.
//!
//! Knows lines, not what stands in them. Text passes through as it comes: nothing is held but one screen.

use std::io::{BufWriter, IsTerminal, Stdout, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Rows of the terminal that is standard output; `None` where it is none.
pub(in crate::cli) fn height() -> Option<usize> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    let (_, rows) = rustyline::Editor::<(), rustyline::history::MemHistory>::with_history(
        rustyline::Config::default(),
        rustyline::history::MemHistory::new(),
    )
    .ok()?
    .dimensions()?;
    Some(usize::from(rows))
}

/// Where text goes once that is known.
enum To {
    Undecided,
    Stdout(BufWriter<Stdout>),
    Pager(Pager),
}

/// Standard output.
pub(super) struct Screen {
    height: usize,
    held: Vec<u8>,
    lines: usize,
    to: To,
}

impl Screen {
    /// On a terminal of `height` rows, or straight to what is no terminal.
    pub(super) fn new(height: Option<usize>) -> Self {
        let to = match height {
            Some(_) => To::Undecided,
            None => To::Stdout(BufWriter::new(std::io::stdout())),
        };
        Self { height: height.unwrap_or(0), held: Vec::new(), lines: 0, to }
    }

    /// Writes what is held and waits until the person has read it.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(super) fn finish(mut self) -> std::io::Result<()> {
        if matches!(self.to, To::Undecided) {
            self.to = To::Stdout(BufWriter::new(std::io::stdout()));
            self.let_go()?;
        }
        self.flush()
    }

    /// The last row is the prompt's.
    fn decide(&mut self) -> std::io::Result<()> {
        if self.lines + 1 < self.height {
            return Ok(());
        }
        self.to = match Pager::open() {
            Some(pager) => To::Pager(pager),
            None => To::Stdout(BufWriter::new(std::io::stdout())),
        };
        self.let_go()
    }

    fn let_go(&mut self) -> std::io::Result<()> {
        let held = std::mem::take(&mut self.held);
        self.write_all(&held)
    }
}

impl Write for Screen {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        match &mut self.to {
            To::Stdout(out) => out.write(text),
            To::Pager(pager) => pager.write(text),
            To::Undecided => {
                self.held.extend_from_slice(text);
                self.lines += text.iter().filter(|byte| **byte == b'\n').count();
                self.decide()?;
                Ok(text.len())
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match &mut self.to {
            To::Undecided => Ok(()),
            To::Stdout(out) => out.flush(),
            To::Pager(pager) => pager.flush(),
        }
    }
}

/// A running pager. Dropping it waits until the person leaves it.
struct Pager {
    child: Child,
    input: Option<BufWriter<ChildStdin>>,
    /// Ctrl-C belongs to the pager while it runs; listening keeps it from ending this process.
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
        // What the pager thinks of it is between it and the person.
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_than_a_screen_is_held_until_the_end() {
        let mut screen = Screen::new(Some(4));
        screen.write_all(b"a\nb\n").unwrap();
        assert!(matches!(screen.to, To::Undecided) && screen.held == b"a\nb\n");
        assert!(matches!(Screen::new(None).to, To::Stdout(_)));
    }
}
