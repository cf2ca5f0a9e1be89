//! Runs statements and commands in order. A statement is planned after those before it have run.

use std::path::Path;
use std::time::{Duration, Instant};

use datafusion::sql::sqlparser::tokenizer::Token;

use super::commands::{self, Command};
use super::describe;
use super::interrupts::Interrupts;
use crate::cli::console::Console;
use crate::cli::output::{self, Format, Sheet, Written};
use crate::error::{Error, ErrorKind, Result};
use crate::query::script::{Item, pieces, tokens};
use crate::query::{Parameters, Session};

/// Maximum depth of files that include one another with `\i`.
const MAX_DEPTH: usize = 16;

/// What to do after a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Next {
    GoOn,
    Leave,
}

/// A session with the settings that statements and commands can change.
pub(in crate::cli) struct Runner<'a> {
    pub(in crate::cli) session: Session,
    pub(in crate::cli) console: &'a Console,
    pub(in crate::cli) sheet: Sheet,
    pub(in crate::cli) parameters: Parameters,
    pub(in crate::cli) timing: bool,
    /// If present, Ctrl-C stops the statement, not the program.
    pub(in crate::cli) interrupts: Option<Interrupts>,
    /// Depth of files that are being run, one included by the other.
    pub(in crate::cli) depth: usize,
    /// Statements with a result that were started; one that failed may have written a part of it.
    pub(in crate::cli) results: usize,
}

/// Reads a file of statements.
///
/// # Errors
/// [`Error::Input`] where it cannot be read.
pub(in crate::cli) fn read_script(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).map_err(|e| Error::input(file, "file", format!("cannot be read: {e}")))
}

