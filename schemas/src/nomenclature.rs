//! The HGNC nomenclature: resolves any name of a human gene to the gene.
//!
//! The table is compiled in (`assets/hgnc.tsv.gz`, made by `scripts/make-nomenclature.py`), so resolution needs no
//! network and is the same for every user of a version.

use std::collections::HashMap;
use std::io::Read;
use std::sync::OnceLock;

const ASSET: &[u8] = include_bytes!("../assets/hgnc.tsv.gz");

/// An approved gene.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gene {
    /// Number of the HGNC id, without the prefix `HGNC:`.
    pub hgnc: u32,
    /// Approved symbol: `CXCL8`.
    pub symbol: String,
    /// Ensembl gene id (`ENSG…`) without version, if HGNC gives one.
    pub ensembl_id: Option<String>,
    /// Biotype: `protein_coding`, `lncRNA`, `tRNA`, …
    pub biotype: String,
    previous: Vec<String>,
    alias: Vec<String>,
}

impl Gene {
    /// HGNC id with its prefix: `HGNC:5`.
    pub fn hgnc_id(&self) -> String {
        format!("HGNC:{}", self.hgnc)
    }

    /// True for the 37 genes of the mitochondrial genome; see [`is_mitochondrial`].
    pub fn is_mitochondrial(&self) -> bool {
        is_mitochondrial(&self.symbol, Some(&self.biotype))
    }
}

/// True for a gene of the mitochondrial genome, by its symbol and the biotype of its identity.
///
/// A gene of the nomenclature counts if its approved symbol begins with `MT-` and it is one of the 37 genes: 13
/// protein-coding, 22 tRNA, 2 rRNA. The control regions of the mitochondrial genome (HGNC's biotype `other`) and the
/// lncRNA MT-LIPCAR do not count. A feature without identity has no biotype (`None`) and counts if its name begins with
/// `MT-`, in this case.
pub fn is_mitochondrial(symbol: &str, biotype: Option<&str>) -> bool {
    symbol.starts_with("MT-") && biotype.is_none_or(|b| matches!(b, "protein_coding" | "rRNA" | "tRNA"))
}

/// The kind of name by which a gene was resolved, strongest first. Names are tried in this order, so an approved symbol
/// wins over the same text as a previous symbol of another gene, and that over an alias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Evidence {
    /// Ensembl gene id, with or without version.
    Ensembl,
    /// Approved symbol: `CXCL8`.
    Approved,
    /// Previous symbol.
    Previous,
    /// Alias: another name in use.
    Alias,
    /// Any of these with '.' in place of '-', as R's `make.names` writes column names: `HLA.A` for `HLA-A`.
    Punctuation,
    /// A date into which a spreadsheet converted the name: `2-Sep` for `SEPT2`, now `SEPTIN2`.
    Date,
    /// The name is one of several genes, and the file has all of them but this one under names of their own: `COX1`
    /// beside `PTGS1` is `MT-CO1`. Only a whole file tells; [`Nomenclature::resolve`] never answers with it.
    Elimination,
}

impl Evidence {
    /// All kinds, strongest first.
    pub const ALL: [Evidence; 7] = [
        Evidence::Ensembl,
        Evidence::Approved,
        Evidence::Previous,
        Evidence::Alias,
        Evidence::Punctuation,
        Evidence::Date,
        Evidence::Elimination,
    ];

    /// The word used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Evidence::Ensembl => "ensembl",
            Evidence::Approved => "approved",
            Evidence::Previous => "previous",
            Evidence::Alias => "alias",
            Evidence::Punctuation => "punctuation",
            Evidence::Date => "date",
            Evidence::Elimination => "elimination",
        }
    }
}

/// Result of resolving a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// One gene, as an index into [`Nomenclature::genes`].
    Gene(usize, Evidence),
    /// The name is or was a name of several genes (indices into [`Nomenclature::genes`]); none is chosen.
    Ambiguous(Vec<usize>),
    /// No gene has or had the name.
    Unknown,
}

#[derive(Debug, Default)]
struct Names(HashMap<String, Vec<usize>>);

impl Names {
    fn add(&mut self, name: &str, gene: usize) {
        let genes = self.0.entry(name.to_owned()).or_default();
        if !genes.contains(&gene) {
            genes.push(gene);
        }
    }

