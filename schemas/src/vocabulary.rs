//! A model's vocabulary: the ordered genes it was made for, and how a store's genes take their places in it.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};

use crate::nomenclature::{Evidence, Nomenclature, Resolution};

/// Why a list of genes is no vocabulary.
#[derive(Debug, thiserror::Error)]
pub enum VocabularyError {
    /// Nothing in it.
    #[error("the gene list is empty")]
    Empty,
    /// A name twice.
    #[error("gene '{0}' stands twice in the gene list")]
    Duplicate(String),
    /// The `index` column does not count 0, 1, 2, …
    #[error(
        "line {line}: expected index {expected} for gene '{name}' but found '{found}'; genes must stand in the model's order"
    )]
    Order {
        /// Line in the file, from 1.
        line: usize,
        /// Gene on that line.
        name: String,
        /// Index it should have.
        expected: usize,
        /// What stands there.
        found: String,
    },
}

/// Ordered gene names; the position of a name is its row in the model's gene embedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    names: Vec<String>,
}

impl Vocabulary {
    /// A vocabulary of these names in this order.
    ///
    /// # Errors
    /// An empty list, or a name that stands twice.
    pub fn new(names: Vec<String>) -> Result<Self, VocabularyError> {
        if names.is_empty() {
            return Err(VocabularyError::Empty);
        }
        let mut seen = HashSet::new();
        if let Some(twice) = names.iter().find(|n| !seen.insert(n.as_str())) {
            return Err(VocabularyError::Duplicate(twice.clone()));
        }
        Ok(Self { names })
    }

    /// Protein-coding and mitochondrial genes of HGNC, by symbol.
    pub fn default_human() -> Self {
        let mut names: Vec<String> = Nomenclature::hgnc()
            .genes()
            .iter()
            .filter(|g| g.biotype == "protein_coding" || g.is_mitochondrial())
            .map(|g| g.symbol.clone())
            .collect();
        names.sort();
        Self { names }
    }

    /// Reads `gene_name<TAB>index` with a header line, the form of `OS_scRNA_gene_index.19264.tsv`.
    ///
    /// # Errors
    /// As [`Vocabulary::new`], or an index out of order.
    pub fn from_tsv(text: &str) -> Result<Self, VocabularyError> {
        let mut names = Vec::new();
        for (i, line) in text.lines().enumerate().skip(1).filter(|(_, l)| !l.trim().is_empty()) {
            let mut fields = line.trim_end_matches('\r').split('\t');
            let name = fields.next().unwrap_or_default().to_owned();
            if let Some(found) = fields.next().filter(|f| f.parse() != Ok(names.len())) {
                return Err(VocabularyError::Order {
                    line: i + 1,
                    name,
                    expected: names.len(),
                    found: found.to_owned(),
                });
            }
            names.push(name);
        }
        Self::new(names)
    }

    /// Names in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of genes.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Never true: an empty vocabulary cannot be made.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// SHA-256 over the names, one a line, as lower-case hex.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for name in &self.names {
            hash.update(name.as_bytes());
            hash.update(b"\n");
        }
        format!("{:x}", hash.finalize())
    }

    /// Gives each position at most one gene of the store, and each gene at most one position.
    ///
    /// A position takes the gene that some file called by exactly this name; only then does identity count, and
    /// stronger evidence before weaker: where two positions now name one gene, the approved name gets it.
    /// `by_source_name` lists the genes files called so; `gene_of` gives the store's id for a gene of the
    /// nomenclature.
    pub fn place(
        &self,
        nomenclature: &Nomenclature,
        by_source_name: &HashMap<String, Vec<u32>>,
        gene_of: impl Fn(usize) -> Option<u32>,
    ) -> Placement {
        let mut placed = Placement { gene_at: vec![None; self.len()], positions: Vec::new() };
        for (position, name) in self.names.iter().enumerate() {
            if let Some([gene]) = by_source_name.get(name).map(Vec::as_slice) {
                placed.put(position, *gene);
            }
        }
        // A name that files gave to several genes: the first not already taken by a clearer name.
        for (position, name) in self.names.iter().enumerate() {
            for gene in by_source_name.get(name).into_iter().flatten() {
                placed.put(position, *gene);
            }
        }
        let known: Vec<Resolution> = self.names.iter().map(|n| nomenclature.resolve(n)).collect();
        for evidence in Evidence::ALL {
            for (position, resolution) in known.iter().enumerate() {
                if let Resolution::Gene(gene, by) = resolution
                    && *by == evidence
                    && let Some(gene) = gene_of(*gene)
                {
                    placed.put(position, gene);
                }
            }
        }
        placed
    }
}

