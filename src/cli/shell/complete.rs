//! Completion of statements. Depends on the names of a session and the text before the cursor; knows no terminal.

use std::cell::LazyCell;

use cellql_store::sql::quote_literal;
use cellql_udfs::description::Description;
use cellql_udfs::parameters::Parameter;
use datafusion::sql::sqlparser::keywords::ALL_KEYWORDS;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::commands::COMMANDS;
use crate::query::script::{Item, Offsets, Piece, pieces, tokens};
use crate::query::{Table, identifier};

/// Maximum number of candidates.
const MOST: usize = 500;
/// Keywords that are followed by the name of a table.
const BEFORE_TABLES: &[&str] = &["FROM", "JOIN", "DESCRIBE", "TABLE"];

/// The names that can be completed.
pub(super) struct Names {
    pub(super) tables: Vec<Table>,
    pub(super) functions: Vec<String>,
    pub(super) models: Vec<String>,
    pub(super) recipes: Vec<String>,
    pub(super) parameters: Vec<String>,
    pub(super) formats: Vec<String>,
    /// Sorted by their upper-case spelling. There are tens of thousands, so they are listed when first asked for.
    pub(super) genes: Genes,
}

/// Names of genes, listed when first asked for.
pub(super) type Genes = LazyCell<Vec<String>, Box<dyn FnOnce() -> Vec<String>>>;

/// Candidates for the text from `start`, a byte offset, to the cursor.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) start: usize,
    pub(super) candidates: Vec<String>,
}

/// The quotes that are open at the cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    No,
    Single,
    Double,
    /// A comment, or a rarer kind of string: nothing to complete.
    Other,
}

/// A statement up to the cursor.
struct Before<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    /// Where the word at the cursor begins; behind a single quote, at a double one.
    word_at: usize,
    open: Open,
}

impl<'a> Before<'a> {
    fn read(text: &'a str) -> Self {
        let (mut found, error) = tokens(text);
        if error.is_some() {
            let end = end_of(text, &found);
            let (open, word_at) = match text[end..].chars().next() {
                Some('\'') => (Open::Single, end + 1),
                Some('"') => (Open::Double, end),
                _ => (Open::Other, text.len()),
            };
            return Self { text, tokens: plain(found), word_at, open };
        }
        let word_at = text
            .char_indices()
            .rfind(|(_, c)| !(c.is_alphanumeric() || *c == '_'))
            .map_or(0, |(at, c)| at + c.len_utf8());
        while found.last().is_some_and(|last| Offsets::new(text).of(last.span.start) >= word_at) {
            found.pop();
        }
        Self { text, tokens: plain(found), word_at, open: Open::No }
    }

    fn word(&self) -> &'a str {
        self.text[self.word_at..].trim_start_matches('"')
    }

    /// The token `back` steps before the word at the cursor.
    fn token(&self, back: usize) -> Option<&Token> {
        self.tokens.len().checked_sub(back).and_then(|at| self.tokens.get(at))
    }

    /// The option whose value stands at the cursor: `model` in `model => 't`.
    fn option(&self) -> Option<&str> {
        match (self.token(2)?, self.token(1)?) {
            (Token::Word(word), Token::RArrow) => Some(&word.value),
            _ => None,
        }
    }

    /// The function of cellql in whose parentheses the cursor stands, and the number of arguments before the cursor.
    fn function(&self) -> Option<(&'static Description, usize)> {
        let mut depth = 0usize;
        let mut arguments = 0;
        for at in (0..self.tokens.len()).rev() {
            match &self.tokens[at] {
                Token::RParen | Token::RBracket => depth += 1,
                Token::LParen | Token::LBracket if depth > 0 => depth -= 1,
                Token::Comma if depth == 0 => arguments += 1,
                Token::LParen => {
                    let name = at.checked_sub(1).and_then(|before| word_of(&self.tokens[before]))?;
                    let known = cellql_udfs::FUNCTIONS.iter().find(|f| f.name.eq_ignore_ascii_case(&name))?;
                    return Some((known, arguments));
                }
                _ => {}
            }
        }
        None
    }
}

fn end_of(text: &str, tokens: &[TokenWithSpan]) -> usize {
    tokens.last().map_or(0, |last| Offsets::new(text).of(last.span.end))
}