    fn resolve(&self, name: &str, evidence: Evidence) -> Option<Resolution> {
        let genes = self.0.get(name)?;
        Some(match genes.as_slice() {
            [one] => Resolution::Gene(*one, evidence),
            many => Resolution::Ambiguous(many.to_vec()),
        })
    }
}

/// All approved human genes, indexed by their names.
#[derive(Debug)]
pub struct Nomenclature {
    genes: Vec<Gene>,
    date: String,
    by_ensembl: Names,
    by_symbol: Names,
    by_previous: Names,
    by_alias: Names,
}

impl Nomenclature {
    /// The compiled-in table.
    #[allow(clippy::expect_used, reason = "the asset is part of the program and read by its tests")]
    pub fn hgnc() -> &'static Nomenclature {
        static TABLE: OnceLock<Nomenclature> = OnceLock::new();
        TABLE.get_or_init(|| {
            let mut text = String::new();
            flate2::read::GzDecoder::new(ASSET).read_to_string(&mut text).expect("hgnc.tsv.gz is gzip");
            Self::parse(&text).expect("hgnc.tsv.gz has six columns")
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut date = String::new();
        let mut genes = Vec::new();
        for line in text.lines() {
            if let Some(note) = line.strip_prefix('#') {
                if let Some(day) = note.strip_prefix("date\t") {
                    date = day.to_owned();
                }
                continue;
            }
            if line.starts_with("hgnc_id\t") {
                continue;
            }
            genes.push(Self::parse_gene(line)?);
        }
        Some(Self::index(genes, date))
    }

    fn parse_gene(line: &str) -> Option<Gene> {
        let mut fields = line.split('\t');
        let hgnc = fields.next()?.parse().ok()?;
        let mut text = || fields.next().map(str::to_owned);
        let (symbol, ensembl, biotype, previous, alias) = (text()?, text()?, text()?, text()?, text()?);
        let names = |list: String| list.split('|').filter(|n| !n.is_empty()).map(str::to_owned).collect();
        Some(Gene {
            hgnc,
            symbol,
            ensembl_id: (!ensembl.is_empty()).then_some(ensembl),
            biotype,
            previous: names(previous),
            alias: names(alias),
        })
    }

    fn index(genes: Vec<Gene>, date: String) -> Self {
        let mut table = Self {
            date,
            by_ensembl: Names::default(),
            by_symbol: Names::default(),
            by_previous: Names::default(),
            by_alias: Names::default(),
            genes: Vec::new(),
        };
        for (i, gene) in genes.iter().enumerate() {
            if let Some(id) = &gene.ensembl_id {
                table.by_ensembl.add(id, i);
            }
            table.by_symbol.add(&gene.symbol, i);
            gene.previous.iter().for_each(|n| table.by_previous.add(n, i));
            gene.alias.iter().for_each(|n| table.by_alias.add(n, i));
        }
        table.genes = genes;
        table
    }

    /// Every gene, by HGNC number.
    pub fn genes(&self) -> &[Gene] {
        &self.genes
    }

    /// Date of the HGNC data: `2026-06-25`.
    pub fn date(&self) -> &str {
        &self.date
    }

    /// Resolves a feature by its Ensembl id, if it has a known one, else by its name.
    pub fn resolve_feature(&self, name: &str, ensembl_id: Option<&str>) -> Resolution {
        match ensembl_id.and_then(|id| self.resolve_ensembl(id)) {
            // HGNC assigns each of three Ensembl ids to two genes. The name decides between these.
            Some(Resolution::Ambiguous(genes)) => match self.resolve(name) {
                Resolution::Gene(gene, evidence) if genes.contains(&gene) => Resolution::Gene(gene, evidence),
                _ => Resolution::Ambiguous(genes),
            },
            Some(found) => found,
            None => self.resolve(name),
        }
    }

    /// The genes that the name of a feature can mean, by kind of name, strongest first: those it is a previous symbol
    /// of, then those it is an alias of. Empty for an approved symbol and for an Ensembl id of one gene, which leave
    /// nothing open.
    pub fn candidates(&self, name: &str, ensembl_id: Option<&str>) -> Vec<Vec<usize>> {
        match ensembl_id.and_then(|id| self.resolve_ensembl(id)).or_else(|| self.resolve_ensembl(name)) {
            Some(Resolution::Ambiguous(genes)) => return vec![genes],
            Some(_) => return Vec::new(),
            None => {}
        }
        let plain = self.candidates_of_name(name);
        if !plain.is_empty() || self.by_symbol.0.contains_key(name) {
            return plain;
        }
        let dotted = self.candidates_of_name(&name.replace('.', "-"));
        match (dotted.is_empty(), self.resolve_date(name)) {
            (true, Some(Resolution::Ambiguous(genes))) => vec![genes],
            _ => dotted,
        }
    }

    fn candidates_of_name(&self, name: &str) -> Vec<Vec<usize>> {
        if self.by_symbol.0.contains_key(name) {
            return Vec::new();
        }
        [&self.by_previous, &self.by_alias].into_iter().filter_map(|table| table.0.get(name).cloned()).collect()
    }

    /// Resolves a name as Ensembl id, approved symbol, previous symbol, alias, these with dots for hyphens, and date,
    /// in this order. Case matters, because it distinguishes human from mouse symbols.
    pub fn resolve(&self, name: &str) -> Resolution {
        self.resolve_ensembl(name)
            .or_else(|| self.resolve_name(name))
            .or_else(|| self.resolve_dotted(name))
            .or_else(|| self.resolve_date(name))
            .unwrap_or(Resolution::Unknown)
    }

    fn resolve_name(&self, name: &str) -> Option<Resolution> {
        self.by_symbol
            .resolve(name, Evidence::Approved)
            .or_else(|| self.by_previous.resolve(name, Evidence::Previous))
            .or_else(|| self.by_alias.resolve(name, Evidence::Alias))
    }

    fn resolve_dotted(&self, name: &str) -> Option<Resolution> {
        if !name.contains('.') {
            return None;
        }
        Some(match self.resolve_name(&name.replace('.', "-"))? {
            Resolution::Gene(gene, _) => Resolution::Gene(gene, Evidence::Punctuation),
            other => other,
        })
    }

    /// The gene whose name a spreadsheet converts to this date, stronger evidence first: `2-Sep` was `SEPT2`, a
    /// previous symbol of `SEPTIN2`, rather than `SEP2`, an alias of others. Two genes can share a date: `1-Mar` was
    /// `MARCH1` or `MARC1`.
    fn resolve_date(&self, name: &str) -> Option<Resolution> {
        let (month, day) = crate::spreadsheet::day_of_year(name)?;
        let names: Vec<String> = crate::spreadsheet::prefixes(month).iter().map(|p| format!("{p}{day}")).collect();
        [&self.by_symbol, &self.by_previous, &self.by_alias].into_iter().find_map(|table| {
            let mut genes: Vec<usize> = names.iter().filter_map(|n| table.0.get(n)).flatten().copied().collect();
            genes.sort_unstable();
            genes.dedup();
            match genes[..] {
                [] => None,
                [one] => Some(Resolution::Gene(one, Evidence::Date)),
                _ => Some(Resolution::Ambiguous(genes)),
            }
        })
    }

    fn resolve_ensembl(&self, id: &str) -> Option<Resolution> {
        if !id.starts_with("ENSG") {
            return None;
        }
        // The version and what follows is not part of the identity: `ENSG00000124107.5`, `ENSG00000002586.20_PAR_Y`.
        let stem = id.split('.').next().unwrap_or(id);
        self.by_ensembl.resolve(stem, Evidence::Ensembl)
    }
}

/// True for symbols written like those of other vertebrates (`Gad1`, `Sst`): one capital letter, then lower case.
pub fn is_title_case(name: &str) -> bool {
    let letters: Vec<char> = name.chars().filter(|c| c.is_alphabetic()).collect();
    // Human open reading frames are the exception: C1orf43.
    !name.contains("orf")
        && letters.len() > 1
        && letters[0].is_uppercase()
        && letters[1..].iter().all(|c| c.is_lowercase())
}

/// True for an Ensembl gene id of another species: `ENSMUSG00000064372`, `ENSDARG…`.
pub fn is_foreign_ensembl_id(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("ENS") else { return false };
    let letters = rest.bytes().take_while(u8::is_ascii_uppercase).count();
    let (species, digits) = rest.split_at(letters);
    species.len() > 1
        && species.ends_with('G')
        && digits.len() >= 11
        && digits.bytes().take(11).all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbol(name: &str) -> Option<(&'static str, Evidence)> {
        let table = Nomenclature::hgnc();
        match table.resolve(name) {
            Resolution::Gene(i, evidence) => Some((&table.genes()[i].symbol, evidence)),
            _ => None,
        }
    }

    #[test]
    fn every_kind_of_name_finds_its_gene() {
        assert_eq!(Nomenclature::hgnc().genes().len(), 44_997);
        assert_eq!(Nomenclature::hgnc().date(), "2026-06-25");
        assert_eq!(symbol("CXCL8"), Some(("CXCL8", Evidence::Approved)));
        assert_eq!(symbol("IL8"), Some(("CXCL8", Evidence::Previous)));
        assert_eq!(symbol("ENSG00000121410"), Some(("A1BG", Evidence::Ensembl)));
        assert_eq!(symbol("ENSG00000121410.12"), Some(("A1BG", Evidence::Ensembl)));
        assert_eq!(symbol("HLA.A"), Some(("HLA-A", Evidence::Punctuation)));
        assert_eq!(symbol("Sep-02"), Some(("SEPTIN2", Evidence::Date)));
        assert_eq!(symbol("7-Mar"), Some(("MARCHF7", Evidence::Date)));
        assert_eq!(symbol("2021-09-09 00:00:00"), Some(("SEPTIN9", Evidence::Date)));
        assert_eq!(symbol("Sst"), None);
        assert_eq!(symbol("no such gene"), None);
    }

    #[test]
    fn approved_wins_over_previous_and_alias_for_every_gene() {
        let table = Nomenclature::hgnc();
        for (i, gene) in table.genes().iter().enumerate() {
            assert_eq!(table.resolve(&gene.symbol), Resolution::Gene(i, Evidence::Approved));
        }
    }

    #[test]
    fn a_name_of_two_genes_is_ambiguous() {
        assert!(matches!(Nomenclature::hgnc().resolve("C18orf21"), Resolution::Ambiguous(genes) if genes.len() > 1));
    }

    #[test]
    fn a_date_shared_by_two_genes_is_ambiguous() {
        let table = Nomenclature::hgnc();
        let Resolution::Ambiguous(genes) = table.resolve("1-Mar") else { panic!() };
        let symbols: Vec<&str> = genes.iter().map(|g| table.genes()[*g].symbol.as_str()).collect();
        assert!(symbols.contains(&"MARCHF1") && symbols.contains(&"MTARC1"), "{symbols:?}");
    }

    #[test]
    fn ensembl_ids_of_other_species_are_recognised() {
        assert!(is_foreign_ensembl_id("ENSMUSG00000064372.1") && is_foreign_ensembl_id("ENSDARG00000000001"));
        assert!(
            !is_foreign_ensembl_id("ENSG00000121410")
                && !is_foreign_ensembl_id("ENSA")
                && !is_foreign_ensembl_id("INS")
        );
    }

    #[test]
    fn the_37_genes_of_the_mitochondrial_genome_are_mitochondrial() {
        let genes = Nomenclature::hgnc().genes();
        let of = |biotype: &str| genes.iter().filter(|g| g.is_mitochondrial() && g.biotype == biotype).count();
        assert_eq!((of("protein_coding"), of("tRNA"), of("rRNA")), (13, 22, 2));
        assert_eq!(genes.iter().filter(|g| g.is_mitochondrial()).count(), 37);
        assert!(
            is_mitochondrial("MT-unknown", None)
                && !is_mitochondrial("mt-Co1", None)
                && !is_mitochondrial("MTOR", None)
        );
    }

    #[test]
    fn mouse_case_is_recognised() {
        assert!(is_title_case("Gad1") && is_title_case("Sst"));
        assert!(!is_title_case("GAD1") && !is_title_case("C1orf43") && !is_title_case("A"));
    }
}
