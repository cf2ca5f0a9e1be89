//! The table `genes` in memory: lookup of a gene by any of its names, and placement of a vocabulary on the store's
//! genes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListBuilder, StringArray, StringBuilder, UInt32Array};
use arrow::datatypes::UInt32Type;
use arrow::record_batch::RecordBatch;
use cellql_schemas::exported::ExportedGene;
use cellql_schemas::genes as table;
use cellql_schemas::nomenclature::{Nomenclature, Resolution, is_mitochondrial};
use cellql_schemas::suggest::did_you_mean;
use cellql_schemas::vocabulary::{Placement, Vocabulary};

use super::error::GeneError;
use crate::content_hash::CellHasher;
use crate::error::{Result, StoreError};

/// A row of the table `genes`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct GeneRow {
    pub(super) symbol: String,
    pub(super) hgnc_id: Option<String>,
    pub(super) ensembl_id: Option<String>,
    pub(super) biotype: Option<String>,
    pub(super) source_names: Vec<String>,
}

/// The table `genes` in memory. A `gene_id` is an index into it.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    pub(super) genes: Vec<GeneRow>,
    by_hgnc: HashMap<String, u32>,
    pub(super) by_source_name: HashMap<String, Vec<u32>>,
    /// Features without identity, by Ensembl id without version.
    by_ensembl: HashMap<String, Vec<u32>>,
    /// Features without identity, by name and Ensembl id as files gave them.
    pub(super) unidentified: HashMap<(String, Option<String>), Vec<u32>>,
}

impl Catalogue {
    /// The table of an empty store: every gene of the nomenclature, not yet measured by any file.
    pub fn from_nomenclature() -> Self {
        let mut catalogue = Self::default();
        for gene in Nomenclature::hgnc().genes() {
            catalogue.push(GeneRow {
                symbol: gene.symbol.clone(),
                hgnc_id: Some(gene.hgnc_id()),
                ensembl_id: gene.ensembl_id.clone(),
                biotype: Some(gene.biotype.clone()),
                source_names: Vec::new(),
            });
        }
        catalogue
    }

    /// Builds the catalogue from batches of the table.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if a column is missing or the ids are not 0, 1, 2, …
    pub fn from_batches(batches: &[RecordBatch]) -> Result<Self> {
        let mut rows = Vec::new();
        for batch in batches {
            read_rows(batch, &mut rows)
                .ok_or_else(|| StoreError::damaged("the table genes of this store", "a column is missing"))?;
        }
        rows.sort_by_key(|(id, _)| *id);
        let mut catalogue = Self::default();
        for (i, (id, gene)) in rows.into_iter().enumerate() {
            if id as usize != i {
                return Err(StoreError::damaged("the table genes of this store", format!("gene_id {i} is missing")));
            }
            catalogue.push(gene);
        }
        Ok(catalogue)
    }

