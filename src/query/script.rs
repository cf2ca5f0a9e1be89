//! A script cut into its statements and backslash commands.
//!
//! Cut by the tokens of the SQL parser itself, so quotes, comments and dollar quotes mean here what they mean there.
//! Knows nothing of what a command does or of where a script comes from.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer, TokenizerError};

/// What stands between two semicolons, or a line that begins with a backslash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    /// SQL, without its semicolon.
    Statement(&'a str),
    /// A command of the shell, with its backslash.
    Command(&'a str),
}

/// One item of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// What it says.
    pub item: Item<'a>,
    /// Line of the script where it begins, from 1.
    pub line: usize,
    /// False for a last statement that may go on: no semicolon yet, or a quote still open.
    pub ended: bool,
}

/// The tokens of a text as far as it can be read, and what stopped there.
pub fn tokens(text: &str) -> (Vec<TokenWithSpan>, Option<TokenizerError>) {
    let mut tokens = Vec::new();
    let outcome = Tokenizer::new(&GenericDialect {}, text).tokenize_with_location_into_buf(&mut tokens);
    (tokens, outcome.err())
}

/// Byte offsets of the parser's locations, asked for in ascending order.
pub struct Offsets<'a> {
    rest: std::str::Chars<'a>,
    length: usize,
    at: Location,
}

impl<'a> Offsets<'a> {
    /// Of a text.
    pub fn new(text: &'a str) -> Self {
        Self { rest: text.chars(), length: text.len(), at: Location { line: 1, column: 1 } }
    }

    /// Offset of a location; the text's length beyond its end.
    pub fn of(&mut self, location: Location) -> usize {
        while self.at < location {
            match self.rest.next() {
                Some('\n') => self.at = Location { line: self.at.line + 1, column: 1 },
                Some(_) => self.at.column += 1,
                None => break,
            }
        }
        self.length - self.rest.as_str().len()
    }
}

/// The items of a script, in order. Nothing between two semicolons, or only a comment, is no item.
pub fn pieces(script: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < script.len() {
        at += up_to_command(script, at, &mut pieces);
    }
    pieces
}

/// True where nothing of a text waits for more: every statement has its semicolon.
pub fn is_complete(text: &str) -> bool {
    pieces(text).iter().all(|piece| piece.ended)
}

/// Adds the statements from `from` on, and the command behind them if there is one. Gives the bytes that were read.
/// Commands are no SQL, so what follows one is read anew.
fn up_to_command<'a>(script: &'a str, from: usize, pieces: &mut Vec<Piece<'a>>) -> usize {
    let text = &script[from..];
    let line = |offset: usize| 1 + script[..from + offset].matches('\n').count();
    let (tokens, error) = tokens(text);
    let mut offsets = Offsets::new(text);
    let mut begun: Option<usize> = None;
    for token in &tokens {
        match token.token {
            Token::Whitespace(_) => {}
            Token::SemiColon => {
                if let Some(start) = begun.take() {
                    let item = Item::Statement(&text[start..offsets.of(token.span.start)]);
                    pieces.push(Piece { item, line: line(start), ended: true });
                }
            }
            Token::Backslash if begun.is_none() => {
                let start = offsets.of(token.span.start);
                let end = text[start..].find('\n').map_or(text.len(), |length| start + length);
                let item = Item::Command(text[start..end].trim_end());
                pieces.push(Piece { item, line: line(start), ended: true });
                return end;
            }
            _ => begun = begun.or_else(|| Some(offsets.of(token.span.start))),
        }
    }
    let stopped = || tokens.last().map_or(0, |last| offsets.of(last.span.end));
    let start = begun.or_else(|| error.is_some().then(stopped));
    if let Some(start) = start {
        let item = Item::Statement(text[start..].trim_end());
        pieces.push(Piece { item, line: line(start), ended: error.is_some_and(|e| !is_open(&e)) });
    }
    text.len()
}

/// True for a quote or comment that has not ended, rather than one that is wrong.
fn is_open(error: &TokenizerError) -> bool {
    error.message.contains("Unterminated") || error.message.contains("EOF")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statements(script: &str) -> Vec<&str> {
        let text = |piece: &Piece<'static>| match piece.item {
            Item::Statement(text) | Item::Command(text) => text,
        };
        let script: &'static str = script.to_owned().leak();
        pieces(script).iter().map(text).collect()
    }

    #[test]
    fn a_semicolon_ends_a_statement_but_not_in_quotes_and_comments() {
        let script =
            "SELECT ';'; SELECT \"a;b\" -- c; d\n, 'it''s;' /* ; /* ; */ ; */ ;\n;; -- only; a comment\n SELECT $$;$$";
        let expected = ["SELECT ';'", "SELECT \"a;b\" -- c; d\n, 'it''s;' /* ; /* ; */ ; */ ", "SELECT $$;$$"];
        assert_eq!(statements(script), expected);
    }

    #[test]
    fn lines_are_counted_in_the_whole_script() {
        let lines: Vec<usize> =
            pieces("SELECT 1;\n\n-- x\nSELECT\n2;\\d\nSELECT 'ä\n'; x").iter().map(|p| p.line).collect();
        assert_eq!(lines, [1, 4, 5, 6, 7]);
    }

    #[test]
    fn commands_take_their_line_whatever_stands_in_it() {
        let script = "\\g it's; a 'gene\nSELECT 1;\n  \\d cells  \nSELECT 2 \\ 1";
        let found = pieces(script);
        assert_eq!(found[0].item, Item::Command("\\g it's; a 'gene"));
        assert_eq!(found[1].item, Item::Statement("SELECT 1"));
        assert_eq!(found[2].item, Item::Command("\\d cells"));
        assert_eq!(found[3].item, Item::Statement("SELECT 2 \\ 1"));
    }

    #[test]
    fn a_statement_goes_on_until_its_quotes_are_closed_and_a_semicolon_comes() {
        for open in
            ["SELECT 1", "SELECT 'a;", "SELECT \"a;", "SELECT 1 /* ;", "/* ;", "SELECT $a$ ; $$;", "SELECT 1; SELECT 2"]
        {
            assert!(!is_complete(open), "{open}");
        }
        for complete in ["", " \n", "-- a comment", "SELECT 1;", "SELECT 1; -- done", "\\d", "SELECT 'a;\n';"] {
            assert!(is_complete(complete), "{complete}");
        }
    }

    #[test]
    fn statements_before_a_quote_that_never_ends_are_still_found() {
        assert_eq!(statements("SELECT 1; SELECT 'a; SELECT 2;"), ["SELECT 1", "SELECT 'a; SELECT 2;"]);
    }
}
