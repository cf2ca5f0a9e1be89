//! What became of a file's gene names.

use serde::{Deserialize, Serialize};

/// A name and the approved symbol (or several) it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renamed {
    /// As in the file.
    pub name: String,
    /// Approved.
    pub symbol: String,
}

/// Every feature of a file is counted here exactly once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneReport {
    /// Features in the file.
    pub features: usize,
    /// Known by Ensembl id.
    pub ensembl: usize,
    /// Known by approved symbol.
    pub approved: usize,
    /// Known by a previous symbol.
    pub previous: Vec<Renamed>,
    /// Known by an alias.
    pub alias: Vec<Renamed>,
    /// Known once '.' was read as '-'.
    pub punctuation: Vec<Renamed>,
    /// Known once a spreadsheet's date was read as the name it was.
    #[serde(default)]
    pub dates: Vec<Renamed>,
    /// Names of a gene that another feature of the file took; each keeps a row of its own.
    pub second: Vec<Renamed>,
    /// Names of several genes; not guessed.
    pub ambiguous: Vec<Renamed>,
    /// Names of no gene.
    pub unknown: Vec<String>,
    /// Names written as other vertebrates' symbols are (`Gad1`).
    pub title_case: usize,
    /// Ensembl ids of other species (`ENSMUSG…`).
    #[serde(default)]
    pub foreign_ids: usize,
    /// One of these.
    #[serde(default)]
    pub foreign_example: Option<String>,
}

impl GeneReport {
    /// Features that became a gene.
    pub fn resolved(&self) -> usize {
        self.ensembl
            + self.approved
            + self.previous.len()
            + self.alias.len()
            + self.punctuation.len()
            + self.dates.len()
    }

    /// Rows of a table: what, how many, and some names.
    pub fn rows(&self) -> Vec<(&'static str, usize, String)> {
        let names = |list: &[Renamed]| sample(list.iter().map(|r| format!("{} → {}", r.name, r.symbol)), list.len());
        vec![
            ("Ensembl id", self.ensembl, String::new()),
            ("approved symbol", self.approved, String::new()),
            ("previous symbol", self.previous.len(), names(&self.previous)),
            ("alias", self.alias.len(), names(&self.alias)),
            ("name with '.' for '-'", self.punctuation.len(), names(&self.punctuation)),
            ("name a spreadsheet made a date", self.dates.len(), names(&self.dates)),
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
