//! Names and types of a file's obs columns in the table `cells`.
//!
//! A column keeps its name, with four exceptions: a common synonym of a CELLxGENE name gets that name (`celltype`
//! becomes `cell_type`), a reserved name gets a prefix (`n_genes` becomes `obs_n_genes`), a name that the table has
//! with another type gets a suffix (`age` as text beside numbers becomes `age_text`), and characters with a meaning in
//! paths become underscores (`age/sex` becomes `age_sex`). So the columns of every file can be appended.

use std::collections::{HashMap, HashSet};

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
    let mut names = Names::new(existing);
    let target = |(column, wanted): (&ObsColumn, String)| {
        let name = names.free(wanted, &column.data_type);
        let target = names.existing.get(name.as_str()).copied().unwrap_or(&column.data_type).clone();
        let categories = column.categories.as_ref().filter(|c| c.len() <= MAX_CATEGORIES);
        let report = ObsReport {
            source: column.name.clone(),
            name: name.clone(),
            categories: categories.map(|c| texts(c)),
            ordered: column.ordered,
        };
        ObsTarget { field: Field::new(name, target, true), report }
    };
    source.iter().zip(wanted(source)).map(target).collect()
}

/// The name that each column should get: that of CELLxGENE for the column that is closest to it, unless the file has a
/// column of that name; otherwise its own.
fn wanted(source: &[ObsColumn]) -> Vec<String> {
    let names: HashSet<&str> = source.iter().map(|c| c.name.as_str()).collect();
    let synonyms: Vec<_> = source.iter().map(|c| synonym(&c.name)).collect();
    // Rank and index of the closest column.
    let mut nearest: HashMap<&str, (usize, usize)> = HashMap::new();
    for (i, (fixed, rank)) in synonyms.iter().enumerate().filter_map(|(i, s)| s.map(|s| (i, s))) {
        let best = nearest.entry(fixed).or_insert((rank, i));
        *best = (rank, i).min(*best);
    }
    let name = |i: usize| match synonyms[i] {
        Some((fixed, rank)) if !names.contains(fixed) && nearest.get(fixed) == Some(&(rank, i)) => fixed.to_owned(),
        _ => source[i].name.clone(),
    };
    (0..source.len()).map(name).collect()
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

/// Names of the table and those given to columns of the file so far.
struct Names<'a> {
    existing: HashMap<&'a str, &'a DataType>,
    taken: HashSet<String>,
    /// Name → number of columns that wanted it after the first.
    repeats: HashMap<String, usize>,
}

impl<'a> Names<'a> {
    fn new(existing: &'a Schema) -> Self {
        let existing = existing.fields().iter().map(|f| (f.name().as_str(), f.data_type())).collect();
        Self { existing, taken: HashSet::new(), repeats: HashMap::new() }
    }

    /// Takes a name that is not reserved or taken and whose existing column, if any, has a compatible type. Characters
    /// with a meaning in paths of columns or in SQL become underscores.
    fn free(&mut self, name: String, of: &DataType) -> String {
        let mut name = name.replace(['.', '`', '"', '/', '*'], "_");
        if name.is_empty() || table::is_reserved(&name) || name.starts_with('_') {
            name = format!("obs_{name}");
        }
        let clashes = |n: &str| self.existing.get(n).is_some_and(|there| !fits(of, there));
        if clashes(&name) {
            name = format!("{name}_{}", suffix(of));
        }
        let mut free = name.clone();
        while clashes(&free) || self.taken.contains(&free) {
            let repeat = self.repeats.entry(name.clone()).or_insert(0);
            *repeat += 1;
            free = if *repeat == 1 { format!("{name}_") } else { format!("{name}_{repeat}") };
        }
        self.taken.insert(free.clone());
        free
    }
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
    fn ten_thousand_columns_get_distinct_names_in_a_moment() {
        let source: Vec<ObsColumn> = (0..10_000)
            .map(|i| match i % 4 {
                0 => column(&format!("a{}", ["/", ".", "*"][i / 4 % 3]), DataType::Utf8),
                1 => column(&format!("Donor{}", "-".repeat(i / 4)), DataType::Utf8),
                _ => column(&format!("c{i}"), DataType::Int64),
            })
            .collect();
        let start = std::time::Instant::now();
        let names: Vec<String> = names(&source, &table::schema()).into_iter().map(|(n, _)| n).collect();
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
        assert_eq!(names[..5], ["a_", "donor_id", "c2", "c3", "a__"]);
        assert_eq!((&names[8], &names[12]), (&"a__2".to_owned(), &"a__3".to_owned()));
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
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
