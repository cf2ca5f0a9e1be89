//! Features built from columns of names and ids, and the share of gene names on an axis.

use cellql_schemas::feature::Feature;
use cellql_schemas::nomenclature::{Nomenclature, Resolution, is_foreign_ensembl_id, is_title_case};

/// Feature type of measured RNA in 10x files. Other types are other quantities on other scales and are left out.
pub(crate) const EXPRESSION: &str = "Gene Expression";
/// True for the other feature types that Cell Ranger writes: `Antibody Capture`, `CRISPR Guide Capture`, `Peaks`, ….
pub(crate) fn is_other_type(kind: &str) -> bool {
    kind.ends_with(" Capture")
        || matches!(kind, "Peaks" | "Custom" | "VDJ" | "VDJ-T" | "VDJ-B" | "Chromatin Accessibility")
}

/// Common names of var columns that hold Ensembl ids.
pub(crate) const ENSEMBL_COLUMNS: &[&str] =
    &["gene_ids", "gene_id", "ensembl_id", "ensembl_ids", "ensembl", "feature_id", "Accession", "id"];
/// Common names of var columns that hold symbols if the index holds Ensembl ids.
pub(crate) const SYMBOL_COLUMNS: &[&str] = &[
    "feature_name",
    "gene_symbols",
    "gene_symbol",
    "gene_name",
    "gene_names",
    "symbol",
    "gene_short_name",
    "Gene",
    "name",
];

/// True for an Ensembl gene id of any species.
fn is_ensembl(name: &str) -> bool {
    name.starts_with("ENSG") || is_foreign_ensembl_id(name)
}

/// True if more than half of the names are Ensembl ids.
pub(crate) fn are_ensembl<'a>(names: impl IntoIterator<Item = &'a str>) -> bool {
    let (mut ids, mut all) = (0usize, 0usize);
    for name in names {
        all += 1;
        ids += usize::from(is_ensembl(name));
    }
    ids * 2 > all
}

/// Features from the index of `var` and, if there is one, a second column of symbols or Ensembl ids. `column` returns a
/// text column by its name.
pub(crate) fn from_index<E>(
    index: Vec<String>,
    mut column: impl FnMut(&str) -> Option<Result<Vec<String>, E>>,
) -> Result<Vec<Feature>, E> {
    if are_ensembl(index.iter().map(String::as_str)) {
        let symbols = SYMBOL_COLUMNS.iter().find_map(|n| column(n)).transpose()?.unwrap_or_else(|| index.clone());
        return Ok(symbols.into_iter().zip(index).map(|(name, id)| identified(name, id)).collect());
    }
    // Chosen by content and not by name alone: `gene_id` may hold Entrez numbers beside an `ensembl_id`.
    for name in ENSEMBL_COLUMNS {
        if let Some(ids) = column(name).transpose()?.filter(|ids| are_ensembl(ids.iter().map(String::as_str))) {
            return Ok(index.into_iter().zip(ids).map(|(name, id)| identified(name, id)).collect());
        }
    }
    Ok(index.into_iter().map(Feature::named).collect())
}

/// A feature with a name and an Ensembl id. Either may be empty; an empty name is replaced by the id.
pub(crate) fn identified(name: String, id: String) -> Feature {
    let name = if name.is_empty() { id.clone() } else { name };
    Feature { name, ensembl_id: (!id.is_empty()).then_some(id) }
}

/// Share of names, 0 to 1, that are gene names of any species. The axis with the larger share is the axis of genes.
pub(crate) fn share_of_genes<'a>(names: impl IntoIterator<Item = &'a str>) -> f64 {
    let nomenclature = Nomenclature::hgnc();
    let (mut genes, mut all) = (0usize, 0usize);
    for name in names {
        all += 1;
        let known = !matches!(nomenclature.resolve(name), Resolution::Unknown);
        // A barcode in capitals and digits is neither title case nor an Ensembl id.
        genes += usize::from(known || is_ensembl(name) || is_title_case(name));
    }
    genes as f64 / all.max(1) as f64
}