fn plain(tokens: Vec<TokenWithSpan>) -> Vec<Token> {
    tokens.into_iter().map(|t| t.token).filter(|t| !matches!(t, Token::Whitespace(_))).collect()
}

/// Completes the word before the cursor, a byte offset into the statement.
pub(super) fn complete(statement: &str, cursor: usize, names: &Names) -> Found {
    let text = statement.get(..cursor).unwrap_or(statement);
    if text.trim_start().starts_with('\\') {
        return command(text, names);
    }
    let from = last_begun(text);
    let before = Before::read(&text[from..]);
    let mut candidates = match before.open {
        Open::Single => in_quotes(&before, names),
        Open::No | Open::Double => in_sql(&before, &statement[from..], names),
        Open::Other => Vec::new(),
    };
    candidates.truncate(MOST);
    Found { start: from + before.word_at, candidates }
}

/// Byte offset of the last statement if it has not ended.
fn last_begun(text: &str) -> usize {
    match pieces(text).last() {
        Some(Piece { item: Item::Statement(last), ended: false, .. }) => text.rfind(last).unwrap_or(0),
        _ => 0,
    }
}

fn command(text: &str, names: &Names) -> Found {
    let trimmed = text.trim_start();
    let Some((name, rest)) = trimmed.split_once(char::is_whitespace) else {
        let known = COMMANDS.iter().map(|(name, ..)| *name);
        let candidates = known.filter(|n| n.starts_with(trimmed)).map(str::to_owned).collect();
        return Found { start: text.len() - trimmed.len(), candidates };
    };
    let word = rest.trim_start();
    let like = |all: &[String]| all.iter().filter(|n| begins(n, word)).cloned().collect();
    let candidates = match name {
        "\\d" => like(&names.tables.iter().map(|t| t.name.clone()).collect::<Vec<_>>()),
        "\\df" => like(&names.functions),
        "\\format" => like(&names.formats),
        "\\set" => like(&names.parameters),
        "\\g" => genes(word, names).map(str::to_owned).take(MOST).collect(),
        _ => Vec::new(),
    };
    Found { start: text.len() - word.len(), candidates }
}

/// In single quotes: the words that the argument takes, by the description of its function, or else genes.
fn in_quotes(before: &Before, names: &Names) -> Vec<String> {
    let word = before.word();
    let like = |all: &[String]| all.iter().filter(|v| begins(v, word)).map(|v| format!("{v}'")).collect();
    let words = |parameter: Option<&Parameter>| {
        let words = parameter.into_iter().flat_map(Parameter::values).copied();
        words.filter(|v| begins(v, word)).map(|v| format!("{v}'")).collect::<Vec<_>>()
    };
    let function = before.function();
    match before.option() {
        Some("model") => like(&names.models),
        Some("recipe") => like(&names.recipes),
        Some(option) => words(function.and_then(|(f, _)| f.parameters.get(f.position(option)?))),
        None => {
            let found = words(function.and_then(|(f, position)| f.parameters.get(position)));
            // There are too many genes to list them all.
            if !found.is_empty() || word.is_empty() {
                return found;
            }
            genes(word, names).map(|gene| quote_literal(gene).split_off(1)).take(MOST).collect()
        }
    }
}

/// Genes whose names begin with a word, whatever its case.
fn genes<'a>(word: &str, names: &'a Names) -> impl Iterator<Item = &'a str> {
    let wanted = word.to_uppercase();
    let first = names.genes.partition_point(|gene| gene.to_uppercase() < wanted);
    names.genes[first..].iter().take_while(move |gene| gene.to_uppercase().starts_with(&wanted)).map(String::as_str)
}

fn in_sql(before: &Before, statement: &str, names: &Names) -> Vec<String> {
    let word = before.word();
    if before.text[..before.word_at].ends_with('$') {
        return names.parameters.iter().filter(|p| begins(p, word)).cloned().collect();
    }
    if let (Some(Token::Word(owner)), Some(Token::Period)) = (before.token(2), before.token(1)) {
        return of_owner(&owner.value, word, statement, names);
    }
    let tables = names.tables.iter().map(|t| t.name.clone()).filter(|n| begins(n, word));
    if matches!(before.token(1), Some(Token::Word(w)) if BEFORE_TABLES.iter().any(|k| w.value.eq_ignore_ascii_case(k)))
    {
        let search = [cellql_udfs::vector_search::NAME.to_owned()];
        return tables.chain(search.into_iter().filter(|n| begins(n, word))).collect();
    }
    let mut all = options(before, word);
    let mut columns: Vec<String> = named(statement, names).iter().flat_map(|t| columns(t, word)).collect();
    columns.sort();
    columns.dedup();
    all.extend(columns);
    all.extend(tables);
    all.extend(names.functions.iter().filter(|f| begins(f, word)).cloned());
    if !word.is_empty() {
        all.extend(keywords(word));
    }
    all
}

