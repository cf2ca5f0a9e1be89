//! Mapping of the features of a file to genes of the store.

use std::collections::HashMap;

use cellql_schemas::feature::Feature;
use cellql_schemas::nomenclature::{Evidence, Nomenclature, Resolution, is_foreign_ensembl_id, is_title_case};

use super::catalogue::{Catalogue, GeneRow};
use super::report::{GeneReport, Renamed};

impl Catalogue {
    /// The gene id of each feature, and a report of how each was resolved. New rows are added where needed.
    ///
    /// No two features of a file get the same gene. If several resolve to one gene, the feature with the approved
    /// symbol gets it, else the one with the stronger evidence, else the first. The others keep rows of their own.
    ///
    /// A name of several genes is resolved if the file leaves one of them: all others stand in the file under their own
    /// approved symbol, Ensembl id or a previous symbol that is of no other gene.
    pub fn register(&mut self, features: &[Feature]) -> (Vec<u32>, GeneReport) {
        let nomenclature = Nomenclature::hgnc();
        let mut report = GeneReport { features: features.len(), ..GeneReport::default() };
        report.title_case = features.iter().filter(|f| is_title_case(&f.name)).count();
        let foreign = |f: &&Feature| is_foreign_ensembl_id(f.ensembl_id.as_deref().unwrap_or(&f.name));
        report.foreign_ids = features.iter().filter(foreign).count();
        report.foreign_example = features.iter().find(foreign).map(|f| f.ensembl_id.clone().unwrap_or(f.name.clone()));
        let mut resolved: Vec<Resolution> =
            features.iter().map(|f| nomenclature.resolve_feature(&f.name, f.ensembl_id.as_deref())).collect();
        eliminate(nomenclature, features, &mut resolved);
        let winners = winners(nomenclature, features, &resolved);
        let mut used: HashMap<(String, Option<String>), usize> = HashMap::new();
        let ids = features
            .iter()
            .zip(&resolved)
            .enumerate()
            .map(|(i, (feature, resolution))| match resolution {
                Resolution::Gene(gene, evidence) if winners[gene] == i => {
                    report.found(feature, &nomenclature.genes()[*gene].symbol, *evidence);
                    self.take_identified(nomenclature, *gene, &feature.name)
                }
                other => {
                    report.not_found(nomenclature, feature, other);
                    self.take_unidentified(feature, &mut used)
                }
            })
            .collect();
        (ids, report)
    }

    fn take_identified(&mut self, nomenclature: &Nomenclature, gene: usize, name: &str) -> u32 {
        let id = self.identified(nomenclature, gene).unwrap_or_else(|| {
            let new = &nomenclature.genes()[gene];
            self.push(GeneRow {
                symbol: new.symbol.clone(),
                hgnc_id: Some(new.hgnc_id()),
                ensembl_id: new.ensembl_id.clone(),
                biotype: Some(new.biotype.clone()),
                source_names: Vec::new(),
            })
        });
        let names = &mut self.genes[id as usize].source_names;
        if !names.iter().any(|n| n == name) {
            names.push(name.to_owned());
            self.by_source_name.entry(name.to_owned()).or_default().push(id);
        }
        id
    }

    /// The row of a feature without identity: the row that an earlier file made for the same name and Ensembl id, or a
    /// new one. The second feature with the same name in a file gets the second such row.
    fn take_unidentified(&mut self, feature: &Feature, used: &mut HashMap<(String, Option<String>), usize>) -> u32 {
        let key = (feature.name.clone(), feature.ensembl_id.clone());
        let nth = used.entry(key.clone()).or_insert(0);
        let existing = self.unidentified.get(&key).and_then(|rows| rows.get(*nth)).copied();
        *nth += 1;
        existing.unwrap_or_else(|| {
            self.push(GeneRow {
                symbol: feature.name.clone(),
                hgnc_id: None,
                ensembl_id: feature.ensembl_id.clone(),
                biotype: None,
                source_names: vec![feature.name.clone()],
            })
        })
    }
}

/// For each gene, the index of the feature that gets it.
fn winners(nomenclature: &Nomenclature, features: &[Feature], resolved: &[Resolution]) -> HashMap<usize, usize> {
    let rank = |i: usize, gene: usize, evidence: Evidence| {
        (features[i].name != nomenclature.genes()[gene].symbol, evidence, i)
    };
    let mut best: HashMap<usize, (bool, Evidence, usize)> = HashMap::new();
    for (i, resolution) in resolved.iter().enumerate() {
        if let Resolution::Gene(gene, evidence) = resolution {
            let this = rank(i, *gene, *evidence);
            let held = best.entry(*gene).or_insert(this);
            *held = (*held).min(this);
        }
    }
    best.into_iter().map(|(gene, (_, _, i))| (gene, i)).collect()
}

/// Resolves names of several genes of which the other features leave one: see [`Catalogue::register`].
fn eliminate(nomenclature: &Nomenclature, features: &[Feature], resolved: &mut [Resolution]) {
    let winners = winners(nomenclature, features, resolved);
    let has_own_name = |gene: usize| {
        winners.get(&gene).is_some_and(|i| matches!(resolved[*i], Resolution::Gene(_, by) if by <= Evidence::Previous))
    };
    let is_open = |i: usize, resolution: &Resolution| match resolution {
        Resolution::Ambiguous(_) => true,
        // Another feature has the gene, so the name may be meant for a gene of which it is a weaker name.
        Resolution::Gene(gene, by) => *by > Evidence::Approved && winners.get(gene) != Some(&i),
        Resolution::Unknown => false,
    };
    let left = |feature: &Feature| {
        let classes = nomenclature.candidates(&feature.name, feature.ensembl_id.as_deref());
        let left = |class: Vec<usize>| class.into_iter().filter(|gene| !has_own_name(*gene)).collect::<Vec<_>>();
        let strongest = classes.into_iter().map(left).find(|left| !left.is_empty())?;
        <[usize; 1]>::try_from(strongest).ok().map(|[gene]| gene)
    };
    let open = resolved.iter().enumerate().filter(|(i, resolution)| is_open(*i, resolution));
    let found: Vec<(usize, usize)> = open.filter_map(|(i, _)| Some((i, left(&features[i])?))).collect();
    for (i, gene) in found {
        resolved[i] = Resolution::Gene(gene, Evidence::Elimination);
    }
}

