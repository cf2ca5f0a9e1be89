//! Quoting of values and names that are put into the text of SQL statements and filters.

/// A string literal: `it's` becomes `'it''s'`.
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// An identifier of a SQL statement: `n "raw"` becomes `"n ""raw"""`.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A column name in a filter of [`crate::Store::read`]. Lance's filters quote names with backticks, not with `"`.
pub fn quote_filter_column(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_inside_a_text_are_doubled() {
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_identifier("n \"raw\""), "\"n \"\"raw\"\"\"");
        assert_eq!(quote_filter_column("a`b"), "`a``b`");
    }
}
