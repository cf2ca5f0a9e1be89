//! What DataFusion says of a failed query, as a person reads it: the sentence without its wrappings, and the place.

use cellql_schemas::cells;
use cellql_schemas::nomenclature::{Nomenclature, Resolution};
use cellql_schemas::suggest::nearest;
use cellql_udfs::engine::EngineError;
use datafusion::common::{Column, SchemaError};
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

/// Columns that an error lists where none is near the wrong name.
const LISTED: usize = 20;
/// Characters of a long line that are shown around its place.
const WIDTH: usize = 100;

/// A place in a statement, both from 1, counted in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Character of the line.
    pub column: usize,
}

/// DataFusion wraps its errors in their kind and in contexts; the reader wants the sentence.
pub(super) fn message(error: &DataFusionError) -> String {
    match error.find_root() {
        DataFusionError::Plan(text) | DataFusionError::Execution(text) => {
            text.replace(".\nDid you mean", ". Did you mean")
        }
        DataFusionError::SQL(parser, _) => match parser.as_ref() {
            ParserError::ParserError(text) | ParserError::TokenizerError(text) => format!("syntax: {text}"),
            ParserError::RecursionLimitExceeded => "syntax: the statement is nested too deeply".to_owned(),
        },
        DataFusionError::SchemaError(inner, _) => match inner.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => no_column(field, valid_fields),
            other => other.to_string(),
        },
        DataFusionError::External(inner) => match inner.downcast_ref::<super::Error>() {
            Some(ours) => ours.to_string(),
            None => failed_filter(inner.as_ref()).map_or_else(|| inner.to_string(), str::to_owned),
        },
        other => other.strip_backtrace(),
    }
}

/// Why a condition that Lance evaluates could not be: a text that is no number, for example.
pub(super) fn failed_filter<'a>(error: &'a (dyn std::error::Error + Send + Sync + 'static)) -> Option<&'a str> {
    const BEFORE: &str = "Error applying filter expression to batch: ";
    match error.downcast_ref() {
        Some(lance::Error::Execution { message, .. }) => Some(message.strip_prefix(BEFORE).unwrap_or(message)),
        _ => None,
    }
}

fn no_column(field: &Column, valid: &[Column]) -> String {
    let quoted = |name: &str| match name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
        true => format!("'{name}'"),
        false => format!("'\"{name}\"' (in double quotes)"),
    };
    let mut names: Vec<&str> = valid.iter().map(|c| c.name.as_str()).collect();
    names.dedup();
    let near = nearest(&field.name, names.iter().copied());
    let has_expression = names.contains(&cells::EXPR);
    if let Some(symbol) = gene_symbol(&field.name).filter(|_| has_expression) {
        let name = &field.name;
        return format!("there is no column '{name}', but it is a gene: write expression(expr, '{symbol}')");
    }
    let hint = match (near.as_slice(), names.len()) {
        ([], 0) => "; no table is named in FROM".to_owned(),
        ([], n) if n <= LISTED => format!("; the columns are {}", names.join(", ")),
        ([], _) => format!("; the columns are {}, …", names[..LISTED].join(", ")),
        (near, _) => format!(". Did you mean {}?", near.iter().map(|n| quoted(n)).collect::<Vec<_>>().join(", ")),
    };
    match &field.relation {
        Some(table) => format!("there is no column '{}' in '{table}'{hint}", field.name),
        None => format!("there is no column '{}'{hint}", field.name),
    }
}

/// The approved symbol of the gene that a name means in any case: SQL makes unquoted names lower case.
fn gene_symbol(name: &str) -> Option<&'static str> {
    let nomenclature = Nomenclature::hgnc();
    let gene = |name: &str| match nomenclature.resolve(name) {
        Resolution::Gene(gene, _) => Some(nomenclature.genes()[gene].symbol.as_str()),
        _ => None,
    };
    gene(name).or_else(|| gene(&name.to_uppercase()))
}

/// Where in its statement an error is: DataFusion's span where it gives one, else the place of the parser's error, of
/// the unknown column, or of the argument that a function refuses. `None` where nothing tells.
pub fn place(error: &DataFusionError, statement: &str) -> Option<Place> {
    let span = error.diagnostic().and_then(|d| d.span).filter(|span| span.start.line > 0);
    if let Some(span) = span {
        return Some(Place { line: span.start.line as usize, column: span.start.column as usize });
    }
    match error.find_root() {
        DataFusionError::SQL(parser, _) => match parser.as_ref() {
            ParserError::ParserError(text) | ParserError::TokenizerError(text) => syntax_error(text, statement),
            ParserError::RecursionLimitExceeded => None,
        },
        DataFusionError::SchemaError(inner, _) => match inner.as_ref() {
            SchemaError::FieldNotFound { field, .. } => only_token(&field.name, statement),
            _ => None,
        },
        DataFusionError::External(inner) => match inner.downcast_ref::<EngineError>() {
            Some(EngineError::Argument { value, .. }) => only_token(value, statement),
            _ => None,
        },
        _ => None,
    }
}