impl GeneReport {
    fn found(&mut self, feature: &Feature, symbol: &str, evidence: Evidence) {
        let renamed = || Renamed { name: feature.name.clone(), symbol: symbol.to_owned() };
        match evidence {
            Evidence::Ensembl => self.ensembl += 1,
            Evidence::Approved => self.approved += 1,
            Evidence::Previous => self.previous.push(renamed()),
            Evidence::Alias => self.alias.push(renamed()),
            Evidence::Punctuation => self.punctuation.push(renamed()),
            Evidence::Date => self.dates.push(renamed()),
            Evidence::Elimination => self.elimination.push(renamed()),
        }
    }

    fn not_found(&mut self, nomenclature: &Nomenclature, feature: &Feature, resolution: &Resolution) {
        let symbol = |gene: usize| nomenclature.genes()[gene].symbol.clone();
        match resolution {
            Resolution::Gene(gene, _) => {
                self.second.push(Renamed { name: feature.name.clone(), symbol: symbol(*gene) });
            }
            Resolution::Ambiguous(genes) => {
                let symbols: Vec<String> = genes.iter().map(|g| symbol(*g)).collect();
                self.ambiguous.push(Renamed { name: feature.name.clone(), symbol: symbols.join(", ") });
            }
            Resolution::Unknown => self.unknown.push(feature.name.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(names: &[&str]) -> Vec<Feature> {
        names.iter().map(|n| Feature { name: (*n).to_owned(), ensembl_id: None }).collect()
    }

    #[test]
    fn the_approved_name_takes_the_gene_and_the_other_keeps_its_own_row() {
        let mut catalogue = Catalogue::from_nomenclature();
        let (ids, report) = catalogue.register(&features(&["IL8", "CXCL8"]));
        assert_eq!(catalogue.symbol(ids[1]), Some("CXCL8"));
        assert_eq!(catalogue.symbol(ids[0]), Some("IL8"));
        assert_ne!(ids[0], ids[1]);
        assert_eq!(report.second, [Renamed { name: "IL8".into(), symbol: "CXCL8".into() }]);
        assert_eq!(report.resolved(), 1);
    }

    #[test]
    fn an_old_name_alone_is_the_gene() {
        let mut catalogue = Catalogue::from_nomenclature();
        let (ids, report) = catalogue.register(&features(&["IL8"]));
        assert_eq!(ids[0], catalogue.find("CXCL8").unwrap());
        assert_eq!(report.previous.len(), 1);
    }

    #[test]
    fn a_name_of_two_genes_is_the_one_that_the_file_leaves() {
        let resolved = |names: &[&str]| {
            let mut catalogue = Catalogue::from_nomenclature();
            let (ids, report) = catalogue.register(&features(names));
            (catalogue.symbol(ids[0]).unwrap().to_owned(), report)
        };
        // COX1 is an alias of MT-CO1 and PTGS1.
        let (symbol, report) = resolved(&["COX1", "PTGS1"]);
        assert_eq!(symbol, "MT-CO1");
        assert_eq!(report.elimination, [Renamed { name: "COX1".into(), symbol: "MT-CO1".into() }]);
        assert_eq!(report.resolved(), 2);
        assert_eq!(resolved(&["COX1", "MT-CO1"]).0, "PTGS1");
        // Neither leaves one.
        for names in [&["COX1"][..], &["COX1", "MT-CO1", "PTGS1"]] {
            let (symbol, report) = resolved(names);
            assert_eq!((symbol.as_str(), report.ambiguous.len()), ("COX1", 1));
        }
        // An Ensembl id is a name of its own too.
        let mut catalogue = Catalogue::from_nomenclature();
        let ptgs1 = Feature { name: "some".into(), ensembl_id: Some("ENSG00000095303.18".into()) };
        let (ids, _) = catalogue.register(&[features(&["COX1"]).remove(0), ptgs1]);
        assert_eq!(catalogue.symbol(ids[0]), Some("MT-CO1"));
        assert!(catalogue.is_mitochondrial(ids[0]));
    }

    #[test]
    fn unknown_names_are_kept_and_found_again_by_the_next_file() {
        let mut catalogue = Catalogue::from_nomenclature();
        let before = catalogue.len();
        let (first, _) = catalogue.register(&features(&["x?", "x?", "y?"]));
        let (second, _) = catalogue.register(&features(&["y?", "x?"]));
        assert_eq!(catalogue.len(), before + 3);
        assert_eq!(second, [first[2], first[0]]);
        assert_ne!(first[0], first[1]);
    }

    #[test]
    fn an_ensembl_id_decides_before_the_name() {
        let mut catalogue = Catalogue::from_nomenclature();
        let feature = Feature { name: "no such".into(), ensembl_id: Some("ENSG00000121410.3".into()) };
        let (ids, report) = catalogue.register(&[feature]);
        assert_eq!(catalogue.symbol(ids[0]), Some("A1BG"));
        assert_eq!(report.ensembl, 1);
    }
}
