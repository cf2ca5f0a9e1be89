//! Names and types of a file's obs columns in the table `cells`.
//!
//! A column keeps its name, with three exceptions: a common synonym of a CELLxGENE name gets that name (`celltype`
//! becomes `cell_type`), a reserved name gets a prefix (`n_genes` becomes `obs_n_genes`), and a name that the table has
//! with another type gets a suffix (`age` as text beside numbers becomes `age_text`). So the columns of every file can
//! be appended.

use arrow::array::{Array, ArrayRef, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use cellql_formats::ObsColumn;
use cellql_schemas::cells as table;
use serde::{Deserialize, Serialize};

/// Names of CELLxGENE (schema 5) and their synonyms in files, in lower case without punctuation, closest in meaning
/// first.
const SYNONYMS: &[(&str, &[&str])] = &[
    ("assay", &["technology", "platform", "librarytype", "seqtech", "sequencingtechnology"]),
    ("assay_ontology_term_id", &["assayontologyid"]),
    (
        "cell_type",
        &[
            "cellontologyclass",
            "celltype",
            "celltypes",
            "celltypelabel",
            "celltypelabels",
            "celltype1",
            "celllabel",
            "celllabels",
        ],
    ),
    ("cell_type_ontology_term_id", &["cellontologyid", "cellontologytermid", "clid", "celltypeontologyid"]),
    ("development_stage", &["developmentalstage", "devstage"]),
    ("development_stage_ontology_term_id", &["developmentstageontologyid"]),
    ("disease", &["diseasestate", "diagnosis"]),
    ("disease_ontology_term_id", &["diseaseontologyid"]),
    ("donor_id", &["donor", "donorid", "patient", "patientid", "subject", "subjectid", "individual", "individualid"]),
    ("self_reported_ethnicity", &["ethnicity", "race"]),
    ("self_reported_ethnicity_ontology_term_id", &["ethnicityontologytermid"]),
    ("sex", &["gender"]),
    ("suspension_type", &["suspensiontype"]),
    ("tissue", &["organ", "tissuename"]),
    ("tissue_ontology_term_id", &["tissueontologyid", "uberonid"]),
];

/// An obs column of a file and its name in `cells`, as recorded in `datasets`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObsReport {
    /// Name in the file.
    pub source: String,
    /// Name in `cells`.
    pub name: String,
    /// Categories in the file's order; `None` if the column is not categorical or has too many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub categories: Option<Vec<String>>,
    /// Whether the categories are ordered.
    #[serde(default)]
    pub ordered: bool,
}

/// An obs column of a file, and its field in the table `cells`.
#[derive(Debug, Clone)]
pub(super) struct ObsTarget {
    pub(super) field: Field,
    pub(super) report: ObsReport,
}

/// Maximum number of categories that are recorded.
const MAX_CATEGORIES: usize = 10_000;

/// Name and type of each column of a file in a table with existing columns.
pub(super) fn targets(source: &[ObsColumn], existing: &Schema) -> Vec<ObsTarget> {
    let names: Vec<&str> = source.iter().map(|c| c.name.as_str()).collect();
    let mut taken: Vec<String> = Vec::new();
    source
        .iter()
        .enumerate()
        .map(|(i, column)| {
            let wanted = match synonym(&column.name) {
                // Unless the file has a column of that name, or another synonym that is closer to it.
                Some((name, rank)) if !names.contains(&name) && nearest(&names, name) == Some((rank, i)) => {
                    name.to_owned()
                }
                _ => column.name.clone(),
            };
            let name = free_name(wanted, &column.data_type, existing, &taken);
            let target = existing.field_with_name(&name).map_or(&column.data_type, |there| there.data_type()).clone();
            taken.push(name.clone());
            let categories = column.categories.as_ref().filter(|c| c.len() <= MAX_CATEGORIES);
            let report = ObsReport {
                source: column.name.clone(),
                name: name.clone(),
                categories: categories.map(|c| texts(c)),
                ordered: column.ordered,
            };
            ObsTarget { field: Field::new(name, target, true), report }
        })
        .collect()
}

/// The CELLxGENE name of which a name is a synonym, and its rank: 0 for the same name, then closest in meaning first.
fn synonym(name: &str) -> Option<(&'static str, usize)> {
    let plain: String = name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    let rank = |(fixed, others): &(&'static str, &[&str])| {
        let same = fixed.replace('_', "") == plain;
        let rank = if same { Some(0) } else { others.iter().position(|o| *o == plain).map(|i| i + 1) };
        rank.map(|rank| (*fixed, rank))
    };
    SYNONYMS.iter().find_map(rank)
}

