//! What a session has names for: tables, columns, functions. Answers questions about them and adds near names to
//! errors.

use std::collections::HashSet;
use std::ops::ControlFlow;

use arrow::datatypes::DataType;
use cellql_schemas::suggest::did_you_mean;
use cellql_store::sql::quote_identifier;
use cellql_udfs::description::Description;
use cellql_udfs::named_arguments::plan_error;
use datafusion::catalog::TableProvider;
use datafusion::common::Span;
use datafusion::logical_expr::TableType;
use datafusion::sql::planner::object_name_to_table_reference;
use datafusion::sql::sqlparser::ast::{ObjectName, Query, Spanned, Statement, TableFactor, Visit, Visitor};

use super::session::{CATALOG, SCHEMA, Session};
use crate::error::{Error, Result};

/// A table or view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Name as SQL writes it: `cells`, `"X"`, `embeddings.tiny`.
    pub name: String,
    /// Made by a query from other tables.
    pub is_view: bool,
    /// Names and types of its columns, in order.
    pub columns: Vec<(String, String)>,
}

/// What a function is called with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Name.
    pub name: String,
    /// How a call is written.
    pub usage: String,
    /// What it gives.
    pub about: String,
}

/// An identifier as SQL writes it: quoted where it must be.
pub fn identifier(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.to_owned() } else { quote_identifier(name) }
}

impl Session {
    /// Every table and view, plain names before those of a schema.
    ///
    /// # Errors
    /// One cannot be read.
    pub async fn tables(&self) -> Result<Vec<Table>> {
        let mut tables = Vec::new();
        let Some(catalog) = self.context().catalog(CATALOG) else {
            return Ok(tables);
        };
        let mut schemas = catalog.schema_names();
        schemas.retain(|schema| schema != "information_schema");
        schemas.sort_by_key(|schema| (schema != SCHEMA, schema.clone()));
        for schema in schemas {
            let Some(provider) = catalog.schema(&schema) else { continue };
            let mut names = provider.table_names();
            names.sort();
            for name in names {
                if let Some(table) = provider.table(&name).await? {
                    let prefix = if schema == SCHEMA { String::new() } else { format!("{schema}.") };
                    tables.push(described(format!("{prefix}{}", identifier(&name)), table.as_ref()));
                }
            }
        }
        Ok(tables)
    }

    /// The functions of this program.
    pub fn own_functions(&self) -> Vec<Function> {
        let own = |f: &Description| Function { name: f.name.to_owned(), usage: f.usage(), about: f.summary.to_owned() };
        cellql_udfs::FUNCTIONS.iter().map(own).collect()
    }

    /// Names of every function, this program's and DataFusion's, sorted.
    pub fn function_names(&self) -> Vec<String> {
        let state = self.context().state();
        let (scalar, aggregate, window) =
            (state.scalar_functions(), state.aggregate_functions(), state.window_functions());
        let all = scalar.keys().chain(aggregate.keys()).chain(window.keys()).chain(state.table_functions().keys());
        let mut names: Vec<String> = all.cloned().collect();
        names.sort();
        names.dedup();
        names
    }

    /// One function.
    ///
    /// # Errors
    /// [`Error::Request`] with near names where there is none of that name.
    pub fn function(&self, name: &str) -> Result<Function> {
        if let Some(own) = self.own_functions().into_iter().find(|f| f.name.eq_ignore_ascii_case(name)) {
            return Ok(own);
        }
        let state = self.context().state();
        let lower = name.to_lowercase();
        let scalar = state.scalar_functions().get(&lower).map(|f| f.documentation());
        let aggregate = || state.aggregate_functions().get(&lower).map(|f| f.documentation());
        let window = || state.window_functions().get(&lower).map(|f| f.documentation());
        match scalar.or_else(aggregate).or_else(window) {
            Some(Some(known)) => Ok(Function {
                name: lower.clone(),
                usage: known.syntax_example.clone(),
                about: known.description.clone(),
            }),
            Some(None) => Ok(Function { usage: format!("{lower}(…)"), about: String::new(), name: lower }),
            None if state.table_functions().contains_key(&lower) => {
                Ok(Function { usage: format!("FROM {lower}(…)"), about: "a table function".to_owned(), name: lower })
            }
            None => {
                let names = self.function_names();
                let known = did_you_mean(name, names.iter().map(String::as_str));
                Err(Error::Request(format!("there is no function '{name}'.{known}")))
            }
        }
    }

    /// A table by its name, quoted or not.
    ///
    /// # Errors
    /// [`Error::Request`] with near names where there is none.
    pub async fn table(&self, name: &str) -> Result<Table> {
        let mut tables = self.tables().await?;
        let wanted = name.replace('"', "");
        let position = |same: &dyn Fn(&str) -> bool| tables.iter().position(|t| same(&t.name.replace('"', "")));
        let at = position(&|t| t == wanted).or_else(|| position(&|t| t.eq_ignore_ascii_case(&wanted)));
        match at {
            Some(at) => Ok(tables.swap_remove(at)),
            None => Err(Error::Request(no_table(&wanted, &tables))),
        }
    }

