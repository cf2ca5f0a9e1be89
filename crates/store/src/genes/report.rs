//! Report of how the features of a file were resolved to genes.

use serde::{Deserialize, Serialize};

/// A name in a file and the approved symbol (or several) of its gene.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renamed {
    /// The name in the file.
    pub name: String,
    /// The approved symbol, or several separated by commas.
    pub symbol: String,
}

/// How the features of a file were resolved. Each feature is counted exactly once in the first ten categories.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneReport {
    /// Number of features in the file.
    pub features: usize,
    /// Resolved by Ensembl id.
    pub ensembl: usize,
    /// Resolved by approved symbol.
    pub approved: usize,
    /// Resolved by a previous symbol.
    pub previous: Vec<Renamed>,
    /// Resolved by an alias.
    pub alias: Vec<Renamed>,
    /// Resolved after replacing '.' by '-'.
    pub punctuation: Vec<Renamed>,
    /// Resolved from the date into which a spreadsheet converted the symbol.
    #[serde(default)]
    pub dates: Vec<Renamed>,
    /// Names of several genes of which the file has all but this one under names of their own.
    #[serde(default)]
    pub elimination: Vec<Renamed>,
    /// Features whose gene went to another feature of the file. Each keeps a row of its own.
    pub second: Vec<Renamed>,
    /// Names that belong to several genes, and so were not resolved.
    pub ambiguous: Vec<Renamed>,
    /// Names that belong to no gene.
    pub unknown: Vec<String>,
    /// Number of names written like symbols of other vertebrates (`Gad1`).
    pub title_case: usize,
    /// Number of Ensembl ids of other species (`ENSMUSG…`).
    #[serde(default)]
    pub foreign_ids: usize,
    /// One of these ids.
    #[serde(default)]
    pub foreign_example: Option<String>,
}

impl GeneReport {
    /// Number of features that resolved to a gene.
    pub fn resolved(&self) -> usize {
        self.ensembl
            + self.approved
            + self.previous.len()
            + self.alias.len()
            + self.punctuation.len()
            + self.dates.len()
            + self.elimination.len()
    }

    /// The report as rows of a table: category, number of features, some names.
    pub fn rows(&self) -> Vec<(&'static str, usize, String)> {
        let names = |list: &[Renamed]| sample(list.iter().map(|r| format!("{} → {}", r.name, r.symbol)), list.len());
        vec![
            ("Ensembl id", self.ensembl, String::new()),
            ("approved symbol", self.approved, String::new()),
            ("previous symbol", self.previous.len(), names(&self.previous)),
            ("alias", self.alias.len(), names(&self.alias)),
            ("name with '.' for '-'", self.punctuation.len(), names(&self.punctuation)),
            ("name a spreadsheet made a date", self.dates.len(), names(&self.dates)),
            ("by elimination", self.elimination.len(), names(&self.elimination)),
            ("second name of a gene in the file", self.second.len(), names(&self.second)),
            ("ambiguous", self.ambiguous.len(), names(&self.ambiguous)),
            ("unknown", self.unknown.len(), sample(self.unknown.iter().cloned(), self.unknown.len())),
        ]
    }
}

fn sample(names: impl Iterator<Item = String>, of: usize) -> String {
    const SHOWN: usize = 3;
    let mut text = names.take(SHOWN).collect::<Vec<_>>().join("; ");
    if of > SHOWN {
        text.push_str("; …");
    }
    text
}
