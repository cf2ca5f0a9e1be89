//! What each function says of itself: name, parameters, result, example.
//!
//! The one source of named arguments, of the checks of argument types, of `list_functions()` and of
//! `docs/functions.md`. Knows nothing of what a function computes.

use crate::parameters::Parameter;

/// How a function is called in SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A value per row.
    Scalar,
    /// A value per group of rows.
    Aggregate,
    /// A table, after FROM.
    Table,
}

impl Kind {
    /// As `list_functions()` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Scalar => "scalar",
            Kind::Aggregate => "aggregate",
            Kind::Table => "table",
        }
    }
}

/// A function of this crate.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Description {
    /// Name in SQL.
    pub name: &'static str,
    /// How it is called.
    pub kind: Kind,
    /// Parameters in the order positional arguments are read.
    pub parameters: &'static [Parameter],
    /// Type of the result, and when it is NULL.
    pub returns: &'static str,
    /// What it computes.
    pub summary: &'static str,
    /// A query that runs on a store of pancreas cells with one model and its embeddings.
    pub example: &'static str,
}

impl Description {
    /// Place of a parameter.
    pub fn position(&self, parameter: &str) -> Option<usize> {
        self.parameters.iter().position(|p| p.name.eq_ignore_ascii_case(parameter))
    }

    /// Strings that can be given for a parameter, see [`Parameter::values`]; empty for an unknown parameter.
    pub fn values(&self, parameter: &str) -> &'static [&'static str] {
        self.position(parameter).map_or(&[], |at| self.parameters[at].values())
    }

    /// How many parameters must be given; they stand before the others.
    pub fn required(&self) -> usize {
        self.parameters.iter().filter(|p| p.required).count()
    }

    /// The parameters of a call: `expr, model =>, pool =>`. Those with an arrow can be left out.
    pub fn arguments(&self) -> String {
        let shown = |p: &Parameter| if p.required { p.name.to_owned() } else { format!("{} =>", p.name) };
        self.parameters.iter().map(shown).collect::<Vec<_>>().join(", ")
    }

    /// A call: `embed(expr, model =>, pool =>)`.
    pub fn usage(&self) -> String {
        format!("{}({})", self.name, self.arguments())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::path::PathBuf;

    use super::*;
    use crate::FUNCTIONS;

    fn crate_folder() -> PathBuf {
        // Where the tests run, not where they were compiled: checkouts may share what cargo built.
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
    }

    fn section(function: &Description) -> String {
        let mut text = format!("### `{}`\n\n{}\n\n", function.usage(), function.summary);
        if !function.parameters.is_empty() {
            text.push_str("| argument | is |\n|---|---|\n");
            for parameter in function.parameters {
                let _ = writeln!(text, "| `{}` | {} |", parameter.name, parameter.what.replace('|', "\\|"));
            }
            text.push('\n');
        }
        let _ = writeln!(text, "Returns {}\n\n```sql\n{}\n```\n", function.returns, function.example);
        text
    }

    /// The text of `docs/functions.md`.
    fn reference_page() -> String {
        let mut text = String::from(
            "# SQL functions\n\n\
             This page is generated from the descriptions in `udfs/src` by\n\
             `CELLQL_BLESS=1 cargo test --workspace --locked --lib reference_page`.\n\
             In SQL, `SELECT * FROM list_functions()` returns the same.\n\n\
             Arguments are given in order or by name (`pool => 'max'`). Arguments with an arrow are optional.\n\
             Names of genes and models, options and numbers must be constants. They are checked before a query\n\
             runs, and the error of a wrong one lists the nearest valid ones.\n\n\
             All functions of DataFusion are available too, for vectors `cosine_distance(a, b)`,\n\
             `inner_product(a, b)` and `array_distance(a, b)`. The table `information_schema.routines` lists them.\n\n",
        );
        for (kind, title) in [(Kind::Scalar, "Per row"), (Kind::Aggregate, "Per group"), (Kind::Table, "Tables")] {
            let _ = writeln!(text, "## {title}\n");
            FUNCTIONS.iter().filter(|f| f.kind == kind).for_each(|f| text.push_str(&section(f)));
        }
        text.truncate(text.trim_end().len());
        text + "\n"
    }

    #[test]
    fn the_reference_page_says_what_the_descriptions_say() {
        let file = crate_folder().join("../docs/functions.md");
        let wanted = reference_page();
        if std::env::var_os("CELLQL_BLESS").is_some() {
            std::fs::write(&file, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            found == wanted,
            "docs/functions.md is not what the descriptions say; write it anew with: \
             CELLQL_BLESS=1 cargo test --workspace --locked --lib reference_page"
        );
    }

    #[test]
    fn each_function_has_a_file_whose_documentation_shows_its_example() {
        for function in FUNCTIONS {
            let file = crate_folder().join("src").join(format!("{}.rs", function.name));
            let source = std::fs::read_to_string(&file).unwrap_or_default();
            let lines: Vec<String> = function.example.lines().map(|line| format!("//! {line}\n")).collect();
            let shown = format!("//! ```sql\n{}//! ```\n", lines.concat());
            assert!(source.contains(&shown), "{} should show\n{shown}", file.display());
        }
    }

    #[test]
    fn what_must_be_given_stands_before_what_can_be_left_out() {
        for function in FUNCTIONS {
            assert!(function.parameters[..function.required()].iter().all(|p| p.required), "{}", function.name);
            assert!(function.parameters.iter().all(|p| !p.what.is_empty()), "{}", function.name);
            assert!(function.summary.ends_with('.') && function.returns.ends_with('.'), "{}", function.name);
        }
    }
}