/// The place of a syntax error, read from its text: `… at Line: 2, Column: 8`, or `… found: EOF` at the end of the
/// statement. sqlparser's error has nothing but this text.
fn syntax_error(message: &str, statement: &str) -> Option<Place> {
    if message.ends_with("found: EOF") {
        let text = statement.trim_end();
        let last = text.lines().last()?;
        return Some(Place { line: text.lines().count(), column: last.chars().count() + 1 });
    }
    let (_, rest) = message.rsplit_once("Line: ")?;
    let (line, rest) = rest.split_once(", Column: ")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    let place = Place { line: line.parse().ok()?, column: digits.parse().ok()? };
    (place.line > 0 && place.column > 0).then_some(place)
}

/// The place of a name or string in a statement that has it once. A function that refuses an argument knows its value
/// and not its place: DataFusion plans calls without spans.
fn only_token(value: &str, statement: &str) -> Option<Place> {
    let dialect = datafusion::sql::sqlparser::dialect::GenericDialect {};
    let tokens = Tokenizer::new(&dialect, statement).tokenize_with_location().ok()?;
    let mut found = tokens.iter().filter(|token| match &token.token {
        Token::Word(word) => word.value.eq_ignore_ascii_case(value),
        Token::SingleQuotedString(text) => text == value,
        _ => false,
    });
    match (found.next(), found.next()) {
        (Some(only), None) => {
            let start = only.span.start;
            Some(Place { line: start.line as usize, column: start.column as usize })
        }
        _ => None,
    }
}

/// The line of a place with a caret under it, cut to what stands near the place.
pub fn pointed(statement: &str, place: Place) -> Option<String> {
    let line: Vec<char> = statement.lines().nth(place.line.checked_sub(1)?)?.chars().collect();
    let column = place.column.checked_sub(1)?.min(line.len());
    let from = column.saturating_sub(WIDTH / 2).min(line.len().saturating_sub(WIDTH));
    let to = (from + WIDTH).min(line.len());
    let (before, after) = (if from > 0 { "…" } else { "" }, if to < line.len() { "…" } else { "" });
    let shown: String = line[from..to].iter().map(|c| if *c == '\t' { ' ' } else { *c }).collect();
    let indent = " ".repeat(before.chars().count() + column - from);
    Some(format!("  {before}{shown}{after}\n  {indent}^"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_under_the_character() {
        let sql = "SELECT 1\nFROM\tcäls WHERE";
        let text = pointed(sql, Place { line: 2, column: 6 }).unwrap();
        assert_eq!(text, "  FROM cäls WHERE\n       ^");
        assert_eq!(pointed("SELECT", Place { line: 1, column: 7 }).unwrap(), "  SELECT\n        ^");
        assert_eq!(pointed("SELECT", Place { line: 2, column: 1 }), None);
    }

    #[test]
    fn a_long_line_is_cut_around_its_place() {
        let sql = format!("SELECT {}wrong{}", "a, ".repeat(100), ", b".repeat(100));
        let text = pointed(&sql, Place { line: 1, column: 308 }).unwrap();
        let (line, caret) = text.split_once('\n').unwrap();
        let at = caret.chars().count() - 1;
        assert_eq!(line.chars().skip(at).take(5).collect::<String>(), "wrong");
        assert!(line.chars().count() <= WIDTH + 4 && line.starts_with("  …") && line.ends_with('…'));
    }

    #[test]
    fn places_come_from_spans_the_parser_or_the_argument_that_is_refused() {
        let syntax = |text: &str| DataFusionError::SQL(Box::new(ParserError::ParserError(text.into())), None);
        let at = |line, column| Some(Place { line, column });
        assert_eq!(place(&syntax("Expected: x, found: FROM at Line: 2, Column: 13"), ""), at(2, 13));
        assert_eq!(place(&syntax("Expected: x, found: EOF"), "SELECT a,\n FROM \n"), at(2, 6));
        let refused: DataFusionError = EngineError::Request("unknown gene".into()).about("INSS").into();
        assert_eq!(place(&refused, "SELECT f('INSS')"), at(1, 10));
        assert_eq!(place(&refused, "SELECT f('INSS'), f('INSS')"), None, "either of them");
        assert_eq!(place(&DataFusionError::Plan("'x' went wrong".into()), "SELECT 'x'"), None);
    }

    #[test]
    fn a_wrong_column_is_answered_with_near_ones() {
        let valid = |names: &[&str]| names.iter().map(|n| Column::new(Some("cells"), *n)).collect::<Vec<_>>();
        let wrong = Column::from_name("celltype");
        let text = no_column(&wrong, &valid(&["cell_id", "cell_type", "Cell_Type"]));
        assert!(text.contains("no column 'celltype'") && text.contains("'cell_type'"), "{text}");
        assert!(text.contains("\"Cell_Type\""), "{text}");
        assert!(no_column(&Column::from_name("zzz"), &valid(&["a", "b"])).ends_with("the columns are a, b"));
        let gene = no_column(&Column::from_name("cd3d"), &valid(&["cell_id", "expr"]));
        assert!(gene.ends_with("it is a gene: write expression(expr, 'CD3D')"), "{gene}");
        assert!(!no_column(&Column::from_name("cd3d"), &valid(&["cell_id"])).contains("gene"), "no expression to read");
    }
}