    /// The table as one batch.
    ///
    /// # Errors
    /// Arrow rejects the batch, which a valid catalogue cannot cause.
    pub fn to_batch(&self) -> Result<RecordBatch> {
        let text = |of: &dyn Fn(&GeneRow) -> Option<&str>| -> ArrayRef {
            Arc::new(self.genes.iter().map(of).collect::<StringArray>())
        };
        let mut names = ListBuilder::new(StringBuilder::new()).with_field(table::source_names_item());
        for gene in &self.genes {
            names.append_value(gene.source_names.iter().map(Some));
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from_iter_values(0..self.genes.len() as u32)),
            text(&|g| Some(&g.symbol)),
            text(&|g| g.hgnc_id.as_deref()),
            text(&|g| g.ensembl_id.as_deref()),
            text(&|g| g.biotype.as_deref()),
            Arc::new(names.finish()),
        ];
        RecordBatch::try_new(Arc::new(table::schema()), columns)
            .map_err(StoreError::storage("building the table genes"))
    }

    pub(super) fn push(&mut self, gene: GeneRow) -> u32 {
        let id = self.genes.len() as u32;
        match &gene.hgnc_id {
            Some(hgnc) => {
                self.by_hgnc.insert(hgnc.clone(), id);
            }
            None => {
                if let Some(ensembl) = &gene.ensembl_id {
                    self.by_ensembl.entry(stem(ensembl).to_owned()).or_default().push(id);
                }
                let key = (gene.symbol.clone(), gene.ensembl_id.clone());
                self.unidentified.entry(key).or_default().push(id);
            }
        }
        for name in &gene.source_names {
            self.by_source_name.entry(name.clone()).or_default().push(id);
        }
        self.genes.push(gene);
        id
    }

    /// Computes content hashes of cells with these genes.
    pub fn hasher(&self) -> CellHasher {
        CellHasher::new(self.genes.iter().map(|gene| gene.hgnc_id.as_deref().unwrap_or(&gene.symbol)))
    }

    /// Number of genes.
    pub fn len(&self) -> usize {
        self.genes.len()
    }

    /// True if there are no genes.
    pub fn is_empty(&self) -> bool {
        self.genes.is_empty()
    }

    /// Symbol of a gene; `None` if there is no such id.
    pub fn symbol(&self, gene_id: u32) -> Option<&str> {
        self.genes.get(gene_id as usize).map(|g| g.symbol.as_str())
    }

    /// Symbols that several genes have: those of features without identity may be that of a gene.
    pub fn repeated_symbols(&self) -> HashSet<&str> {
        let mut seen = HashSet::new();
        self.genes.iter().map(|gene| gene.symbol.as_str()).filter(|symbol| !seen.insert(*symbol)).collect()
    }

    /// Names that queries may use (symbols and names in files), sorted ignoring case.
    pub fn names(&self) -> Vec<&str> {
        let all = self.genes.iter().flat_map(|g| g.source_names.iter().chain([&g.symbol]));
        let mut names: Vec<&str> = all.map(String::as_str).collect();
        names.sort_by_cached_key(|name| (name.to_uppercase(), *name));
        names.dedup();
        names
    }

    /// True for genes of the mitochondrial genome, as [`is_mitochondrial`] defines them.
    pub fn is_mitochondrial(&self, gene_id: u32) -> bool {
        self.genes.get(gene_id as usize).is_some_and(|g| is_mitochondrial(&g.symbol, g.biotype.as_deref()))
    }

    /// The description of a gene in an exported table; `None` if there is no such id.
    pub fn exported(&self, gene_id: u32) -> Option<ExportedGene> {
        let gene = self.genes.get(gene_id as usize)?;
        Some(ExportedGene {
            gene_id,
            symbol: gene.symbol.clone(),
            hgnc_id: gene.hgnc_id.clone(),
            ensembl_id: gene.ensembl_id.clone(),
        })
    }

    /// Replaces the source names of all genes, after the removal of a data set.
    pub fn set_source_names(&mut self, names: impl IntoIterator<Item = (u32, String)>) {
        self.genes.iter_mut().for_each(|g| g.source_names.clear());
        for (gene, name) in names {
            if let Some(gene) = self.genes.get_mut(gene as usize)
                && !gene.source_names.contains(&name)
            {
                gene.source_names.push(name);
            }
        }
        self.by_source_name.clear();
        for (id, gene) in self.genes.iter().enumerate() {
            for name in &gene.source_names {
                self.by_source_name.entry(name.clone()).or_default().push(id as u32);
            }
        }
    }

    /// The store's id of a gene of the nomenclature.
    pub(super) fn identified(&self, nomenclature: &Nomenclature, gene: usize) -> Option<u32> {
        self.by_hgnc.get(&nomenclature.genes()[gene].hgnc_id()).copied()
    }

    /// The gene with a name: resolved by the nomenclature first, then by the names of features without identity in
    /// files.
    ///
    /// # Errors
    /// [`GeneError`]: no gene has the name, or several have it.
    pub fn find(&self, name: &str) -> Result<u32, GeneError> {
        let named = || name.to_owned();
        let nomenclature = Nomenclature::hgnc();
        let by_name = || self.by_source_name.get(name).map(Vec::as_slice);
        match nomenclature.resolve(name) {
            Resolution::Gene(gene, _) => {
                self.identified(nomenclature, gene).ok_or_else(|| GeneError::Newer { name: named() })
            }
            Resolution::Ambiguous(_) if matches!(by_name(), Some([_])) => Ok(by_name().map_or(0, |ids| ids[0])),
            Resolution::Ambiguous(genes) => {
                let symbols = genes.iter().map(|g| nomenclature.genes()[*g].symbol.clone()).collect();
                Err(GeneError::Ambiguous { name: named(), symbols })
            }
            Resolution::Unknown => match by_name().or_else(|| self.by_ensembl.get(stem(name)).map(Vec::as_slice)) {
                Some([gene]) => Ok(*gene),
                Some(several) => {
                    let rows = several.iter().map(|id| &self.genes[*id as usize]);
                    let id = |gene: &GeneRow| gene.ensembl_id.clone().unwrap_or_else(|| "no Ensembl id".to_owned());
                    Err(GeneError::SeveralFeatures { name: named(), ensembl_ids: rows.map(id).collect() })
                }
                None => {
                    let known = self.genes.iter().map(|g| g.symbol.as_str());
                    Err(GeneError::Unknown { name: named(), hint: did_you_mean(name, known) })
                }
            },
        }
    }

    /// Maps the positions of a vocabulary to genes of the store.
    pub fn place(&self, vocabulary: &Vocabulary) -> Placement {
        let nomenclature = Nomenclature::hgnc();
        vocabulary.place(nomenclature, &self.by_source_name, |gene| self.identified(nomenclature, gene))
    }
}

