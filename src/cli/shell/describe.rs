//! Commands about the content of a store. Their results are written like those of SQL, in the format that is set.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray, UInt64Array};
use arrow::record_batch::RecordBatch;
use cellql_schemas::nomenclature::{Evidence, Nomenclature, Resolution};
use cellql_store::sql::quote_literal;

use super::commands::Command;
use crate::cli::output::Sheet;
use crate::error::{Error, Result};
use crate::query::{Function, Session, Table};

/// Runs a command about the store and writes its result. Other commands do nothing.
///
/// # Errors
/// An unknown name, with similar ones; or the store cannot be read.
pub(super) async fn answer(session: &Session, command: Command, sheet: Sheet) -> Result<()> {
    match command {
        Command::Tables => tables(session, sheet).await,
        Command::Columns(name) => columns(session, &session.table(&name).await?, sheet).await,
        Command::Functions(None) => functions(session, &session.own_functions(), sheet).await,
        Command::Functions(Some(name)) => functions(session, &[session.function(&name)?], sheet).await,
        Command::Models => {
            let query = "SELECT name, n_genes, dim, parameters, trained, created_at FROM models ORDER BY name";
            sheet.write(session.sql(query).await?).await.map(drop)
        }
        Command::Indexes => {
            let query = "SELECT name, recipe, kind, metric, n_vectors, created_at FROM indexes ORDER BY name";
            sheet.write(session.sql(query).await?).await.map(drop)
        }
        Command::Gene(name) => gene(session, &name, sheet).await,
        _ => Ok(()),
    }
}

async fn tables(session: &Session, sheet: Sheet) -> Result<()> {
    let tables = session.tables().await?;
    let mut rows = Vec::new();
    for table in &tables {
        rows.push(row_count(session, table).await?);
    }
    let names: ArrayRef = Arc::new(StringArray::from_iter_values(tables.iter().map(|t| &t.name)));
    let kinds: ArrayRef = Arc::new(StringArray::from_iter_values(tables.iter().map(kind)));
    let rows: ArrayRef = Arc::new(UInt64Array::from(rows));
    show(session, vec![("name", names), ("kind", kinds), ("rows", rows)], sheet).await
}

fn kind(table: &Table) -> &'static str {
    if table.is_view { "view" } else { "table" }
}

/// Number of rows. `X` has a row per value of every cell, so it is the sum of `n_genes` of the cells.
async fn row_count(session: &Session, table: &Table) -> Result<u64> {
    if table.name != "\"X\"" {
        return Ok(session.count(&table.name).await? as u64);
    }
    let sum = "SELECT CAST(coalesce(sum(n_genes), 0) AS BIGINT UNSIGNED) FROM cells";
    let batches = session.sql(sum).await?.collect().await?;
    let value = batches.first().and_then(|b| b.column(0).as_any().downcast_ref::<UInt64Array>()?.iter().next()?);
    value.ok_or_else(|| Error::damaged("the table cells of this store", "n_genes is missing"))
}

async fn columns(session: &Session, table: &Table, sheet: Sheet) -> Result<()> {
    let text = |of: fn(&(String, String)) -> &String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(table.columns.iter().map(of)))
    };
    show(session, vec![("column", text(|c| &c.0)), ("type", text(|c| &c.1))], sheet).await
}

async fn functions(session: &Session, functions: &[Function], sheet: Sheet) -> Result<()> {
    let text = |of: fn(&Function) -> &String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(functions.iter().map(of)))
    };
    show(session, vec![("function", text(|f| &f.usage)), ("gives", text(|f| &f.about))], sheet).await
}

async fn gene(session: &Session, name: &str, sheet: Sheet) -> Result<()> {
    let id = session.engine().genes().find(name)?;
    let known_by = match Nomenclature::hgnc().resolve(name) {
        Resolution::Gene(_, Evidence::Ensembl) => "Ensembl id",
        Resolution::Gene(_, Evidence::Approved) => "approved symbol",
        Resolution::Gene(_, Evidence::Previous) => "previous symbol",
        Resolution::Gene(_, Evidence::Alias) => "alias",
        Resolution::Gene(_, Evidence::Punctuation) => "name with dots for hyphens",
        Resolution::Gene(_, Evidence::Date) => "date a spreadsheet made of it",
        _ => "name in a file",
    };
    let query = format!(
        "SELECT {} AS name, '{known_by}' AS known_by, gene_id, symbol, hgnc_id, ensembl_id, biotype, \
         array_to_string(source_names, ', ') AS names_in_files FROM genes WHERE gene_id = {id}",
        quote_literal(name)
    );
    Sheet { expanded: true, ..sheet }.write(session.sql(&query).await?).await.map(drop)
}

async fn show(session: &Session, columns: Vec<(&str, ArrayRef)>, sheet: Sheet) -> Result<()> {
    let rows = RecordBatch::try_from_iter(columns).map_err(Error::internal("describing the store"))?;
    sheet.write(session.frame(rows)?).await.map(drop)
}