/// Which gene of a store stands at which position of a vocabulary.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    gene_at: Vec<Option<u32>>,
    /// By gene id, which counts rows of `genes`; [`NOWHERE`] where a gene has no position. Looked at for every value read.
    positions: Vec<u32>,
}

/// No position.
const NOWHERE: u32 = u32::MAX;

impl Placement {
    fn put(&mut self, position: usize, gene: u32) {
        if self.gene_at[position].is_none() && self.position(gene).is_none() {
            self.gene_at[position] = Some(gene);
            let at = gene as usize;
            self.positions.resize(self.positions.len().max(at + 1), NOWHERE);
            self.positions[at] = position as u32;
        }
    }

    /// Positions there are, with a gene or without.
    pub fn len(&self) -> usize {
        self.gene_at.len()
    }

    /// True for a placement of no vocabulary.
    pub fn is_empty(&self) -> bool {
        self.gene_at.is_empty()
    }

    /// Position of a gene in the vocabulary.
    #[inline]
    pub fn position(&self, gene_id: u32) -> Option<u32> {
        self.positions.get(gene_id as usize).copied().filter(|position| *position != NOWHERE)
    }

    /// Gene at a position; `None` where the store knows no such gene.
    pub fn gene_at(&self, position: usize) -> Option<u32> {
        self.gene_at.get(position).copied().flatten()
    }

    /// How many of the given genes have a place: what a data set measured of the vocabulary.
    pub fn count(&self, genes: impl IntoIterator<Item = u32>) -> usize {
        genes.into_iter().filter(|gene| self.position(*gene).is_some()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_holds_protein_coding_and_mitochondrial_genes() {
        let names = Vocabulary::default_human();
        assert!((19_000..20_000).contains(&names.len()));
        for gene in ["INS", "MT-CO1", "MT-RNR1", "CD8A"] {
            assert!(names.names().iter().any(|n| n == gene), "{gene}");
        }
        assert!(!names.names().iter().any(|n| n == "MALAT1" || n == "MT-OHR"));
    }

    #[test]
    fn a_list_out_of_order_is_refused() {
        let wrong = Vocabulary::from_tsv("gene_name\tindex\nA\t0\nB\t2\n").unwrap_err();
        assert!(wrong.to_string().contains("line 3"), "{wrong}");
        assert!(Vocabulary::from_tsv("gene_name\tindex\nA\t0\nA\t1\n").is_err());
        assert!(Vocabulary::from_tsv("").is_err());
    }

    #[test]
    fn exact_source_names_come_before_identity_and_no_gene_is_used_twice() {
        let table = Nomenclature::hgnc();
        let Resolution::Gene(cxcl8, _) = table.resolve("CXCL8") else { panic!() };
        let vocabulary = Vocabulary::new(vec!["IL8".into(), "CXCL8".into()]).unwrap();
        let gene_of = |i: usize| (i == cxcl8).then_some(7);

        // The file named the gene by its old symbol: that position gets it.
        let old = HashMap::from([("IL8".to_owned(), vec![7])]);
        let placed = vocabulary.place(table, &old, gene_of);
        assert_eq!((placed.gene_at(0), placed.gene_at(1)), (Some(7), None));

        // No exact name: the approved one gets it although the other stands first.
        let placed = vocabulary.place(table, &HashMap::new(), gene_of);
        assert_eq!((placed.gene_at(0), placed.gene_at(1)), (None, Some(7)));
        assert_eq!(placed.position(7), Some(1));
        assert_eq!(placed.count([7, 8]), 1);
    }
}
