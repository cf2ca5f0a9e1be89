//! Vocabularies: the ordered genes of a model, and the mapping of a store's genes to their positions.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};

use crate::nomenclature::{Evidence, Nomenclature, Resolution};

/// Why a list of genes is not a valid vocabulary.
#[derive(Debug, thiserror::Error)]
pub enum VocabularyError {
    /// The list is empty.
    #[error("reading a gene list: it is empty; give one gene name per line")]
    Empty,
    /// A name is listed twice.
    #[error("reading a gene list: gene '{0}' is listed twice; remove one of them")]
    Duplicate(String),
    /// The column `index` is not 0, 1, 2, …
    #[error(
        "reading a gene list: line {line} states index '{found}' for gene '{name}', expected {expected}; list \
             genes in the order of the model"
    )]
    Order {
        /// Line in the file, starting at 1.
        line: usize,
        /// Gene on that line.
        name: String,
        /// Index it should have.
        expected: usize,
        /// The index in the file.
        found: String,
    },
}

/// Ordered gene names; the position of a name is its row in the model's gene embedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    names: Vec<String>,
}

impl Vocabulary {
    /// A vocabulary of the names, in their order.
    ///
    /// # Errors
    /// [`VocabularyError::Empty`], or [`VocabularyError::Duplicate`] for a name that is listed twice.
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

    /// Protein-coding and mitochondrial genes of HGNC, sorted by symbol, and the mitochondrial lncRNA MT-LIPCAR, which
    /// the vocabularies of existing models contain.
    pub fn default_human() -> Self {
        let mut names: Vec<String> = Nomenclature::hgnc()
            .genes()
            .iter()
            .filter(|g| g.biotype == "protein_coding" || g.is_mitochondrial() || g.symbol == "MT-LIPCAR")
            .map(|g| g.symbol.clone())
            .collect();
        names.sort();
        Self { names }
    }

    /// Reads `gene_name<TAB>index` with a header line, the format of `OS_scRNA_gene_index.19264.tsv`.
    ///
    /// # Errors
    /// As for [`Vocabulary::new`], and [`VocabularyError::Order`] for an index out of order.
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

    /// The names, in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of genes.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Always false: an empty vocabulary cannot be created.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// SHA-256 of the names, each followed by a newline, in lower-case hexadecimal.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for name in &self.names {
            hash.update(name.as_bytes());
            hash.update(b"\n");
        }
        format!("{:x}", hash.finalize())
    }

    /// Maps each position to at most one gene of the store, and each gene to at most one position.
    ///
    /// A position first gets the gene that a file called by exactly its name. Remaining positions are resolved by the
    /// nomenclature, stronger evidence first: if two positions name the same gene, the approved name gets it.
    /// `by_source_name` maps names in files to genes of the store. `gene_of` returns the store's id for an index of the
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
        // For a name that files gave to several genes: the first gene that has no position yet.
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

/// Mapping between the genes of a store and the positions of a vocabulary.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    gene_at: Vec<Option<u32>>,
    /// Position by gene id; [`NO_POSITION`] for a gene without one. An array, because it is read for every value of a
    /// cell.
    positions: Vec<u32>,
}

/// Marks a gene without a position.
const NO_POSITION: u32 = u32::MAX;

impl Placement {
    fn put(&mut self, position: usize, gene: u32) {
        if self.gene_at[position].is_none() && self.position(gene).is_none() {
            self.gene_at[position] = Some(gene);
            let at = gene as usize;
            self.positions.resize(self.positions.len().max(at + 1), NO_POSITION);
            self.positions[at] = position as u32;
        }
    }

    /// Number of positions, with or without a gene.
    pub fn len(&self) -> usize {
        self.gene_at.len()
    }

    /// True if there are no positions, as in the default.
    pub fn is_empty(&self) -> bool {
        self.gene_at.is_empty()
    }

    /// Position of a gene in the vocabulary; `None` if it has none.
    #[inline]
    pub fn position(&self, gene_id: u32) -> Option<u32> {
        self.positions.get(gene_id as usize).copied().filter(|position| *position != NO_POSITION)
    }

    /// Gene at a position; `None` if the store does not have that gene.
    pub fn gene_at(&self, position: usize) -> Option<u32> {
        self.gene_at.get(position).copied().flatten()
    }

    /// Number of the given genes that have a position, for example of the genes that a data set measured.
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
    fn a_gene_list_out_of_order_is_an_error() {
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