impl Runner<'_> {
    /// Runs the statements and commands of a script in order, up to the first error.
    ///
    /// # Errors
    /// [`Error::Statement`], with the number of the one that failed where there are several.
    pub(in crate::cli) async fn script(&mut self, script: &str) -> Result<Next> {
        let all = pieces(script);
        self.check_results(
            all.iter().filter(|piece| matches!(piece.item, Item::Statement(text) if has_result(text))).count(),
        )?;
        for (i, piece) in all.iter().enumerate() {
            let number = (all.len() > 1).then_some(i + 1);
            let next = match piece.item {
                Item::Statement(text) => {
                    let done = self.statement(text).await;
                    done.map_err(|e| e.in_statement(number, piece.line, text)).map(|()| Next::GoOn)
                }
                Item::Command(text) => {
                    let done = self.command(text).await;
                    done.map_err(|e| e.in_statement(number, piece.line, text))
                }
            };
            if next? == Next::Leave {
                return Ok(Next::Leave);
            }
        }
        Ok(Next::GoOn)
    }

    /// Refuses results in a format that holds one of them, before the first is written.
    fn check_results(&self, more: usize) -> Result<()> {
        let format = self.sheet.format;
        match self.results + more > 1 && format.holds_one_result() {
            true => Err(Error::Request(format!(
                "{} holds one result, but these statements have {}; run them one at a time, or choose csv or ndjson",
                format.name(),
                self.results + more
            ))),
            false => Ok(()),
        }
    }

    async fn statement(&mut self, text: &str) -> Result<()> {
        let results = usize::from(has_result(text));
        self.check_results(results)?;
        self.results += results;
        let start = Instant::now();
        let work = async { self.sheet.write(self.session.sql_with(text, &self.parameters).await?).await };
        let written = match self.unless_interrupted(work).await {
            Err(error) => self.after_lost_version(error, text).await,
            written => written,
        };
        self.console.notices(&self.session.take_notices());
        let Written { rows, left_out } = written?;
        if left_out > 0 {
            self.console.say(&format!(
                "{left_out} more rows are not shown; use LIMIT, redirect stdout to a file, or choose \\format csv"
            ));
        }
        if self.timing {
            self.console.say(&timing(rows, start.elapsed()));
        }
        Ok(())
    }

    /// If a statement failed because its version of the store was deleted, the shell goes on with the newest version
    /// and runs the statement again; a script ends.
    async fn after_lost_version(&mut self, error: Error, text: &str) -> Result<Written> {
        let lacks_file = error.lacks_file();
        let explained = self.session.explained(error).await;
        // Rows of other formats may be on stdout already.
        let can_repeat = self.interrupts.is_some() && matches!(self.sheet.format, Format::Table);
        if !lacks_file || explained.kind() != ErrorKind::Request || !can_repeat {
            return Err(explained);
        }
        self.session = self.session.reopened().await?;
        let version = self.session.engine().store().version().version;
        self.console.say(&format!("the version that was read is deleted; going on with version {version}"));
        let work = async { self.sheet.write(self.session.sql_with(text, &self.parameters).await?).await };
        self.unless_interrupted(work).await
    }

    /// In the shell, Ctrl-C drops the work. In a script, Ctrl-C ends the program.
    async fn unless_interrupted<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let Some(interrupts) = &self.interrupts else {
            return work.await;
        };
        tokio::select! {
            done = work => done,
            _ = interrupts.next() => Err(Error::Request("stopped by Ctrl-C".into())),
        }
    }

    async fn command(&mut self, line: &str) -> Result<Next> {
        let shown = |on: bool| if on { "on" } else { "off" };
        match commands::parse(line)? {
            Command::Quit => return Ok(Next::Leave),
            Command::Help => output::text(&commands::help())?,
            Command::Timing(on) => {
                self.timing = on.unwrap_or(!self.timing);
                self.console.say(&format!("timing is {}", shown(self.timing)));
            }
            Command::Expanded(on) => {
                self.sheet.expanded = on.unwrap_or(!self.sheet.expanded);
                self.console.say(&format!("expanded display is {}", shown(self.sheet.expanded)));
            }
            Command::Format(format) => self.format(format),
            Command::Set(None) => {
                let lines: Vec<String> =
                    self.parameters.list().map(|(name, value)| format!("${name} = {value}")).collect();
                self.console.say(&if lines.is_empty() { "no parameter is set".to_owned() } else { lines.join("\n") });
            }
            Command::Set(Some((name, value))) => self.parameters.set(&name, &value)?,
            Command::Include(file) => return self.include(&file).await,
            about => {
                let answer = describe::answer(&self.session, about, self.sheet);
                self.unless_interrupted(answer).await?;
            }
        }
        Ok(Next::GoOn)
    }

    fn format(&mut self, format: Option<Format>) {
        match format {
            Some(format) => self.sheet.format = format,
            None => self.console.say(&format!("format is {}", self.sheet.format.name())),
        }
    }

    async fn include(&mut self, file: &Path) -> Result<Next> {
        if self.depth == MAX_DEPTH {
            return Err(Error::input(file, "\\i", format!("more than {MAX_DEPTH} files include one another")));
        }
        let script = read_script(file)?;
        self.depth += 1;
        let done = Box::pin(self.script(&script)).await;
        self.depth -= 1;
        done
    }
}

/// True for a statement with a result, not one that only changes the session.
fn has_result(text: &str) -> bool {
    let (tokens, _) = tokens(text);
    let first = tokens.iter().find(|token| !matches!(token.token, Token::Whitespace(_)));
    let word = first.map(|token| token.token.to_string().to_uppercase()).unwrap_or_default();
    !matches!(word.as_str(), "SET" | "RESET" | "PREPARE" | "DEALLOCATE")
}