/// Rank and index of the column that is closest to a CELLxGENE name.
fn nearest(names: &[&str], fixed: &str) -> Option<(usize, usize)> {
    let ranks = names.iter().enumerate().filter_map(|(i, name)| synonym(name).map(|(of, rank)| (of, rank, i)));
    ranks.filter(|(of, ..)| *of == fixed).map(|(_, rank, i)| (rank, i)).min()
}

/// A name that is not reserved or taken and whose existing column, if any, has a compatible type.
fn free_name(name: String, of: &DataType, existing: &Schema, taken: &[String]) -> String {
    let mut name = name.replace(['.', '`', '"'], "_");
    if name.is_empty() || table::is_reserved(&name) || name.starts_with('_') {
        name = format!("obs_{name}");
    }
    let clashes = |n: &str| existing.field_with_name(n).is_ok_and(|there| !fits(of, there.data_type()));
    if clashes(&name) {
        name = format!("{name}_{}", suffix(of));
    }
    while clashes(&name) || taken.contains(&name) {
        name.push('_');
    }
    name
}

fn is_text(of: &DataType) -> bool {
    matches!(of, DataType::Utf8 | DataType::Dictionary(_, _))
}

fn fits(from: &DataType, to: &DataType) -> bool {
    from == to || is_text(to) || (*from == DataType::Int64 && *to == DataType::Float64)
}

fn suffix(of: &DataType) -> &'static str {
    match of {
        DataType::Boolean => "flag",
        of if is_text(of) => "text",
        _ => "number",
    }
}

/// Converts values to the type of the table.
pub(super) fn fitted(values: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    match (values.data_type(), to) {
        (from, to) if from == to => Ok(values.clone()),
        // arrow casts only text to a dictionary.
        (from, DataType::Dictionary(_, _)) if !is_text(from) => cast(&cast(values, &DataType::Utf8)?, to),
        (_, to) => cast(values, to),
    }
}

fn texts(array: &StringArray) -> Vec<String> {
    array.iter().map(|t| t.unwrap_or_default().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, data_type: DataType) -> ObsColumn {
        ObsColumn::plain(name, data_type)
    }

    fn names(source: &[ObsColumn], existing: &Schema) -> Vec<(String, DataType)> {
        let targets = targets(source, existing).into_iter();
        targets.map(|t| (t.field.name().clone(), t.field.data_type().clone())).collect()
    }

    #[test]
    fn obs_columns_never_take_our_names_nor_break_an_existing_type() {
        let field = |name: &str, of: DataType| Field::new(name, of, true);
        let existing = table::schema_with_obs(&[field("age", DataType::Int64), field("note", DataType::Utf8)]);
        let source = [
            column("n_genes", DataType::Int64),
            column("age", DataType::Utf8),
            column("note", DataType::Float64),
            column("a.b", DataType::Utf8),
            column("a_b", DataType::Utf8),
        ];
        let expected = [
            ("obs_n_genes", DataType::Int64),
            ("age_text", DataType::Utf8),
            ("note", DataType::Utf8),
            ("a_b", DataType::Utf8),
            ("a_b_", DataType::Utf8),
        ];
        assert_eq!(names(&source, &existing), expected.map(|(n, t)| (n.to_owned(), t)));
    }

    #[test]
    fn synonyms_take_the_fixed_name_once_and_never_from_a_column_that_has_it() {
        let text = |names: &[&str]| names.iter().map(|n| column(n, DataType::Utf8)).collect::<Vec<_>>();
        let named = |n: &[&str]| names(&text(n), &table::schema()).into_iter().map(|(n, _)| n).collect::<Vec<_>>();
        assert_eq!(named(&["CellType", "donor", "Sex", "batch"]), ["cell_type", "donor_id", "sex", "batch"]);
        assert_eq!(named(&["patient", "donor"]), ["patient", "donor_id"]);
        assert_eq!(named(&["cell_type1", "cell_ontology_class"]), ["cell_type1", "cell_type"]);
        assert_eq!(named(&["cell_type1"]), ["cell_type"]);
        assert_eq!(named(&["celltype", "cell_type"]), ["celltype", "cell_type"]);
    }
}