/// Options of the function in whose call the cursor stands.
fn options(before: &Before, word: &str) -> Vec<String> {
    let starts = matches!(before.token(1), Some(Token::Comma));
    match before.function() {
        Some((function, _)) if starts => {
            let options = function.parameters.iter().filter(|p| !p.required && begins(p.name, word));
            options.map(|p| format!("{} => ", p.name)).collect()
        }
        _ => Vec::new(),
    }
}

/// In the user's case.
fn keywords(word: &str) -> impl Iterator<Item = String> {
    let (upper, lower) = (word.to_uppercase(), !word.chars().any(char::is_uppercase));
    let known = ALL_KEYWORDS.iter().filter(move |k| k.starts_with(&upper) && !k.contains('_'));
    known.map(move |k| if lower { k.to_lowercase() } else { (*k).to_owned() })
}

/// After `owner.`: columns of a table or of its alias, or tables of a schema.
fn of_owner(owner: &str, word: &str, statement: &str, names: &Names) -> Vec<String> {
    let real = aliases(statement, names).into_iter().find(|(alias, _)| alias.eq_ignore_ascii_case(owner));
    let named = |t: &&Table| t.name.replace('"', "").eq_ignore_ascii_case(owner);
    let table = real.map(|(_, table)| table).or_else(|| names.tables.iter().find(named));
    let prefix = format!("{owner}.");
    let inside = names.tables.iter().filter_map(|t| t.name.strip_prefix(&prefix)).filter(|n| begins(n, word));
    let columns = table.map(|t| columns(t, word)).unwrap_or_default();
    inside.map(str::to_owned).chain(columns).collect()
}

fn columns(table: &Table, word: &str) -> Vec<String> {
    table.columns.iter().filter(|(name, _)| begins(name, word)).map(|(name, _)| identifier(name)).collect()
}

/// Tables that the statement names, or all where it names none yet.
fn named<'a>(statement: &str, names: &'a Names) -> Vec<&'a Table> {
    let words: Vec<String> = tokens(statement).0.into_iter().filter_map(|t| word_of(&t.token)).collect();
    let is_named = |table: &&Table| words.iter().any(|w| w.eq_ignore_ascii_case(&table.name.replace('"', "")));
    let found: Vec<&Table> = names.tables.iter().filter(is_named).collect();
    if found.is_empty() { names.tables.iter().collect() } else { found }
}

/// `FROM cells c`, `JOIN embeddings.tiny AS e`: aliases with their tables.
fn aliases<'a>(statement: &str, names: &'a Names) -> Vec<(String, &'a Table)> {
    let words = plain(tokens(statement).0);
    let mut found = Vec::new();
    for at in 0..words.len() {
        let Some(mut name) = word_of(&words[at]) else { continue };
        let mut next = at + 1;
        if let (Some(Token::Period), Some(inner)) = (words.get(next), words.get(next + 1).and_then(word_of)) {
            name = format!("{name}.{inner}");
            next += 2;
        }
        let Some(table) = names.tables.iter().find(|t| t.name.replace('"', "") == name) else { continue };
        if words.get(next).and_then(word_of).is_some_and(|w| w.eq_ignore_ascii_case("as")) {
            next += 1;
        }
        if let Some(alias) = words.get(next).and_then(word_of) {
            found.push((alias, table));
        }
    }
    found
}

fn word_of(token: &Token) -> Option<String> {
    match token {
        Token::Word(word) => Some(word.value.clone()),
        _ => None,
    }
}

fn begins(name: &str, word: &str) -> bool {
    let name = name.trim_start_matches('"');
    name.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
}

#[cfg(test)]
#[path = "complete_tests.rs"]
mod tests;