    /// Checks that the tables and table functions which a statement reads exist. Names that it gives to subqueries
    /// with `WITH` are left to the planner.
    ///
    /// # Errors
    /// A plan error with near names and the place in the statement.
    pub(super) async fn check_tables(&self, statement: &Statement) -> Result<()> {
        let mut read = ReadNames::default();
        let _: ControlFlow<()> = statement.visit(&mut read);
        let state = self.context().state();
        for name in &read.functions {
            let (function, at) = last_part(name);
            if !state.table_functions().contains_key(&function.to_lowercase()) {
                let known = did_you_mean(&function, state.table_functions().keys().map(String::as_str));
                return Err(plan_error(format!("there is no table function '{function}'.{known}"), at).into());
            }
        }
        for name in &read.tables {
            let (table, at) = last_part(name);
            let Ok(reference) = object_name_to_table_reference(name.clone(), true) else { continue };
            let is_local = name.0.len() == 1 && read.subqueries.contains(&table.to_lowercase());
            if !is_local && !self.context().table_exist(reference.clone())? {
                return Err(plan_error(no_table(&reference.to_string(), &self.tables().await?), at).into());
            }
        }
        Ok(())
    }
}

/// Names that a statement reads from.
#[derive(Default)]
struct ReadNames {
    tables: Vec<ObjectName>,
    functions: Vec<ObjectName>,
    /// Names that `WITH` gives, in lower case.
    subqueries: HashSet<String>,
}

impl Visitor for ReadNames {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let with = query.with.iter().flat_map(|with| &with.cte_tables);
        self.subqueries.extend(with.map(|table| table.alias.name.value.to_lowercase()));
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, args, .. } = factor {
            if args.is_some() { &mut self.functions } else { &mut self.tables }.push(name.clone());
        }
        ControlFlow::Continue(())
    }
}

fn last_part(name: &ObjectName) -> (String, Option<Span>) {
    let ident = name.0.last().and_then(|part| part.as_ident());
    let at = name.0.first().and_then(|part| Span::try_from_sqlparser_span(part.span()));
    (ident.map_or_else(|| name.to_string(), |ident| ident.value.clone()), at)
}

fn described(name: String, table: &dyn TableProvider) -> Table {
    let columns = table.schema().fields().iter().map(|f| (f.name().clone(), plain_type(f.data_type()))).collect();
    Table { name, is_view: table.table_type() == TableType::View, columns }
}

fn no_table(name: &str, tables: &[Table]) -> String {
    let names: Vec<&str> = tables.iter().map(|t| t.name.as_str()).collect();
    let hint = match did_you_mean(name, names.iter().copied()) {
        near if near.is_empty() => format!(" The tables are {}.", names.join(", ")),
        near => near,
    };
    format!("there is no table '{name}'.{hint}")
}

/// The name of a type without what only storage needs: nullability, metadata, and whether strings are
/// dictionary-encoded.
fn plain_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Dictionary(_, values) => plain_type(values),
        DataType::List(item) | DataType::LargeList(item) | DataType::ListView(item) => {
            format!("List({})", plain_type(item.data_type()))
        }
        DataType::FixedSizeList(item, size) => format!("FixedSizeList({}, {size})", plain_type(item.data_type())),
        DataType::Struct(fields) => {
            let fields = fields.iter().map(|f| format!("{}: {}", f.name(), plain_type(f.data_type())));
            format!("Struct({})", fields.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_quoted_where_sql_would_read_them_otherwise() {
        let written = ["cells", "X", "a b", "2x", "say \"a\""].map(identifier);
        assert_eq!(written, ["cells", "\"X\"", "\"a b\"", "\"2x\"", "\"say \"\"a\"\"\""]);
    }

    #[test]
    fn types_are_shown_without_what_only_storage_needs() {
        let strings = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        assert_eq!(plain_type(&strings), "Utf8");
        let expr = plain_type(&cellql_schemas::expr::data_type());
        assert_eq!(expr, "Struct(gene_id: List(UInt32), value: List(Float32))");
        assert_eq!(plain_type(&cellql_schemas::embeddings::vector_type(3)), "FixedSizeList(Float32, 3)");
    }

    #[test]
    fn a_wrong_table_is_answered_with_near_ones_or_all() {
        let tables = ["cells", "genes"].map(|n| Table { name: n.into(), is_view: false, columns: Vec::new() });
        assert!(no_table("cell", &tables).contains("Did you mean 'cells'"));
        assert!(no_table("zzz", &tables).ends_with("The tables are cells, genes."));
    }
}