/// An Ensembl id without its version.
fn stem(id: &str) -> &str {
    id.split('.').next().unwrap_or(id)
}

fn read_rows(batch: &RecordBatch, rows: &mut Vec<(u32, GeneRow)>) -> Option<()> {
    let text = |name: &str| batch.column_by_name(name)?.as_string_opt::<i32>();
    let ids = batch.column_by_name(table::GENE_ID)?.as_primitive_opt::<UInt32Type>()?;
    let (symbol, hgnc) = (text(table::SYMBOL)?, text(table::HGNC_ID)?);
    let (ensembl, biotype) = (text(table::ENSEMBL_ID)?, text(table::BIOTYPE)?);
    let names = batch.column_by_name(table::SOURCE_NAMES)?.as_list_opt::<i32>()?;
    let owned = |column: &StringArray, i: usize| column.is_valid(i).then(|| column.value(i).to_owned());
    for i in 0..batch.num_rows() {
        let list = names.value(i);
        let source_names = list.as_string_opt::<i32>()?.iter().flatten().map(str::to_owned).collect();
        let gene = GeneRow {
            symbol: symbol.value(i).to_owned(),
            hgnc_id: owned(hgnc, i),
            ensembl_id: owned(ensembl, i),
            biotype: owned(biotype, i),
            source_names,
        };
        rows.push((ids.value(i), gene));
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellql_schemas::feature::Feature;

    #[test]
    fn the_table_survives_a_round_trip() {
        let mut catalogue = Catalogue::from_nomenclature();
        let feature = |name: &str| Feature { name: name.to_owned(), ensembl_id: None };
        catalogue.register(&[feature("INS"), feature("not a gene")]);
        let again = Catalogue::from_batches(&[catalogue.to_batch().unwrap()]).unwrap();
        assert_eq!(again.genes, catalogue.genes);
        assert_eq!(again.by_source_name, catalogue.by_source_name);
        assert_eq!(again.unidentified, catalogue.unidentified);
    }

    #[test]
    fn any_name_finds_the_gene_and_a_wrong_one_its_neighbours() {
        let catalogue = Catalogue::from_nomenclature();
        assert_eq!(catalogue.find("IL8").unwrap(), catalogue.find("CXCL8").unwrap());
        assert!(catalogue.find("CD8AA").unwrap_err().to_string().contains("'CD8A'"));
        let mut catalogue = catalogue;
        let clone = |id: &str| Feature { name: "Y_RNA".into(), ensembl_id: Some(id.into()) };
        let (ids, _) = catalogue.register(&[clone("ENSG99999999998.1"), clone("ENSG99999999999")]);
        assert_eq!(catalogue.find("ENSG99999999998").unwrap(), ids[0]);
        assert!(catalogue.find("Y_RNA").unwrap_err().to_string().contains("2 features"));
        assert!(catalogue.find("C18orf21").unwrap_err().to_string().contains("ambiguous"));
    }
}