/// `320 rows in 1.2 s`.
fn timing(rows: usize, time: Duration) -> String {
    let noun = if rows == 1 { "row" } else { "rows" };
    match time.as_secs_f64() {
        seconds if seconds < 0.1 => format!("{rows} {noun} in {:.0} ms", seconds * 1e3),
        seconds => format!("{rows} {noun} in {seconds:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        assert_eq!(timing(320, Duration::from_millis(1234)), "320 rows in 1.2 s");
        assert_eq!(timing(1, Duration::from_micros(12_300)), "1 row in 12 ms");
    }

    async fn runner<'a>(console: &'a Console, folder: &Path) -> Runner<'a> {
        let store = cellql_store::Store::init(folder.join("store").to_str().unwrap()).await.unwrap();
        let session = Session::open(store).await.unwrap();
        let sheet = Sheet { format: Format::Csv, expanded: false, terminal: None };
        Runner {
            session,
            console,
            sheet,
            parameters: Parameters::default(),
            timing: false,
            interrupts: None,
            depth: 0,
            results: 0,
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_script_stops_at_its_first_error_and_says_which_and_where() {
        let (folder, console) = (tempfile::tempdir().unwrap(), Console::new(true));
        let mut runner = runner(&console, folder.path()).await;
        let script = "\\set n 3\nSELECT $n;\nSELECT *\nFROM cellz;\n\\set m 4";
        let text = runner.script(script).await.unwrap_err().to_string();
        assert!(text.starts_with("statement 3 (line 3): there is no table 'cellz'. Did you mean 'cells'"), "{text}");
        assert!(text.ends_with("\n  FROM cellz\n       ^"), "{text}");
        assert_eq!(
            runner.parameters.list().map(|(name, _)| name).collect::<Vec<_>>(),
            ["n"],
            "the last line did not run"
        );
        assert_eq!(runner.script("SELECT 1; \\q\nSELECT nonsense").await.unwrap(), Next::Leave);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_of_one_result_is_refused_before_the_first_of_two() {
        let (folder, console) = (tempfile::tempdir().unwrap(), Console::new(true));
        let mut runner = runner(&console, folder.path()).await;
        runner.sheet.format = Format::Parquet;
        let error = runner.script("SET datafusion.explain.show_sizes = true; SELECT 1; SELECT 2").await.unwrap_err();
        assert!(matches!(&error, Error::Request(text) if text.contains("parquet")), "{error}");
        assert_eq!(runner.results, 0);
        runner.sheet.format = Format::Csv;
        runner.script("SELECT 1; SELECT 2").await.unwrap();
        assert_eq!(runner.results, 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn errors_point_and_name_what_is_near() {
        let (folder, console) = (tempfile::tempdir().unwrap(), Console::new(true));
        let mut runner = runner(&console, folder.path()).await;
        let cases = [
            ("SELECT cell_idd FROM cells", "'cell_id'", 7),
            ("SELECT c.cell_idd FROM cells c", "'cell_id'", 7),
            ("SELECT 1 FROM cells WHERE", "syntax", 25),
            ("SELECT 1 FROM ) cells", "syntax", 14),
            ("SELECT expresion(expr, 'INS') FROM cells", "'expression'", 7),
            ("SELECT * FROM vector_serch('cells', 1)", "'vector_search'", 14),
            ("SELECT expression(expr, 'INSS') FROM cells", "'INS'", 24),
            ("SELECT embed(expr, modl => 'x') FROM cells", "'model'", 19),
            ("SELECT $nn", "--param nn=VALUE", 7),
            ("SELECT 'abc", "syntax", 7),
        ];
        for (sql, words, column) in cases {
            let text = runner.script(sql).await.unwrap_err().to_string();
            let caret = text.lines().last().unwrap();
            assert!(text.contains(words), "{sql}: {text}");
            assert_eq!(caret, format!("  {}^", " ".repeat(column)), "{sql}: {text}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_that_includes_itself_is_an_error() {
        let (folder, console) = (tempfile::tempdir().unwrap(), Console::new(true));
        let mut runner = runner(&console, folder.path()).await;
        let file = folder.path().join("loop.sql");
        let line = format!("\\i {}", file.display());
        std::fs::write(&file, &line).unwrap();
        let text = runner.script(&line).await.unwrap_err().to_string();
        assert!(text.contains("more than 16 files include"), "{text}");
        assert_eq!(runner.depth, 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_command_about_the_store_answers() {
        let (folder, console) = (tempfile::tempdir().unwrap(), Console::new(true));
        let mut runner = runner(&console, folder.path()).await;
        for line in ["\\d", "\\d cells", "\\d X", "\\df", "\\df embed", "\\df avg", "\\dm", "\\di", "\\g IL8"] {
            assert_eq!(runner.script(line).await.unwrap(), Next::GoOn, "{line}");
        }
        let text = runner.script("\\d cell").await.unwrap_err().to_string();
        assert!(text.contains("'cells'"), "{text}");
        assert!(runner.script("\\df embedd").await.unwrap_err().to_string().contains("'embed'"));
    }
}
